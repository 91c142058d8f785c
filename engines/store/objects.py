"""What a backend does: keep whole objects under names, list them, and move pointers.

- An object is never changed: its name ends in the sha256 of its bytes. It is there whole, or not.
- A pointer is a small document that moves by compare-and-swap; nothing else in a store changes.

`engines/store/store.py` makes a store of any backend; docs/store.md has the names. The suites in
tests/contract check every backend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engines.store.protocol import checked_kind, hex_of_digest
from planyard.core.errors import InputError, StoreError

POINTER_LIMIT_BYTES = 64 << 10
"""No pointer is larger."""

BLOBS = "blobs/sha256/"
PACKS = "packs/"
MAPS = "maps/"
INDEX = "index/"
AREAS = (BLOBS, PACKS, MAPS, INDEX)
"""Where objects lie; everything in a store below another name is no object."""

CHANNELS = "channels/"
LEASES = "leases/"
"""Where pointers lie: channels, and the tables of leases (`leases.py`), which nobody lists."""

_HEX = "[0-9a-f]{64}"
_NAME = re.compile(
    rf"(?:blobs/sha256/|packs/{_HEX}/|maps/{_HEX}/|index/[a-z][a-z0-9-]{{0,31}}/{_HEX}/)"
    rf"(?P<hex>{_HEX})"
)
_PREFIX = re.compile(
    rf"blobs/sha256/|(?:packs|maps)/(?:{_HEX}/)?|index/(?:[a-z][a-z0-9-]{{0,31}}/(?:{_HEX}/)?)?"
)
_POINTER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LEASE_TABLE = re.compile(rf"{LEASES}[0-9a-f]{{2}}")


class NoCompareAndSwapError(StoreError):
    """The place cannot promise that of two who move a pointer only one wins."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An object as a listing shows it; `modified` is in seconds since 1970, None if unknown."""

    name: str
    size_bytes: int
    modified: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What a pointer holds, and the token that names this state of it to `move_pointer`."""

    data: bytes
    token: str


class Objects(Protocol):
    """Whole objects under names. Names come from the functions below, and from listings.

    Every method raises StoreError, with how to mend it, when the place cannot be reached, read or
    written. Methods may be called from several threads at once.
    """

    @property
    def url(self) -> str:
        """The place, as a user would write it after `--store`."""
        ...

    @property
    def is_near(self) -> bool:
        """Whether small reads cost next to nothing (a disk), or a round trip each (a network)."""
        ...

    @property
    def is_collected(self) -> bool:
        """Whether `store gc` can work here: objects say how old they are."""
        ...

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None when it is not there."""
        ...

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start`, at most `length`, in pieces of at most 9 MiB; not verified.

        Raises FileNotFoundError at once when the object is missing. A range past the end gives
        what there is. A connection that breaks is taken up again from where it broke, or ends
        with StoreError; fewer bytes than the object has never look like its end.
        """
        ...

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        """Keep an object: afterwards it is there whole, and survives a power cut.

        The bytes must be those the name ends in (`digest_of_name`); raises IntegrityError, with
        nothing stored, when they are not. `proved` says that the caller has just made the name of
        these bytes: they need not be hashed again. An object that is there is replaced, unless its
        bytes are known to be right without fetching them.
        """
        ...

    def adopt(self, name: str, path: Path) -> bool:
        """Move a file to its place, verified as `write` does, where that saves copying it.

        False, with nothing done, when it has to be written instead.
        """
        ...

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names start with `prefix`, which ends in `/`, sorted by name."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        ...

    def pointer(self, name: str) -> Pointer | None:
        """A pointer as it is now, never from a cache; None when there is none."""
        ...

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Make a pointer hold `data` if its token is still `expected` (None: there is none yet).

        False when somebody else moved it first; then nothing changed. Of any number of callers
        with one `expected` exactly one gets True. Raises NoCompareAndSwapError where the place
        cannot promise that.
        """
        ...

    def pointers(self) -> Iterator[str]:
        """The names of all channels, sorted; tables of leases are not among them."""
        ...


def blob_name(digest: str) -> str:
    """Where a blob lies that is kept whole."""
    return BLOBS + hex_of_digest(digest)


def pack_name(family: str, digest: str) -> str:
    """Where a pack of chunks lies: packs of one family lie together."""
    return f"{PACKS}{hex_of_digest(family)}/{hex_of_digest(digest)}"


def map_name(blob: str, digest: str) -> str:
    """Where a chunk map of a blob lies."""
    return f"{MAPS}{hex_of_digest(blob)}/{hex_of_digest(digest)}"


def entry_name(kind: str, key: str, digest: str) -> str:
    """Where an index entry lies."""
    return f"{INDEX}{checked_kind(kind)}/{hex_of_digest(key)}/{hex_of_digest(digest)}"


def digest_of_name(name: str) -> str:
    """The digest an object must have; raises InputError for a name that is no object's.

    Only names that pass here become part of a path or an address.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError([f"{name[:120]!r} is not the name of an object"])
    return "sha256:" + match["hex"]


def is_name(name: str) -> bool:
    """Whether `name` is the name of an object."""
    return _NAME.fullmatch(name) is not None


def checked_pointer_name(name: str) -> str:
    """`name` itself; raises InputError unless it is a short lower-case word."""
    if not is_channel_name(name):
        rule = "a to z, 0 to 9, dot, dash and underscore, at most 63, the first no sign"
        raise InputError([f"{name[:80]!r} is not the name of a channel: write {rule}"])
    return name


def is_channel_name(name: str) -> bool:
    """Whether `name` can be the name of a channel."""
    return _POINTER.fullmatch(name) is not None


def is_lease_table(name: str) -> bool:
    """Whether a pointer is a table of leases, not a channel."""
    return _LEASE_TABLE.fullmatch(name) is not None


def pointer_path(name: str) -> str:
    """Where a pointer lies: `leases/ab` there, every other name below `channels/`.

    Raises InputError for a name that is neither. No channel has a `/` in its name.
    """
    return name if is_lease_table(name) else CHANNELS + checked_pointer_name(name)


def checked_pointer_data(data: bytes) -> bytes:
    """`data` itself; raises StoreError when it is too large for a pointer."""
    if len(data) > POINTER_LIMIT_BYTES:
        raise StoreError(f"a pointer of {len(data)} bytes: {POINTER_LIMIT_BYTES} is the limit")
    return data


def checked_prefix(prefix: str) -> str:
    """`prefix` itself; raises InputError unless it is the start of objects' names, up to a `/`."""
    if not _PREFIX.fullmatch(prefix):
        raise InputError([f"{prefix[:120]!r} is not the start of an object's name"])
    return prefix
