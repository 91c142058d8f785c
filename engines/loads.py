"""Load records in a store: index entries of the kind `loads`, under the digest of the image.

An image has one for each load run. They are figures, no evidence: a promotion asks for none.
"""

from __future__ import annotations

import msgspec

from engines.entries import decode_entry
from engines.store.protocol import Store
from planyard.core.digest import canonical_json
from planyard.core.errors import IntegrityError, StoreError
from planyard.core.loads import LoadRecord

LOADS = "loads"

_RECORD = msgspec.json.Decoder(LoadRecord)


def put_load(store: Store, record: LoadRecord) -> str:
    """Enter the record of a stored image; returns the entry's digest.

    Raises StoreError when the image's manifest is not there.
    """
    store.claim((record.image,))
    if not store.has_blob(record.image):
        of = f"the load {record.workload} of {record.cell}"
        raise StoreError(f"{of} was not entered: {store.url} has no {record.image}")
    return store.put_entry(LOADS, record.image, canonical_json(msgspec.to_builtins(record)))


def loads_of_image(store: Store, image: str) -> tuple[LoadRecord, ...]:
    """The load records of an image, newest first; those of one second by workload and cell.

    Raises IntegrityError for an entry that cannot be read or is of another image.
    """
    records = [load_from_bytes(document, image=image) for document in store.entries(LOADS, image)]
    records.sort(key=lambda each: (each.workload, each.cell))
    return tuple(sorted(records, key=lambda each: each.created, reverse=True))


def load_from_bytes(document: bytes, *, image: str) -> LoadRecord:
    """Read an entry; raises IntegrityError for what is none, or is of another image."""
    record = decode_entry(_RECORD, document, kind=LOADS)
    if record.image != image:
        raise IntegrityError(f"an entry of {record.image} lies under {image} in {LOADS}")
    return record
