"""The highest version of evidence this machine has verified, so that older evidence is refused.

One small JSON file. What was seen with one key says nothing about another key, so that a change of
keys starts anew. Losing the file loses only the memory: expiry still limits how old evidence is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from planyard.core.digest import canonical_json, digest_of_value
from planyard.core.errors import InputError, StoreError
from planyard.edge import files

SEEN_SCHEMA = 1
FILE_LIMIT_BYTES = 16 << 20


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The file: the version by the digest of store, image and signer."""

    schema: Annotated[int, Meta(ge=SEEN_SCHEMA, le=SEEN_SCHEMA)] = SEEN_SCHEMA
    versions: dict[str, Annotated[int, Meta(ge=1)]] = {}


def seen_file(root: Path) -> Path:
    """Where the memory of a workspace lies."""
    return root / ".planyard" / "state" / "evidence.json"


def seen_version(path: Path, *, store: str, image: str, signer: str) -> int:
    """The highest version that was recorded, 0 for none.

    `store` is its URL, `signer` names the key or identity. Raises InputError for a damaged file:
    to go on as if nothing had been seen would let an old state through.
    """
    return _read(path).versions.get(_key(store, image, signer), 0)


def record_version(path: Path, version: int, *, store: str, image: str, signer: str) -> None:
    """Remember a version that was verified, unless a higher one is remembered already."""
    key = _key(store, image, signer)
    try:
        with files.exclusive_lock(path.with_suffix(".lock"), on_wait=lambda: None):
            versions = _read(path).versions
            if version > versions.get(key, 0):
                seen = _Seen(versions=versions | {key: version})
                files.write_bytes(path, canonical_json(msgspec.to_builtins(seen)))
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}") from error


def _key(store: str, image: str, signer: str) -> str:
    return digest_of_value([store, image, signer])


def _read(path: Path) -> _Seen:
    mend = "look why it is damaged; without it the next verified version is taken as the first"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
        if len(data) > FILE_LIMIT_BYTES:
            raise InputError([f"{path} is larger than {FILE_LIMIT_BYTES} bytes"], mend=mend)
        return msgspec.json.decode(data, type=_Seen)
    except FileNotFoundError:
        return _Seen()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError([f"{path} cannot be read: {error}"], mend=mend) from error
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}") from error
