"""Timing caches of TensorRT's builder: what it measured on a GPU, kept for the builds after it.

Kept for each GPU, driver and TensorRT version. A cache is never changed: each build adds its own,
and says which ones went into it. So nothing is locked, and two builds at one moment lose nothing:
the next one combines what both left (docs/adr/0010-timing-caches.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from engines.entries import decode_entry
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_value, is_digest
from planyard.core.errors import IntegrityError

TIMINGS = "timings"
"""The kind of index entries; the key is the digest of a `TimingKey`."""

COMBINED_AT_ONCE = 32
"""So many caches are given to one build; the others wait for the next."""

_SCHEMA = 1


class TimingKey(msgspec.Struct, frozen=True, kw_only=True):
    """What measured times are good for: a GPU by its name, a driver, all parts of a version.

    TensorRT itself refuses a cache of another version, or of a GPU with other properties.
    """

    gpu: str
    driver: str
    version: str


class TimingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A cache: the digest of its bytes, and of the caches whose content is in it as well."""

    schema: int = _SCHEMA
    made_for: TimingKey
    digest: str
    size_bytes: int
    combines: tuple[str, ...] = ()


_RECORD = msgspec.json.Decoder(TimingRecord)


def key_of_timings(key: TimingKey) -> str:
    """The index key of the caches for a GPU, driver and TensorRT."""
    return digest_of_value(msgspec.to_builtins(key))


def find_timings(store: Store, key: TimingKey) -> tuple[TimingRecord, ...]:
    """The stored caches that are in no other stored one, in the order of their digests.

    What is found stays for a grace period. Raises IntegrityError for an entry that cannot be one.
    """
    found = {record.digest: record for record in _records(store, key)}
    store.claim(found)
    stored = {digest: found[digest] for digest in sorted(found) if store.has_blob(digest)}
    in_another = {digest for record in stored.values() for digest in record.combines}
    left = [record for digest, record in stored.items() if digest not in in_another]
    return tuple(left[:COMBINED_AT_ONCE])


def put_timings(
    store: Store, key: TimingKey, path: Path, *, digest: str, combines: Iterable[str]
) -> None:
    """Keep the cache a build wrote to `path`, which is taken, and enter it.

    A cache of the same bytes is not entered twice: then no two of them can be in each other.
    """
    size_bytes = path.stat().st_size
    store.put_blob(digest, path, take=True)
    if any(record.digest == digest for record in _records(store, key)):
        return
    record = TimingRecord(
        made_for=key,
        digest=digest,
        size_bytes=size_bytes,
        combines=tuple(sorted(set(combines) - {digest})),
    )
    document = canonical_json(msgspec.to_builtins(record))
    store.put_entry(TIMINGS, key_of_timings(key), document)


def timings_from_bytes(document: bytes) -> TimingRecord:
    """The record of an entry; raises IntegrityError when it is none."""
    record = decode_entry(_RECORD, document, kind=TIMINGS)
    if not all(is_digest(each) for each in (record.digest, *record.combines)):
        raise IntegrityError(f"an entry in the index of {TIMINGS} names what is no digest")
    return record


def _records(store: Store, key: TimingKey) -> list[TimingRecord]:
    records = [timings_from_bytes(each) for each in store.entries(TIMINGS, key_of_timings(key))]
    if any(record.made_for != key for record in records):
        raise IntegrityError(f"a timing cache lies under {key_of_timings(key)}, not under its own")
    return records
