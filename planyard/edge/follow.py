"""Files that grow: what was appended since the last look, through rotation and truncation."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import BinaryIO

TICK_SECONDS = 0.01
"""Between two looks. A look costs a stat and a read of each file, some 20 µs."""
_PIECE_BYTES = 1 << 20


class GrowingFile:
    """One path followed by name: `read` gives what is new, and None where another file begins.

    The file may not exist yet. A rename with a new file in its place is read to its end first; a
    file that shrank is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO | None = None

    def read(self) -> Iterator[bytes | None]:
        """The new pieces of at most 1 MiB; None between those of two files."""
        if self._stream is None and not self._open():
            return
        yield from self._pieces()
        while self._replaced():
            yield from self._pieces()  # written between the last piece and the rename
            self.close()
            yield None
            if not self._open():
                return
            yield from self._pieces()
        if self._stream and os.fstat(self._stream.fileno()).st_size < self._stream.tell():
            self._stream.seek(0)
            yield None
            yield from self._pieces()

    def close(self) -> None:
        """Close the file; a next `read` opens it again, from its beginning."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self) -> bool:
        try:
            self._stream = self.path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        return True

    def _pieces(self) -> Iterator[bytes]:
        while self._stream and (piece := self._stream.read(_PIECE_BYTES)):
            yield piece

    def _replaced(self) -> bool:
        if self._stream is None:
            return False
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False  # renamed, and no new file yet: the old one may still be written to
        opened = os.fstat(self._stream.fileno())
        return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino)


def ticks(*, timeout_seconds: float | None, until_exit: int | None) -> Iterator[None]:
    """One item at once, one each TICK_SECONDS, and a last one after the end of time or process.

    Raises ProcessLookupError when there is no process `until_exit` to begin with.
    """
    end = None if timeout_seconds is None else monotonic() + timeout_seconds
    poll = select.poll()
    if until_exit is None:
        yield from _until(end, poll.poll)
        return
    with closing(_PidFile(until_exit)) as process:
        poll.register(process.descriptor, select.POLLIN)
        yield from _until(end, poll.poll)


def _until(end: float | None, wait: Callable[[float], list[tuple[int, int]]]) -> Iterator[None]:
    while True:
        yield
        if wait(TICK_SECONDS * 1000) or (end is not None and monotonic() >= end):
            yield  # what was written just before
            return


class _PidFile:
    def __init__(self, pid: int) -> None:
        self.descriptor = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self.descriptor)
