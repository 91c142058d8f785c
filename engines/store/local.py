"""A store in a directory; docs/store.md has the layout and what it guarantees.

Every file is written beside its place, flushed to the disk and renamed, so that a writer killed at
any moment leaves at most a temporary file, which readers never look at. Files are opened without
following links, and verified on every read.
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
from pathlib import Path

from engines.store import manifest, protocol
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.edge import files

DAY_SECONDS = 86_400.0

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us
_NOT_REGULAR = (errno.ELOOP, errno.ENXIO, errno.EISDIR)  # a link, a socket, a folder
_HEX = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"[0-9a-f]{64}\.json")
_TEMPORARY = re.compile(r"\..{1,40}\.[a-z0-9_]{8}")  # what files.atomic_write makes
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class LocalStore:
    """Keeps every promise of `protocol.Store` in the directory `root`, made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._blobs = f"{self.root}/blobs/sha256"
        self._index = f"{self.root}/index"

    @property
    def url(self) -> str:
        """`file://` and the absolute path."""
        return f"file://{self.root}"

    def has_blob(self, digest: str) -> bool:
        """Whether there is a regular file under the digest."""
        path = f"{self._blobs}/{protocol.hex_of_digest(digest)}"
        try:
            return stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unreadable(path, error) from error

    def put_blob(self, digest: str, source: Iterable[bytes] | Path, *, take: bool = False) -> None:
        """Keep the bytes, verified: one read if they are here already, one write if not."""
        name = protocol.hex_of_digest(digest)
        with _reporting(f"{self.url} could not keep {digest}"):
            path = self._folder("blobs", "sha256") / name
            if _is_intact(path, digest):
                protocol.drain(_given(digest, source))
            elif not (take and isinstance(source, Path) and _move(source, path, digest=digest)):
                with files.atomic_write(path, mode=0o444) as file:
                    file.writelines(_given(digest, source))
            if take and isinstance(source, Path):
                source.unlink(missing_ok=True)

    def open_blob(self, digest: str) -> Iterator[bytes]:
        """The bytes in pieces, the last one after all of them are verified."""
        file = self._open_blob(digest)
        return protocol.verified(digest, _pieces(file), where=str(file.name))

    def read_blob(self, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob, verified."""
        with self._open_blob(digest) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > limit_bytes:
                raise protocol.too_large(digest, size_bytes=size_bytes, limit_bytes=limit_bytes)
            return b"".join(protocol.verified(digest, _pieces(file), where=str(file.name)))

    def fetch_blob(self, digest: str, path: Path) -> None:
        """Write the verified bytes to `path`, whole or not at all."""
        pieces = self.open_blob(digest)
        with _reporting(f"{path} could not be written"), files.atomic_write(path) as file:
            file.writelines(pieces)

    def put_entry(self, kind: str, key: str, document: bytes) -> str:
        """Add an index entry and return its digest."""
        parts = ("index", protocol.checked_kind(kind), protocol.hex_of_digest(key))
        digest = digest_of_bytes(protocol.checked_document(document))
        with _reporting(f"{self.url} could not keep an entry of {kind}"):
            path = self._folder(*parts) / f"{digest[7:]}.json"
            if not _is_intact(path, digest):
                with files.atomic_write(path, mode=0o444) as file:
                    file.write(document)
        return digest

    def entries(self, kind: str, key: str) -> Iterator[bytes]:
        """The documents of a key, verified, in the order of their digests."""
        kind, name = protocol.checked_kind(kind), protocol.hex_of_digest(key)
        folder = f"{self._index}/{kind}/{name}"
        names = sorted(name for name in _names(folder) if _ENTRY.fullmatch(name))
        return (_read_entry(f"{folder}/{name}", "sha256:" + name[:64]) for name in names)

    def keys(self, kind: str) -> Iterator[str]:
        """The keys of a kind, sorted; lists one folder."""
        names = _names(f"{self._index}/{protocol.checked_kind(kind)}")
        return iter(sorted("sha256:" + name for name in names if _HEX.fullmatch(name)))

    def publish_image_layout(self, manifest_digest: str) -> Path:
        """Make `images/<hex>`, an OCI layout of one image of this store, and return its path.

        It holds no bytes: its `blobs` is a link to the store's. Raises StoreError when the image
        is not complete, LookupMissError when its manifest is not here.
        """
        data = self.read_blob(manifest_digest, limit_bytes=manifest.MANIFEST_LIMIT_BYTES)
        image = manifest.manifest_from_bytes(data, digest=manifest_digest)
        for digest in image.digests:
            if not self.has_blob(digest):
                raise StoreError(f"{self.url} has not all of {manifest_digest}: no {digest}")
        named = {"mediaType": image.media_type, "digest": manifest_digest, "size": len(data)}
        index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [named]}
        with _reporting(f"{self.url} could not publish {manifest_digest}"):
            folder = self._folder("images", manifest_digest[7:])
            _link(folder / "blobs", to="../../blobs")
            _write_if_other(folder / "oci-layout", _LAYOUT)
            _write_if_other(folder / "index.json", canonical_json(index))
        return folder

    def sweep(self, *, older_than_seconds: float = DAY_SECONDS) -> int:
        """Remove the temporary files of writers that were killed; returns how many there were."""
        oldest = time.time() - older_than_seconds
        swept = 0
        with _reporting(f"{self.url} could not be swept"):
            for pattern in (".*", "blobs/sha256/.*", "index/*/*/.*", "images/*/.*"):
                for path in self.root.glob(pattern):
                    with contextlib.suppress(FileNotFoundError):  # its writer was alive after all
                        seen = path.lstat()
                        left = stat.S_ISREG(seen.st_mode) and seen.st_mtime < oldest
                        if left and _TEMPORARY.fullmatch(path.name):
                            path.unlink()
                            swept += 1
        return swept

    def _open_blob(self, digest: str) -> FileIO:
        path = f"{self._blobs}/{protocol.hex_of_digest(digest)}"
        try:
            return _open_regular(path)
        except FileNotFoundError:
            raise protocol.missing(digest, where=self.url) from None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _folder(self, *parts: str) -> Path:
        """A folder of the store, made durably when missing; a link in its place is refused."""
        if not (self.root / "oci-layout").exists():
            self.root.mkdir(parents=True, exist_ok=True)
            files.sync_folder(self.root.parent)
            _write_if_other(self.root / "oci-layout", _LAYOUT)
        folder = self.root
        for part in parts:
            folder /= part
            try:
                folder.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(folder.lstat().st_mode):
                    raise IntegrityError(f"{folder} is not a folder of the store") from None
            else:
                files.sync_folder(folder.parent)
        return folder


def _open_regular(path: str | Path) -> FileIO:
    """Open a regular file; links, FIFOs, devices, sockets and folders are IntegrityError."""
    try:
        file = FileIO(path, opener=_open_unfollowed)
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise IntegrityError(f"{path} is not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise IntegrityError(f"{path} is not a regular file")
    return file


def _open_unfollowed(path: str, _: int) -> int:
    return os.open(path, _READ)


def _pieces(file: FileIO) -> Iterator[bytes]:
    """The bytes of an open file; closes it."""
    try:
        with file:
            while piece := file.read(files.CHUNK_BYTES):
                yield piece
    except OSError as error:
        raise _unreadable(str(file.name), error) from error


def _read_entry(path: str, digest: str) -> bytes:
    """A verified entry, by plain calls of the system: a build that has nothing to do is these."""
    try:
        descriptor = os.open(path, _READ)
        try:
            size_bytes = os.fstat(descriptor).st_size
            if size_bytes > protocol.ENTRY_LIMIT_BYTES:
                raise IntegrityError(f"{path} is larger than any entry: {size_bytes} bytes")
            document = os.read(descriptor, size_bytes + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise IntegrityError(f"{path} is not a regular file") from error
        raise _unreadable(path, error) from error
    found = digest_of_bytes(document)
    if found != digest:
        raise protocol.damaged(digest, found=found, where=path)
    return document


def _names(folder: str) -> list[str]:
    """The names in a folder, none when it is missing."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - Path.iterdir takes three times as long
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _given(digest: str, source: Iterable[bytes] | Path) -> Iterator[bytes]:
    """What a caller wants stored, in pieces, verified."""
    if isinstance(source, Path):
        return protocol.verified(digest, _pieces(FileIO(source)), where=str(source))
    return protocol.verified(digest, source, where="what was given")


def _is_intact(path: Path, digest: str) -> bool:
    """Whether the file is there and is what its digest says; reads it whole."""
    try:
        protocol.drain(protocol.verified(digest, _pieces(_open_regular(path)), where=str(path)))
    except (FileNotFoundError, IntegrityError):
        return False
    return True


def _move(source: Path, path: Path, *, digest: str) -> bool:
    """Rename a file into the store, verified; False when it has to be copied instead.

    Only a file that is ours alone is moved: another name or another owner could change its bytes.
    """
    try:
        file = _open_regular(source)
    except IntegrityError:
        return False
    with file:
        seen = os.fstat(file.fileno())
        if seen.st_nlink != 1 or seen.st_uid != os.geteuid():
            return False
        again = FileIO(os.dup(file.fileno()))
        protocol.drain(protocol.verified(digest, _pieces(again), where=str(source)))
        os.fchmod(file.fileno(), 0o444)
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


def _write_if_other(path: Path, data: bytes) -> None:
    if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
        files.write_bytes(path, data)


def _link(path: Path, *, to: str) -> None:
    """A symbolic link, unless the right one is there."""
    with contextlib.suppress(FileExistsError):
        path.symlink_to(to, target_is_directory=True)
    if not path.is_symlink() or str(path.readlink()) != to:
        raise IntegrityError(f"{path} should be a link to {to}")


def _unreadable(path: str | Path, error: OSError) -> StoreError:
    return StoreError(f"{path} could not be read: {error.strerror}")


@contextlib.contextmanager
def _reporting(message: str) -> Iterator[None]:
    """Turn what the operating system says into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{message}: {error.strerror}") from error
