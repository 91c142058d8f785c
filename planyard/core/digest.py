"""Content identity: `sha256:<64 hex>`, and canonical JSON so that equal values digest equally."""

from __future__ import annotations

import hashlib
import json
import re

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` followed by 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def digest_of_bytes(data: bytes | memoryview) -> str:
    """The digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: the one encoding that is ever hashed."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of_value(value: object) -> str:
    """The digest of a JSON value's canonical encoding."""
    return digest_of_bytes(canonical_json(value))


def short(digest: str) -> str:
    """The first 12 hex digits, for people; never a key."""
    return digest.removeprefix("sha256:")[:12]
