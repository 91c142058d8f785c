"""The work of single jobs: what was handed over is used, and nothing is built in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.github import legs
from builders.github.handover import HandedImage
from builders.pipeline import AWAITING_GPU
from builders.workspace import Workspace
from engines import index
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import LookupMissError, SmokeNotRunError
from planyard.core.reader import LoadedMatrix
from planyard.core.report import exit_code
from planyard.core.results import ImageRecord
from planyard.edge.docker import Container, Ended
from tests import small_site
from tests.smoke_runs import InProcess, ended, no_reference_load

CPU = ("cpu/*",)
RTX = ("rtx/*/8/*",)
PROBE = {"schema": 1, "versions": {}, "device": {"count": 0}}


class Machine:
    """Smokes and probes; a compiler is never asked."""

    def __init__(self) -> None:
        self.smoke = InProcess(serve=small_site.plain)
        self.images: list[str] = []

    def __call__(self, container: Container) -> Ended:
        self.images.append(container.image)
        if Path(container.command[1]).name == "probe.py":
            return ended(stdout=json.dumps(PROBE).encode())
        return self.smoke(container)


class Node:
    """A machine with the store that all share, and images that another job handed over."""

    def __init__(self, root: Path) -> None:
        self.machine = Machine()
        self.loaded: LoadedMatrix = small_site.lay_out(root)
        self.workspace: Workspace = small_site.workspace_of(root, self.machine)
        self.records = small_site.put_images(self.loaded, self.workspace)
        self.handed = {
            name: HandedImage(image=self.records[name], compiler=self.records.get(compiler))
            for name, compiler in (("cpu", ""), ("rtx", "compiler"))
        }

    def smoke(self, patterns: tuple[str, ...], **changes: Any) -> Any:
        given = {"images": self.handed, "workspace": self.workspace, **changes}
        return legs.smoke(self.loaded, patterns=patterns, **given)


@pytest.fixture(autouse=True)
def _no_reference_load(monkeypatch: pytest.MonkeyPatch) -> None:
    no_reference_load(monkeypatch)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    found = Node(tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("this job may not resolve or build images")

    for name in ("order_image", "make_image"):
        monkeypatch.setattr(f"builders.making_images.{name}", refuse)
    return found


def other_image(node: Node) -> ImageRecord:
    """Another image of the same recipe, as a second run may have built it: the first wins."""
    stored = node.workspace.store.read_blob(node.records["cpu"].digest, limit_bytes=1 << 20)
    manifest = stored + b"\n"
    node.workspace.store.put_blob(digest_of_bytes(manifest), [manifest])
    record = msgspec.structs.replace(node.records["cpu"], digest=digest_of_bytes(manifest))
    index.put_image(node.workspace.store, record)
    return record


def test_smoke_runs_the_image_that_was_handed_over_and_no_other(node: Node):
    other = other_image(node)
    node.handed["cpu"] = HandedImage(image=other)
    report, handed = node.smoke(CPU)
    assert exit_code(report, require_smoke=True) == 0
    assert {each.image for each in handed.snapshots} == {other.digest}
    assert set(handed.verdicts.values()) == {"passed"}
    assert all(other.digest[7:19] in image for image in node.machine.images)
    assert index.snapshots_of_image(node.workspace.store, node.records["cpu"].digest) == ()


def test_smoke_without_its_image_is_no_smoke(node: Node):
    with pytest.raises(SmokeNotRunError, match="handed over the image cpu"):
        node.smoke(CPU, images={})
    gone = msgspec.structs.replace(node.records["cpu"], digest=digest_of_bytes(b"gone"))
    with pytest.raises(LookupMissError):
        node.smoke(CPU, images={"cpu": HandedImage(image=gone)})
    assert node.machine.images == []


def test_a_gpu_cell_needs_its_reference_too(node: Node):
    del node.handed["cpu"]
    with pytest.raises(SmokeNotRunError, match="handed over the image cpu"):
        node.smoke(RTX)


def test_smoke_compiles_nothing(node: Node):
    with pytest.raises(SmokeNotRunError, match=r"1 plans are not in the store: rtx/plain/8/fp32"):
        node.smoke(RTX)
    assert node.machine.images == []


def test_a_compiler_that_was_not_handed_over_makes_no_plan(node: Node):
    node.handed["rtx"] = HandedImage(image=node.records["rtx"])
    with pytest.raises(SmokeNotRunError, match="plans are not in the store"):
        node.smoke(RTX)


def test_plans_that_wait_for_a_gpu_are_not_done(node: Node):
    text = small_site.MATRIX.replace("rtx: {backend: tensorrt-rtx", "rtx: {backend: tensorrt")
    text = text.replace("onnxruntime-cuda, tensorrt-rtx", "onnxruntime-cuda, tensorrt")
    node.loaded = small_site.lay_out(node.workspace.root, matrix=text)
    report = legs.build_plans(
        node.loaded, patterns=RTX, workspace=node.workspace, images=node.handed
    )
    assert [each.reason for each in report.waiting] == [AWAITING_GPU]
    assert exit_code(report, require_smoke=True) == 7


def test_images_are_handed_over_with_their_compilers(tmp_path: Path):
    node = Node(tmp_path)
    report, handed = legs.build_images(node.loaded, patterns=("rtx/*",), workspace=node.workspace)
    assert exit_code(report) == 0
    (rtx,) = handed
    assert (rtx.image, rtx.compiler) == (node.records["rtx"], node.records["compiler"])
    assert rtx.findings == report.images[0].findings
