"""Protobuf's wire format, walked without a schema and without copying.

Fails closed: truncated, malformed or overlong input is a ValueError naming the byte. Groups are
refused, since nothing we read uses them. Wire types: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 20_000_000
MAX_TEXT_BYTES = 1 << 16

Span = tuple[int, int]
"""Where a message begins and ends, in bytes from the start of the file."""


class Wire:
    """A file in protobuf's wire format, and how many fields of it may still be read."""

    def __init__(self, data: bytes | memoryview, *, max_fields: int = MAX_FIELDS) -> None:
        self.data = memoryview(data).cast("B")
        self.max_fields = max_fields
        self.fields_left = max_fields

    @property
    def whole(self) -> Span:
        """The span of the outermost message."""
        return 0, len(self.data)

    def fields(self, span: Span) -> Iterator[tuple[int, int, int, int]]:
        """Every field of a message: number, wire type, then begin and end of its contents.

        A varint has its value, unsigned, in the place of begin.
        """
        at, stop = span
        while at < stop:
            start = at
            self.fields_left -= 1
            if self.fields_left < 0:
                refuse(start, f"more than {self.max_fields} fields")
            tag, at = self._varint(at, stop)
            number, wire = tag >> 3, tag & 7
            if number == 0 or tag >= 1 << 32:
                refuse(start, "not a protobuf field number")
            if wire == VARINT:
                value, at = self._varint(at, stop)
                yield number, wire, value, at
                continue
            if wire == BYTES:
                length, at = self._varint(at, stop)
            elif wire in {FIXED64, FIXED32}:
                length = 8 if wire == FIXED64 else 4
            else:
                refuse(start, f"protobuf wire type {wire}, which ONNX does not use")
            if length > stop - at:
                refuse(start, f"a field of {length} bytes where {stop - at} are left")
            yield number, wire, at, at + length
            at += length

    def messages(self, span: Span) -> Iterator[tuple[int, Span]]:
        """The fields with a length: number and span of the contents; the others are skipped."""
        for number, wire, begin, end in self.fields(span):
            if wire == BYTES:
                yield number, (begin, end)

    def text(self, span: Span) -> str:
        """A string field."""
        begin, end = span
        if end - begin > MAX_TEXT_BYTES:
            refuse(begin, f"a name of {end - begin} bytes")
        try:
            return str(self.data[begin:end], "utf-8")
        except UnicodeDecodeError:
            refuse(begin, "a name that is not UTF-8")

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """The varint at `at` and where the next byte is; at most ten bytes, 64 bits."""
        value = shift = 0
        position = at
        while position < stop and shift < 70:
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
        return refuse(at, "truncated" if shift < 70 else "a number of more than ten bytes")


def signed(value: int) -> int:
    """A varint as int64: protobuf writes two's complement."""
    return value - (1 << 64) if value >> 63 else value


def refuse(offset: int, reason: str) -> NoReturn:
    """Raise the ValueError that names the byte."""
    raise ValueError(f"byte {offset}: {reason}")
