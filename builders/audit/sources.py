"""Where an image to audit lies: in a store, in an OCI layout, in a docker archive.

Every byte is checked against the digest that named it before an audit rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from builders.audit.contents import ImageContents
from builders.audit.known_layers import keep_index, known_index
from builders.audit.layer_index import Piece
from builders.audit.reading import read_layer
from engines.store.manifest import MANIFEST_LIMIT_BYTES, Manifest, manifest_from_bytes
from engines.store.protocol import Store, verified
from planyard.core.digest import is_digest
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.units import format_bytes

CONFIG_LIMIT_BYTES = 16 << 20
TITLE_LABEL = "org.opencontainers.image.title"
_PIECE_BYTES = 1 << 20
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LayerSource:
    """A layer as it lies somewhere; `open` gives its bytes, verified at the latest at their end."""

    digest: str
    diff_id: str
    pull_bytes: int
    open: Callable[[], Iterator[Piece]]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """An image as it lies somewhere. `metadata_bytes` are its manifest and configuration."""

    image: str
    name: str
    config: Mapping[str, Any]
    metadata_bytes: int
    layers: tuple[LayerSource, ...]


def image_in_store(store: Store, digest: str, *, name: str = "") -> ImageSource:
    """An image of a store. Raises LookupMissError when it is not there."""
    return _from_manifest(
        store.read_blob(digest, limit_bytes=MANIFEST_LIMIT_BYTES),
        digest=digest,
        name=name,
        read=lambda each: store.read_blob(each, limit_bytes=CONFIG_LIMIT_BYTES),
        open_blob=store.open_blob,
    )


def image_in_layout(folder: Path, *, name: str = "") -> ImageSource:
    """An image of an OCI layout: the only one, or the one of that name (or digest)."""
    layout = _Layout(folder)
    digest = layout.digest_of(name)
    return _from_manifest(
        layout.read(digest, limit_bytes=MANIFEST_LIMIT_BYTES),
        digest=digest,
        name=name,
        read=lambda each: layout.read(each, limit_bytes=CONFIG_LIMIT_BYTES),
        open_blob=layout.open_blob,
    )


def contents_of(
    source: ImageSource, *, store: Store | None, report: Report = lambda _: None
) -> tuple[ImageContents, tuple[str, ...]]:
    """What an image holds, and the layers that were read for it: those the store did not know.

    Their indexes are kept there, where it can be written.
    """
    layers, read = [], []
    for number, layer in enumerate(source.layers, 1):
        index = store and known_index(
            store, layer.digest, diff_id=layer.diff_id, pull_bytes=layer.pull_bytes
        )
        if not index:
            report(f"layer {number} of {len(source.layers)}: {format_bytes(layer.pull_bytes)}")
            index = read_layer(layer.open(), digest=layer.digest, diff_id=layer.diff_id)
            if index.pull_bytes != layer.pull_bytes:
                raise IntegrityError(
                    f"layer {layer.digest} has {index.pull_bytes} bytes, and the image's manifest "
                    f"says {layer.pull_bytes}"
                )
            read.append(layer.digest)
            if store:
                try:
                    keep_index(store, index)
                except StoreError as error:  # a store that only reads is audited as well
                    report(f"not kept: {error.message}")
        layers.append(index)
    contents = ImageContents(
        image=source.image,
        name=source.name,
        config=source.config,
        layers=tuple(layers),
        created_by=created_by(source.config, layers=len(layers)),
        metadata_bytes=source.metadata_bytes,
    )
    return contents, tuple(read)


def created_by(config: Mapping[str, Any], *, layers: int) -> tuple[str, ...]:
    """The instruction behind each layer, empty where the history does not say."""
    history = config.get("history")
    said = [
        str(entry.get("created_by") or entry.get("comment") or "")
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict) and not entry.get("empty_layer")
    ]
    return tuple((said + [""] * layers)[:layers])


def read_config(data: bytes, *, of: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """An image configuration, and the digest of each layer's tar that it names."""
    try:
        config = msgspec.json.decode(data, type=dict[str, Any])
        diff_ids = config["rootfs"]["diff_ids"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise InputError([f"{of}: its configuration cannot be read: {error}"]) from error
    if not isinstance(diff_ids, list) or not all(
        isinstance(each, str) and is_digest(each) for each in diff_ids
    ):
        raise InputError([f"{of}: its configuration does not name its layers by digest"])
    return config, tuple(diff_ids)


def title_of(config: Mapping[str, Any]) -> str:
    """The name that a label gives an image; empty without one."""
    settings = config.get("config")
    labels = settings.get("Labels") if isinstance(settings, dict) else None
    title = labels.get(TITLE_LABEL) if isinstance(labels, dict) else None
    return title if isinstance(title, str) else ""


def _from_manifest(
    data: bytes,
    *,
    digest: str,
    name: str,
    read: Callable[[str], bytes],
    open_blob: Callable[[str], Iterator[bytes]],
) -> ImageSource:
    manifest: Manifest = manifest_from_bytes(data, digest=digest)
    config_bytes = read(manifest.config.digest)
    config, diff_ids = read_config(config_bytes, of=digest)
    if len(diff_ids) != len(manifest.layers):
        raise InputError(
            [f"{digest}: {len(manifest.layers)} layers, and {len(diff_ids)} in its configuration"]
        )
    return ImageSource(
        image=digest,
        name=name or title_of(config),
        config=config,
        metadata_bytes=len(data) + len(config_bytes),
        layers=tuple(
            LayerSource(
                digest=layer.digest,
                diff_id=diff_id,
                pull_bytes=layer.size,
                open=lambda layer=layer: open_blob(layer.digest),  # type: ignore[misc]
            )
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
        ),
    )


class _Named(msgspec.Struct, frozen=True):
    """An image that an index of a layout names."""

    digest: str
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, frozen=True):
    """The images of a layout, or of one name for several machines."""

    manifests: tuple[_Named, ...]


class _Layout:
    """An OCI layout in a folder; blobs are found by digest alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def digest_of(self, name: str) -> str:
        """The digest of the one image that is meant."""
        path = self._folder / "index.json"
        try:
            with path.open("rb") as file:
                found = msgspec.json.decode(file.read(MANIFEST_LIMIT_BYTES), type=_Index).manifests
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError([f"{self._folder} is no OCI layout: {path.name}: {error}"]) from error
        named = {
            each.annotations.get("org.opencontainers.image.ref.name", each.digest): each.digest
            for each in found
        }
        digests = {digest for key, digest in named.items() if not name or name in (key, digest)}
        if len(digests) == 1:
            return digests.pop()
        wanted = f"no image {name!r}" if name else f"{len(named)} images"
        known = ", ".join(list(named)[:10]) or "none"
        raise InputError([f"{self._folder} has {wanted}: write oci:DIR:NAME with one of {known}"])

    def open_blob(self, digest: str) -> Iterator[bytes]:
        """The bytes of a blob, the last piece after all are verified."""
        if not is_digest(digest):
            raise InputError([f"{digest[:80]!r} is not a digest: write sha256: and 64 hex digits"])
        path = self._folder / "blobs" / "sha256" / digest[7:]
        return verified(digest, _pieces(path), where=str(path))

    def read(self, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob, whole."""
        found = bytearray()
        for piece in self.open_blob(digest):
            found += piece
            if len(found) > limit_bytes:
                raise InputError([f"{digest} has more than the {limit_bytes} bytes expected here"])
        return bytes(found)


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise InputError([f"{path} cannot be read: {error.strerror}"]) from error
