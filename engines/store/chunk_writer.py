"""Writing a blob as chunks: only those its family does not have yet are stored, packed.

The packs of a family are its index: each lists its chunks in a header, so what a killed writer left
is found again and not sent twice. Packs are written beside the cutting, the map only after all of
them are there.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from engines.store import objects as names
from engines.store import packs
from engines.store.chunk_map import ChunkMap, map_to_bytes, pack_records
from engines.store.chunking import CUT
from engines.store.objects import Objects
from engines.store.protocol import hex_of_digest, verified
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError

KNOWN_LIMIT = 400_000
"""Chunks of a family kept in memory, 28 GB of them; further ones are stored again."""

_FAR_WRITERS = 4
_NEAR_WRITERS = 2


class ChunkWriter:
    """Writes blobs of one family. Use it as `with ChunkWriter.opened(…) as writer`."""

    def __init__(
        self, objects: Objects, *, family: str, pool: ThreadPoolExecutor, ahead: int
    ) -> None:
        self._objects, self._family = objects, family
        self._pool, self._ahead = pool, ahead
        self._found: dict[bytes, int] = {}
        self._digests: list[bytes] = []
        self._places = array("Q")  # pack << 32 | offset; of a pack being filled, behind its header
        self._lengths = array("I")
        self._packs: list[str] = []
        self._headers = array("I")  # header length of packs written here, 0 of those found
        self._sequence = array("I")
        self._open: list[int] = []
        self._payload: list[bytes] = []
        self._payload_bytes = 0
        self._writing: deque[Future[None]] = deque()
        self.new_bytes = 0

    @classmethod
    @contextmanager
    def opened(cls, objects: Objects, *, family: str) -> Iterator[ChunkWriter]:
        """A writer that knows the family's chunks; its threads end with the block."""
        threads = _NEAR_WRITERS if objects.is_near else _FAR_WRITERS
        pool = ThreadPoolExecutor(threads, thread_name_prefix="packs")
        try:
            writer = cls(objects, family=family, pool=pool, ahead=threads)
            for name, chunks in known_packs(objects, family, pool=pool):
                writer._know(name, chunks)
            yield writer
        finally:
            pool.shutdown(cancel_futures=True)

    def predict(self, digest: bytes) -> tuple[bytes, int] | None:
        """The chunk that followed this one when it was stored."""
        number = self._found.get(digest, -1) + 1
        if 0 < number < len(self._digests):
            return self._digests[number], self._lengths[number]
        return None

    def has(self, digest: bytes) -> bool:
        """Whether the chunk is stored, or will be with this blob."""
        return digest in self._found

    def add(self, digest: bytes, data: memoryview) -> None:
        """The next chunk of the blob; it is copied when it is new."""
        number = self._found.get(digest)
        if number is None:
            number = len(self._digests)
            pack = len(self._packs)
            self._open.append(number)
            self._append(digest, pack << 32 | self._payload_bytes, len(data))
            self._payload.append(bytes(data))
            self._payload_bytes += len(data)
            self.new_bytes += len(data)
            if self._payload_bytes >= packs.PACK_BYTES:
                self._close_pack()
        self._sequence.append(number)

    def send_pack(self, source: Objects, digest: str, chunks: Sequence[packs.PackedChunk]) -> None:
        """Have a whole pack of another place here; `chunks` are those of it that are needed."""
        self._know(digest, chunks)
        name = names.pack_name(self._family, digest)
        self.new_bytes += sum(each.length for each in chunks)
        self._begin(self._send, source, name)

    def add_known(self, digest: bytes) -> None:
        """The next chunk of the blob, which `has` says is stored."""
        self._sequence.append(self._found[digest])

    def finish(self, blob: str, *, size_bytes: int) -> ChunkMap:
        """Wait for all packs, then write the map: from now on the blob is there."""
        if self._open:
            self._close_pack()
        while self._writing:
            self._writing.popleft().result()
        made = self._map(blob, size_bytes=size_bytes)
        data = map_to_bytes(made, cut=CUT)
        self._objects.write(names.map_name(blob, digest_of_bytes(data)), data)
        self._sequence = array("I")
        return made

    def _know(self, name: str, chunks: Iterable[packs.PackedChunk]) -> None:
        pack = len(self._packs)
        self._packs.append(name)
        self._headers.append(0)
        for digest, offset, length in chunks:
            self._append(digest, pack << 32 | offset, length)

    def _append(self, digest: bytes, place: int, length: int) -> None:
        self._found.setdefault(digest, len(self._digests))
        self._digests.append(digest)
        self._places.append(place)
        self._lengths.append(length)

    def _close_pack(self) -> None:
        chunks = [(self._digests[each], self._lengths[each]) for each in self._open]
        header, payload = packs.pack_header(chunks), self._payload
        pack = len(self._packs)
        self._packs.append("")
        self._headers.append(len(header))
        self._open, self._payload, self._payload_bytes = [], [], 0
        self._begin(self._write_pack, pack, header, payload)

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        """Work beside the caller; what is under way, and in memory, is bounded."""
        if len(self._writing) >= self._ahead:
            self._writing.popleft().result()
        self._writing.append(self._pool.submit(work, *arguments))

    def _send(self, source: Objects, name: str) -> None:
        pieces = verified(names.digest_of_name(name), source.read(name), where=source.url)
        self._objects.write(name, tuple(pieces), proved=True)

    def _write_pack(self, pack: int, header: bytes, payload: list[bytes]) -> None:
        seen = hashlib.sha256(header)
        for chunk in payload:
            seen.update(chunk)
        self._packs[pack] = digest = f"sha256:{seen.hexdigest()}"
        name = names.pack_name(self._family, digest)
        self._objects.write(name, (header, *payload), proved=True)

    def _map(self, blob: str, *, size_bytes: int) -> ChunkMap:
        used: dict[int, int] = {}
        rows = []
        for number in self._sequence:
            place = self._places[number]
            pack = place >> 32
            offset = (place & 0xFFFFFFFF) + self._headers[pack]
            index = used.setdefault(pack, len(used))
            rows.append((self._digests[number], index, offset, self._lengths[number]))
        return ChunkMap(
            blob=blob,
            size_bytes=size_bytes,
            family=self._family,
            packs=tuple(self._packs[pack] for pack in used),
            records=pack_records(rows),
        )


def known_packs(
    objects: Objects, family: str, *, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, list[packs.PackedChunk]]]:
    """Digest and chunks of each pack of a family, up to `KNOWN_LIMIT` chunks."""
    listed = objects.listing(f"{names.PACKS}{hex_of_digest(family)}/")
    found = [each.name for each in listed]
    known = 0
    for name, chunks in zip(
        found, pool.map(lambda each: _chunks(objects, each), found), strict=True
    ):
        known += len(chunks)
        if known > KNOWN_LIMIT:
            return
        yield names.digest_of_name(name), chunks


def _chunks(objects: Objects, name: str) -> list[packs.PackedChunk]:
    """What a pack holds; nothing when it is damaged: its chunks are then stored again."""
    where = f"{objects.url}: {name}"
    try:
        data = b"".join(objects.read(name, length=packs.HEADER_GUESS_BYTES))
        end = packs.header_bytes(data, where=where)
        if end > len(data):
            data = b"".join(objects.read(name, length=end))
        return packs.chunks_of_header(data, where=where)
    except (FileNotFoundError, IntegrityError):
        return []
