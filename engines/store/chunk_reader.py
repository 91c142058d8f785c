"""Reading the chunks of a blob in order, each verified before it is handed out.

Who verifies the whole blob by its sha256 anyway reads unverified, and looks for the damaged chunk
only when that fails.

Wanted chunks that lie close together in a pack are one read; reads go ahead of their use. What was
read is kept for a while, because a plan goes back and forth between its own pack and its family's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from engines.store import objects as names
from engines.store.chunk_map import ChunkMap, MappedChunk
from engines.store.objects import Objects
from engines.store.packs import MAX_CHUNK_BYTES, PACK_BYTES, chunk_digest
from planyard.core.errors import IntegrityError

GAP_BYTES = 64 << 10
"""Unwanted bytes between two wanted chunks up to which one read takes both."""

_READ_BYTES = PACK_BYTES + MAX_CHUNK_BYTES  # a whole pack, whose last chunk went past its size
_KEPT_BYTES = 24 << 20
_FAR_READERS = 4
_NEAR_READERS = 2


@dataclass(frozen=True)
class Run:
    """Chunks that follow one another: their bytes, and digest and length of each."""

    data: memoryview
    chunks: Sequence[tuple[bytes, int]]


@dataclass(frozen=True)
class _Segment:
    """A stretch of a pack that is read at once."""

    pack: int
    start: int
    length: int


class PackLostError(IntegrityError):
    """A pack that a map names is not there."""


def read_runs(
    objects: Objects,
    found: ChunkMap,
    *,
    wanted: Callable[[bytes], bool] | None = None,
    verify: bool = True,
) -> Iterator[Run]:
    """The wanted chunks of a blob (all of them by default), in order, verified if so asked.

    Raises IntegrityError for a chunk whose bytes are not its digest's, PackLostError for a pack
    that is not there.
    """
    chosen = [each for each in found if wanted is None or wanted(each.digest)]
    return read_chunks(objects, found, chosen, verify=verify)


def read_chunks(
    objects: Objects, found: ChunkMap, chunks: Sequence[MappedChunk], *, verify: bool = True
) -> Iterator[Run]:
    """`chunks` of a blob, in that order; errors as of `read_runs`."""
    segments, visits = _plan_reads(chunks)
    threads = _NEAR_READERS if objects.is_near else _FAR_READERS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="chunks")
    try:
        ahead = _ReadAhead(objects, found, segments, visits=visits, pool=pool, ahead=threads + 1)
        start = 0
        while start < len(chunks):
            end = start + 1
            while end < len(chunks) and _follows(chunks[end - 1], chunks[end], visits, end):
                end += 1
            segment, data = ahead.take(start)
            name = names.pack_name(found.family, found.packs[segment.pack])
            where = f"{objects.url}: {name}"
            try:
                run = _run(chunks[start:end], segment, data, where=where, verify=verify)
            except IntegrityError:
                _forget(objects, name)
                raise
            yield run
            start = end
    finally:
        pool.shutdown(cancel_futures=True)


def _plan_reads(chunks: Sequence[MappedChunk]) -> tuple[list[_Segment], list[int]]:
    """The reads that cover `chunks`, and for each chunk the number of its read."""
    order = sorted(range(len(chunks)), key=lambda each: chunks[each][1:3])
    segments: list[_Segment] = []
    visits = [0] * len(chunks)
    for number in order:
        _, pack, offset, length = chunks[number]
        last = segments[-1] if segments else None
        if last and last.pack == pack and offset <= last.start + last.length + GAP_BYTES:
            reach = max(last.start + last.length, offset + length) - last.start
            if reach <= _READ_BYTES:
                segments[-1] = _Segment(pack, last.start, reach)
                visits[number] = len(segments) - 1
                continue
        segments.append(_Segment(pack, offset, length))
        visits[number] = len(segments) - 1
    return segments, visits


def _follows(before: MappedChunk, after: MappedChunk, visits: Sequence[int], at: int) -> bool:
    contiguous = before.pack == after.pack and before.offset + before.length == after.offset
    return contiguous and visits[at - 1] == visits[at]


def _run(
    chunks: Sequence[MappedChunk], segment: _Segment, data: bytes, *, where: str, verify: bool
) -> Run:
    start = chunks[0].offset - segment.start
    view, at = memoryview(data)[start:], 0
    for digest, _, _, length in chunks:
        piece = view[at : at + length]
        if len(piece) != length or (verify and chunk_digest(piece) != digest):
            raise IntegrityError(
                f"{where} is damaged at byte {segment.start + start + at}",
                mend="run `planyard store fsck --repair-from URL`, or build the plan again",
            )
        at += length
    return Run(view[:at], [(chunk.digest, chunk.length) for chunk in chunks])


def _forget(objects: Objects, name: str) -> None:
    """A cache must not keep what failed here: the store may be mended."""
    from engines.store.cached import CachedObjects

    if isinstance(objects, CachedObjects):
        objects.forget(name)


class _ReadAhead:
    """Reads segments in the order of their first use, and keeps some that were used."""

    def __init__(
        self,
        objects: Objects,
        found: ChunkMap,
        segments: Sequence[_Segment],
        *,
        visits: Sequence[int],
        pool: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        self._objects, self._found, self._segments = objects, found, segments
        self._visits, self._pool, self._ahead = visits, pool, ahead
        self._order = list(dict.fromkeys(visits))
        self._place = {number: place for place, number in enumerate(self._order)}
        self._reached = self._asked = 0
        self._held: dict[int, Future[bytes]] = {}

    def take(self, at: int) -> tuple[_Segment, bytes]:
        """The segment of the chunk `at`, and its bytes."""
        number = self._visits[at]
        self._reached = max(self._reached, self._place[number])
        self._forget_used()
        # Used last is forgotten last: a plan comes back to its own pack again and again.
        wanted = self._held.pop(number, None) or self._pool.submit(self._read, number)
        self._held[number] = wanted
        last = min(self._reached + self._ahead, len(self._order) - 1)
        while self._asked <= last:
            next_one = self._order[self._asked]
            if next_one not in self._held:
                self._held[next_one] = self._pool.submit(self._read, next_one)
            self._asked += 1
        return self._segments[number], wanted.result()

    def _forget_used(self) -> None:
        used = [each for each in self._held if self._place[each] < self._reached]
        kept_bytes = sum(self._segments[each].length for each in used)
        for each in used:
            if kept_bytes <= _KEPT_BYTES:
                return
            kept_bytes -= self._segments[each].length
            del self._held[each]

    def _read(self, number: int) -> bytes:
        segment = self._segments[number]
        name = names.pack_name(self._found.family, self._found.packs[segment.pack])
        try:
            pieces = self._objects.read(name, start=segment.start, length=segment.length)
            return b"".join(pieces)
        except FileNotFoundError as error:
            raise PackLostError(
                f"{self._objects.url} has no {name}, which {self._found.blob} needs",
                mend="run `planyard store fsck --repair-from URL`, or build the plan again",
            ) from error
