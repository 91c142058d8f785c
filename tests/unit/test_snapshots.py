"""Snapshots say what was found, per image and GPU, and are written once for the same proof."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.snapshots import digest_of_matrix, write_snapshots
from builders.workspace import Workspace
from engines import index
from planyard.core.digest import digest_of_bytes
from planyard.core.findings import Finding
from planyard.core.gates import GATE_NAMES, gates_off
from planyard.core.matrix_smoke import GateChange, Gates
from planyard.core.reader import LoadedMatrix
from planyard.core.report import SnapshotWritten
from planyard.core.results import ImageRecord, SmokeVerdict
from planyard.edge.docker import Container, Ended
from tests import small_site
from tests.smoke_runs import ended

FOUND = {
    "schema": 1,
    "versions": {"onnxruntime": {"version": "1.31.1", "how": "imported from /x"}},
    "device": {"count": 1, "driver": "580.95.05", "fp16": True, "int8": True},
}
LOG = b"what it said"


@dataclass
class Site:
    """A matrix with its images in a store, and what its probe says."""

    loaded: LoadedMatrix
    workspace: Workspace
    images: dict[str, ImageRecord]
    said: list[Ended] = field(default_factory=list)
    probed: list[Container] = field(default_factory=list)

    def verdicts(self, verdict: Any = "passed") -> dict[str, SmokeVerdict]:
        log = digest_of_bytes(LOG) if verdict != "not run" else ""
        return {
            cell: SmokeVerdict(cell=cell, verdict=verdict, log_digest=log)
            for cell in small_site.cells_of(self.loaded)
        }

    def write(self, **changes: Any) -> tuple[SnapshotWritten, ...]:
        fields: dict[str, Any] = {
            "cells": tuple(small_site.cells_of(self.loaded).values()),
            "images": self.images,
            "plans": {},
            "verdicts": self.verdicts(),
            "findings": dict.fromkeys(self.images, ()),
            "workspace": self.workspace,
        }
        return write_snapshots(self.loaded, **{**fields, **changes})

    def only(self, image: str) -> Any:
        """The one snapshot of an image."""
        [snapshot] = index.snapshots_of_image(self.workspace.store, self.images[image].digest)
        return snapshot


@pytest.fixture
def site(tmp_path: Path) -> Site:
    loaded = small_site.lay_out(tmp_path)
    made: list[Site] = []

    def probe(container: Container) -> Ended:
        made[0].probed.append(container)
        return made[0].said[0]

    workspace = small_site.workspace_of(tmp_path, probe)
    images = small_site.put_images(loaded, workspace, names=("cpu", "gpu"))
    workspace.store.put_blob(digest_of_bytes(LOG), [LOG])
    made.append(Site(loaded, workspace, images, [ended(stdout=json.dumps(FOUND).encode())]))
    return made[0]


def test_there_is_one_snapshot_for_each_image_and_gpu(site: Site) -> None:
    written = site.write()
    assert {(each.image, each.gpu) for each in written} == {
        (site.images["cpu"].digest, "cpu"),
        (site.images["gpu"].digest, "sm89"),
    }
    snapshot = site.only("cpu")
    assert (snapshot.image_name, snapshot.gpu, snapshot.sm) == ("cpu", "cpu", None)
    assert snapshot.image_recipe == site.images["cpu"].recipe
    assert [verdict.cell for verdict in snapshot.smoke] == [
        "cpu/plain/8/fp32/cpu",
        "cpu/plain/16/fp32/cpu",
    ]
    assert snapshot.pins["cuda"] == "13.0"
    assert snapshot.commit is None
    assert snapshot.matrix_digest == digest_of_matrix(site.loaded.matrix)


def test_versions_are_those_found_and_never_the_pins(site: Site) -> None:
    site.said[0] = ended(exit_code=127, stdout=b"", stderr=b"no such file: python3")
    site.write()
    assert site.only("gpu").versions_found == {}
    assert site.only("gpu").device.count is None


UNREADABLE = [
    b"",
    b"[]",
    b"{",
    b'{"versions": 3}',
    b'{"device": {"count": -1}}',
    b'{"device": {"driver": "\xff"}}',
]
UNREADABLE.append(b'{"x": ' + b"[" * 100_000)


@pytest.mark.parametrize("stdout", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_probe_that_cannot_be_read_found_nothing_and_is_asked_again(
    site: Site, stdout: bytes
) -> None:
    site.said[0] = ended(stdout=stdout)
    site.write()
    assert site.only("cpu").versions_found == {}
    asked = len(site.probed)
    site.write()
    assert len(site.probed) == 2 * asked


def test_an_image_is_asked_once(site: Site) -> None:
    site.write()
    site.write()
    assert len(site.probed) == 2
    [command] = {container.command for container in site.probed}
    assert command[1] == "/planyard/probe.py"


def test_devices_prove_nothing_for_a_gpu_whose_cells_did_not_run(site: Site) -> None:
    """A probe on another machine's GPU says nothing of SM 8.9."""
    site.write(verdicts=site.verdicts("not run"))
    assert site.only("gpu").device.count == 0
    assert site.only("gpu").device.driver is None
    assert site.only("cpu").device.driver == "580.95.05"


