"""An image of somebody's own: their Dockerfile, context, target and arguments, from a registry.

No wheels, no stage of ours. Budgets, smoke runs and snapshots work on it all the same.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from planyard.edge import docker
from tests.conftest import Built
from tests.registry import push_layout
from tests.workspaces import Site, lay_out, share_store

pytestmark = pytest.mark.docker

GREETING = """$(touch /tmp/owned) `id` && "quoted" 'twice' | tee ; ${HOME} \\n ünï %s"""
DOCKERFILE = """\
ARG BASE
FROM ${BASE} AS wrong
COPY forgotten.txt /wrong.txt

FROM ${BASE} AS serving
ARG GREETING
USER 0:0
COPY --chown=0:0 note.txt /srv/note.txt
RUN ["/usr/bin/python3.11", "-c", "import os; open('/srv/said', 'w').write(os.environ['GREETING'])"]
LABEL example.greeting=${GREETING}
USER 65532:65532
"""
IMAGE = """
  own:
    backend: onnxruntime-cpu
    base: theirs
    dockerfile: their own/Dockerfile.serving
    context: their own
    target: serving
    build_args:
      GREETING: {greeting}
    python: /usr/bin/python3.11
    budget: {{unpacked: 260 MB, largest_layer: 60 MB}}
"""
CELL = "own/ocr-det/640/fp32/cpu"


@pytest.fixture(scope="module")
def own(
    built: Built,
    session_folder: Path,
    environment: dict[str, str],
    registry: str,
    engine_host: str,
) -> Iterator[Site]:
    """The default workspace with one more image, built from a base in a registry."""
    built.ran.expect(0)
    site = lay_out(session_folder / "own-image", environment=environment)
    share_store(built.site.store.root, site.store.root)
    digest = built.image("ort-cpu")["digest"]
    push_layout(built.site.store.publish_image_layout(digest), to=f"{registry}/base/python:3.11")
    reference = f"{registry}/base/python@{digest}"
    site.edit("\nimages:\n", f"\n  theirs:\n    registry: {reference}\n\nimages:\n")
    quoted = json.dumps(GREETING, ensure_ascii=False)
    site.edit("\nmodels:\n", IMAGE.format(greeting=quoted) + "\nmodels:\n")
    site.edit("cells: ort-*/*/*/fp16/*", "cells: o*/*/*/fp16/*")
    # Two images of one cell, run once each beside other tests: what differs is noise.
    site.edit("\ngates:\n", "\nsmoke: {requests: 5}\n\ngates:\n  latency: false\n")
    site.write("their own/Dockerfile.serving", DOCKERFILE)
    site.write("their own/note.txt", "a note\n")
    site.write("their own/forgotten.txt", "ignored\n")
    site.write("their own/.dockerignore", "forgotten.txt\nDockerfile*\n")
    yield site
    shutil.rmtree(site.root, ignore_errors=True)
    with contextlib.closing(docker.Engine(engine_host)) as engine:
        title = "org.opencontainers.image.title=own"
        for image in engine.client.images.list(filters={"label": title}):
            engine.client.images.remove(image.id, force=True)


@pytest.fixture(scope="module")
def report(own: Site) -> Any:
    """The build of it."""
    return build(own)


@pytest.fixture
def changed(own: Site, report: Any, room: Path) -> Site:
    """The same workspace, built, for a test that changes it."""
    copied = Site(root=room / "site", environment=own.environment)
    shutil.copytree(own.root, copied.root, ignore=shutil.ignore_patterns(".planyard"))
    share_store(own.store.root, copied.store.root)
    return copied


def build(site: Site, *args: str, code: int = 0) -> Any:
    return site.planyard("build", "--json", "--select", CELL, *args).expect(code).document()


def files_of(site: Site, digest: str) -> dict[str, bytes]:
    import io
    import tarfile

    from engines.index import read_manifest

    found = {}
    for layer in read_manifest(site.store, digest).digests:
        data = b"".join(site.store.open_blob(layer))
        if data[:2] == b"\x1f\x8b":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    if member.isreg() and member.name.startswith(("srv/", "tmp/", "wrong")):
                        found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_it_is_built_smoked_and_looked_up(own: Site, report: Any) -> None:
    (image,) = report["images"]
    assert image["built"]
    assert image["findings"] == []
    assert [verdict["verdict"] for verdict in report["verdicts"]] == ["passed"]
    found = own.planyard("lookup", image["digest"], "--json").expect(0).document()
    (snapshot,) = found["snapshots"]
    assert snapshot["image_name"] == "own"
    assert snapshot["versions_found"]["onnxruntime"]["version"] == "1.31.1"
    assert snapshot["budget"]["unpacked_limit_bytes"] == 260_000_000
    again = build(own)
    assert not again["images"][0]["built"]


def test_shell_characters_stay_text(own: Site, report: Any) -> None:
    (image,) = report["images"]
    found = files_of(own, image["digest"])
    assert found["srv/said"].decode() == GREETING
    assert found["srv/note.txt"] == b"a note\n"
    assert set(found) == {"srv/said", "srv/note.txt"}
    manifest = json.loads(own.store.read_blob(image["digest"], limit_bytes=1 << 20))
    config = json.loads(own.store.read_blob(manifest["config"]["digest"], limit_bytes=1 << 20))
    assert config["config"]["Labels"]["example.greeting"] == GREETING


def test_its_recipe_is_its_own_files(changed: Site, report: Any) -> None:
    first = report["images"][0]
    changed.write("their own/forgotten.txt", "what .dockerignore leaves out does not count\n")
    changed.write("their own/Dockerfile.serving", DOCKERFILE.replace("wrong.txt", "other.txt"))
    assert build(changed)["images"][0]["digest"] == first["digest"]
    changed.write("their own/note.txt", "another note\n")
    other = build(changed)["images"][0]
    assert other["built"]
    assert other["digest"] != first["digest"]


def test_its_budget_counts(changed: Site) -> None:
    changed.edit("unpacked: 260 MB, largest_layer: 60 MB}\n\nmodels", "unpacked: 10 MB}\n\nmodels")
    report = build(changed, code=4)
    (finding,) = report["images"][0]["findings"]
    assert finding["rule"] == "budget.unpacked"
    assert finding["where"] == "own"


def test_a_base_that_is_not_there_ends_with_5(changed: Site, built: Built) -> None:
    changed.edit(built.image("ort-cpu")["digest"], "sha256:" + "0" * 64)
    ran = changed.planyard("build", "--select", CELL).expect(5)
    assert "docker build failed" in ran.stderr
    assert "not found" in ran.stderr
