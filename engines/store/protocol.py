"""What every store promises: blobs under their digest, index entries that are only ever added.

- A blob is there whole, and is what its digest says, or it is not there.
- Bytes are verified on every read; what does not match its digest is never served.
- An entry is named by the digest of its own document, so writers never conflict.

A backend may keep a blob in any form (a file, chunks, an S3 object, an OCI blob) as long as these
hold; nothing here lists blobs or moves them. The suite in tests/contract checks every backend.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from planyard.core.digest import is_digest
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError

ENTRY_LIMIT_BYTES = 64 << 20
"""No entry is larger: a reader may hold one in memory."""

_READ_ONLY = "make it writable for this user, or name another place with --store"
_FULL = "make room there (`planyard store gc`), and do it again: what is stored is whole"
_MENDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.EIO: "look at the disk, then run `planyard store fsck`",
}
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")


class Store(Protocol):
    """Keeps blobs and index entries. Digests and keys are `sha256:<64 hex>`.

    Every method raises InputError for a digest, key or kind that is not one, and StoreError when
    the place cannot be reached, read or written.
    """

    @property
    def url(self) -> str:
        """The place, as a user would write it after `--store`."""
        ...

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is there. Its bytes are not read; reading verifies them."""
        ...

    def put_blob(
        self,
        digest: str,
        source: Iterable[bytes] | Path,
        *,
        take: bool = False,
        family: str | None = None,
    ) -> None:
        """Keep the bytes of `source`, which must be those of `digest`.

        Blobs of one `family` (a digest: of the model that plans are made of) probably share most of
        their bytes; a store may keep those once.

        With `take`, a file given as a path belongs to the store afterwards: it is moved where that
        is possible, else copied and removed. Raises IntegrityError when the bytes are not the
        digest's; then nothing is stored and the file stays. A damaged blob of the same digest is
        replaced.
        """
        ...

    def claim(self, digests: Iterable[str]) -> None:
        """Rely on blobs, images or families: what of them is here stays, for a grace period.

        Look at what is there only after this; see docs/keeping-a-store.md.
        """
        ...

    def open_blob(self, digest: str) -> Iterator[bytes]:
        """The bytes in pieces. Rely on them only when the iterator has ended without an error.

        Raises LookupMissError at once when the blob is missing, and IntegrityError before the last
        piece when the bytes are not the digest's: the whole of a damaged blob is never handed out.
        """
        ...

    def read_blob(self, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob, verified. Raises StoreError when it is larger than `limit_bytes`."""
        ...

    def fetch_blob(self, digest: str, path: Path) -> None:
        """Write the verified bytes to `path`, whole or not at all; replaces what is there."""
        ...

    def put_entry(self, kind: str, key: str, document: bytes) -> str:
        """Add an index entry and return its digest; an equal entry that exists is fine."""
        ...

    def entries(self, kind: str, key: str) -> Iterator[bytes]:
        """The documents of a key, each verified, in the order of their digests; may be none."""
        ...

    def keys(self, kind: str) -> Iterator[str]:
        """The keys of a kind, sorted. May be slow: only for explaining a miss."""
        ...


def hex_of_digest(digest: str) -> str:
    """The 64 hex digits of a digest; raises InputError for anything else.

    Only what comes out of here or of `checked_kind` ever becomes part of a path or an address.
    """
    if not is_digest(digest):
        raise InputError([f"{digest[:80]!r} is not a digest: write sha256: and 64 hex digits"])
    return digest[7:]


def checked_kind(kind: str) -> str:
    """`kind` itself; raises InputError unless it is a short lower-case word."""
    if not _KIND.fullmatch(kind):
        raise InputError([f"{kind[:80]!r} is not a kind of entry"])
    return kind


def checked_document(document: bytes) -> bytes:
    """`document` itself; raises StoreError when it is too large for an entry."""
    if len(document) > ENTRY_LIMIT_BYTES:
        raise StoreError(f"an entry of {len(document)} bytes: {ENTRY_LIMIT_BYTES} is the limit")
    return document


def verified(digest: str, pieces: Iterable[bytes], *, where: str) -> Iterator[bytes]:
    """`pieces` unchanged, the last one only after all of them proved to be those of `digest`.

    Raises IntegrityError, naming `where` they came from, when they are not.
    """
    seen = hashlib.sha256()
    held: bytes | None = None
    for piece in pieces:
        seen.update(piece)
        if held is not None:
            yield held
        held = piece
    if seen.hexdigest() != digest[7:]:
        raise damaged(digest, found="sha256:" + seen.hexdigest(), where=where)
    if held is not None:
        yield held


def drain(pieces: Iterable[bytes]) -> None:
    """Read to the end, keeping nothing: for its errors."""
    for _ in pieces:
        pass


def damaged(digest: str, *, found: str, where: str) -> IntegrityError:
    """The error for bytes that are not their digest's."""
    return IntegrityError(
        f"{where} is damaged: it should be {digest} and is {found}",
        mend="remove it and run `planyard build` again, or fetch it from another store",
    )


def missing(digest: str, *, where: str) -> LookupMissError:
    """The error for a blob that is not there."""
    return LookupMissError(f"{where} has no blob {digest}")


def refused(what: str, error: OSError) -> StoreError:
    """The error for what the operating system refused: its reason, and how to mend it."""
    return StoreError(f"{what}: {error.strerror}", mend=_MENDS.get(error.errno or 0, ""))


def too_large(digest: str, *, limit_bytes: int) -> StoreError:
    """The error for a blob that is larger than its reader can take."""
    return StoreError(f"{digest} has more than the {limit_bytes} bytes expected here")
