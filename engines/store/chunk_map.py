"""A chunk map: which chunks of which packs, in order, are a blob.

    8 bytes   "PLYMAP1\\n"
    4 bytes   length of the JSON document that follows, little-endian as all numbers here
    …         {"blob", "size_bytes", "family", "packs": ["sha256:…", …], "chunks": count, …}
    44 bytes  for each chunk its BLAKE3 digest (32), the index of its pack, offset, length (4 each)

Everything a reader needs is in it: no index has to be searched. A blob may have several maps, from
writers that did not know of each other; each is complete.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from engines.store.packs import MAX_CHUNK_BYTES
from planyard.core.digest import canonical_json
from planyard.core.errors import IntegrityError
from planyard.core.matrix_fields import Digest

MAP_LIMIT_BYTES = 64 << 20
"""No map is larger: enough for a blob of 100 GB."""

_MAGIC = b"PLYMAP1\n"
_HEAD = struct.Struct("<8sI")
_RECORD = struct.Struct("<32sIII")
_OFFSET_LIMIT = 1 << 30


class MappedChunk(NamedTuple):
    """A chunk of a blob: its BLAKE3 digest, the index of its pack, where it lies there."""

    digest: bytes
    pack: int
    offset: int
    length: int


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    blob: Digest
    size_bytes: Annotated[int, Meta(ge=0)]
    family: Digest
    packs: Annotated[tuple[Digest, ...], Meta(max_length=1 << 20)]
    chunks: Annotated[int, Meta(ge=0)]
    cut: str = ""


_DOCUMENT = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, kw_only=True)
class ChunkMap:
    """A map that has been checked: lengths add up to the blob's, places lie within packs."""

    blob: str
    size_bytes: int
    family: str
    packs: tuple[str, ...]
    records: bytes
    name: str = ""
    """The name of the object it was read from."""

    def __iter__(self) -> Iterator[MappedChunk]:
        return map(MappedChunk._make, _RECORD.iter_unpack(self.records))

    def __len__(self) -> int:
        return len(self.records) // _RECORD.size


def pack_records(chunks: Iterable[tuple[bytes, int, int, int]]) -> bytes:
    """Records of chunks given as (digest, pack, offset, length)."""
    return b"".join(_RECORD.pack(*chunk) for chunk in chunks)


def map_to_bytes(found: ChunkMap, *, cut: str) -> bytes:
    """A map as an object; `cut` says how chunks were cut, for people."""
    document = {
        "blob": found.blob,
        "chunks": len(found),
        "cut": cut,
        "family": found.family,
        "packs": list(found.packs),
        "size_bytes": found.size_bytes,
    }
    head = canonical_json(document)
    return _HEAD.pack(_MAGIC, len(head)) + head + found.records


def map_from_bytes(data: bytes, *, blob: str, name: str, where: str) -> ChunkMap:
    """Read the map of `blob`; raises IntegrityError when it is none or does not add up."""
    if len(data) < _HEAD.size or data[:8] != _MAGIC:
        raise IntegrityError(f"{where} is not a chunk map")
    end = _HEAD.size + _HEAD.unpack_from(data)[1]
    try:
        document = _DOCUMENT.decode(data[_HEAD.size : end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"{where} cannot be read: {error}") from error
    records = data[end:]
    if len(records) != document.chunks * _RECORD.size:
        raise IntegrityError(f"{where} does not hold the {document.chunks} chunks it speaks of")
    if document.blob != blob:
        raise IntegrityError(f"{where} is the map of {document.blob}")
    found = ChunkMap(
        blob=blob,
        size_bytes=document.size_bytes,
        family=document.family,
        packs=document.packs,
        records=records,
        name=name,
    )
    _check_places(found, where=where)
    return found


def _check_places(found: ChunkMap, *, where: str) -> None:
    total, packs = 0, len(found.packs)
    for _, pack, offset, length in _RECORD.iter_unpack(found.records):
        if pack >= packs or offset > _OFFSET_LIMIT or not 0 < length <= MAX_CHUNK_BYTES:
            raise IntegrityError(f"{where} names a chunk that cannot be")
        total += length
    if total != found.size_bytes:
        raise IntegrityError(f"{where}: its chunks have {total} bytes, not {found.size_bytes}")
