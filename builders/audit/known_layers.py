"""Indexes of layers kept in the store, under the layer's digest: what was read is not read again.

An index that another version wrote, or that does not add up, is not used: the layer is read anew.
Without its layer it is of no use, and `store gc` takes it.
"""

from __future__ import annotations

import zlib

import msgspec

from engines.store.protocol import ENTRY_LIMIT_BYTES, Store
from planyard.core.contents import LAYER_INDEX_VERSION, LayerIndex

KIND = "layer-index"
_UNPACKED_LIMIT_BYTES = 1 << 30
_LEVEL = 1  # a fifth of the size; more takes longer than reading the entry
_INDEX = msgspec.json.Decoder(LayerIndex)


def keep_index(store: Store, index: LayerIndex) -> bool:
    """Keep an index beside its layer; says whether it did: one of very many files is too large."""
    document = zlib.compress(msgspec.json.encode(index), _LEVEL)
    if len(document) > ENTRY_LIMIT_BYTES:
        return False
    store.put_entry(KIND, index.digest, document)
    return True


def known_index(store: Store, digest: str, *, diff_id: str, pull_bytes: int) -> LayerIndex | None:
    """The index of a layer that was read before, here or wherever the store is used; or None."""
    for document in store.entries(KIND, digest):
        index = _decoded(document)
        if index and _is_of(index, digest, diff_id=diff_id, pull_bytes=pull_bytes):
            return index
    return None


def _decoded(document: bytes) -> LayerIndex | None:
    try:
        unpacking = zlib.decompressobj()
        found = _INDEX.decode(unpacking.decompress(document, _UNPACKED_LIMIT_BYTES))
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if found.version == LAYER_INDEX_VERSION else None


def _is_of(index: LayerIndex, digest: str, *, diff_id: str, pull_bytes: int) -> bool:
    """Whether an index is this layer's, and its parts add up to it."""
    return (
        (index.digest, index.diff_id, index.pull_bytes) == (digest, diff_id, pull_bytes)
        and index.rest_bytes + sum(file.pull_bytes for file in index.files) == pull_bytes
        and sum(file.size_bytes for file in index.files) == index.unpacked_bytes
    )
