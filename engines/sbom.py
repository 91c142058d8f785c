"""Bills of materials in a store: two blobs, and an index entry under the image's digest.

An entry says nothing about who wrote it: evidence does, in the statement that names the documents'
digests (docs/evidence.md). An image may have several entries, from several versions of planyard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from engines.entries import decode_entry
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, LookupMissError, StoreError
from planyard.core.matrix_fields import Digest

SBOMS = "sboms"
SBOM_SCHEMA = 1
SBOM_LIMIT_BYTES = 64 << 20

SbomFormat = Literal["spdx", "cyclonedx"]
MEDIA_TYPES: dict[SbomFormat, str] = {
    "spdx": "application/spdx+json",
    "cyclonedx": "application/vnd.cyclonedx+json",
}
"""As IANA has them."""


class SbomDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One document: a blob."""

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=SBOM_LIMIT_BYTES)]


class SbomRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The entry: the documents about an image, by their format."""

    schema: Annotated[int, Meta(ge=SBOM_SCHEMA, le=SBOM_SCHEMA)] = SBOM_SCHEMA
    image: Digest
    planyard_version: str
    documents: dict[SbomFormat, SbomDocument]


_RECORD = msgspec.json.Decoder(SbomRecord)


def put_sbom(
    store: Store, image: str, documents: Mapping[SbomFormat, bytes], *, planyard_version: str
) -> SbomRecord:
    """Keep the documents about a stored image, then their entry. Equal ones are kept once.

    Raises StoreError when the image's manifest is not there, or a document is too large.
    """
    found = {name: _described(name, data) for name, data in documents.items()}
    store.claim((image, *(each.digest for each in found.values())))
    if not store.has_blob(image):
        raise StoreError(f"no bill of materials was entered: {store.url} has no {image}")
    for name, data in documents.items():
        store.put_blob(found[name].digest, [data])
    record = SbomRecord(image=image, planyard_version=planyard_version, documents=found)
    store.put_entry(SBOMS, image, canonical_json(msgspec.to_builtins(record)))
    return record


def sbom_of_image(store: Store, image: str) -> SbomRecord | None:
    """The newest planyard's record of an image whose documents are stored, or None.

    Raises IntegrityError for an entry that cannot be read or is of another image.
    """
    records = [sbom_from_bytes(document, image=image) for document in store.entries(SBOMS, image)]
    records.sort(key=lambda each: (_version(each.planyard_version), canonical_of(each)))
    for record in reversed(records):
        if all(store.has_blob(each.digest) for each in record.documents.values()):
            return record
    return None


def read_sbom(store: Store, record: SbomRecord, wanted: SbomFormat) -> bytes:
    """A document, verified; LookupMissError for a format that the record does not have."""
    found = record.documents.get(wanted)
    if found is None:
        raise LookupMissError(f"{store.url} has no bill of {record.image} in the format {wanted}")
    return store.read_blob(found.digest, limit_bytes=SBOM_LIMIT_BYTES)


def canonical_of(record: SbomRecord) -> bytes:
    """The entry's one encoding."""
    return canonical_json(msgspec.to_builtins(record))


def _described(name: str, data: bytes) -> SbomDocument:
    if len(data) > SBOM_LIMIT_BYTES:
        raise StoreError(f"a bill in {name} of {len(data)} bytes: {SBOM_LIMIT_BYTES} is the limit")
    return SbomDocument(digest=digest_of_bytes(data), size_bytes=len(data))


def sbom_from_bytes(document: bytes, *, image: str) -> SbomRecord:
    """Read an entry; raises IntegrityError for what is none, or is of another image."""
    record = decode_entry(_RECORD, document, kind=SBOMS)
    if record.image != image:
        raise IntegrityError(f"an entry of {record.image} lies under {image} in {SBOMS}")
    return record


def _version(text: str) -> tuple[int, ...]:
    """`0.10.1` after `0.9.2`."""
    return tuple(int(each) for each in re.findall(r"\d{1,9}", text)[:4])
