"""Looking at every object of a store: is it what its name says, and do maps and packs agree?

Each object is read once, in pieces; of what was read only names are kept, and the headers of the
packs that were looked at last. What the index says of all this is in engines/keeping/checking.py.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from engines.store import objects as names
from engines.store import packs
from engines.store.chunk_map import MAP_LIMIT_BYTES, ChunkMap, map_from_bytes
from engines.store.objects import Listed, Objects
from engines.store.packs import PackedChunk
from planyard.core.errors import IntegrityError

_HEADERS = 256
_NEAR_READERS = 2
_FAR_READERS = 4
_IN_FLIGHT = 4
"""Objects for each reader that wait or are read."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Which blobs and packs are read: one of `of` equal parts, by name; `of` runs read all.

    Maps and index entries, less than a thousandth of a store, are always read.
    """

    number: int = 0
    of: int = 1

    def has(self, name: str) -> bool:
        """Whether an object belongs to it."""
        return int(name[-16:], 16) % self.of == self.number % self.of


@dataclass
class Damage:
    """Something wrong with an object. `blobs` cannot be read because of it."""

    name: str
    problem: str
    is_missing: bool = False
    blobs: set[str] = field(default_factory=set)
    breaks: set[str] = field(default_factory=set)


@dataclass
class ObjectCheck:
    """What is known after a look at packs, maps and blobs."""

    damage: dict[str, Damage] = field(default_factory=dict)
    whole: set[bytes] = field(default_factory=set)
    """Digests of the blobs that can be read."""
    lost: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Names of the objects at fault, for blobs of which not every form can be read."""
    objects: int = 0
    read_bytes: int = 0

    def add(self, name: str, problem: str, *, is_missing: bool = False) -> Damage:
        """Note a problem; the first of an object counts."""
        return self.damage.setdefault(name, Damage(name, problem, is_missing=is_missing))

    def has(self, digest: str) -> bool:
        """Whether a blob can be read."""
        return bytes.fromhex(digest[7:]) in self.whole


def check_objects(
    objects: Objects, *, part: Slice, progress: Callable[[str], None] = lambda _: None
) -> ObjectCheck:
    """Check packs, maps and blobs, in this order: each needs to know of the one before."""
    found = ObjectCheck()
    threads = _NEAR_READERS if objects.is_near else _FAR_READERS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fsck")
    try:
        reader = _Reader(objects, found, pool=pool, ahead=threads * _IN_FLIGHT, progress=progress)
        stored = {_key(each) for each in reader.read_all(names.PACKS, part=part)}
        _check_maps(objects, found, reader, packs_stored=stored)
        for listed in reader.read_all(names.BLOBS, part=part):
            digest = names.digest_of_name(listed.name)
            if damaged := found.damage.get(listed.name):
                damaged.blobs.add(digest)
                found.lost[digest].add(listed.name)
            else:
                found.whole.add(bytes.fromhex(digest[7:]))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def pack_header(objects: Objects, name: str) -> list[PackedChunk]:
    """The chunks a pack lists; raises IntegrityError, or FileNotFoundError."""
    where = f"{objects.url}: {name}"
    data = b"".join(objects.read(name, length=packs.HEADER_GUESS_BYTES))
    end = packs.header_bytes(data, where=where)
    if end > len(data):
        data = b"".join(objects.read(name, length=end))
    return packs.chunks_of_header(data, where=where)


class _Reader:
    """Reads objects ahead of their use, several at once, and notes what is not as its name says."""

    def __init__(
        self,
        objects: Objects,
        found: ObjectCheck,
        *,
        pool: ThreadPoolExecutor,
        ahead: int,
        progress: Callable[[str], None],
    ) -> None:
        self._objects, self._found, self._pool = objects, found, pool
        self._ahead, self._progress = ahead, progress

    def read_all(self, area: str, *, part: Slice) -> Iterator[Listed]:
        """Every object of an area, in order, those of the part after they were read."""
        waiting: deque[tuple[Listed, Future[str] | None]] = deque()
        for listed in self.listing(area):
            reading = None
            if part.has(listed.name):
                reading = self._pool.submit(_problem_of, self._objects, listed)
            waiting.append((listed, reading))
            if len(waiting) > self._ahead:
                yield self._done(*waiting.popleft())
        while waiting:
            yield self._done(*waiting.popleft())

    def listing(self, area: str) -> Iterator[Listed]:
        """The objects of an area; a folder that is a link is noted, and not followed."""
        try:
            yield from self._objects.listing(area)
        except IntegrityError as error:
            self._found.add(area, f"{error.message}: what lies behind it was not looked at")

    def _done(self, listed: Listed, reading: Future[str] | None) -> Listed:
        if reading is not None:
            problem = reading.result()
            if problem:
                self._found.add(listed.name, problem)
            self.count(listed.size_bytes)
        return listed

    def count(self, size_bytes: int) -> None:
        """Note that an object was read."""
        self._found.objects += 1
        self._found.read_bytes += size_bytes
        self._progress(f"{self._found.objects} objects")


