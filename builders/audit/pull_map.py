"""Where in a compressed layer each part of its tar lies: marks, and straight lines between them."""

from __future__ import annotations

from array import array
from bisect import bisect_right

STEP_BYTES = 32 << 10
"""The unpacked distance of two marks inside of one gzip member: as far as deflate looks back."""

BLOCK_BYTES = 1 << 20
"""What `ParallelGzip` compresses in one piece."""


class PullMap:
    """Offsets in a tar to offsets in the layer that holds it: whole numbers that never fall.

    A mark is exact: a decoder stood there. Between two marks, at most 32 KiB of tar apart except
    inside of a single file, the compressed bytes are shared out by unpacked size. Shares of parts
    that touch each other therefore add up exactly, however many they are.
    """

    def __init__(self) -> None:
        self._unpacked = array("Q", [0])
        self._packed = array("Q", [0])

    def mark(self, unpacked: int, packed: int) -> None:
        """Say that `unpacked` bytes of tar come from the first `packed` bytes of the layer.

        Marks come in order. Of several at one place the last counts: it is behind the header of
        the gzip member that begins there.
        """
        packed = max(packed, self._packed[-1])
        if unpacked == self._unpacked[-1]:
            self._packed[-1] = packed
        else:
            self._unpacked.append(unpacked)
            self._packed.append(packed)

    @property
    def size_bytes(self) -> int:
        """Where the last mark is: the size of the layer, once it was read to its end."""
        return self._packed[-1]

    def packed_at(self, unpacked: int) -> int:
        """The offset in the layer for one in the tar, at most the last that was marked."""
        right = bisect_right(self._unpacked, unpacked)
        if right == len(self._unpacked):
            return self._packed[-1]
        low, high = self._unpacked[right - 1], self._unpacked[right]
        packed, until = self._packed[right - 1], self._packed[right]
        return packed + (until - packed) * (unpacked - low) // (high - low)
