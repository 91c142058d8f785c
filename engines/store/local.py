"""Objects in a directory; docs/store.md has the layout and what it guarantees.

Every file is written beside its place, flushed to the disk and renamed, so that a writer killed at
any moment leaves at most a temporary file, which readers never look at. Files are opened without
following links. Pointers move under a lock that the kernel lets go of when its holder ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from io import FileIO
from operator import attrgetter
from pathlib import Path

from engines.store import objects, protocol
from engines.store.objects import Listed, Pointer
from engines.store.settling import Settling
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.edge import files

DAY_SECONDS = 86_400.0
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us
_NOT_REGULAR = (errno.ELOOP, errno.ENXIO, errno.EISDIR)  # a link, socket, folder
_TEMPORARY = re.compile(r"\..{1,40}\.[a-z0-9_]{8}")  # what files.atomic_write makes
_PIECE_BYTES = 1 << 20
_RANGE_BYTES = 9 << 20  # what a reader of chunks asks for at once comes without a copy


class LocalObjects:
    """Objects below the directory `root`, made on the first write.

    With `private`, as for a cache that others could reach: files must be our own (or root's) and
    have one name only; others are refused as damage.
    """

    is_near = True
    is_collected = True

    def __init__(self, root: Path, *, private: bool = False) -> None:
        self.root = root.absolute()
        self._private = private
        self._settling = Settling(self.root)

    @property
    def url(self) -> str:
        """`file://` and the absolute path."""
        return f"file://{self.root}"

    def size(self, name: str) -> int | None:
        """The size of a regular file; None when there is none."""
        path = self._path(name)
        try:
            seen = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        self._settling.note(path.rpartition("/")[0])
        return seen.st_size if stat.S_ISREG(seen.st_mode) else None

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range in pieces; FileNotFoundError at once for what is not there."""
        file = self._open(name)
        return _pieces(file, start=start, length=length)

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        """Keep an object: temporary file, flush, rename, flush the folder."""
        digest = objects.digest_of_name(name)
        with _reporting(f"{self.url} could not keep {digest}"):
            self._settling.settle()
            path = self.folder(*name.split("/")[:-1]) / digest[7:]
            given = _given(source)
            checked = given if proved else protocol.verified(digest, given, where=_named(source))
            with files.atomic_write(path, mode=0o444) as file:
                file.writelines(checked)

    def adopt(self, name: str, path: Path) -> bool:
        """Move a file to its place, verified; False when it has to be copied instead.

        Only a file that is ours alone is moved: another name or another owner could change it.
        """
        digest = objects.digest_of_name(name)
        with _reporting(f"{self.url} could not take {path}"):
            self._settling.settle()
            place = self.folder(*name.split("/")[:-1]) / digest[7:]
            return _move(path, place, digest=digest)

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names start with `prefix`, sorted; reads one folder after another."""
        below = objects.checked_prefix(prefix).rstrip("/")
        found = self._listing(below, _names(self.root / below))
        # Folders come in the order of their names, and `a/` would come before `a-b/`.
        return iter(sorted(found, key=attrgetter("name"))) if prefix == objects.INDEX else found

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        path = Path(self._path(name))
        with _reporting(f"{path} could not be removed"):
            self._settling.settle(but=str(path.parent))
            path.unlink(missing_ok=True)
            self._settling.note(path.parent)

    def pointer(self, name: str) -> Pointer | None:
        """A pointer as it is now."""
        path = self.root / objects.pointer_path(name)
        try:
            with open_regular(path, private=self._private) as file:
                data = file.read(objects.POINTER_LIMIT_BYTES + 1) or b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        self._settling.note(path.parent)
        return Pointer(data=objects.checked_pointer_data(data), token=digest_of_bytes(data))

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Compare and swap under a lock on the folder's file `.lock`."""
        path = self.root / objects.pointer_path(name)
        objects.checked_pointer_data(data)
        with _reporting(f"{path} could not be moved"):
            self._settling.settle()
            folder = self.folder(path.parent.name)
            with files.exclusive_lock(folder / ".lock", on_wait=lambda: None):
                now = self.pointer(name)
                if (now.token if now else None) != expected:
                    return False
                files.write_bytes(path, data)
        return True

    def pointers(self) -> Iterator[str]:
        """The names of all channels, sorted."""
        names = _names(self.root / objects.CHANNELS)
        return iter([name for name in names if not name.startswith(".")])

    def sweep(self, *, older_than_seconds: float = DAY_SECONDS) -> int:
        """Remove the temporary files of writers that were killed; returns how many there were."""
        oldest = time.time() - older_than_seconds
        swept = 0
        with _reporting(f"{self.url} could not be swept"):
            for pattern in (".*", "*/.*", "*/*/.*", "index/*/*/.*"):
                for path in self.root.glob(pattern):
                    with contextlib.suppress(FileNotFoundError):  # its writer was alive after all
                        seen = path.lstat()
                        left = stat.S_ISREG(seen.st_mode) and seen.st_mtime < oldest
                        left = left and _TEMPORARY.fullmatch(path.name) is not None
                        if left and not files.is_being_written(path):
                            path.unlink()
                            swept += 1
        return swept

    def folder(self, *parts: str) -> Path:
        """A folder of the store, made durably when missing; a link in its place is refused."""
        with _reporting(f"{self.url} could not be written"):
            return self._make_folders(parts)

    def _make_folders(self, parts: tuple[str, ...]) -> Path:
        if not (self.root / "oci-layout").exists():
            above = [each for each in self.root.parents if not each.exists()]
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700 if self._private else 0o777)
            for folder in (*above, self.root):
                files.sync_folder(folder.parent)
            files.write_bytes(self.root / "oci-layout", LAYOUT)
        folder = self.root
        for part in parts:
            folder /= part
            try:
                folder.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(folder.lstat().st_mode):
                    raise IntegrityError(f"{folder} is not a folder of the store") from None
                self._settling.settle_name(folder)
            else:
                files.sync_folder(folder.parent)
        return folder

    def _path(self, name: str) -> str:
        objects.digest_of_name(name)
        return f"{self.root}/{name}"

    def _open(self, name: str) -> FileIO:
        path = self._path(name)
        try:
            file = open_regular(path, private=self._private)
        except FileNotFoundError:
            raise FileNotFoundError(name) from None
        except OSError as error:
            raise _unreadable(path, error) from error
        self._settling.note(path.rpartition("/")[0])
        return file

    def _listing(self, below: str, found: list[str]) -> Iterator[Listed]:
        folder = self.root / below
        self._settling.note(folder)
        for each in found:
            name = f"{below}/{each}"
            try:
                seen = os.lstat(folder / each)
            except FileNotFoundError:
                continue  # removed meanwhile
            if stat.S_ISDIR(seen.st_mode):
                yield from self._listing(name, _names(folder / each))
            elif objects.is_name(name):  # reading one that is no regular file says so
                yield Listed(name=name, size_bytes=seen.st_size, modified=seen.st_mtime)


