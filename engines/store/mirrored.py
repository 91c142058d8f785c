"""A store elsewhere with the workspace's own in front: builds read and write both.

What is written goes to the near store first, then to the far one, blobs before the entries that
name them. What only the far store has is brought near when it is read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.store import manifest
from engines.store.copying import copy_blob
from engines.store.local_store import LocalStore
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes


class MirroredStore:
    """Keeps every promise of `protocol.Store`; what it has is what either of the two has."""

    def __init__(self, *, near: LocalStore, far: ObjectStore) -> None:
        self.near, self.far = near, far
        self._far_entries: dict[tuple[str, str], set[str]] = {}

    @property
    def url(self) -> str:
        """The far place."""
        return self.far.url

    @property
    def root(self) -> Path:
        """The directory of the near store."""
        return self.near.root

    def has_blob(self, digest: str) -> bool:
        """Whether either store has the blob."""
        return self.near.has_blob(digest) or self.far.has_blob(digest)

    def put_blob(
        self,
        digest: str,
        source: Iterable[bytes] | Path,
        *,
        take: bool = False,
        family: str | None = None,
    ) -> None:
        """Keep the bytes near, then send what the far store lacks of them."""
        self.near.put_blob(digest, source, take=take, family=family)
        copy_blob(digest, source=self.near, target=self.far)

    def claim(self, digests: Iterable[str]) -> None:
        """Rely on what either store has of these."""
        wanted = tuple(digests)
        self.near.claim(wanted)
        self.far.claim(wanted)

    def open_blob(self, digest: str) -> Iterator[bytes]:
        """The bytes in pieces, the last one after all of them are verified."""
        self.bring(digest)
        return self.near.open_blob(digest)

    def read_blob(self, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob, verified."""
        self.bring(digest)
        return self.near.read_blob(digest, limit_bytes=limit_bytes)

    def fetch_blob(self, digest: str, path: Path) -> None:
        """Write the verified bytes to `path`, whole or not at all."""
        self.bring(digest)
        self.near.fetch_blob(digest, path)

    def put_entry(self, kind: str, key: str, document: bytes) -> str:
        """Add an index entry to both; what it names went to both before."""
        self.near.put_entry(kind, key, document)
        return self.far.put_entry(kind, key, document)

    def entries(self, kind: str, key: str) -> Iterator[bytes]:
        """The documents of a key in either store, in the order of their digests."""
        near, far = self.near.entries(kind, key), self._noted(kind, key)
        last = None
        for document in heapq.merge(near, far, key=digest_of_bytes):
            if document != last:
                yield document
            last = document

    def far_has(self, kind: str, key: str, document: bytes) -> bool:
        """Whether the far store had an entry when all entries of its key were last read here."""
        return digest_of_bytes(document) in self._far_entries.get((kind, key), ())

    def _noted(self, kind: str, key: str) -> Iterator[bytes]:
        seen = self._far_entries[kind, key] = set()
        for document in self.far.entries(kind, key):
            seen.add(digest_of_bytes(document))
            yield document

    def keys(self, kind: str) -> Iterator[str]:
        """The keys of a kind in either store, sorted."""
        return iter(sorted({*self.near.keys(kind), *self.far.keys(kind)}))

    def bring(self, digest: str) -> None:
        """Have a blob near. Raises LookupMissError when neither store has it."""
        if not self.near.has_blob(digest):
            copy_blob(digest, source=self.far, target=self.near)

    def publish_image_layout(self, manifest_digest: str) -> Path:
        """Make an OCI layout of an image, all of it brought near; see `LocalStore`."""
        data = self.read_blob(manifest_digest, limit_bytes=manifest.MANIFEST_LIMIT_BYTES)
        for digest in manifest.manifest_from_bytes(data, digest=manifest_digest).digests:
            self.bring(digest)
        return self.near.publish_image_layout(manifest_digest)
