"""An image of somebody's own: their Dockerfile, context, target and arguments, from a registry.

No wheels, no stage of ours. Budgets, smoke runs and snapshots work on it all the same.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from planyard.edge import docker
from tests.conftest import Built
from tests.registry import push_layout
from tests.workspaces import Site

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


@pytest.fixture
def own(built: Built, site: Site, registry: str) -> Site:
    """The default workspace with one more image, built from a base in a registry."""
    digest = built.image("ort-cpu")["digest"]
    push_layout(built.site.store.publish_image_layout(digest), to=f"{registry}/base/python:3.11")
    reference = f"{registry}/base/python@{digest}"
    site.edit("\nimages:\n", f"\n  theirs:\n    registry: {reference}\n\nimages:\n")
    quoted = json.dumps(GREETING, ensure_ascii=False)
    site.edit("\nmodels:\n", IMAGE.format(greeting=quoted) + "\nmodels:\n")
    site.edit("cells: ort-*/*/*/fp16/*", "cells: o*/*/*/fp16/*")
    # Two images of one cell, run once each beside other tests: what differs is noise.
    site.edit("\ngates:\n", "\ngates:\n  latency: false\n")
    site.write("their own/Dockerfile.serving", DOCKERFILE)
    site.write("their own/note.txt", "a note\n")
    site.write("their own/forgotten.txt", "ignored\n")
    site.write("their own/.dockerignore", "forgotten.txt\nDockerfile*\n")
    return site


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


def test_it_is_built_smoked_and_looked_up(own: Site) -> None:
    report = build(own)
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


def test_shell_characters_stay_text(own: Site) -> None:
    (image,) = build(own)["images"]
    found = files_of(own, image["digest"])
    assert found["srv/said"].decode() == GREETING
    assert found["srv/note.txt"] == b"a note\n"
    assert set(found) == {"srv/said", "srv/note.txt"}
    manifest = json.loads(own.store.read_blob(image["digest"], limit_bytes=1 << 20))
    config = json.loads(own.store.read_blob(manifest["config"]["digest"], limit_bytes=1 << 20))
    assert config["config"]["Labels"]["example.greeting"] == GREETING


def test_its_recipe_is_its_own_files(own: Site) -> None:
    first = build(own)["images"][0]
    own.write("their own/forgotten.txt", "what .dockerignore leaves out does not count\n")
    own.write("their own/Dockerfile.serving", DOCKERFILE.replace("wrong.txt", "other.txt"))
    assert build(own)["images"][0]["digest"] == first["digest"]
    own.write("their own/note.txt", "another note\n")
    other = build(own)["images"][0]
    assert other["built"]
    assert other["digest"] != first["digest"]


def test_its_budget_counts(own: Site) -> None:
    own.edit("unpacked: 260 MB, largest_layer: 60 MB}\n\nmodels", "unpacked: 10 MB}\n\nmodels")
    report = build(own, code=4)
    (finding,) = report["images"][0]["findings"]
    assert finding["rule"] == "budget.unpacked"
    assert finding["where"] == "own"


def test_a_base_that_is_not_there_ends_with_5(own: Site, built: Built, registry: str) -> None:
    own.edit(built.image("ort-cpu")["digest"], "sha256:" + "0" * 64)
    ran = own.planyard("build", "--select", CELL).expect(5)
    assert "docker build failed" in ran.stderr
    assert "not found" in ran.stderr


@pytest.fixture(autouse=True)
def _no_image_left(engine: docker.Engine) -> Any:
    yield
    for image in engine.client.images.list(filters={"label": "org.opencontainers.image.title=own"}):
        engine.client.images.remove(image.id, force=True)
