"""Copying blobs between stores: only objects and chunks that the target lacks are moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engines.store import claims
from engines.store import objects as names
from engines.store.chunk_map import ChunkMap
from engines.store.local import LocalObjects
from engines.store.packs import PackedChunk
from engines.store.store import ObjectStore

if TYPE_CHECKING:
    from engines.store.chunk_reader import Run
    from engines.store.chunk_writer import ChunkWriter

_NEARLY_ALL = 0.95
"""Of a pack: what is sent beside it costs less than cutting it up."""


def copy_blob(digest: str, *, source: ObjectStore, target: ObjectStore) -> int:
    """Bring a blob to `target`; returns how many bytes of it were moved, 0 when it was there.

    Packs that are wanted whole travel whole, proved by their digest; of the others single chunks
    do, each proved by its own. What a killed copy moved is not moved again.
    Raises LookupMissError when the source has no such blob, IntegrityError when it is damaged.
    """
    target.claim((digest,))
    if target.has_blob(digest):
        return 0
    name = names.blob_name(digest)
    size_bytes = source.objects.size(name)
    if size_bytes is not None:
        if isinstance(source.objects, LocalObjects):  # a file can be sent on where it stopped
            target.objects.write(name, source.objects.root / name)
        else:
            target.objects.write(name, source.objects.read(name))
        return size_bytes
    found = source.map_to_read(digest)
    return _copy_chunks(found, source=source, target=target)


def _copy_chunks(found: ChunkMap, *, source: ObjectStore, target: ObjectStore) -> int:
    from engines.store.chunk_reader import read_runs
    from engines.store.chunk_writer import ChunkWriter

    with (
        claims.family_claimed(target.objects, found.family),
        ChunkWriter.opened(target.objects, family=found.family) as writer,
    ):
        for digest, chunks in _whole_packs(found, writer, source=source):
            writer.send_pack(source.objects, digest, chunks)
        missing = {chunk.digest for chunk in found if not writer.has(chunk.digest)}
        runs = read_runs(source.objects, found, wanted=missing.__contains__)
        moved = _chunks(runs)
        for chunk in found:
            if chunk.digest in missing:
                writer.add(*next(moved))
            else:
                writer.add_known(chunk.digest)
        writer.finish(found.blob, size_bytes=found.size_bytes)
        return writer.new_bytes


def _whole_packs(
    found: ChunkMap, writer: ChunkWriter, *, source: ObjectStore
) -> Iterator[tuple[str, list[PackedChunk]]]:
    """Packs of which the target lacks nearly everything, with the chunks of them that are needed.

    They travel as they are, verified by their own digest.
    """
    needed: dict[int, dict[bytes, PackedChunk]] = defaultdict(dict)
    for digest, pack, offset, length in found:
        if not writer.has(digest):
            needed[pack][digest] = PackedChunk(digest, offset, length)
    for pack, chunks in needed.items():
        name = names.pack_name(found.family, found.packs[pack])
        size_bytes = source.objects.size(name) or 0
        if sum(each.length for each in chunks.values()) >= size_bytes * _NEARLY_ALL > 0:
            yield found.packs[pack], list(chunks.values())


def _chunks(runs: Iterator[Run]) -> Iterator[tuple[bytes, memoryview]]:
    for run in runs:
        at = 0
        for digest, length in run.chunks:
            yield digest, run.data[at : at + length]
            at += length
