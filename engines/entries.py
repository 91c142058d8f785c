"""Reading an entry of a store's index: what cannot be read is damage, said in one way."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from planyard.core.errors import IntegrityError

_Record = TypeVar("_Record")


def decode_entry(decoder: msgspec.json.Decoder[_Record], document: bytes, *, kind: str) -> _Record:
    """The record that an entry of `kind` holds; raises IntegrityError when it holds none."""
    try:
        return decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"an entry in the index of {kind} cannot be read: {error}") from error
