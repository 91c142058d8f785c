"""Plans of classic TensorRT, from the matrix to the store: the real script, a GPU that is made up.

What the script is asked, what becomes of what it writes, and which machine it is not started on.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.loading import load
from builders.pipeline import build, make_images, make_plans, start_build
from builders.plan_recipes import builder_flags, order_plans
from engines import index
from engines.recipe import recipe_digest, recipe_from_inputs
from engines.timing_caches import TimingKey, find_timings
from planyard.core.cells import compile_groups, plan_cells
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError
from planyard.core.matrix_runtime import TensorRtBuild
from planyard.core.report import BuildReport, exit_code
from planyard.core.results import ImageRecord, PlanRecord
from planyard.edge.docker import Container, Ended
from planyard.edge.gpu import LocalGpu
from tests import fake_tensorrt, small_site
from tests.smoke_runs import ended, host_path

SCRIPT = Path(__file__).parents[2] / "engines/inside/tensorrt.py"
MATRIX = small_site.MATRIX.replace("tensorrt-rtx", "tensorrt")
HERE = LocalGpu(sm=89, driver="580.95.05", name="NVIDIA Made Up")
KEY = TimingKey(gpu="NVIDIA Made Up", driver="580.95.05", version="11.2.1.2")
EIGHT, SIXTEEN = "rtx/plain/8/fp32/sm89", "rtx/plain/16/fp32/sm89"


def matrix_with(text: str) -> str:
    return MATRIX.replace("compiler: compiler}", f"compiler: compiler, tensorrt: {{{text}}}}}")


@dataclass
class Compiler:
    """A container of the compiler image: runs the script on bindings that are made up."""

    patch: pytest.MonkeyPatch
    machine: fake_tensorrt.Machine = field(default_factory=lambda: fake_tensorrt.Machine(sm=89))
    tactics: tuple[str, ...] = ("a",)
    layers: tuple[str, ...] = ("conv",)
    plan_version: str = fake_tensorrt.VERSION
    jobs: list[dict[str, Any]] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)

    def __call__(self, container: Container) -> Ended:
        job = json.loads(host_path(container, "/job/job.json").read_bytes())
        self.jobs.append(json.loads(json.dumps(job)))
        self.containers.append(container)
        job["model"] = str(host_path(container, "/job/job.json").with_name("model.json"))
        said = {"inputs": {"x": [-1, 3, -1, -1]}, "tactics": self.tactics, "layers": self.layers}
        Path(job["model"]).write_text(json.dumps(said))
        job["out"] = str(host_path(container, job["out"]))
        job["timing_caches"] = [str(host_path(container, each)) for each in job["timing_caches"]]
        events: list[bytes] = []
        spec = importlib.util.spec_from_file_location("tensorrt_in_container", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        script: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        with self.patch.context() as patch:
            patch.setattr(ctypes, "CDLL", self.machine.library)
            patch.setattr(sys, "path", list(sys.path))
            patch.setitem(sys.modules, "tensorrt_bindings", fake_tensorrt.bindings())
            original = fake_tensorrt.plan_bytes
            patch.setattr(
                fake_tensorrt,
                "plan_bytes",
                lambda **said: original(self.plan_version, cell=len(self.jobs), **said),
            )
            script.run(
                job,
                lambda event, **fields: events.append(
                    json.dumps({"event": event, **fields}).encode()
                ),
            )
        return ended(stdout=b"\n".join(events))


class Site:
    """A matrix with classic TensorRT, its images in the store, on a machine with these GPUs."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.compiler = Compiler(patch)
        self.lay_out(MATRIX)

    def lay_out(self, matrix: str, *, compiler_image: bool = True) -> None:
        self.loaded = small_site.lay_out(self.root, matrix=matrix)
        self.workspace = small_site.workspace_of(self.root, self.compiler, gpu_runtime=True)
        names = ("cpu", "rtx") if compiler_image else ("cpu",)
        small_site.put_images(self.loaded, self.workspace, names=names)
        if not compiler_image:
            small_site.put_image_of("rtx", self.loaded, self.workspace)

    def build(self, *gpus: LocalGpu, cells: str = "rtx/*") -> BuildReport:
        self.patch.setattr("builders.pipeline.local_gpus", lambda: gpus)
        loaded = load(self.root / "matrix.yaml")
        return build(loaded, patterns=(cells,), workspace=self.workspace, until="plans")

    def plans(self, *gpus: LocalGpu, cells: str = "rtx/*") -> dict[str, PlanRecord]:
        """The plans of a build that has to find or make all of them."""
        report = self.build(*gpus, cells=cells)
        assert exit_code(report) == 0
        assert report.waiting == ()
        return {plan.cell: plan for plan in report.plans}

    def blob(self, digest: str) -> bytes:
        return self.workspace.store.read_blob(digest, limit_bytes=1 << 20)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_plans_are_compiled_on_a_gpu_of_their_sm_and_kept_with_what_belongs_to_them(
    site: Site,
) -> None:
    plans = site.plans(HERE)
    assert list(plans) == [EIGHT, SIXTEEN]
    [container] = site.compiler.containers
    assert container.gpu
    for plan in plans.values():
        assert json.loads(site.blob(plan.inspector))["Layers"] == ["conv"]
        assert site.blob(plan.timing_cache) == fake_tensorrt.cache_bytes("a")
        assert plan.inputs["built_on"] == {"driver": "580", "cuda": "13.0"}
        assert plan.inputs["timing_cache"] is None
        assert site.blob(plan.digest).startswith(b"ftrt")


