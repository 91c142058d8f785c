"""Layers and images as an audit sees them, made of tars in memory."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from typing import Any

from builders.audit.contents import ImageContents
from builders.audit.layer_index import LIMITS, Limits, WatchFile
from builders.audit.reading import read_layer
from planyard.core.contents import LayerIndex
from planyard.core.digest import digest_of_bytes
from tests import tars


def index_of_tar(
    data: bytes,
    *,
    packed: bytes | None = None,
    watch: WatchFile | None = None,
    limits: Limits = LIMITS,
    piece_bytes: int = 1 << 20,
) -> LayerIndex:
    """The index of a tar, gzipped unless `packed` is what is stored of it."""
    stored = gzip.compress(data, 1, mtime=0) if packed is None else packed
    return read_layer(
        [stored[at : at + piece_bytes] for at in range(0, len(stored), piece_bytes)],
        digest=digest_of_bytes(stored),
        diff_id=digest_of_bytes(data),
        watch=watch,
        limits=limits,
    )


def index_of(*members: tars.Member, watch: WatchFile | None = None) -> LayerIndex:
    """The index of a layer with these members."""
    return index_of_tar(tars.tar(members), watch=watch)


def contents_of(
    *layers: Sequence[tars.Member],
    config: Mapping[str, Any] | None = None,
    name: str = "rtx",
) -> ImageContents:
    """An image of these layers, lowest first; `config` is what a runtime acts on."""
    return ImageContents(
        image=digest_of_bytes(repr(layers).encode()),
        name=name,
        config={"architecture": "amd64", "os": "linux", "config": dict(config or {})},
        layers=tuple(index_of(*layer) for layer in layers),
        created_by=tuple(f"RUN step {number}" for number, _ in enumerate(layers)),
        metadata_bytes=900,
    )
