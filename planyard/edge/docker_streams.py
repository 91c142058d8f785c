"""What a container prints, in bounded memory: an image that floods its output is stopped.

A gigabyte of output takes no host down, and no log of that size says anything a person would read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

STREAM_LIMIT_BYTES = 256 << 20
"""What a container may write to one of its streams before it is stopped."""
KEPT_OF_A_FLOOD_BYTES = 1 << 20
"""What is kept of each stream then: its beginning."""

Flooded = Literal["", "stdout", "stderr"]
"""The stream that passed its limit, if one did."""
OnOutput = Callable[[bytes], None]


class BoundedStreams:
    """Both streams of a container as they come, until one of them passes its limit."""

    def __init__(self, *, limit_bytes: int = STREAM_LIMIT_BYTES) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.flooded: Flooded = ""
        self._limit_bytes = limit_bytes

    def drain(
        self,
        pieces: Iterable[tuple[bytes | None, bytes | None]],
        *,
        stop: Callable[[], None],
        on_output: OnOutput | None = None,
    ) -> None:
        """Take (stdout, stderr) to their end. A stream over its limit calls `stop`, once.

        `stop` must not wait: what is still under way is read and dropped, so that whoever writes
        it, and an engine that hands it over, is not left waiting either.
        """
        for out, err in pieces:
            if self.flooded:
                continue
            self.stdout += out or b""
            self.stderr += err or b""
            if on_output:
                on_output(out or err or b"")
            if max(len(self.stdout), len(self.stderr)) > self._limit_bytes:
                self.flooded = "stdout" if len(self.stdout) > self._limit_bytes else "stderr"
                del self.stdout[KEPT_OF_A_FLOOD_BYTES:], self.stderr[KEPT_OF_A_FLOOD_BYTES:]
                stop()