def test_a_second_build_compiles_nothing(site: Site) -> None:
    plans = site.plans(HERE)
    again = site.build(HERE)
    assert again.compiled == ()
    assert {plan.cell: plan.digest for plan in again.plans} == {
        cell: plan.digest for cell, plan in plans.items()
    }
    assert len(site.compiler.jobs) == 1


def test_a_plan_that_lost_what_belongs_to_it_is_compiled_again(site: Site) -> None:
    plan = site.plans(HERE)[EIGHT]
    blob = next(site.workspace.store.root.glob(f"blobs/**/{plan.inspector[7:]}"), None)
    assert blob is not None
    blob.unlink()
    assert site.build(HERE).compiled == (EIGHT, SIXTEEN)


@pytest.mark.parametrize(
    ("gpus", "runtime", "said"),
    [
        ((), True, "classic TensorRT compiles on a GPU of the cell's own SM"),
        (
            (LocalGpu(sm=90, driver="580.1"),),
            True,
            "this machine has SM 9.0, the cell needs SM 8.9",
        ),
        (
            (LocalGpu(sm=90, driver="580.1"), LocalGpu(sm=120, driver="580.1")),
            True,
            "this machine has SM 12.0, SM 9.0, the cell needs SM 8.9",
        ),
        ((HERE,), False, "install the NVIDIA container toolkit"),
    ],
)
def test_elsewhere_cells_wait_and_say_what_is_here(
    site: Site, gpus: Sequence[LocalGpu], runtime: bool, said: str
) -> None:
    """And their compiler is not built: it is not in this store, and this engine builds nothing."""
    site.lay_out(MATRIX.replace("n, 3, h, w", "n, 3, y, w"), compiler_image=False)
    engine: Any = site.workspace.engine()
    engine.gpu_runtime = runtime
    report = site.build(*gpus)
    assert [each.cell for each in report.waiting] == [EIGHT, SIXTEEN]
    assert all(said in each.reason for each in report.waiting)
    assert all(each.reason.startswith("awaiting a GPU runner: ") for each in report.waiting)
    assert (report.plans, report.plan_failures) == ((), ())
    assert exit_code(report, require_smoke=True) == 7
    assert site.compiler.jobs == []


