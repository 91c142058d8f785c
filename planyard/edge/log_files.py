"""Log files as bytes: rotated ones in the order they were written, gzip read as it streams."""

from __future__ import annotations

import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from planyard.core.errors import InputError

if TYPE_CHECKING:
    from io import BufferedReader

_PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_ROTATED = re.compile(r"(?:\.\d{1,3}|[-.]\d{8}(?:-?\d{2,6})?)?(?:\.gz)?$")


def in_order_of_writing(files: Sequence[Path]) -> list[Path]:
    """The files as given, but rotated ones of the same log together, oldest first.

    `app.log.2.gz app.log.1 app.log`: by time of change, where that is equal the higher number
    first. Raises InputError for a file that is not there.
    """
    first: dict[Path, int] = {}
    for place, file in enumerate(files):
        first.setdefault(_log_of(file), place)
    return sorted(files, key=lambda file: (first[_log_of(file)], _changed(file), -_number(file)))


def _log_of(file: Path) -> Path:
    return file.with_name(_ROTATED.sub("", file.name) or file.name)


def _number(file: Path) -> int:
    found = re.search(r"\.(\d{1,3})(?:\.gz)?$", file.name)
    return int(found[1]) if found else 0


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError as error:
        raise InputError([f"{file}: cannot be read: {error.strerror}"]) from error


def pieces_of(file: Path) -> Iterator[bytes]:
    """A file in pieces of at most 1 MiB, decompressed where it begins as gzip does."""
    try:
        with file.open("rb") as raw:
            head = raw.peek(2)[:2] if hasattr(raw, "peek") else b""
            if head == _GZIP:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield from _pieces(stream)
            else:
                yield from _pieces(raw)
    except (EOFError, zlib.error) as error:
        raise InputError([f"{file}: gzip that is cut off or damaged: {error}"]) from error
    except OSError as error:
        raise InputError([f"{file}: cannot be read: {error.strerror or error}"]) from error


def pieces_of_stdin() -> Iterator[bytes]:
    """Standard input in pieces as they come, of at most 1 MiB."""
    stream = cast("BufferedReader", sys.stdin.buffer)
    while piece := stream.read1(_PIECE_BYTES):
        yield piece


def _pieces(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while piece := stream.read(_PIECE_BYTES):
        yield piece
