"""Files of a cache: a folder of our own with a size limit, the least recently used go first.

- Losing a file costs a download, so that nothing is flushed, and a full disk is no error.
- Only regular files with one name that belong to us (or root) are read; others are refused, loudly:
  planyard did not write them. Nothing is followed out of the folder.
- Several programs may use one folder: files appear whole, and one that vanishes is a miss. Each
  looks again at what all of them keep after it wrote an eighth of the limit.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from engines.store.local import open_regular
from planyard.core.errors import IntegrityError, StoreError
from planyard.edge import files

FILE_LIMIT_BYTES = 64 << 20
"""No file of a cache is larger; a larger one is damage."""

_DAY_SECONDS = 86_400.0
_KEPT_SHARE = 0.9
"""How full a cache is after the oldest files went."""


class CacheFiles:
    """Small files under relative names below `root`, together at most about `limit_bytes`."""

    def __init__(self, root: Path, *, limit_bytes: int) -> None:
        self.root, self.limit_bytes = root.absolute(), limit_bytes
        self._lock = threading.Lock()
        self._left_bytes: int | None = None
        self._folders: set[Path] = set()

    def get(self, name: str) -> bytes | None:
        """A whole file, from now on the most recently used; None when there is none.

        Raises IntegrityError for a link, a file with several names, or one of another user.
        """
        path = self.root / name
        try:
            self._check_folders(path.parent)
            with open_regular(path, private=True) as file:
                if os.fstat(file.fileno()).st_size > FILE_LIMIT_BYTES:
                    self.drop(name)
                    return None
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())
                return file.read() or b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"the cache file {path} could not be read: {error.strerror}",
                mend="remove the cache; what is in it is fetched again",
            ) from error

    def put(self, name: str, data: bytes) -> bool:
        """Keep a file if there is room for it; False when it was not kept."""
        if len(data) > min(self.limit_bytes, FILE_LIMIT_BYTES):
            return False
        self._make_room(len(data))
        path = self.root / name
        try:
            self._make_folders(path.parent)
            with files.atomic_write(path, mode=0o600, sync=False) as file:
                file.write(data)
        except OSError:
            return False  # a cache is never why something fails
        return True

    def drop(self, name: str) -> None:
        """Forget a file; one that is not there is fine."""
        with contextlib.suppress(OSError):
            (self.root / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, without temporary files; none when it is missing."""
        path = self.root / folder
        try:
            self._check_folders(path)
            found = os.listdir(path)  # noqa: PTH208 - asked for each read
        except OSError:
            return []
        return [name for name in found if not name.startswith(".")]

    def _make_room(self, size_bytes: int) -> None:
        with self._lock:
            if self._left_bytes is None or self._left_bytes < size_bytes:
                held_bytes = self._evict(room_bytes=size_bytes)
                room = self.limit_bytes - held_bytes
                self._left_bytes = max(size_bytes, min(room, self.limit_bytes // 8))
            self._left_bytes -= size_bytes

    def _evict(self, *, room_bytes: int) -> int:
        """Remove the oldest files until there is room; returns how many bytes are held then."""
        found = list(self._held())
        held_bytes = sum(size for _, size, _ in found)
        if held_bytes + room_bytes <= self.limit_bytes:
            return held_bytes
        wanted = int(self.limit_bytes * _KEPT_SHARE) - room_bytes
        for _, size_bytes, path in sorted(found):
            if held_bytes <= wanted:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                held_bytes -= size_bytes
        return held_bytes

    def _held(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was last used, its size and path. Half files of the dead are removed."""
        oldest = time.time() - _DAY_SECONDS
        for folder, _, found in os.walk(self.root):
            for name in found:
                path = Path(folder, name)
                try:
                    seen = path.lstat()
                except OSError:
                    continue
                if not name.startswith("."):
                    yield seen.st_mtime, seen.st_size, path
                elif seen.st_mtime < oldest:
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)

    def _make_folders(self, folder: Path) -> None:
        if folder in self._folders and folder.is_dir():
            return
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = self.root
        for part in folder.relative_to(self.root).parts:
            made /= part
            made.mkdir(exist_ok=True, mode=0o700)
        self._check_folders(folder)

    def _check_folders(self, folder: Path) -> None:
        """Refuse folders that are links, another user's, or writable by others."""
        if folder in self._folders:
            return
        for each in (folder, *folder.parents):
            seen = each.lstat()
            problem = "" if stat.S_ISDIR(seen.st_mode) else "is not a folder"
            if seen.st_uid not in (0, os.geteuid()):
                problem = "belongs to another user"
            elif not problem and seen.st_mode & 0o022:
                problem = "can be written by others"
            if problem:
                raise IntegrityError(
                    f"the cache {each} {problem}",
                    mend="name a folder of your own with --cache or PLANYARD_STORE_CACHE",
                )
            if each == self.root:
                break
        self._folders.add(folder)
