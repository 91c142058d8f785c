"""Which cells run here and which do not, and what is remembered of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from builders.loading import load
from builders.smoking import Smoking, digest_of_judge
from engines.recipe import Conversion, PlanRecipe, recipe_inputs
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError
from planyard.core.findings import failures
from planyard.core.matrix_runtime import TensorRtBuild
from planyard.core.matrix_smoke import GateChange, UtilizationFloor
from planyard.core.reader import LoadedMatrix
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict
from planyard.core.units import ByteSize
from planyard.edge.docker import Container, Ended
from planyard.edge.gpu import LocalGpu
from tests import small_site
from tests.smoke_runs import INSTRUMENTS, InProcess, ended, host_path

CPU_8, CPU_16 = "cpu/plain/8/fp32/cpu", "cpu/plain/16/fp32/cpu"
GPU_8, RTX_8 = "gpu/plain/8/fp32/sm89", "rtx/plain/8/fp32/sm89"
ADA = LocalGpu(sm=89, driver="580.95.05")


@dataclass
class Place:
    """A laid out matrix with its images, and what its containers do."""

    loaded: LoadedMatrix
    workspace: Any
    images: dict[str, ImageRecord]
    runner: InProcess

    def smoking(self, *, gpus: tuple[LocalGpu, ...] = (), **changes: Any) -> Smoking:
        """The smoke runs of a new build."""
        model = small_site.model_of(self.loaded, self.workspace)
        fields: dict[str, Any] = {
            "matrix": self.loaded.matrix,
            "workspace": self.workspace,
            "all_cells": tuple(small_site.cells_of(self.loaded).values()),
            "images": self.images,
            "models": {"plain": model},
            "plans": {},
            "instruments": INSTRUMENTS,
        }
        made = Smoking(**{**fields, **changes})
        made.gpus = gpus
        return made

    def smoke(self, cell: str, **changes: Any) -> SmokeVerdict:
        """One cell in a new build."""
        return self.smoking(**changes).smoke(small_site.cells_of(self.loaded)[cell])

    @property
    def ran(self) -> list[str]:
        """The images that ran, in order."""
        return [container.image.split("/")[1].split(":")[0] for container in self.runner.containers]


def failed_rules(verdict: SmokeVerdict) -> set[str]:
    """What failed; warnings are no failures."""
    return {finding.rule for finding in failures(verdict.findings)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ImageRecord]]:
    """The matrix laid out, its model fetched, its images in the store."""
    root = tmp_path_factory.mktemp("site")
    loaded = small_site.lay_out(root)
    workspace = small_site.workspace_of(root, lambda _: ended())
    small_site.model_of(loaded, workspace)
    return root, small_site.put_images(loaded, workspace)


@pytest.fixture
def place(tmp_path: Path, template: tuple[Path, dict[str, ImageRecord]]) -> Place:
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    runner = InProcess(serve=small_site.plain)
    workspace = small_site.workspace_of(tmp_path, runner, gpu_runtime=True)
    return Place(load(tmp_path / "matrix.yaml"), workspace, template[1], runner)


def test_a_cell_on_the_cpu_runs_and_makes_its_golden(place: Place) -> None:
    verdict = place.smoke(CPU_8)
    assert (verdict.verdict, verdict.cell) == ("passed", CPU_8)
    assert [finding.rule for finding in verdict.findings] == ["latency.first"]
    log = json.loads(place.workspace.store.read_blob(verdict.log_digest, limit_bytes=10_000))
    assert "session ready" in log["stdout"]
    assert list(place.workspace.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("cell", "changes", "reason"),
    [
        (GPU_8, {}, "this machine has no GPU"),
        (GPU_8, {"gpus": (LocalGpu(sm=86, driver="1"),)}, "has SM 8.6, the cell needs SM 8.9"),
        (RTX_8, {}, "it has no plan"),
        (RTX_8, {"gpus": (ADA,)}, "it has no plan"),
        (CPU_8, {"images": {}}, "its image was not built"),
    ],
)
def test_a_cell_that_cannot_run_here_says_why(
    place: Place, cell: str, changes: dict[str, Any], reason: str
) -> None:
    verdict = place.smoke(cell, **changes)
    assert verdict.verdict == "not run"
    assert reason in verdict.reason
    assert (verdict.gates, verdict.log_digest, place.ran) == ({}, "", [])


def test_without_nvidias_runtime_a_gpu_cell_does_not_run(place: Place) -> None:
    place.workspace.engine().gpu_runtime = False
    assert "no NVIDIA runtime" in place.smoke(GPU_8, gpus=(ADA,)).reason


def test_the_reference_runs_before_what_is_held_against_it(place: Place) -> None:
    assert place.smoke(GPU_8, gpus=(ADA,)).verdict == "passed"
    assert place.ran == ["cpu", "gpu"]
    assert [container.gpu for container in place.runner.containers] == [False, True]


def test_each_profile_has_its_own_reference(place: Place) -> None:
    smoking = place.smoking(gpus=(ADA,))
    cells = small_site.cells_of(place.loaded)
    assert smoking.reference_of(cells[GPU_8]) == cells[CPU_8]
    assert smoking.reference_of(cells[CPU_16]) == cells[CPU_16]
    only_gpu = place.smoking(images={"gpu": place.images["gpu"]})
    assert only_gpu.reference_of(cells[GPU_8]) is None


def wrong(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": small_site.plain(feeds)["y"] + np.float32(0.5)}


def test_other_numbers_than_the_reference_fail(place: Place) -> None:
    assert place.smoke(CPU_8).verdict == "passed"
    place.runner.serve = wrong
    verdict = place.smoke(GPU_8, gpus=(ADA,))
    assert verdict.verdict == "failed"
    assert failed_rules(verdict) == {
        "outputs.max-abs",
        "outputs.mean-abs",
    }


@pytest.mark.parametrize("missing", ["image", "run"])
def test_without_a_golden_nothing_passes(place: Place, missing: str) -> None:
    images = {"gpu": place.images["gpu"]} if missing == "image" else place.images
    runs = place.runner

    def runner(container: Container) -> Ended:
        return runs(container) if "gpu" in container.image else ended(exit_code=1)

    place.workspace.engine().runner = runner
    verdict = place.smoke(GPU_8, images=images, gpus=(ADA,))
    assert verdict.verdict == "failed"
    assert failed_rules(verdict) == {"outputs.no-golden"}


def test_a_run_that_passed_is_not_repeated(place: Place) -> None:
    first = place.smoke(CPU_8)
    again = place.smoke(CPU_8)
    assert again == first
    assert place.ran == ["cpu"]


def test_within_a_build_a_cell_is_judged_once(place: Place) -> None:
    place.runner.ended = ended(exit_code=1)
    smoking = place.smoking()
    cell = small_site.cells_of(place.loaded)[CPU_8]
    assert smoking.smoke(cell) is smoking.smoke(cell)
    assert place.ran == ["cpu"]


def test_a_run_that_failed_is_tried_again(place: Place) -> None:
    place.runner.ended = ended(stderr=b"E: Failed to create CUDAExecutionProvider")
    assert place.smoke(CPU_8).verdict == "failed"
    place.runner.ended = ended()
    assert place.smoke(CPU_8).verdict == "passed"
    assert place.ran == ["cpu", "cpu"]


def changed(place: Place, **changes: Any) -> Place:
    matrix = msgspec.structs.replace(place.loaded.matrix, **changes)
    loaded = msgspec.structs.replace(place.loaded, matrix=matrix)
    return Place(loaded, place.workspace, place.images, place.runner)


def test_another_image_gate_or_number_of_requests_is_another_run(place: Place) -> None:
    place.smoke(CPU_8)
    matrix = place.loaded.matrix
    other = msgspec.structs.replace(place.images["cpu"], digest=place.images["gpu"].digest)
    model = matrix.models["plain"]
    python = msgspec.structs.replace(matrix.images["cpu"], python="/opt/python")
    changes = (
        changed(place, smoke=msgspec.structs.replace(matrix.smoke, requests=9)),
        changed(place, gates=msgspec.structs.replace(matrix.gates, logs=False)),
        changed(place, gates=msgspec.structs.replace(matrix.gates, cpu_operators=("Shape",))),
        changed(place, images={**matrix.images, "cpu": python}),
        changed(place, models={"plain": msgspec.structs.replace(model, tolerance={})}),
        Place(place.loaded, place.workspace, {**place.images, "cpu": other}, place.runner),
    )
    for number, site in enumerate(changes, 2):
        assert site.smoke(CPU_8).verdict == "passed"
        assert len(place.ran) == number
        site.smoke(CPU_8)
        assert len(place.ran) == number


def test_another_driver_is_another_run(place: Place) -> None:
    place.smoke(GPU_8, gpus=(ADA,))
    place.smoke(GPU_8, gpus=(LocalGpu(sm=89, driver="590.1"),))
    assert place.ran == ["cpu", "gpu", "gpu"]


def test_a_verdict_whose_log_is_gone_is_no_verdict(place: Place) -> None:
    verdict = place.smoke(CPU_8)
    blob(place, verdict.log_digest).unlink()
    place.smoke(CPU_8)
    assert place.ran == ["cpu", "cpu"]


def blob(place: Place, digest: str) -> Path:
    path: Path = place.workspace.store.root / "blobs" / "sha256" / digest[7:]
    return path


def test_a_reference_runs_again_when_its_golden_is_gone(place: Place) -> None:
    """Its verdict alone helps nobody: everything held against the golden would fail for ever."""
    place.smoke(CPU_8)
    for path in (place.workspace.store.root / "blobs" / "sha256").iterdir():
        if path.stat().st_size == 4 * 3 * 8 * 8:
            path.unlink()
    assert place.smoke(GPU_8, gpus=(ADA,)).verdict == "passed"
    assert place.ran == ["cpu", "cpu", "gpu"]


def test_a_run_whose_outputs_nobody_judged_makes_no_golden(place: Place) -> None:
    """It would be the golden of every later run whose gates are on."""
    place.runner.serve = lambda feeds: {"y": np.full_like(feeds["x"], np.nan)}
    off = Place(
        small_site.with_gates(place.loaded, outputs=False),
        place.workspace,
        place.images,
        place.runner,
    )
    assert off.smoke(CPU_8).verdict == "passed"
    assert list(place.workspace.store.keys("goldens")) == []
    place.runner.serve = small_site.plain
    assert place.smoke(GPU_8, gpus=(ADA,)).verdict == "passed"


def test_a_plan_is_served_verified_and_alone(place: Place) -> None:
    plan = b"a plan"
    record = plan_record(place, plan)
    seen: list[bytes] = []
    runs = place.runner

    def runner(container: Container) -> Ended:
        served = host_path(container, "/model/model.plan")
        if served.exists():
            seen.append(served.read_bytes())
            assert [path.name for path in served.parent.iterdir()] == ["model.plan"]
        return runs(container)

    place.workspace.engine().runner = runner
    assert place.smoke(RTX_8, plans={RTX_8: record}, gpus=(ADA,)).verdict == "passed"
    assert seen == [plan]


@pytest.mark.parametrize("was_converted", [False, True])
def test_a_plan_without_weights_needs_the_model_it_was_made_from(
    place: Place, was_converted: bool
) -> None:
    matrix = place.loaded.matrix
    image = msgspec.structs.replace(
        matrix.images["rtx"], backend="tensorrt", tensorrt=TensorRtBuild(refit_identical=True)
    )
    changed = msgspec.structs.replace(matrix, images={**matrix.images, "rtx": image})
    digest = digest_of_bytes(b"x")
    recipe = PlanRecipe(
        model=digest,
        backend="tensorrt",
        version="11.2.1.2",
        builder_image=digest,
        script=digest,
        sm_targets=(89,),
        profile={},
        precision="fp16",
        workspace_bytes=1,
        conversion=Conversion(script=digest, packages={}) if was_converted else None,
    )
    record = msgspec.structs.replace(plan_record(place, b"a plan"), inputs=recipe_inputs(recipe))
    smoking = place.smoking(matrix=changed, plans={RTX_8: record}, gpus=(ADA,))
    cell = msgspec.structs.replace(small_site.cells_of(place.loaded)[RTX_8], backend="tensorrt")
    verdict = smoking.smoke(cell)
    assert ("has no weights" in verdict.reason) is was_converted
    assert bool(place.ran) is not was_converted


def plan_record(place: Place, plan: bytes) -> PlanRecord:
    digest = digest_of_bytes(plan)
    place.workspace.store.put_blob(digest, [plan])
    return PlanRecord(
        cell=RTX_8,
        recipe=digest_of_bytes(b"recipe"),
        digest=digest,
        size_bytes=len(plan),
        backend="tensorrt-rtx",
        version="1.7.1.116",
        sm=89,
        model="plain",
        profile="8",
        precision="fp32",
        compile_seconds=0.5,
        inputs={},
    )


def test_a_damaged_plan_is_never_served(place: Place) -> None:
    record = plan_record(place, b"a plan")
    place.smoke(CPU_8)
    path = blob(place, record.digest)
    path.unlink()
    path.write_bytes(b"b plan")
    with pytest.raises(IntegrityError):
        place.smoke(RTX_8, plans={RTX_8: record}, gpus=(ADA,))
    assert place.ran == ["cpu"]
    assert list(place.workspace.scratch.iterdir()) == []


def test_the_judge_has_one_digest() -> None:
    assert digest_of_judge() == digest_of_judge()
    assert digest_of_judge().startswith("sha256:")


def test_accepted_runs_are_the_baseline_of_the_next_image(place: Place) -> None:
    first = place.smoke(CPU_8)
    assert first.latency[0].baseline_p50_ms is None
    slower = changed_image(place)
    place.runner.changes = {"series": series_of(100.0)}
    verdict = place.smoke(CPU_8, images=slower)
    assert "latency.p50" in failed_rules(verdict)
    assert {finding.gate for finding in failures(verdict.findings)} == {"latency"}
    assert verdict.latency[0].baseline_p50_ms == 1.0
    assert len(place.ran) == 3  # a run that is too slow is measured once more
    place.runner.changes = {}
    assert place.smoke(CPU_8, images=slower).verdict == "passed"


def series_of(time_ms: float) -> list[dict[str, Any]]:
    return [{"batch": 1, "concurrency": 1, "latencies_ms": [time_ms] * 20}]


def changed_image(place: Place) -> dict[str, ImageRecord]:
    """The images, with another one in place of the reference: the same bytes, another digest."""
    digest = digest_of_bytes(b"another image")
    other = msgspec.structs.replace(place.images["cpu"], digest=digest)
    return {**place.images, "cpu": other}


def test_a_run_that_failed_otherwise_is_no_baseline(place: Place) -> None:
    place.runner.changes = {"providers_active": []}
    assert place.smoke(CPU_8).verdict == "failed"
    place.runner.changes = {}
    verdict = place.smoke(CPU_8)
    assert "latency.first" in {finding.rule for finding in verdict.findings}


def test_a_gate_is_off_for_some_cells(place: Place) -> None:
    change = GateChange(cells="gpu/*", reason="the log is known", logs=False)
    gates = msgspec.structs.replace(place.loaded.matrix.gates, cells=(change,))
    matrix = msgspec.structs.replace(place.loaded.matrix, gates=gates)
    assert place.smoke(CPU_8, matrix=matrix).gates["logs"] == "passed"
    assert place.smoke(GPU_8, matrix=matrix, gpus=(ADA,)).gates["logs"] == "off"


def test_a_floor_of_device_memory_is_part_of_what_a_verdict_depends_on(place: Place) -> None:
    floor = UtilizationFloor(memory=ByteSize(1 << 20))
    gates = msgspec.structs.replace(place.loaded.matrix.gates, utilization_floor=floor)
    matrix = msgspec.structs.replace(place.loaded.matrix, gates=gates)
    assert place.smoke(CPU_8).verdict == place.smoke(CPU_8, matrix=matrix).verdict == "passed"
    assert len(place.ran) == 2
