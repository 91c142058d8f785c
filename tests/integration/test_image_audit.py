"""The audit of the images of the default matrix: exact to the byte, and of layers known already."""

from __future__ import annotations

from typing import Any

import pytest

from builders.audit.sources import contents_of, image_in_store
from engines.index import all_images
from engines.store.manifest import MANIFEST_LIMIT_BYTES, manifest_from_bytes
from tests.conftest import Built

pytestmark = pytest.mark.docker

IMAGES = ("rtx", "ort-cpu", "ort-gpu")


@pytest.fixture(scope="module", params=IMAGES)
def audited(request: pytest.FixtureRequest, built: Built) -> dict[str, Any]:
    ran = built.site.planyard("image", "audit", request.param, "--json")
    assert ran.exit_code in (0, 4), ran.stderr
    document: dict[str, Any] = ran.document()
    assert document["image"] == built.image(request.param)["digest"]
    return document


def summed(sizes: list[dict[str, Any]], key: str) -> int:
    return sum(each[key] for each in sizes)


def test_the_sums_are_exact(audited: dict[str, Any], built: Built) -> None:
    """Owners, layers and the manifest that a registry serves: the same bytes three times."""
    data = built.site.store.read_blob(audited["image"], limit_bytes=MANIFEST_LIMIT_BYTES)
    manifest = manifest_from_bytes(data, digest=audited["image"])
    served = len(data) + manifest.config.size + sum(layer.size for layer in manifest.layers)
    assert summed(audited["owners"], "pull_bytes") == audited["pull_bytes"] == served
    assert summed(audited["owners"], "unpacked_bytes") == audited["unpacked_bytes"]
    for layer, described in zip(audited["layers"], manifest.layers, strict=True):
        assert summed(layer["owners"], "pull_bytes") == layer["pull_bytes"] == described.size
        assert summed(layer["owners"], "unpacked_bytes") == layer["unpacked_bytes"]
    built_image = built.image(audited["name"])
    assert audited["pull_bytes"] == built_image["pull_bytes"]
    assert audited["unpacked_bytes"] == built_image["unpacked_bytes"]


def test_a_build_leaves_every_layer_known(audited: dict[str, Any]) -> None:
    assert audited["read_layers"] == []


def test_what_the_build_indexed_is_what_reading_finds(built: Built) -> None:
    """The image with the smaller layers: every other test of this rests on tars in memory."""
    store = built.site.store
    digest = built.image("ort-cpu")["digest"]
    source = image_in_store(store, digest)
    known, read_none = contents_of(source, store=store)
    read, read_all = contents_of(source, store=None)
    assert (read_none, len(read_all)) == ((), len(source.layers))
    assert read.layers == known.layers


def test_nearly_everything_has_an_owner(audited: dict[str, Any]) -> None:
    """The base's packages among them: `mmdebstrap` alone leaves no database."""
    owners = {(each["owner"]["kind"], each["owner"]["name"]): each for each in audited["owners"]}
    assert ("debian", "libc6") in owners
    assert ("debian", "libpython3.11-stdlib") in owners
    assert owners["project", ""]["unpacked_bytes"] < 100_000
    assert "mawk" not in {each["owner"]["name"] for each in audited["packages"]}  # all removed


def test_packages_of_the_base_are_those_that_were_resolved(
    audited: dict[str, Any], built: Built
) -> None:
    (record,) = [each for each in all_images(built.site.store) if each.digest == audited["image"]]
    resolved = {(package.name, package.version) for package in record.base}
    found = {
        (each["owner"]["name"], each["owner"]["version"])
        for each in audited["packages"]
        if each["owner"]["kind"] == "debian"
    }
    assert found <= resolved
    assert len(found) > 25
