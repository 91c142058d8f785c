"""A store opened for reading only: whatever would change it is refused before anything happens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from engines.store.local import DAY_SECONDS, LocalObjects
from engines.store.wrapped import WrappedObjects
from planyard.core.errors import StoreError


class ReadOnlyObjects(WrappedObjects):
    """Reads what `inner` has; every change is a StoreError."""

    def write(
        self,
        name: str,
        source: bytes | Iterable[bytes] | Path,  # noqa: ARG002
        *,
        proved: bool = False,  # noqa: ARG002
    ) -> None:
        """Refused."""
        _refuse(self.url, f"writing {name}")

    def adopt(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """Refused."""
        _refuse(self.url, f"taking {name}")

    def remove(self, name: str) -> None:
        """Refused."""
        _refuse(self.url, f"removing {name}")

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:  # noqa: ARG002
        """Refused."""
        _refuse(self.url, f"moving {name}")


class ReadOnlyLocalObjects(LocalObjects):
    """A directory that is only read; no folder of it is made either."""

    def folder(self, *parts: str) -> Path:
        """Refused: whoever asks for a folder writes into it."""
        _refuse(self.url, f"writing below {'/'.join(parts)}")

    def remove(self, name: str) -> None:
        """Refused."""
        _refuse(self.url, f"removing {name}")

    def sweep(self, *, older_than_seconds: float = DAY_SECONDS) -> int:  # noqa: ARG002
        """Refused."""
        _refuse(self.url, "sweeping it")


def _refuse(url: str, what: str) -> NoReturn:
    raise StoreError(
        f"{url} is opened read-only: {what} is refused",
        mend="unset PLANYARD_STORE_READONLY and leave ?read-only=yes out of the store's address",
    )
