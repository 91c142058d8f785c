"""Converted models in a store that several builds share: found by everything they were made from.

An entry names the files; they are stored before it. It is a cache: what is gone is converted again.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from engines.entries import decode_entry
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, is_digest
from planyard.core.errors import IntegrityError
from planyard.edge import files

CONVERSIONS = "conversions"
"""The kind of index entries; the key is the digest of what a model was converted from."""

_SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class ConversionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A converted model: the digest of what it was made from, and of each of its files by name."""

    schema: int = _SCHEMA
    conversion: str
    files: dict[str, str]


_RECORD = msgspec.json.Decoder(ConversionRecord)


def put_conversion(store: Store, conversion: str, folder: Path, *, family: str) -> None:
    """Keep the files of a converted model, then enter it. `family` is the digest of the model."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    digests = {path.name: files.digest_of_file(path) for path in paths}
    store.claim(digests.values())
    for path in paths:
        store.put_blob(digests[path.name], path, family=family)
    record = ConversionRecord(conversion=conversion, files=digests)
    store.put_entry(CONVERSIONS, conversion, canonical_json(msgspec.to_builtins(record)))


def find_conversion(store: Store, conversion: str) -> ConversionRecord | None:
    """A converted model whose files are all stored, and stay; None when there is none.

    Raises IntegrityError for an entry that cannot be one.
    """
    for document in store.entries(CONVERSIONS, conversion):
        record = _checked(document, conversion)
        store.claim(record.files.values())
        if all(store.has_blob(digest) for digest in record.files.values()):
            return record
    return None


def fetch_conversion(store: Store, record: ConversionRecord, folder: Path) -> None:
    """Write the files of a converted model into a folder, each verified."""
    for name, digest in record.files.items():
        store.fetch_blob(digest, folder / name)


def _checked(document: bytes, conversion: str) -> ConversionRecord:
    record = decode_entry(_RECORD, document, kind=CONVERSIONS)
    is_sound = all(_NAME.fullmatch(name) for name in record.files)
    is_sound = is_sound and all(is_digest(digest) for digest in record.files.values())
    if record.conversion != conversion or not is_sound:
        raise IntegrityError(f"an entry under {conversion} is no converted model of that key")
    return record
