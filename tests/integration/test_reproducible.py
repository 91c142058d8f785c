"""Same inputs, same digest: built twice with nothing cached, elsewhere, with other file times."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.base import BaseCache
from builders.layers import DEFAULT_EPOCH_SECONDS
from builders.loading import load
from engines.index import all_images
from planyard.core.results import ImageRecord
from planyard.edge import docker
from tests.cell_runs import record_of
from tests.conftest import Built
from tests.workspaces import REPOSITORY, Site

pytestmark = pytest.mark.docker


def build_image(site: Site, env: dict[str, str | None] | None = None) -> ImageRecord:
    """Build `ort-cpu` from an empty store; its record."""
    args = ("image", "build", "--select", "ort-cpu/*/640/*", "--json")
    (image,) = site.planyard(*args, env=env).expect(0).document()["images"]
    assert image["built"]
    (record,) = all_images(site.store)
    assert record.digest == image["digest"]
    return record


def forget_everything(engine: docker.Engine) -> None:
    """Leave the engine no cache of a build, and no base to build from."""
    engine.client.api.prune_builds(all=True)
    for image in engine.client.images.list(name="planyard-base"):
        engine.client.images.remove(image.tags[0], force=True)
    left = engine.client.api.df()["BuildCache"] or []
    # Records of images that the engine holds stay; no step of a build does.
    assert [each for each in left if not each["Description"].startswith("from ")] == []


def age(folder: Path, *, seconds: float) -> None:
    """Give every file and folder another modification time."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (seconds, seconds))


def test_built_twice_it_is_the_same_image(
    built: Built, empty_site: Callable[[str], Site], engine: docker.Engine
) -> None:
    """The first time was the default build's, in another folder, with the files' own times."""
    site = empty_site("another/place with a space")
    age(site.root / "images", seconds=1_000_000_000)
    age(site.root / "images" / "locks", seconds=time.time() + 86_400)
    forget_everything(engine)
    record = build_image(site)
    assert record.digest == built.image("ort-cpu")["digest"]
    assert record == record_of(built, "ort-cpu")


def test_another_source_date_gives_another_image(
    built: Built, empty_site: Callable[[str], Site], engine: docker.Engine
) -> None:
    site = empty_site("dated")
    record = build_image(site, env={"SOURCE_DATE_EPOCH": "1700000000"})
    assert record.digest != built.image("ort-cpu")["digest"]
    assert config_of(site, record)["created"] == "2023-11-14T22:13:20Z"


@pytest.mark.network
def test_a_base_bootstrapped_twice_is_the_same(room: Path) -> None:
    """What is built on the same base is the same: see above."""
    spec = load(REPOSITORY / "matrix.yaml").matrix.bases["slim"].debian
    assert spec
    bases = []
    for name in ("first", "second"):
        cache = BaseCache(room / name, epoch_seconds=DEFAULT_EPOCH_SECONDS)
        bases.append(cache.bootstrap(spec, report=lambda _: None))
        cache.verified_tar(bases[-1])
    assert bases[0] == bases[1]


def test_what_a_base_was_resolved_to_is_in_the_record(built: Built) -> None:
    base = record_of(built, "ort-cpu").base
    assert {package.name for package in base} > {"libc6", "python3.11-minimal"}
    assert all(len(package.sha256) == 64 for package in base)


def test_another_images_stage_changes_nothing(built: Built, site: Site) -> None:
    before = built.image("ort-cpu")["digest"]
    marked = "FROM root AS rtx\nENV MARK=other"
    site.edit("FROM root AS rtx\n", marked + "\n", file="images/Dockerfile")
    site.edit(
        "FROM root AS ort-cpu\n", "# a comment\n\nFROM root AS ort-cpu\n", file="images/Dockerfile"
    )
    report = site.planyard("image", "build", "--json", "--select", "*/640/*").expect(0).document()
    by_name = {image["name"]: image for image in report["images"]}
    assert not by_name["ort-cpu"]["built"]
    assert not by_name["ort-gpu"]["built"]
    assert by_name["ort-cpu"]["digest"] == before
    assert by_name["rtx"]["built"]
    assert by_name["rtx"]["digest"] != built.image("rtx")["digest"]


def test_the_label_is_the_images_own_recipe(built: Built) -> None:
    for name in ("rtx", "ort-cpu", "ort-gpu"):
        record = record_of(built, name)
        labels = config_of(built.site, record)["config"]["Labels"]
        assert labels["io.planyard.recipe"] == record.recipe
        assert not any("revision" in label or "matrix" in label for label in labels)


def config_of(site: Site, record: ImageRecord) -> dict[str, Any]:
    manifest = json.loads(site.store.read_blob(record.digest, limit_bytes=1 << 20))
    data = site.store.read_blob(manifest["config"]["digest"], limit_bytes=1 << 20)
    config: dict[str, Any] = json.loads(data)
    return config
