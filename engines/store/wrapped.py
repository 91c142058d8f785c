"""Objects around other objects: everything is passed on, for backends that change one thing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.store.objects import Listed, Objects, Pointer


class WrappedObjects:
    """Keeps every promise of `objects.Objects` that `inner` keeps."""

    def __init__(self, inner: Objects) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        """The place, as a user would write it after `--store`."""
        return self.inner.url

    @property
    def is_near(self) -> bool:
        """Whether small reads cost next to nothing."""
        return self.inner.is_near

    @property
    def is_collected(self) -> bool:
        """Whether `store gc` can work here."""
        return self.inner.is_collected

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None when it is not there."""
        return self.inner.size(name)

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range in pieces; FileNotFoundError at once for what is not there."""
        return self.inner.read(name, start=start, length=length)

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        """Keep an object, verified."""
        self.inner.write(name, source, proved=proved)

    def adopt(self, name: str, path: Path) -> bool:
        """Move a file to its place; False when it has to be written instead."""
        return self.inner.adopt(name, path)

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names start with `prefix`, sorted."""
        return self.inner.listing(prefix)

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        self.inner.remove(name)

    def pointer(self, name: str) -> Pointer | None:
        """A pointer as it is now."""
        return self.inner.pointer(name)

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Compare and swap."""
        return self.inner.move_pointer(name, data, expected=expected)

    def pointers(self) -> Iterator[str]:
        """The names of all pointers, sorted."""
        return self.inner.pointers()
