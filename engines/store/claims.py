"""How writers and `store gc` keep out of each other's way, with nothing but small index entries.

- A writer that relies on what is stored already first *claims* it: a young entry names it.
- Who removes objects first puts up a *notice*, then looks, then removes, then takes it down.

A writer writes its claim, then looks for notices; a collection puts up its notice, then looks for
claims. Whichever order these four come in, at least one sees the other (docs/keeping-a-store.md).
A notice that nobody renews is from a collection that was killed: who waited for it takes it down.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator

from engines.store import objects as names
from engines.store.objects import Objects
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import StoreError

CLAIMS = "claims"
SWEEPS = "sweeps"
"""Kinds of index entries: what writers rely on, and the notices of collections."""

LEASE_SECONDS = 300.0
"""A notice that was not renewed for so long is nobody's."""

_RENEW_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
_pause = time.sleep
_KEY = digest_of_bytes(b"planyard store gc")


def claim(objects: Objects, digests: Iterable[str]) -> None:
    """Rely on blobs, images or families that may be stored: from now on they stay as they are.

    For a grace period, that is. Waits while a collection removes objects. Look at what is there
    only after this.
    """
    if not is_collected(objects):
        return
    document = canonical_json({"digests": sorted(set(digests))})
    digest = digest_of_bytes(document)
    write_lasting(objects, names.entry_name(CLAIMS, digest, digest), document)


@contextlib.contextmanager
def family_claimed(objects: Objects, family: str) -> Iterator[None]:
    """Rely on all packs of a family while a blob of it is written: its map then names some.

    The key of this claim is the family, so that one that is gone when it is read was still seen.
    """
    if not is_collected(objects):
        yield
        return
    document = canonical_json({"digests": [family], "word": secrets.token_hex(8)})
    digest = digest_of_bytes(document)
    name = names.entry_name(CLAIMS, family, digest)
    write_lasting(objects, name, document)
    try:
        yield
    finally:
        objects.remove(name)


def write_lasting(objects: Objects, name: str, document: bytes) -> None:
    """Write a small object such that no collection that is under way removes it."""
    while True:
        objects.write(name, document, proved=True)
        if not is_collected(objects) or not wait_for_sweeps(objects):
            return


def wait_for_sweeps(objects: Objects) -> bool:
    """Wait until nobody removes objects; returns whether somebody did."""
    seen = _notices(objects)
    if not seen:
        return False
    since = _elapsed_seconds()
    while seen:
        _pause(_PAUSE_SECONDS)
        now = _notices(objects)
        if now != seen:
            seen, since = now, _elapsed_seconds()
        elif _elapsed_seconds() - since > LEASE_SECONDS:
            for name in seen:
                objects.remove(name)
    return True


def is_collected(objects: Objects) -> bool:
    """Whether garbage can be collected there at all: not where objects have no time."""
    return objects.is_collected


class Notice:
    """That objects are being removed. `modified` is when it was put up, by the store's clock."""

    def __init__(self, objects: Objects) -> None:
        self._objects, self._word, self._number = objects, secrets.token_hex(8), 0
        self._name, self._renewed = "", _elapsed_seconds()
        self.modified = 0.0

    def renew(self) -> None:
        """Say again that it is meant; raises StoreError when it was not said for too long."""
        late = _elapsed_seconds() - self._renewed
        if self._name and late > LEASE_SECONDS / 2:
            raise StoreError(
                f"the collection was held up for {late:.0f} seconds: writers go on without it",
                mend="run `planyard store gc` again",
            )
        if not self._name or late > _RENEW_SECONDS:
            self._put_up()

    def take_down(self) -> None:
        """The end of it."""
        self._objects.remove(self._name)

    def _put_up(self) -> None:
        before, self._number = self._name, self._number + 1
        document = canonical_json({"number": self._number, "word": self._word})
        self._name = names.entry_name(SWEEPS, _KEY, digest_of_bytes(document))
        started = _elapsed_seconds()
        self._objects.write(self._name, document, proved=True)
        self._renewed = started
        if before:
            self._objects.remove(before)
            return
        held = {each.name: each.modified for each in self._objects.listing(_prefix())}
        modified = held.get(self._name)
        if modified is None:
            raise no_times(self._objects)
        self.modified = modified


@contextlib.contextmanager
def sweeping(objects: Objects) -> Iterator[Notice]:
    """Put up a notice for the time of the block. Call `renew` before each removal."""
    notice = Notice(objects)
    try:
        notice.renew()
        yield notice
    finally:
        notice.take_down()


def no_times(objects: Objects) -> StoreError:
    """The error for a place that does not say how old its objects are."""
    return StoreError(
        f"{objects.url} does not say how old its objects are: nothing can be collected safely",
        mend="copy what you want to keep to a new place (planyard store copy), and let the "
        "registry's own garbage collection remove the old repository",
    )


def _notices(objects: Objects) -> frozenset[str]:
    return frozenset(each.name for each in objects.listing(_prefix()))


def _prefix() -> str:
    return f"{names.INDEX}{SWEEPS}/{_KEY[7:]}/"


def _elapsed_seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
