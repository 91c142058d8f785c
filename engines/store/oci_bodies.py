"""What is to be sent to a registry: verified first, its size known, sent again if need be."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from engines.store.memory import pieces_of
from engines.store.protocol import damaged, drain, verified
from planyard.core.errors import StoreError

_IN_MEMORY_BYTES = 16 << 20


@contextmanager
def verified_body(
    digest: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
) -> Iterator[tuple[int, bytes | BinaryIO]]:
    """The size of `source` in bytes, and its bytes or a file of them, at its start.

    What comes in pieces is spooled, more than 16 MiB of it to a file, so that memory stays small.
    Raises IntegrityError unless the bytes are those of `digest`; bytes that are `proved` are not
    hashed again.
    """
    if isinstance(source, bytes):
        if not proved:
            drain(verified(digest, [source], where="what was given"))
        yield len(source), source
    elif isinstance(source, Path):
        file, size_bytes = _opened(digest, source)
        with file:
            yield size_bytes, file
    else:
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
            for piece in verified(digest, pieces_of(source), where="what was given"):
                spool.write(piece)  # writelines would keep all of them in memory
            size_bytes = spool.tell()
            spool.seek(0)
            yield size_bytes, cast("BinaryIO", spool)


def _opened(digest: str, path: Path) -> tuple[BinaryIO, int]:
    """A file at its start, and its size; it stays the same file if its name is moved."""
    try:
        file = path.open("rb")
        try:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise damaged(digest, found=found, where=str(path))
            size_bytes = file.tell()
            file.seek(0)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}") from error
    return file, size_bytes
