"""Fetching a blob from a store elsewhere: only what this disk does not have yet.

Chunks come from seeds where they can. A fetch that was killed leaves `.<hex>.partial` beside the
file; the next one verifies it chunk by chunk and goes on where it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

from engines.store.chunk_map import ChunkMap
from engines.store.protocol import Store, hex_of_digest
from engines.store.seeds import Seeds, read_held, read_with_seeds
from engines.store.store import ObjectStore, write_verified
from planyard.core.errors import IntegrityError, LookupMissError, StoreError

_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.partial")
_CHUNKS_AT_ONCE = 64


def fetch_blob(store: Store, digest: str, path: Path, *, seeds: Seeds, group: str) -> None:
    """Write the verified bytes of a blob to `path`, whole or not at all; not flushed to the disk.

    Afterwards the file is a seed of `group` itself.
    """
    if not isinstance(store, ObjectStore) or not is_far(store):
        store.fetch_blob(digest, path)
        return
    try:
        found = store.map_to_read(digest)
    except LookupMissError:  # it is one object, or not there
        store.fetch_blob(digest, path)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{hex_of_digest(digest)}.partial"
        with _opened(partial) as file:
            if file is None:  # another program fetches it into the same folder
                store.fetch_blob(digest, path)
            else:
                _fetch(store, found, partial, file, path=path, seeds=seeds, group=group)
        seeds.add(path, digest, group=group, found=found)
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}") from error


def is_far(store: Store) -> bool:
    """Whether it pays to use what this disk has."""
    return isinstance(store, ObjectStore) and not store.objects.is_near


def remove_partials(folder: Path) -> None:
    """Remove what killed fetches left in a folder, unless somebody is at it."""
    with contextlib.suppress(OSError):
        for path in [each for each in folder.iterdir() if _PARTIAL.fullmatch(each.name)]:
            with _opened(path) as file:
                if file is not None:
                    path.unlink(missing_ok=True)


def _fetch(
    store: ObjectStore,
    found: ChunkMap,
    partial: Path,
    file: FileIO,
    *,
    path: Path,
    seeds: Seeds,
    group: str,
) -> None:
    pieces = _pieces(store, found, file, seeds=seeds, group=group)
    try:
        write_verified(cast("BinaryIO", _Whole(file)), pieces, digest=found.blob, where=store.url)
    except IntegrityError:
        partial.unlink(missing_ok=True)
        raise
    file.truncate(found.size_bytes)
    os.fchmod(file.fileno(), 0o644)
    partial.replace(path)


def _pieces(
    store: ObjectStore, found: ChunkMap, file: FileIO, *, seeds: Seeds, group: str
) -> Iterator[memoryview]:
    """What a killed fetch left, as far as it is right, and then the rest."""
    chunks, done, offset = list(found), 0, 0
    while done < len(chunks):
        stretch = chunks[done : done + _CHUNKS_AT_ONCE]
        data, good = read_held(file, offset, stretch)
        if data:
            seeds.traffic.reused(len(data))
            yield memoryview(data)  # and is written again, which changes nothing
        done, offset = done + good, offset + len(data)
        if good < len(stretch):
            break
    yield from read_with_seeds(store, found, chunks[done:], seeds=seeds, group=group)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[FileIO | None]:
    """A file of our own to go on with, locked; None while another program has it."""
    file = _own(path)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(file.fileno()), path.lstat())
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        yield file if is_there else None


def _own(path: Path) -> FileIO:
    """A regular file that nobody else can reach by another name; what is there instead goes."""
    with contextlib.suppress(OSError):
        file = FileIO(os.open(path, _OPEN, 0o600), "r+b")
        seen = os.fstat(file.fileno())
        if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1 and seen.st_uid == os.geteuid():
            return file
        file.close()
    path.unlink(missing_ok=True)
    return FileIO(os.open(path, _OPEN | os.O_EXCL, 0o600), "r+b")


class _Whole:
    """A file that writes all that it is given."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def write(self, piece: memoryview) -> int:
        """Write to the end of `piece`."""
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        return len(piece)
