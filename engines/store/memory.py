"""Objects in memory: for tests and dry runs. They keep every promise of `objects.Objects`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.store import objects
from engines.store.objects import Listed, Pointer
from engines.store.protocol import verified
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import StoreError
from planyard.edge import files


class MemoryObjects:
    """Objects and pointers in dictionaries; gone with the program."""

    url = "memory:"
    is_near = True
    is_collected = True

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.modified: dict[str, float] = {}
        self.pointed: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None when it is not there."""
        objects.digest_of_name(name)
        data = self.held.get(name)
        return None if data is None else len(data)

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range in pieces; FileNotFoundError at once for what is not there."""
        objects.digest_of_name(name)
        data = self.held.get(name)
        if data is None:
            raise FileNotFoundError(name)
        end = len(data) if length is None else min(len(data), start + length)
        step = files.CHUNK_BYTES
        return (data[at : min(at + step, end)] for at in range(start, end, step))

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        """Keep an object, verified."""
        digest, given = objects.digest_of_name(name), pieces_of(source)
        pieces = given if proved else verified(digest, given, where="what was given")
        data = b"".join(pieces)
        with self._lock:
            self.held[name], self.modified[name] = data, time.time()

    def adopt(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """Nothing is saved by moving a file into memory."""
        objects.digest_of_name(name)
        return False

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names start with `prefix`, sorted."""
        objects.checked_prefix(prefix)
        with self._lock:
            return iter(
                [
                    Listed(name=name, size_bytes=len(data), modified=self.modified.get(name))
                    for name, data in sorted(self.held.items())
                    if name.startswith(prefix)
                ]
            )

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        objects.digest_of_name(name)
        with self._lock:
            self.held.pop(name, None)

    def pointer(self, name: str) -> Pointer | None:
        """A pointer as it is now."""
        objects.pointer_path(name)
        data = self.pointed.get(name)
        return None if data is None else Pointer(data=data, token=digest_of_bytes(data))

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Compare and swap, under a lock."""
        objects.pointer_path(name)
        objects.checked_pointer_data(data)
        with self._lock:
            now = self.pointer(name)
            if (now.token if now else None) != expected:
                return False
            self.pointed[name] = data
            return True

    def pointers(self) -> Iterator[str]:
        """The names of all channels, sorted."""
        return iter(sorted(each for each in self.pointed if not objects.is_lease_table(each)))


def pieces_of(source: bytes | Iterable[bytes] | Path) -> Iterator[bytes]:
    """What a caller wants written, in pieces; StoreError for a file that cannot be read."""
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, Path):
        try:
            with source.open("rb") as file:
                while piece := file.read(files.CHUNK_BYTES):
                    yield piece
        except OSError as error:
            raise StoreError(f"{source} could not be read: {error.strerror}") from error
    else:
        yield from source