def test_a_container_that_sees_another_gpu_first_makes_cells_wait(site: Site) -> None:
    site.compiler.machine = fake_tensorrt.Machine(sm=90)
    report = site.build(LocalGpu(sm=90, driver="580.1"), HERE)
    assert [each.cell for each in report.waiting] == [EIGHT, SIXTEEN]
    assert "needs a GPU of SM 8.9; here is a GPU of SM 9.0" in report.waiting[0].reason
    assert report.plan_failures == ()


def test_without_its_compiler_a_gpu_node_waits_for_it(site: Site) -> None:
    site.patch.setattr("builders.pipeline.local_gpus", lambda: (HERE,))
    work = start_build(site.loaded, patterns=("rtx/*",), workspace=site.workspace)
    make_plans(work)
    assert {each.reason for each in work.waiting} == {
        "awaiting a GPU runner: its compiler image was not handed over"
    }
    assert work.plans == {}


@pytest.mark.parametrize("hands_over", [False, True])
def test_a_machine_without_a_gpu_builds_the_compiler_for_others_only(
    site: Site, hands_over: bool
) -> None:
    site.patch.setattr("builders.pipeline.local_gpus", lambda: ())
    work = start_build(site.loaded, patterns=("rtx/*",), workspace=site.workspace)
    work.hands_over = hands_over
    make_images(work)
    assert ("rtx" in work.compilers) is hands_over


def test_another_driver_branch_is_another_recipe(site: Site) -> None:
    first = site.plans(HERE, cells=EIGHT)[EIGHT]
    same_branch = LocalGpu(sm=89, driver="580.120.1", name=HERE.name)
    assert site.plans(same_branch, cells=EIGHT)[EIGHT].digest == first.digest
    other = site.plans(LocalGpu(sm=89, driver="590.10", name=HERE.name), cells=EIGHT)[EIGHT]
    assert other.recipe != first.recipe
    assert other.inputs["built_on"] == {"driver": "590", "cuda": "13.0"}
    assert len(site.compiler.jobs) == 2


def test_what_the_matrix_asks_for_reaches_the_builder_and_the_recipe(site: Site) -> None:
    site.lay_out(
        matrix_with("version_compatible: true, hardware_compatibility: ampere-plus, runtime: lean")
    )
    plan = site.plans(HERE)[EIGHT]
    flags = ["exclude-lean-runtime", "hardware-compatibility=ampere-plus", "version-compatible"]
    assert plan.inputs["flags"] == flags
    assert sorted(site.compiler.jobs[0]["flags"]) == flags
    assert b"VERSION_COMPATIBLE" in site.blob(plan.digest)
    recipe = recipe_from_inputs(plan.inputs)
    assert recipe_digest(recipe) == plan.recipe
    assert recipe_digest(msgspec.structs.replace(recipe, flags=())) != plan.recipe


@pytest.mark.parametrize(
    ("build_of", "flags"),
    [
        (TensorRtBuild(), ()),
        (TensorRtBuild(version_compatible=True), ("version-compatible",)),
        (
            TensorRtBuild(hardware_compatibility="same-compute-capability"),
            ("hardware-compatibility=same-compute-capability",),
        ),
        (TensorRtBuild(refit_identical=True), ("refit-identical", "strip-plan")),
        (
            TensorRtBuild(runtime="lean", version_compatible=True),
            ("version-compatible", "exclude-lean-runtime"),
        ),
    ],
)
def test_flags(build_of: TensorRtBuild, flags: tuple[str, ...]) -> None:
    assert builder_flags(build_of) == flags


def test_a_plan_of_another_version_than_asked_for_is_never_kept(site: Site) -> None:
    site.compiler.plan_version = "11.2.0.9"
    with pytest.raises(IntegrityError, match=r"version 11.2.0.9, not 11.2.1.2"):
        site.build(HERE)
    assert list(index.all_plans(site.workspace.store)) == []


