"""Gzip on all cores with output that depends on the input alone.

The stream is cut into blocks of 1 MiB; each is deflated in a thread with the 32 KiB before it as
dictionary, and the pieces are joined in order: the scheme of pigz. The header carries no time and
no name. The same zlib gives the same bytes on any number of cores.

A deflate stream that exists already (a wheel's member) can be spliced in as a gzip member of its
own: gzip files are sequences of members (RFC 1952, 2.2), and every registry client reads them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from builders.audit.pull_map import BLOCK_BYTES, STEP_BYTES, PullMap

_WINDOW_BYTES = 32 << 10
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"  # an empty final deflate block


@dataclass(frozen=True)
class _Packed:
    """A deflated block, and where in it each full 32 KiB of the block end."""

    data: bytes
    size_bytes: int
    marks: tuple[int, ...]


def _deflate(block: bytes, window: bytes, level: int) -> _Packed:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY, window)
    data = packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH)
    return _Packed(data, len(block), tuple(_marks(data, window, size_bytes=len(block))))


def _marks(data: bytes, window: bytes, *, size_bytes: int) -> Iterator[int]:
    """Where a decoder stands after each 32 KiB: a tenth of the work of compressing them."""
    decoder, left = zlib.decompressobj(-15, zdict=window), data
    for _ in range(STEP_BYTES, size_bytes, STEP_BYTES):
        decoder.decompress(left, STEP_BYTES)
        left = decoder.unconsumed_tail
        yield len(data) - len(left)


class ParallelGzip:
    """A writable stream; `close` finishes it. `digest` and `size_bytes` are of what was written."""

    def __init__(self, sink: BinaryIO, *, level: int = 6, threads: int | None = None) -> None:
        self._sink = sink
        self._level = level
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="gzip")
        self._pending: deque[Future[_Packed]] = deque()
        self._block = bytearray()
        self._window = b""
        self._crc = 0
        self._length = 0
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self._unpacked_bytes = 0
        self.pulls = PullMap()
        """Where in the stream each part of the input lies; whole after `close`."""
        self._emit(_HEADER)

    def splice(self, pieces: Iterable[bytes], *, crc: int, size_bytes: int) -> None:
        """Add content that is deflated already: `pieces` of the stream, its CRC-32 and length."""
        self._end_member()
        self._begin_member()
        for piece in pieces:
            self._emit(piece)
        self._unpacked_bytes += size_bytes
        self._emit(struct.pack("<II", crc, size_bytes & 0xFFFFFFFF))
        self._begin_member()

    @property
    def digest(self) -> str:
        """The digest of the compressed bytes so far."""
        return "sha256:" + self._sha256.hexdigest()

    def write(self, data: bytes) -> int:
        """Take `data`; blocks are deflated as they fill."""
        self._block += data
        while len(self._block) >= BLOCK_BYTES:
            block = bytes(self._block[:BLOCK_BYTES])
            del self._block[:BLOCK_BYTES]
            self._submit(block)
        return len(data)

    def close(self) -> None:
        """Write what is left and the trailer; the sink stays open."""
        try:
            self._end_member()
            self.pulls.mark(self._unpacked_bytes, self.size_bytes)
        finally:
            self.abort()

    def abort(self) -> None:
        """Give up: stop the threads; what was written so far is not a gzip stream."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _end_member(self) -> None:
        """Write what is left of the current member, and its trailer."""
        if self._block:
            self._submit(bytes(self._block))
            self._block.clear()
        while self._pending:
            self._emit_block(self._pending.popleft().result())
        self._emit(_LAST_BLOCK + struct.pack("<II", self._crc, self._length & 0xFFFFFFFF))
        self._crc, self._length, self._window = 0, 0, b""

    def _submit(self, block: bytes) -> None:
        self._crc = zlib.crc32(block, self._crc)
        self._length += len(block)
        self._pending.append(self._pool.submit(_deflate, block, self._window, self._level))
        self._window = block[-_WINDOW_BYTES:]
        while len(self._pending) > 2 * self._threads:
            self._emit_block(self._pending.popleft().result())

    def _begin_member(self) -> None:
        self.pulls.mark(self._unpacked_bytes, self.size_bytes)
        self._emit(_HEADER)

    def _emit_block(self, block: _Packed) -> None:
        for number, mark in enumerate(block.marks, 1):
            self.pulls.mark(self._unpacked_bytes + number * STEP_BYTES, self.size_bytes + mark)
        self._emit(block.data)
        self._unpacked_bytes += block.size_bytes
        self.pulls.mark(self._unpacked_bytes, self.size_bytes)

    def _emit(self, data: bytes) -> None:
        self._sink.write(data)
        self._sha256.update(data)
        self.size_bytes += len(data)
