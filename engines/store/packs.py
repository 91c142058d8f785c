"""A pack: chunks one after another in one object, behind a header that lists them.

    8 bytes   "PLYPAK1\\n"
    4 bytes   how many chunks, little-endian as all numbers here
    32 bytes  BLAKE3 of the records that follow
    36 bytes  for each chunk its BLAKE3 digest (32) and its length (4)
    …         the chunks, in that order

Small objects are slow to move and large ones to read in part: chunks of 64 KiB travel by the pack
(measured in docs/adr/0007-chunks-and-packs.md).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from planyard.core.errors import IntegrityError

PACK_BYTES = 8 << 20
"""A writer closes a pack once its chunks reach this."""

MAX_CHUNK_BYTES = 256 << 10
MAX_CHUNKS = 4096
HEADER_GUESS_BYTES = 32 << 10
"""Enough for the header of any pack planyard writes: one read gets it."""

_MAGIC = b"PLYPAK1\n"
_HEAD = struct.Struct("<8sI32s")
_RECORD = struct.Struct("<32sI")


class PackedChunk(NamedTuple):
    """A chunk in a pack: its BLAKE3 digest, where it starts in the object, its length."""

    digest: bytes
    offset: int
    length: int


def chunk_digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of a chunk, 32 bytes: more than twice as fast as SHA-256 here, as hard to forge."""
    return blake3(data).digest()


def pack_header(chunks: Sequence[tuple[bytes, int]]) -> bytes:
    """The header of a pack of chunks given as (digest, length)."""
    records = b"".join(_RECORD.pack(digest, length) for digest, length in chunks)
    return _HEAD.pack(_MAGIC, len(chunks), chunk_digest(records)) + records


def header_bytes(data: bytes, *, where: str) -> int:
    """How long the header is whose first bytes are `data` (44 or more)."""
    if len(data) < _HEAD.size or data[:8] != _MAGIC:
        raise IntegrityError(f"{where} is not a pack of chunks")
    count: int = _HEAD.unpack_from(data)[1]
    if not 0 < count <= MAX_CHUNKS:
        raise IntegrityError(f"{where} is damaged: a pack of {count} chunks")
    return _HEAD.size + count * _RECORD.size


def chunks_of_header(data: bytes, *, where: str) -> list[PackedChunk]:
    """The chunks that a whole header lists; raises IntegrityError when it is damaged."""
    end = header_bytes(data, where=where)
    records = data[_HEAD.size : end]
    if len(data) < end or chunk_digest(records) != _HEAD.unpack_from(data)[2]:
        raise IntegrityError(f"{where} is damaged: its header is not what it was")
    offset, found = end, []
    for digest, length in _RECORD.iter_unpack(records):
        if not 0 < length <= MAX_CHUNK_BYTES:
            raise IntegrityError(f"{where} is damaged: a chunk of {length} bytes")
        found.append(PackedChunk(digest, offset, length))
        offset += length
    return found
