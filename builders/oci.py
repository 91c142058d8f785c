"""From a built image to an OCI layout in the store, whose manifest digest is the image's identity.

`docker save` gives the layers as every engine has them; they are rewritten in normal form
(`layers.py`), compressed the same way everywhere (`parallel_gzip.py`), and named by a manifest
with nothing in it that depends on when or where the image was built.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import msgspec

from builders.audit.layer_index import LayerReader, WatchFile
from builders.audit.reading import default_watch
from builders.audit.tar_headers import DamagedTarError
from builders.layers import DeflatedFiles, LayerContents, Progress, rewrite_layer
from builders.parallel_gzip import ParallelGzip
from engines.store.protocol import Store
from planyard.core.contents import LayerIndex
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import ImageBuildError
from planyard.core.results import Layer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
# What a runtime acts on. Engines add fields of their own, which differ between versions.
_CONFIG_FIELDS = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
)
_DOCUMENT_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image in the store: its manifest's digest, its weight and its layers.

    `indexes` are those of the layers, in their order, made while they were written.
    """

    digest: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]
    pull_bytes: int
    indexes: tuple[LayerIndex, ...]

    @property
    def metadata_bytes(self) -> int:
        """Manifest and configuration."""
        return self.pull_bytes - sum(layer.pull_bytes for layer in self.layers)

    @property
    def unpacked_bytes(self) -> int:
        """All regular files of all layers."""
        return sum(layer.unpacked_bytes for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class SavedImage:
    """The parts of a docker archive: the configuration, and how to open each layer."""

    config: dict[str, Any]
    layer_names: tuple[str, ...]
    archive: tarfile.TarFile

    def open_layer(self, name: str) -> IO[bytes]:
        """The uncompressed layer tar; engines with the containerd store keep them gzipped."""
        stream = _member(self.archive, name)
        magic = stream.read(2)
        stream.seek(0)
        if magic != b"\x1f\x8b":
            return stream
        plain = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
        with gzip.open(stream) as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
        plain.seek(0)
        return plain


class _ArchiveEntry(msgspec.Struct):
    """What `manifest.json` of a docker archive says of an image: names of members."""

    configuration: str = msgspec.field(name="Config")
    layers: tuple[str, ...] = msgspec.field(name="Layers")


class _Configuration(msgspec.Struct):
    """The part of an image configuration that every image has."""

    architecture: str
    os: str
    config: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None


def open_archive(archive: tarfile.TarFile) -> SavedImage:
    """Read the parts of a `docker save` archive of one image; members are never extracted."""
    entries = _decoded(archive, "manifest.json", tuple[_ArchiveEntry, ...])
    if len(entries) != 1:
        raise ImageBuildError(f"the image's archive holds {len(entries)} images, not one")
    found = _decoded(archive, entries[0].configuration, _Configuration)
    config = {
        "architecture": found.architecture,
        "os": found.os,
        "config": found.config or {},
        "history": found.history or [],
    }
    return SavedImage(config=config, layer_names=entries[0].layers, archive=archive)


def store_image(
    path: Path,
    *,
    store: Store,
    scratch: Path,
    epoch_seconds: int,
    watch: WatchFile | None = None,
    progress: Progress | None = None,
    deflated: DeflatedFiles | None = None,
) -> StoredImage:
    """Put the image of the docker archive at `path` into the store; returns its identity.

    `watch` looks into files as they pass; `progress` is told of each piece that was written.
    Raises ImageBuildError for an archive that cannot be read whole.
    """
    watch = watch or default_watch()
    with _readable(path.name), tarfile.open(path) as archive:
        saved = open_archive(archive)
        history = _layer_history(saved.config)
        layers, indexes = [], []
        for name in saved.layer_names:
            with saved.open_layer(name) as source:
                layer, index = _store_layer(
                    cast("BinaryIO", source),
                    store=store,
                    scratch=scratch,
                    epoch_seconds=epoch_seconds,
                    created_by=next(history, ""),
                    progress=progress,
                    deflated=deflated,
                    reader=LayerReader(watch=watch),
                )
            layers.append(layer)
            indexes.append(index)
        config = normal_config(saved.config, layers=layers, epoch_seconds=epoch_seconds)
    return _store_manifest(config, layers=tuple(layers), indexes=tuple(indexes), store=store)


def _store_layer(
    source: BinaryIO,
    *,
    store: Store,
    scratch: Path,
    epoch_seconds: int,
    created_by: str,
    progress: Progress | None,
    deflated: DeflatedFiles | None,
    reader: LayerReader,
) -> tuple[Layer, LayerIndex]:
    packed = scratch / "layer.tar.gz"
    with packed.open("wb") as file:
        sink = ParallelGzip(file)
        try:
            contents: LayerContents = rewrite_layer(
                source,
                sink,
                epoch_seconds=epoch_seconds,
                progress=progress,
                deflated=deflated,
                reader=reader,
            )
            sink.close()
        finally:
            sink.abort()
    index = reader.finish(digest=sink.digest, diff_id=contents.diff_id, pulls=sink.pulls)
    store.put_blob(sink.digest, packed, take=True)
    packed.unlink(missing_ok=True)
    layer = Layer(
        digest=sink.digest,
        diff_id=contents.diff_id,
        pull_bytes=sink.size_bytes,
        unpacked_bytes=contents.unpacked_bytes,
        created_by=created_by,
        largest_files=contents.largest_files,
    )
    return layer, index


def normal_config(
    config: dict[str, Any], *, layers: list[Layer], epoch_seconds: int
) -> dict[str, Any]:
    """An OCI image configuration that says only what a runtime acts on, with fixed times."""
    created = datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = [
        {
            "created": created,
            "created_by": entry.get("created_by", ""),
            **({"empty_layer": True} if entry.get("empty_layer") else {}),
        }
        for entry in config["history"]
    ]
    kept = {key: value for key, value in config["config"].items() if key in _CONFIG_FIELDS}
    return {
        "architecture": config["architecture"],
        "os": config["os"],
        "created": created,
        "config": {key: value for key, value in kept.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": history,
    }


def _store_manifest(
    config: dict[str, Any],
    *,
    layers: tuple[Layer, ...],
    indexes: tuple[LayerIndex, ...],
    store: Store,
) -> StoredImage:
    config_bytes = canonical_json(config)
    config_digest = digest_of_bytes(config_bytes)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(_CONFIG_TYPE, config_digest, len(config_bytes)),
        "layers": [_descriptor(_LAYER_TYPE, layer.digest, layer.pull_bytes) for layer in layers],
    }
    manifest_bytes = canonical_json(manifest)
    digest = digest_of_bytes(manifest_bytes)
    store.put_blob(config_digest, [config_bytes])
    store.put_blob(digest, [manifest_bytes])
    pull_bytes = len(config_bytes) + len(manifest_bytes) + sum(each.pull_bytes for each in layers)
    return StoredImage(
        digest=digest, config=config, layers=layers, pull_bytes=pull_bytes, indexes=indexes
    )


def _descriptor(media_type: str, digest: str, size_bytes: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size_bytes}


def _layer_history(config: dict[str, Any]) -> Iterator[str]:
    """The instruction behind each layer, in order."""
    for entry in config["history"]:
        if not entry.get("empty_layer"):
            yield entry.get("created_by") or entry.get("comment") or ""


_Document = TypeVar("_Document")


def _decoded(archive: tarfile.TarFile, name: str, kind: type[_Document]) -> _Document:
    """A JSON member of the archive."""
    data = _member(archive, name).read(_DOCUMENT_LIMIT_BYTES)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"the image's archive has a {name} that cannot be read: {error}"
        raise ImageBuildError(message) from error


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """A file of the archive; engines with the containerd store name one layer through links."""
    try:
        stream = archive.extractfile(name)
    except (KeyError, RecursionError):  # not there; links in a circle
        stream = None
    if stream is None:
        raise ImageBuildError(f"the image's archive has no file {name!r}, which it should")
    return stream


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what reading damaged tars and gzip streams raises into one clear error."""
    try:
        yield
    except DamagedTarError as error:
        raise ImageBuildError(f"a layer of the image cannot be read: {error.message}") from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, OverflowError) as error:
        message = f"the image's archive {name} cannot be read: {error}"
        raise ImageBuildError(
            message, mend="check that the disk is not full, then build"
        ) from error