def _problem_of(objects: Objects, listed: Listed) -> str:
    """What is wrong with an object's bytes; empty when nothing is."""
    seen, size_bytes, head = hashlib.sha256(), 0, b""
    try:
        for piece in objects.read(listed.name):
            head = head or bytes(piece[: packs.HEADER_GUESS_BYTES])
            seen.update(piece)
            size_bytes += len(piece)
    except FileNotFoundError:
        return ""  # removed since it was listed: by a collection
    except IntegrityError as error:
        return error.message
    if "sha256:" + seen.hexdigest() == names.digest_of_name(listed.name):
        return ""
    said = f"its {size_bytes} bytes are sha256:{seen.hexdigest()}"
    if listed.name.startswith(names.PACKS):
        return _problem_of_pack(head, size_bytes) or said
    return said


def _problem_of_pack(head: bytes, size_bytes: int) -> str:
    """Whether a damaged pack was cut off, or something was appended."""
    try:
        chunks = packs.chunks_of_header(head, where="the pack")
    except IntegrityError as error:
        return error.message
    meant = chunks[-1].offset + chunks[-1].length
    if size_bytes < meant:
        return f"truncated: {size_bytes} of {meant} bytes are there"
    return f"{size_bytes - meant} bytes too many at its end" if size_bytes > meant else ""


def _check_maps(
    objects: Objects, found: ObjectCheck, reader: _Reader, *, packs_stored: set[bytes]
) -> None:
    headers = _Headers(objects)
    for listed in reader.listing(names.MAPS):
        blob = f"sha256:{listed.name.split('/')[1]}"
        reader.count(listed.size_bytes)
        try:
            made = _read_map(objects, listed, blob=blob)
        except FileNotFoundError:
            continue
        except IntegrityError as error:
            at_fault = {found.add(listed.name, error.message).name}
        else:
            at_fault = _packs_at_fault(made, found, packs_stored)
            sound = [names.pack_name(made.family, each) for each in made.packs]
            if problem := headers.compare(made, [n if n not in at_fault else "" for n in sound]):
                at_fault.add(found.add(listed.name, problem).name)
        for name in at_fault:
            found.damage[name].blobs.add(blob)
        if at_fault:
            found.lost[blob] |= at_fault
        else:
            found.whole.add(bytes.fromhex(blob[7:]))


def _read_map(objects: Objects, listed: Listed, *, blob: str) -> ChunkMap:
    if listed.size_bytes > MAP_LIMIT_BYTES:
        raise IntegrityError(f"too large to be a chunk map: {listed.size_bytes} bytes")
    data = b"".join(objects.read(listed.name, length=MAP_LIMIT_BYTES + 1))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    if digest != names.digest_of_name(listed.name):
        raise IntegrityError(f"its {len(data)} bytes are {digest}")
    return map_from_bytes(data, blob=blob, name=listed.name, where="the map")


def _packs_at_fault(made: ChunkMap, found: ObjectCheck, stored: set[bytes]) -> set[str]:
    """The packs of a map that are damaged or missing."""
    at_fault = set()
    for pack in made.packs:
        name = names.pack_name(made.family, pack)
        if bytes.fromhex(made.family[7:] + pack[7:]) not in stored:
            found.add(name, "it is missing, and a chunk map names it", is_missing=True)
        if name in found.damage:
            at_fault.add(name)
    return at_fault


class _Headers:
    """Headers of packs, the last ones kept."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._kept: OrderedDict[str, dict[int, tuple[bytes, int]]] = OrderedDict()

    def compare(self, made: ChunkMap, pack_names: list[str]) -> str:
        """Where a map says something else than its packs; empty names are not looked at."""
        for number, (digest, pack, offset, length) in enumerate(made):
            name = pack_names[pack]
            if name and self._chunks(name).get(offset) != (digest, length):
                return f"its chunk {number} is not at byte {offset} of {name}"
        return ""

    def _chunks(self, name: str) -> dict[int, tuple[bytes, int]]:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        try:
            chunks = pack_header(self._objects, name)
        except (FileNotFoundError, IntegrityError):
            chunks = []  # a pack that was not read in this part of the store, or is gone since
        self._kept[name] = {each.offset: (each.digest, each.length) for each in chunks}
        if len(self._kept) > _HEADERS:
            self._kept.popitem(last=False)
        return self._kept[name]


def _key(listed: Listed) -> bytes:
    _, family, pack = listed.name.split("/")
    return bytes.fromhex(family + pack)
