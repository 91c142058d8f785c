"""From a docker archive to an image in the store: one identity, and clear words for damage."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from builders.audit.reading import read_layer
from builders.oci import MANIFEST_TYPE, StoredImage, store_image
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import ImageBuildError
from tests import tars
from tests.object_places import MemoryStore

LOWER = tars.tar([tars.folder("usr"), tars.file("usr/lib.so", b"l" * 3000, mtime=1)])
UPPER = tars.tar([tars.file("app", b"a" * 500, mtime=2)])
LIMIT = 1 << 20


def put(
    tmp_path: Path, store: MemoryStore, *layers: bytes, epoch_seconds: int = 100, **options: Any
) -> StoredImage:
    archive = tars.docker_archive(tmp_path / "saved.tar", layers or (LOWER, UPPER), **options)
    return store_image(archive, store=store, scratch=tmp_path, epoch_seconds=epoch_seconds)


def document(store: MemoryStore, digest: str) -> Any:
    return json.loads(store.read_blob(digest, limit_bytes=LIMIT))


def test_the_manifest_names_everything_that_is_stored(tmp_path: Path) -> None:
    store = MemoryStore()
    image = put(tmp_path, store)
    manifest = document(store, image.digest)
    assert manifest["mediaType"] == MANIFEST_TYPE
    config_bytes = store.read_blob(manifest["config"]["digest"], limit_bytes=LIMIT)
    assert manifest["config"]["size"] == len(config_bytes)
    sizes = [len(config_bytes), len(store.read_blob(image.digest, limit_bytes=LIMIT))]
    diff_ids = []
    for entry, layer in zip(manifest["layers"], image.layers, strict=True):
        packed = store.read_blob(entry["digest"], limit_bytes=LIMIT)
        assert entry["size"] == len(packed) == layer.pull_bytes
        diff_ids.append(digest_of_bytes(gzip.decompress(packed)))
        sizes.append(len(packed))
    assert json.loads(config_bytes)["rootfs"] == {"type": "layers", "diff_ids": diff_ids}
    assert image.pull_bytes == sum(sizes)
    assert image.unpacked_bytes == 3500
    assert [layer.created_by for layer in image.layers] == ["RUN step 0", "RUN step 1"]


def test_nothing_half_done_stays_in_the_scratch_folder(tmp_path: Path) -> None:
    put(tmp_path, MemoryStore())
    assert [path.name for path in tmp_path.iterdir()] == ["saved.tar"]


def engine_noise(created: str, engine: str) -> dict[str, Any]:
    """What another engine, or another moment, writes into a configuration."""
    return {
        "created": created,
        "container": engine,
        "docker_version": engine,
        "config": {
            "User": "65532:65532",
            "Env": ["PATH=/bin"],
            "Image": engine,
            "Hostname": engine,
            "Volumes": None,
            "Entrypoint": ["/usr/bin/python3"],
        },
        "history": [
            {"created": created, "created_by": "RUN a", "comment": engine},
            {"created": created, "created_by": "ENV x=y", "empty_layer": True},
            {"created": created, "created_by": "COPY b"},
        ],
    }


def test_when_and_by_which_engine_it_was_built_does_not_count(tmp_path: Path) -> None:
    images = []
    for moment, (created, engine) in enumerate((("2026-01-01", "20.10"), ("2027-02-02", "28.3"))):
        layer = tars.tar([tars.file("app", b"a", mtime=5000 + moment)])
        config = engine_noise(created, engine)
        images.append(put(tmp_path, MemoryStore(), LOWER, layer, config=config))
    assert images[0] == images[1]
    assert [layer.created_by for layer in images[0].layers] == ["RUN a", "COPY b"]
    assert images[0].config["config"] == {
        "User": "65532:65532",
        "Env": ["PATH=/bin"],
        "Entrypoint": ["/usr/bin/python3"],
    }


@pytest.mark.parametrize(
    "config",
    [
        {"config": {"User": "0"}},
        {"config": {"Env": ["PATH=/usr/bin"], "User": "65532:65532"}},
        {"config": {"Env": ["PATH=/bin"], "User": "65532:65532", "Labels": {"a": "b"}}},
        {"architecture": "arm64"},
    ],
)
def test_what_a_runtime_acts_on_is_the_identity(tmp_path: Path, config: Mapping[str, Any]) -> None:
    plain, other = put(tmp_path, MemoryStore()), put(tmp_path, MemoryStore(), config=config)
    assert plain.digest != other.digest


def test_another_epoch_is_another_image(tmp_path: Path) -> None:
    assert put(tmp_path, MemoryStore()) != put(tmp_path, MemoryStore(), epoch_seconds=1)


def test_gzipped_layers_are_the_same_layers(tmp_path: Path) -> None:
    """Engines with the containerd store save layers as they were pulled."""
    plain = put(tmp_path, MemoryStore(), LOWER, UPPER)
    packed = put(tmp_path, MemoryStore(), gzip.compress(LOWER), UPPER)
    assert plain == packed


def test_the_index_made_while_writing_is_the_one_that_reading_gives(tmp_path: Path) -> None:
    store = MemoryStore()
    noise = random.Random(9)
    large = tars.tar(
        [
            tars.file(f"lib{number}.so", noise.randbytes(size) + bytes(size) + b"text" * size)
            for number, size in enumerate((700_000, 3, 40_000, 250_000))
        ]
    )
    image = put(tmp_path, store, LOWER, large, bytes(1024))
    for layer, index in zip(image.layers, image.indexes, strict=True):
        pieces = store.open_blob(layer.digest)
        assert read_layer(pieces, digest=layer.digest, diff_id=layer.diff_id) == index
        assert (index.pull_bytes, index.unpacked_bytes) == (layer.pull_bytes, layer.unpacked_bytes)
    assert image.metadata_bytes == image.pull_bytes - sum(each.pull_bytes for each in image.layers)


def test_an_image_without_history_is_an_image(tmp_path: Path) -> None:
    image = put(tmp_path, MemoryStore(), config={"history": None, "config": None})
    assert [layer.created_by for layer in image.layers] == ["", ""]


def manifest(**changes: Any) -> bytes:
    return json.dumps([{"Config": "config.json", "Layers": [], **changes}]).encode()


DAMAGED = {
    "no manifest": {"manifest.json": None},
    "a manifest that is no JSON": {"manifest.json": b"<html>"},
    "a manifest that is no UTF-8": {"manifest.json": b'["\xff"]'},
    "a manifest nested without end": {"manifest.json": b'{"a":' * 100_000},
    "a manifest of another shape": {"manifest.json": b'{"Config": 1}'},
    "a manifest of no image": {"manifest.json": b"[]"},
    "a manifest of two images": {"manifest.json": json.dumps(json.loads(manifest()) * 2).encode()},
    "a layer that is not there": {"manifest.json": manifest(Layers=["missing/layer.tar"])},
    "a layer that is a folder's name": {"manifest.json": manifest(Layers=[".."])},
    "a layer that is no tar": {
        "layer": b"not a tar " * 100,
        "manifest.json": manifest(Layers=["layer"]),
    },
    "a layer cut short": {"layer": LOWER[:2000], "manifest.json": manifest(Layers=["layer"])},
    "a gzipped layer cut short": {
        "layer": gzip.compress(LOWER)[:-20],
        "manifest.json": manifest(Layers=["layer"]),
    },
    "a gzipped layer with a wrong sum": {
        "layer": gzip.compress(LOWER)[:-8] + bytes(8),
        "manifest.json": manifest(Layers=["layer"]),
    },
    "a gzipped layer of garbage": {
        "layer": gzip.compress(b"")[:10] + b"\xff" * 50,
        "manifest.json": manifest(Layers=["layer"]),
    },
    "no configuration": {"config.json": None},
    "a configuration that is a list": {"config.json": b"[]"},
    "a configuration without architecture": {"config.json": b'{"os": "linux"}'},
}


@pytest.mark.parametrize("changes", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_archive_is_refused_in_words(
    tmp_path: Path, changes: Mapping[str, bytes | None]
) -> None:
    store = MemoryStore()
    with pytest.raises(ImageBuildError, match="the image's archive"):
        put(tmp_path, store, LOWER, changes=changes)


@pytest.mark.parametrize(
    "data", [b"", b"not a tar", tars.tar([tars.file("f", b"x" * 2000)])[:1500]]
)
def test_what_is_no_archive_is_refused_in_words(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "saved.tar").write_bytes(data)
    with pytest.raises(ImageBuildError, match="cannot be read"):
        store_image(tmp_path / "saved.tar", store=MemoryStore(), scratch=tmp_path, epoch_seconds=0)


def test_links_in_an_archive_lead_nowhere_outside_it(tmp_path: Path) -> None:
    """A manifest that names a link to a file of this machine gets an error, not the file."""
    secret = tmp_path / "secret"
    secret.write_bytes(LOWER)
    for member in (
        tars.symlink("layer", str(secret)),
        tars.symlink("layer", "layer"),
        tars.hard_link("layer", str(secret)),
    ):
        (tmp_path / "saved.tar").write_bytes(
            tars.tar(
                [
                    tars.file("config.json", b'{"architecture": "amd64", "os": "linux"}'),
                    tars.file("manifest.json", manifest(Layers=["layer"])),
                    member,
                ]
            )
        )
        with pytest.raises(ImageBuildError, match="no file 'layer'"):
            store_image(
                tmp_path / "saved.tar", store=MemoryStore(), scratch=tmp_path, epoch_seconds=0
            )
