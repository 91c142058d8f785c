"""The few byte ranges of a streamed file that are worth keeping, asked for before they pass."""

from __future__ import annotations


class KeptRanges:
    """Ranges of a file that passes once, front to back; what is not asked for is forgotten."""

    def __init__(self) -> None:
        self._ranges: list[_Range] = []
        self._open: list[_Range] = []

    def want(self, start: int, end: int) -> None:
        """Keep the bytes from `start` to `end` that have not passed yet."""
        if 0 <= start < end:
            self._ranges.append(_Range(start, end))
            self._open.append(self._ranges[-1])

    def feed(self, data: bytes | memoryview, at: int) -> None:
        """`data` is at offset `at`; giving the same bytes again fills ranges asked for since."""
        for kept in self._open:
            kept.feed(data, at)
        end = at + len(data)
        self._open = [kept for kept in self._open if kept.is_open(end)]

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start`; fewer, or none, where they were not kept."""
        found = b""
        for kept in self._ranges:
            if kept.start <= start < kept.filled:
                first = start - kept.start
                found = max(found, bytes(kept.data[first : first + size]), key=len)
        return found


class _Range:
    __slots__ = ("data", "end", "filled", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.filled = start
        self.data = bytearray()

    def is_open(self, end: int) -> bool:
        """Whether bytes from `end` on may still belong to it."""
        return end <= self.filled < self.end

    def feed(self, data: bytes | memoryview, at: int) -> None:
        if self.filled >= self.end or not at <= self.filled < at + len(data):
            return
        first = self.filled - at
        self.data += data[first : first + self.end - self.filled]
        self.filled = self.start + len(self.data)
