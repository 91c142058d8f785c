"""What a caller gives to be stored: a file, or pieces of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from engines.store import protocol
from planyard.core.errors import StoreError
from planyard.edge import files

SMALL_BYTES = 1 << 20
"""Blobs up to this size are kept whole, with a family or without."""


class Pieces:
    """A file to read from, made of pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._rest = iter(pieces), memoryview(b"")

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of `buffer`; 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def opened(source: Iterable[bytes] | Path) -> FileIO | Pieces:
    """What is given as an open file; StoreError when it cannot be read."""
    if not isinstance(source, Path):
        return Pieces(source)
    try:
        return FileIO(source)
    except OSError as error:
        raise StoreError(f"{source} could not be read: {error.strerror}") from error


def given_pieces(digest: str, source: Iterable[bytes] | Path) -> Iterator[bytes]:
    """What a caller wants stored, in pieces, verified."""
    if not isinstance(source, Path):
        return protocol.verified(digest, source, where="what was given")
    return protocol.verified(digest, _file_pieces(source), where=str(source))


def _file_pieces(path: Path) -> Iterator[bytes]:
    try:
        with FileIO(path) as file:
            while piece := file.read(files.CHUNK_BYTES):
                yield piece
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}") from error


def remove_taken(source: Path) -> None:
    """Remove a file that is stored now; StoreError where that cannot be."""
    try:
        source.unlink(missing_ok=True)
    except OSError as error:
        raise protocol.refused(f"{source} is stored, but could not be removed", error) from error


def is_large(source: Iterable[bytes] | Path) -> bool:
    """Whether a blob is cut into chunks; one that comes in pieces always is."""
    try:
        return not isinstance(source, Path) or source.stat().st_size > SMALL_BYTES
    except OSError as error:
        raise StoreError(f"{source} could not be read: {error.strerror}") from error
