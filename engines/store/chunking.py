"""Cutting a blob into chunks where its content says so, so that equal parts are equal chunks.

FastCDC with these sizes was chosen from a curve measured on Stable Diffusion's UNet plans
(docs/adr/0007-chunks-and-packs.md). Where the last chunk is known from another blob, the chunk that
followed it there is tried first: comparing its digest costs less than looking for the cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pyfastcdc import FastCDC

from engines.store.packs import MAX_CHUNK_BYTES, chunk_digest

MIN_BYTES = 32 << 10
AVERAGE_BYTES = 64 << 10
CUT = f"FastCDC 2020, {MIN_BYTES} {AVERAGE_BYTES} {MAX_CHUNK_BYTES} bytes, normalization 3"

WINDOW_BYTES = 8 << 20
_WINDOWS = 3

Prediction = Callable[[bytes], tuple[bytes, int] | None]
"""From a chunk's digest to digest and length of the chunk that followed it elsewhere."""


class Source(Protocol):
    """An open file, as far as it is needed here."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the start of `buffer`; 0 at the end."""
        ...


class Cutter:
    """Cuts one blob; `digest` and `size_bytes` are those of the whole once it has ended.

    Memory: three windows of 8 MiB, whatever the size. SHA-256 runs beside the cutting.
    """

    def __init__(self, source: Source, *, predict: Prediction) -> None:
        self._source, self._predict = source, predict
        self._whole = hashlib.sha256()
        self.digest = ""
        self.size_bytes = 0

    def chunks(self) -> Iterator[tuple[bytes, memoryview]]:
        """Digest and bytes of each chunk; the bytes are valid until the next one is asked for."""
        with ThreadPoolExecutor(1, thread_name_prefix="sha256") as beside:
            yield from self._chunks(beside)
        self.digest = "sha256:" + self._whole.hexdigest()

    def _chunks(self, beside: ThreadPoolExecutor) -> Iterator[tuple[bytes, memoryview]]:
        windows = [memoryview(bytearray(MAX_CHUNK_BYTES + WINDOW_BYTES)) for _ in range(_WINDOWS)]
        hashed: list[Future[None] | None] = [None] * _WINDOWS
        rest, number, last = memoryview(b""), 0, b""
        ended = False
        while not ended:
            if (busy := hashed[number]) is not None:
                busy.result()  # SHA-256 still reads from the window that comes next
            window = windows[number]
            start = MAX_CHUNK_BYTES - len(rest)
            window[start:MAX_CHUNK_BYTES] = rest
            filled = self._fill(window[MAX_CHUNK_BYTES:])
            ended = filled < WINDOW_BYTES
            end = MAX_CHUNK_BYTES + filled
            hashed[number] = beside.submit(self._whole.update, window[MAX_CHUNK_BYTES:end])
            self.size_bytes += filled
            while end - start >= MAX_CHUNK_BYTES or (ended and start < end):
                digest, length = self._next(window[start:end], last)
                yield digest, window[start : start + length]
                start, last = start + length, digest
            rest, number = window[start:end], (number + 1) % _WINDOWS

    def _fill(self, room: memoryview) -> int:
        filled = 0
        while filled < len(room) and (count := self._source.readinto(room[filled:])):
            filled += count
        return filled

    def _next(self, data: memoryview, last: bytes) -> tuple[bytes, int]:
        """The chunk that `data` starts with: its digest and length."""
        if guess := self._predict(last):
            digest, length = guess
            if length <= len(data) and chunk_digest(data[:length]) == digest:
                return digest, length
        length = next(_FASTCDC.cut_buf(data[:MAX_CHUNK_BYTES])).length
        return chunk_digest(data[:length]), length


_FASTCDC = FastCDC(
    AVERAGE_BYTES, min_size=MIN_BYTES, max_size=MAX_CHUNK_BYTES, normalized_chunking=3
)