def test_cells_that_ran_bring_their_devices(site: Site) -> None:
    site.write()
    assert (site.only("gpu").device.count, site.only("gpu").device.fp16) == (1, True)


def test_the_same_proof_is_written_once(site: Site) -> None:
    assert site.write() == site.write()
    assert site.only("cpu")


def test_another_verdict_is_another_snapshot(site: Site) -> None:
    first = site.write()
    second = site.write(verdicts=site.verdicts("failed"))
    assert {each.digest for each in first}.isdisjoint(each.digest for each in second)


def test_what_passes_again_is_the_newest_word_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget was broken and mended: the first proof is there already, and older than the bad."""
    for second, verdict in enumerate(("passed", "failed", "passed")):
        monkeypatch.setattr(
            "builders.snapshots.utc_now", lambda at=second: f"2026-11-22T00:00:0{at}Z"
        )
        site.write(verdicts=site.verdicts(verdict))
    for image in {record.digest for record in site.images.values()}:
        by_gpu: dict[str, list[str]] = {}
        for snapshot in index.snapshots_of_image(site.workspace.store, image):
            by_gpu.setdefault(snapshot.gpu, []).append(snapshot.smoke[0].verdict)
        assert set(map(tuple, by_gpu.values())) == {("passed", "failed", "passed")}


def test_an_image_that_was_not_built_has_no_snapshot(site: Site) -> None:
    written = site.write(images={"cpu": site.images["cpu"]})
    assert [each.gpu for each in written] == ["cpu"]


def test_the_budget_is_written_beside_what_it_was_held_against(site: Site) -> None:
    site.write()
    budget, image = site.only("cpu").budget, site.images["cpu"]
    assert (budget.pull_bytes, budget.unpacked_bytes) == (image.pull_bytes, image.unpacked_bytes)
    assert budget.largest_layer_bytes == image.layers[0].pull_bytes
    assert budget.pull_limit_bytes is None


def test_what_the_audit_found_is_in_it_without_the_budget(site: Site) -> None:
    secret = Finding(gate="image", rule="image.secret", message="a key", where="cpu")
    large = Finding(gate="budget", rule="budget.pull", message="too large", where="cpu")
    site.write(findings=dict.fromkeys(site.images, (large, secret)))
    for record in site.images.values():
        for snapshot in index.snapshots_of_image(site.workspace.store, record.digest):
            assert snapshot.audit == (secret,)


def test_comments_and_order_in_the_matrix_do_not_count(tmp_path: Path, site: Site) -> None:
    text = small_site.MATRIX.replace("schema: 1\n", "# a comment\nprecisions: [fp32]\n")
    text = text.replace("\nprecisions: [fp32]\ngpus", "\nschema: 1\ngpus")
    assert text != small_site.MATRIX
    other = small_site.lay_out(tmp_path / "other", matrix=text)
    assert digest_of_matrix(other.matrix) == digest_of_matrix(site.loaded.matrix)
    changed = msgspec.structs.replace(other.matrix, gates=Gates(logs=False))
    assert digest_of_matrix(changed) != digest_of_matrix(other.matrix)


@pytest.mark.parametrize("gate", GATE_NAMES)
def test_a_gate_that_is_off_is_named(gate: str) -> None:
    assert gates_off(Gates(**{gate: False}), ()) == (gate,)
    assert gates_off(Gates(), ()) == ()


def test_a_gate_that_a_later_change_turns_on_again_is_not_off() -> None:
    rtx, cpu = "rtx/m/p/fp16/sm89", "ort-cpu/m/p/fp32/cpu"
    off = GateChange(cells="rtx/*", reason="measured elsewhere", latency=False)
    on = GateChange(cells="*/sm89", reason="measured here now", latency=True)
    assert gates_off(Gates(cells=(off,)), (rtx, cpu)) == ("latency for rtx/*: measured elsewhere",)
    assert gates_off(Gates(cells=(off,)), (cpu,)) == ()
    assert gates_off(Gates(cells=(off, on)), (rtx, cpu)) == ()
    assert gates_off(Gates(latency=False, cells=(on,)), (rtx, cpu)) == ("latency",)
    assert gates_off(Gates(latency=False, cells=(on,)), (rtx,)) == ()


def test_every_gate_with_a_switch_can_be_named() -> None:
    switches = {
        name for name in Gates.__struct_fields__ if isinstance(getattr(Gates(), name), bool)
    }
    off = gates_off(Gates(**dict.fromkeys(switches, False)), ())
    assert set(off) == switches
