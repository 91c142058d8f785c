"""Seeds: files on this disk whose chunks are used instead of fetching them from far away.

A seed is a blob that was fetched before. Its chunk map, which is small, says where its chunks lie
in the file. Every chunk is verified before it is used; a file where one is not what it should be is
no seed any more, and the store is asked instead. The files stay open, so that one that is replaced
meanwhile still serves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from engines.store.chunk_map import ChunkMap, MappedChunk
from engines.store.chunk_reader import Run, read_chunks
from engines.store.counted import Traffic
from engines.store.local import open_regular
from engines.store.packs import chunk_digest
from engines.store.protocol import Store
from engines.store.store import ObjectStore
from planyard.core.errors import IntegrityError

STRETCH_BYTES = 4 << 20
"""As much of a file is read at once."""

FILES_LIMIT = 64
MAPS_LIMIT_BYTES = 64 << 20
"""Maps of more seeds are not kept in memory: that is enough for about 80 GB of them."""


@dataclass(frozen=True, kw_only=True)
class _Seed:
    file: FileIO
    digest: str
    group: str
    found: ChunkMap | None = None


@dataclass(frozen=True)
class _Place:
    seed: str
    offset: int


class Seeds:
    """The files; use it as a context manager. `group` names what probably shares chunks."""

    def __init__(self, store: Store, *, traffic: Traffic | None = None) -> None:
        self._store, self.traffic = store, traffic or Traffic()
        self._seeds: dict[str, _Seed] = {}
        self._map_bytes = 0

    def __enter__(self) -> Seeds:
        return self

    def __exit__(self, *_: object) -> None:
        for seed in self._seeds.values():
            seed.file.close()
        self._seeds.clear()

    def add(self, path: Path, digest: str, *, group: str, found: ChunkMap | None = None) -> None:
        """A file that had the bytes of `digest` once; what is no regular file is passed over.

        `found` is the blob's map, where it is known already.
        """
        if digest in self._seeds or len(self._seeds) >= FILES_LIMIT:
            return
        try:
            file = open_regular(path)
        except (OSError, IntegrityError):
            return
        self._seeds[digest] = _Seed(file=file, digest=digest, group=group)
        if found is not None:
            self._keep_map(digest, found)

    def drop(self, digest: str) -> None:
        """A file turned out not to be what it was."""
        self._seeds.pop(digest).file.close()

    def places(self, chunks: Sequence[MappedChunk], *, group: str) -> dict[bytes, _Place]:
        """Which of these chunks lie in a seed, and where; the first seed that has it."""
        missing = {chunk.digest for chunk in chunks}
        places: dict[bytes, _Place] = {}
        mine = [seed.digest for seed in self._seeds.values() if seed.group == group]
        for digest in mine:
            if not missing:
                break
            found, offset = self._map_of(digest), 0
            for chunk in found or ():
                if chunk.digest in missing:
                    missing.remove(chunk.digest)
                    places[chunk.digest] = _Place(digest, offset)
                offset += chunk.length
        return places

    def read(self, place: _Place, chunks: Sequence[MappedChunk]) -> bytes | None:
        """Chunks that follow one another in a seed; None, and a seed less, if one is another."""
        seed = self._seeds[place.seed]
        data, good = read_held(seed.file, place.offset, chunks)
        if good < len(chunks):
            self.drop(place.seed)
            return None
        self.traffic.reused(len(data))
        return data

    def _map_of(self, digest: str) -> ChunkMap | None:
        """The map of a seed, asked for once; without one it is no seed."""
        seed = self._seeds[digest]
        if seed.found is not None:
            return seed.found
        found = None
        if isinstance(self._store, ObjectStore):
            with contextlib.suppress(IntegrityError):
                found = next(self._store.maps_of(digest), None)
        if found is None:
            self.drop(digest)
            return None
        return self._keep_map(digest, found)

    def _keep_map(self, digest: str, found: ChunkMap) -> ChunkMap | None:
        seed = self._seeds[digest]
        self._map_bytes += len(found.records)
        if self._map_bytes > MAPS_LIMIT_BYTES:
            self.drop(digest)
            return None
        self._seeds[digest] = replace(seed, found=found)
        return found


def read_held(file: FileIO, offset: int, chunks: Sequence[MappedChunk]) -> tuple[bytes, int]:
    """The bytes of chunks that should lie one after another, and how many of them really do."""
    wanted = sum(chunk.length for chunk in chunks)
    try:
        data = os.pread(file.fileno(), wanted, offset)
    except OSError:
        return b"", 0
    view, at = memoryview(data), 0
    for good, chunk in enumerate(chunks):
        piece = view[at : at + chunk.length]
        if len(piece) != chunk.length or chunk_digest(piece) != chunk.digest:
            return data[:at], good
        at += chunk.length
    return data, len(chunks)


def read_with_seeds(
    store: ObjectStore,
    found: ChunkMap,
    chunks: Sequence[MappedChunk],
    *,
    seeds: Seeds,
    group: str,
) -> Iterator[memoryview]:
    """The bytes of `chunks`, in order, verified: from seeds where they are, else from the store."""
    rest = list(chunks)
    while rest:
        places = seeds.places(rest, group=group)
        missing = [chunk for chunk in rest if chunk.digest not in places]
        fetched = _Fetched(read_chunks(store.objects, found, missing))
        done = 0
        try:
            while done < len(rest):
                end = _stretch(rest, done, places)
                place = places.get(rest[done].digest)
                if place is None:
                    yield from fetched.take(end - done)
                elif (data := seeds.read(place, rest[done:end])) is not None:
                    yield memoryview(data)
                else:
                    break  # a seed less: the rest is planned anew
                done = end
        finally:
            fetched.close()
        rest = rest[done:]


def _stretch(chunks: Sequence[MappedChunk], start: int, places: Mapping[bytes, _Place]) -> int:
    """Where the chunks end that come from one place, one after another."""
    first = places.get(chunks[start].digest)
    end, size_bytes = start + 1, chunks[start].length
    while end < len(chunks):
        place = places.get(chunks[end].digest)
        if first is None and place is not None:
            break
        if first is not None and (
            place != _Place(first.seed, first.offset + size_bytes)
            or size_bytes + chunks[end].length > STRETCH_BYTES
        ):
            break
        size_bytes += chunks[end].length
        end += 1
    return end


class _Fetched:
    """Chunks that come from the store, handed out by their number in as few pieces as possible."""

    def __init__(self, runs: Iterator[Run]) -> None:
        self._runs = runs
        self._data = memoryview(b"")
        self._lengths: Sequence[int] = ()

    def take(self, count: int) -> Iterator[memoryview]:
        """The bytes of the next `count` chunks."""
        while count:
            if not self._lengths:
                run = next(self._runs)
                self._data, self._lengths = run.data, [length for _, length in run.chunks]
            mine = self._lengths[:count]
            size_bytes = sum(mine)
            yield self._data[:size_bytes]
            self._data, self._lengths = self._data[size_bytes:], self._lengths[len(mine) :]
            count -= len(mine)

    def close(self) -> None:
        """Stop reading."""
        close = getattr(self._runs, "close", None)
        if close is not None:
            close()
