"""The image's identity is what a registry serves: the same digest in the store and out of it."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from engines.index import all_images, read_manifest
from engines.store.local_store import LocalStore
from planyard.core.results import ImageRecord
from planyard.edge import docker, proc
from tests.conftest import Built
from tests.registry import pull_and_run, push_layout, served_digest

pytestmark = pytest.mark.docker

IMAGES = ("rtx", "ort-cpu", "ort-gpu")


def record_of(built: Built, name: str) -> ImageRecord:
    digest = built.image(name)["digest"]
    return next(record for record in all_images(built.site.store) if record.digest == digest)


def config_of(store: LocalStore, digest: str) -> dict[str, Any]:
    manifest = json.loads(store.read_blob(digest, limit_bytes=1 << 20))
    config: dict[str, Any] = json.loads(
        store.read_blob(manifest["config"]["digest"], limit_bytes=1 << 20)
    )
    return config


def skopeo(*args: str) -> Any:
    return json.loads(proc.run(["skopeo", "inspect", *args], timeout_seconds=120).output)


def layout_of(built: Built, name: str, room: Path) -> Path:
    """The store's own layout when a build published it, else published into a shared store."""
    return built.site.store.publish_image_layout(built.image(name)["digest"])


@pytest.mark.parametrize("name", IMAGES)
def test_the_store_holds_a_valid_layout(built: Built, room: Path, name: str) -> None:
    record = record_of(built, name)
    layout = layout_of(built, name, room)
    shown = skopeo(f"oci:{layout}")
    assert shown["Digest"] == record.digest
    assert shown["Layers"] == [layer.digest for layer in record.layers]
    assert shown["Labels"]["io.planyard.recipe"] == record.recipe
    assert shown["Labels"]["org.opencontainers.image.title"] == name
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}


@pytest.mark.parametrize("name", ["rtx", "ort-cpu"])
def test_every_digest_in_the_manifest_holds(built: Built, name: str) -> None:
    store, record = built.site.store, record_of(built, name)
    config = config_of(store, record.digest)
    manifest = json.loads(store.read_blob(record.digest, limit_bytes=1 << 20))
    diff_ids = []
    for described in manifest["layers"]:
        path = store.root / "blobs" / "sha256" / described["digest"].removeprefix("sha256:")
        assert path.stat().st_size == described["size"]
        with gzip.open(path) as layer:
            diff_ids.append("sha256:" + hashlib.file_digest(layer, "sha256").hexdigest())  # type: ignore[arg-type]
    assert config["rootfs"]["diff_ids"] == diff_ids
    sizes = [manifest["config"]["size"], *(layer["size"] for layer in manifest["layers"])]
    assert record.pull_bytes == sum(sizes) + len(
        store.read_blob(record.digest, limit_bytes=1 << 20)
    )
    assert len(read_manifest(store, record.digest).digests) >= len(diff_ids)


def test_a_registry_serves_the_same_digest(
    built: Built, registry: str, engine: docker.Engine, room: Path
) -> None:
    record = record_of(built, "ort-cpu")
    push_layout(layout_of(built, "ort-cpu", room), to=f"{registry}/shop/ort-cpu:v1")
    assert served_digest(registry, "shop/ort-cpu", "v1") == record.digest
    assert skopeo("--tls-verify=false", f"docker://{registry}/shop/ort-cpu:v1")["Digest"] == (
        record.digest
    )
    said = pull_and_run(
        engine,
        f"{registry}/shop/ort-cpu@{record.digest}",
        ["python3.11", "-c", "import onnxruntime; print(onnxruntime.__version__)"],
    )
    assert said.strip() == "1.31.1"


def test_a_pulled_image_finds_its_plans(built: Built, registry: str, room: Path) -> None:
    push_layout(layout_of(built, "rtx", room), to=f"{registry}/shop/rtx:v1")
    digest = served_digest(registry, "shop/rtx", "v1")
    ran = built.site.planyard("lookup", digest, "--sm", "86", "--json").expect(0)
    assert len(ran.document()["plans"]) == 3
