"""A store in memory: for tests and dry runs. It keeps every promise of the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.store import protocol
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import StoreError
from planyard.edge import files


class MemoryStore:
    """Blobs and entries in dictionaries; gone with the program."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.documents: dict[tuple[str, str], dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        """`memory:`; no other program can reach it."""
        return "memory:"

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is there."""
        return protocol.hex_of_digest(digest) in self.blobs

    def put_blob(self, digest: str, source: Iterable[bytes] | Path, *, take: bool = False) -> None:
        """Keep the bytes, verified; a taken file is removed."""
        name = protocol.hex_of_digest(digest)
        try:
            pieces = [source.read_bytes()] if isinstance(source, Path) else source
        except OSError as error:
            raise StoreError(f"{source} could not be read: {error.strerror}") from error
        self.blobs[name] = b"".join(protocol.verified(digest, pieces, where="what was given"))
        if take and isinstance(source, Path):
            source.unlink(missing_ok=True)

    def open_blob(self, digest: str) -> Iterator[bytes]:
        """The bytes in pieces, the last one after all of them are verified."""
        name = protocol.hex_of_digest(digest)
        if name not in self.blobs:
            raise protocol.missing(digest, where=self.url)
        data = self.blobs[name]
        step = files.CHUNK_BYTES
        pieces = (data[start : start + step] for start in range(0, len(data), step))
        return protocol.verified(digest, pieces, where=f"{self.url}{name}")

    def read_blob(self, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob, verified."""
        pieces = self.open_blob(digest)
        size_bytes = len(self.blobs[protocol.hex_of_digest(digest)])
        if size_bytes > limit_bytes:
            raise protocol.too_large(digest, size_bytes=size_bytes, limit_bytes=limit_bytes)
        return b"".join(pieces)

    def fetch_blob(self, digest: str, path: Path) -> None:
        """Write the verified bytes to `path`, whole or not at all."""
        pieces = self.open_blob(digest)
        try:
            with files.atomic_write(path) as file:
                file.writelines(pieces)
        except OSError as error:
            raise StoreError(f"{path} could not be written: {error.strerror}") from error

    def put_entry(self, kind: str, key: str, document: bytes) -> str:
        """Add an index entry and return its digest."""
        place = (protocol.checked_kind(kind), protocol.hex_of_digest(key))
        digest = digest_of_bytes(protocol.checked_document(document))
        self.documents.setdefault(place, {})[digest] = document
        return digest

    def entries(self, kind: str, key: str) -> Iterator[bytes]:
        """The documents of a key, verified, in the order of their digests."""
        place = (protocol.checked_kind(kind), protocol.hex_of_digest(key))
        found = self.documents.get(place, {})
        return (
            b"".join(protocol.verified(digest, [found[digest]], where=f"{self.url}{kind}/{digest}"))
            for digest in sorted(found)
        )

    def keys(self, kind: str) -> Iterator[str]:
        """The keys of a kind, sorted."""
        protocol.checked_kind(kind)
        return iter(sorted("sha256:" + key for kept, key in self.documents if kept == kind))
