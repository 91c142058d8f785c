"""From a stored layer to its tar: gzip, zstd or plain, with marks of where each part lies.

Bombs end while they are read: no piece is larger than a few times `PIECE_BYTES`, and the ratio is
looked at after each.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from builders.audit.layer_index import LIMITS, Limits, Piece
from builders.audit.pull_map import BLOCK_BYTES, STEP_BYTES, PullMap
from builders.audit.tar_headers import DamagedTarError
from planyard.core.errors import InputError

PIECE_BYTES = 1 << 20
_PART_BYTES = 128 << 10
_IN_HAND_BYTES = 40 << 10
"""More than 32 KiB of tar can take, however badly it packs, and the tables behind it."""
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC_BYTES = 4
_END_OF_BLOCK = b"\0\0\xff\xff"
_AHEAD_BYTES = 1024
"""Decoders read the tables of the next block before they need them: no more than this."""


class Unpacking:
    """The tar of a layer. Iterate once, to the end; then `pulls` knows where everything lies."""

    def __init__(self, pieces: Iterable[Piece], *, limits: Limits = LIMITS) -> None:
        self._pieces = iter(pieces)
        self._limits = limits
        self._packed = self._unpacked = 0
        self.pulls = PullMap()

    def __iter__(self) -> Iterator[Piece]:
        first: Piece = b""
        for piece in self._pieces:
            first = b"".join((first, piece))
            if len(first) >= _MAGIC_BYTES:
                break
        magic = bytes(first[:_MAGIC_BYTES])
        if magic.startswith(_GZIP):
            yield from self._checked(_Gzip(self.pulls).unpack(self._slices(first)))
        elif magic == _ZSTD:
            yield from self._checked(self._zstd(first))
        else:
            yield from self._plain(first)
        self.pulls.mark(self._unpacked, self._packed)

    def _plain(self, first: Piece) -> Iterator[Piece]:
        for piece in self._with_first(first):
            self._packed += len(piece)
            self._unpacked += len(piece)
            yield piece

    def _with_first(self, first: Piece) -> Iterator[Piece]:
        if len(first):
            yield first
        yield from self._pieces

    def _slices(self, first: Piece) -> Iterator[memoryview]:
        """The layer in small pieces, each counted when it is taken."""
        for piece in self._with_first(first):
            view = memoryview(piece)
            for at in range(0, len(view), _PART_BYTES):
                part = view[at : at + _PART_BYTES]
                self._packed += len(part)
                yield part

    def _checked(self, unpacked: Iterator[bytes]) -> Iterator[bytes]:
        """Steps joined to pieces; raises when there is more than the layer may hold."""
        waiting: list[bytes] = []
        size = 0
        limits = self._limits
        for step in unpacked:
            self._unpacked += len(step)
            if self._unpacked > limits.free_bytes + limits.ratio * self._packed:
                raise DamagedTarError(
                    f"it unpacks to more than {limits.ratio} times its size: this looks like a bomb"
                )
            if self._unpacked > 2 * limits.unpacked_bytes:
                raise DamagedTarError("it unpacks to more than an audit reads")
            waiting.append(step)
            size += len(step)
            if size >= PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        if waiting:
            yield b"".join(waiting)

    def _zstd(self, first: Piece) -> Iterator[bytes]:
        new = _zstd_decoder()
        decoder = new()
        unpacked = 0
        for part in self._slices(first):
            data: bytes = bytes(part)
            while True:
                try:
                    step = decoder.decompress(data, STEP_BYTES)
                except Exception as error:  # noqa: BLE001 - each library has an error of its own
                    raise DamagedTarError(f"its zstd stream is damaged: {error}") from None
                unpacked += len(step)
                if step:
                    yield step
                data = b""
                if decoder.eof:
                    data, decoder = decoder.unused_data, new()
                    if not data:
                        break
                elif decoder.needs_input:
                    break
            self.pulls.mark(unpacked, self._packed)


class _Gzip:
    """Gzip members one behind the other (RFC 1952, 2.2), with a mark every 32 KiB of each.

    The marks of a layer that planyard compressed are those `ParallelGzip` made while it did.
    """

    def __init__(self, pulls: PullMap) -> None:
        self._pulls = pulls
        self._unpacked = self._packed = 0
        self._in_member = 0
        self._consumed = b""

    def unpack(self, parts: Iterator[memoryview]) -> Iterator[bytes]:
        """The content; raises DamagedTarError for streams that are damaged or break off."""
        decoder = zlib.decompressobj(31)
        data: Piece = b""
        while True:
            # With less in hand, where the decoder stands would depend on how the layer was cut.
            if len(data) < _IN_HAND_BYTES and (part := next(parts, None)) is not None:
                data = b"".join((data, part))
                continue
            if not len(data):
                break
            if decoder.eof:
                decoder = zlib.decompressobj(31)
                self._pulls.mark(self._unpacked, self._packed)
                self._in_member, self._consumed = 0, b""
            try:
                step = decoder.decompress(data, STEP_BYTES - self._in_member % STEP_BYTES)
            except zlib.error as error:
                raise DamagedTarError(f"its gzip stream is damaged: {error}") from None
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            self._count(step, data[: len(data) - len(rest)])
            data = rest
            if step:
                yield step
        if not decoder.eof:
            raise DamagedTarError("its gzip stream breaks off")

    def _count(self, step: bytes, consumed: Piece) -> None:
        self._unpacked += len(step)
        self._in_member += len(step)
        self._packed += len(consumed)
        self._consumed = (self._consumed + bytes(consumed[-_AHEAD_BYTES:]))[-_AHEAD_BYTES:]
        if step and self._in_member % STEP_BYTES == 0:
            at = self._packed
            if self._in_member % BLOCK_BYTES == 0:
                # A block of ParallelGzip ends here; the decoder has read on to the next symbol.
                end = self._consumed.rfind(_END_OF_BLOCK)
                at -= len(self._consumed) - end - len(_END_OF_BLOCK) if end >= 0 else 0
            self._pulls.mark(self._unpacked, at)


def _zstd_decoder() -> Any:
    """The decoder of the standard library from Python 3.14 on, or of its twin for older ones."""
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found]
    except ImportError:
        try:
            from backports.zstd import ZstdDecompressor  # type: ignore[import-not-found]
        except ImportError:
            raise InputError(
                ["it is packed with zstd, which this Python cannot read"],
                mend="pip install backports.zstd, or use Python 3.14",
            ) from None
    return ZstdDecompressor