def open_regular(path: str | Path, *, private: bool = False) -> FileIO:
    """Open a regular file; links, FIFOs, devices, sockets and folders are IntegrityError."""
    try:
        file = FileIO(path, opener=lambda name, _: os.open(name, _READ))
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise IntegrityError(f"{path} is not a regular file") from error
        raise
    seen = os.fstat(file.fileno())
    problem = "" if stat.S_ISREG(seen.st_mode) else "is not a regular file"
    if private and not problem:
        problem = "has several names" if seen.st_nlink > 1 else ""
        problem = problem if seen.st_uid in (0, os.geteuid()) else "belongs to another user"
    if problem:
        file.close()
        raise IntegrityError(f"{path} {problem}", mend="remove it: it was not written by planyard")
    return file


def _pieces(file: FileIO, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a range of an open file; closes it."""
    left = (1 << 62) if length is None else length
    step = _PIECE_BYTES if length is None else _RANGE_BYTES
    try:
        with file:
            if start:
                file.seek(start)
            while left > 0 and (piece := file.read(min(step, left))):
                left -= len(piece)
                yield piece
    except OSError as error:
        raise _unreadable(str(file.name), error) from error


def _given(source: bytes | Iterable[bytes] | Path) -> Iterable[bytes]:
    if isinstance(source, bytes):
        return (source,)
    return _pieces(_opened(source)) if isinstance(source, Path) else source


def _opened(source: Path) -> FileIO:
    try:
        return FileIO(source)
    except OSError as error:
        raise _unreadable(source, error) from error


def _named(source: object) -> str:
    return str(source) if isinstance(source, Path) else "what was given"


def _names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none when it is missing, IntegrityError for a link to one."""
    if folder.is_symlink():
        raise IntegrityError(f"{folder} is not a folder of the store")
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - Path.iterdir takes three times as long
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _move(source: Path, path: Path, *, digest: str) -> bool:
    try:
        file = open_regular(source)
    except IntegrityError:
        return False
    with file:
        seen = os.fstat(file.fileno())
        if seen.st_nlink != 1 or seen.st_uid != os.geteuid():
            return False
        again = FileIO(os.dup(file.fileno()))
        protocol.drain(protocol.verified(digest, _pieces(again), where=str(source)))
        os.fchmod(file.fileno(), 0o444)
        os.utime(file.fileno())  # what is stored now is young, whenever it was made
        os.fsync(file.fileno())
        if not os.path.samestat(seen, source.lstat()):
            return False
        try:
            source.rename(path)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
    files.sync_folder(path.parent)
    return True


def _unreadable(path: str | Path, error: OSError) -> StoreError:
    return StoreError(f"{path} could not be read: {error.strerror}")


@contextlib.contextmanager
def _reporting(message: str) -> Iterator[None]:
    """Turn what the operating system says into a StoreError."""
    try:
        yield
    except OSError as error:
        raise protocol.refused(message, error) from error