def test_a_plan_that_cannot_be_inspected_is_kept_without(site: Site) -> None:
    site.compiler.layers = ()
    assert [plan.inspector for plan in site.plans(HERE).values()] == ["", ""]


def test_a_build_starts_from_what_the_builds_before_it_measured(site: Site) -> None:
    site.plans(HERE, cells=EIGHT)
    assert site.compiler.jobs[0]["timing_caches"] == []
    site.compiler.tactics = ("a", "b")
    second = site.plans(HERE, cells=SIXTEEN)[SIXTEEN]
    assert site.compiler.jobs[1]["timing_caches"] == ["/inputs/0.cache"]
    assert site.blob(second.timing_cache) == fake_tensorrt.cache_bytes("a", "b")
    [record] = find_timings(site.workspace.store, KEY)
    assert record.digest == second.timing_cache
    assert record.combines == (digest_of_bytes(fake_tensorrt.cache_bytes("a")),)


def test_without_keep_timings_nothing_is_brought_or_kept(site: Site) -> None:
    site.plans(HERE, cells=EIGHT)
    site.lay_out(matrix_with("keep_timings: false"))
    second = site.plans(HERE, cells=SIXTEEN)[SIXTEEN]
    assert second.timing_cache == ""
    job = site.compiler.jobs[1]
    assert (job["timing_caches"], job["timing_cache_out"], job["replay"]) == ([], None, False)
    assert len(find_timings(site.workspace.store, KEY)) == 1


def test_a_replay_builds_from_the_cache_of_a_plan(site: Site) -> None:
    first = site.plans(HERE)[EIGHT]
    site.lay_out(matrix_with(f"replay: {first.timing_cache}"))
    again = site.plans(HERE)[EIGHT]
    assert again.recipe != first.recipe
    assert again.inputs["timing_cache"] == again.timing_cache == first.timing_cache
    job = site.compiler.jobs[1]
    assert (job["timing_caches"], job["timing_cache_out"]) == (["/inputs/0.cache"], None)
    assert job["replay"] is True


def test_a_replay_that_lacks_a_tactic_fails(site: Site) -> None:
    first = site.plans(HERE)[EIGHT]
    site.compiler.tactics = ("a", "new")
    site.lay_out(matrix_with(f"replay: {first.timing_cache}"))
    report = site.build(HERE)
    assert [each.cell for each in report.plan_failures] == [EIGHT, SIXTEEN]
    assert report.plan_failures[0].message == "no time of new in the timing cache"
    assert exit_code(report) == 6


def test_a_replay_without_its_cache_fails_before_anything_runs(site: Site) -> None:
    site.lay_out(matrix_with(f"replay: sha256:{'0' * 64}"))
    report = site.build(HERE)
    assert [each.cell for each in report.plan_failures] == [EIGHT, SIXTEEN]
    assert "the timing cache to replay is not stored" in report.plan_failures[0].message
    assert site.compiler.jobs == []


def test_recipes_of_tensorrt_for_rtx_are_what_they_were(tmp_path: Path) -> None:
    """Everything that classic TensorRT has besides is left at its default: stored plans are found.

    The script's own digest is put aside: what it says is tested by what it does.
    """
    loaded = small_site.lay_out(tmp_path)
    digest = "sha256:" + "a" * 64
    compiler = ImageRecord(
        name="compiler", digest=digest, recipe=digest, pull_bytes=1, unpacked_bytes=1, layers=()
    )
    cells = plan_cells(tuple(small_site.cells_of(loaded).values()))
    [group] = compile_groups(cells)
    orders = order_plans(group, matrix=loaded.matrix, compiler=compiler, packages={}, gpus=(HERE,))
    recipe = msgspec.structs.replace(orders[0].recipe, script=digest)
    expected = "sha256:4af5872701ae16d39c5321f53536663503ce4e03cc44fe536c29607bc65bfdc8"
    assert recipe_digest(recipe) == expected
