"""Counting what is read: bytes that came from a store, and bytes that did not have to."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from engines.store.objects import Objects
from engines.store.wrapped import WrappedObjects


class Traffic:
    """Two sums in bytes; several threads may add to them."""

    def __init__(self) -> None:
        self.fetched_bytes = 0
        self.reused_bytes = 0
        self._lock = threading.Lock()

    def fetched(self, size_bytes: int) -> None:
        """Bytes were read from the store."""
        with self._lock:
            self.fetched_bytes += size_bytes

    def reused(self, size_bytes: int) -> None:
        """Bytes were taken from this machine instead."""
        with self._lock:
            self.reused_bytes += size_bytes


class CountedObjects(WrappedObjects):
    """Counts the bytes of objects that are read; listings and pointers are not counted."""

    def __init__(self, inner: Objects, traffic: Traffic) -> None:
        super().__init__(inner)
        self.traffic = traffic

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range, counted as they pass."""
        return self._counted(self.inner.read(name, start=start, length=length))

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.traffic.fetched(len(piece))
            yield piece
