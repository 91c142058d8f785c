"""Load runs on a small matrix without Docker: which run, what is asked of them, what is refused.

A GPU is made up here, for want of one: that figures of a GPU at work come out right is not proved.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from builders import cell_runs, load_runs
from builders.cli import load as load_verb
from builders.load_runs import SeriesProgress, host_processor, load_gates, measure_loads
from builders.loading import load
from builders.pipeline import Build
from builders.workloads import order_loads
from builders.workspace import Workspace
from engines.loads import LOADS, loads_of_image
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.errors import (
    ImageBuildError,
    InputError,
    NothingSelectedError,
    PlanCompileError,
)
from planyard.core.loads import LoadReport
from planyard.core.matrix_runtime import Workload
from planyard.core.matrix_smoke import Gates, OwnSmoke
from planyard.core.reader import LoadedMatrix
from planyard.core.report import PlanFailure, WaitingCell
from planyard.core.results import ImageRecord
from planyard.edge.docker import Container, Ended
from planyard.edge.gpu import LocalGpu
from tests import small_site
from tests.smoke_runs import INSTRUMENTS, BusyGpu, InProcess, ended, host_path

CPU_8, CPU_16 = "cpu/plain/8/fp32/cpu", "cpu/plain/16/fp32/cpu"
GPU_8, GPU_16 = "gpu/plain/8/fp32/sm89", "gpu/plain/16/fp32/sm89"
ADA = LocalGpu(sm=89, driver="580.95.05", name="NVIDIA L4")
WORKLOADS = """\
loads:
  pages: {cells: "*/plain/8/*", batches: [1, 2], concurrency: [1, 2], requests: 5, seed: 7}
  large: {cells: "cpu/plain/16/*", steps: 3, requests: 6}
"""
FELL_BACK = b"Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*\n"


@dataclass(kw_only=True)
class Image:
    """An image that reports as the scripts do, also when each series began and ended."""

    answers: InProcess = field(default_factory=lambda: InProcess(serve=small_site.plain))
    asked: list[dict[str, Any]] = field(default_factory=list)
    first_inputs: list[bytes] = field(default_factory=list)
    seconds: float | None = 0.5

    def __call__(self, container: Container) -> Ended:
        said = self.answers(container)
        job = json.loads(host_path(container, "/job/job.json").read_bytes())
        self.asked.append(job)
        self.first_inputs.append(host_path(container, "/job/input-0.bin").read_bytes())
        path = host_path(container, "/out/report.json")
        report = json.loads(path.read_bytes())
        report.setdefault("session", {})  # as ONNX Runtime has it by default
        for number, series in enumerate(report["series"]):
            began = report["requests_began_seconds"] + number
            if self.seconds is not None:
                series |= {"began_seconds": began, "ended_seconds": began + self.seconds}
        path.write_text(json.dumps(report))
        return said


@dataclass(kw_only=True)
class Place:
    """A laid out matrix with its images in the store, and what its containers do."""

    root: Path
    image: Image
    images: dict[str, ImageRecord]
    workspace: Workspace

    @property
    def loaded(self) -> LoadedMatrix:
        """The matrix as it is now."""
        return load(self.root / "matrix.yaml")

    def measure(
        self,
        *names: str,
        cells: tuple[str, ...] = (),
        loaded: LoadedMatrix | None = None,
        **to: Any,
    ) -> LoadReport:
        """`planyard load NAMES --cell CELLS`, `to` being options."""
        loaded = loaded or self.loaded
        points = expand(loaded.matrix, load_compat()).cells
        orders = order_loads(loaded.matrix, points, names=names, patterns=cells, changes=to)
        return measure_loads(loaded, orders, workspace=self.workspace, instruments=INSTRUMENTS)

    @property
    def kept(self) -> list[str]:
        """The cells of all records in the store."""
        store = self.workspace.store
        return [each.cell for key in store.keys(LOADS) for each in loads_of_image(store, key)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ImageRecord]]:
    root = tmp_path_factory.mktemp("site")
    loaded = small_site.lay_out(root, matrix=small_site.MATRIX + WORKLOADS)
    workspace = small_site.workspace_of(root, lambda _: ended())
    small_site.model_of(loaded, workspace)
    return root, small_site.put_images(loaded, workspace)


@pytest.fixture
def place(tmp_path: Path, template: tuple[Path, dict[str, ImageRecord]]) -> Place:
    shutil.copytree(template[0], tmp_path, dirs_exist_ok=True)
    image = Image()
    workspace = small_site.workspace_of(tmp_path, image, gpu_runtime=True)
    return Place(root=tmp_path, image=image, images=template[1], workspace=workspace)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_runs, "local_gpus", lambda: (ADA,))


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_runs, "local_gpus", tuple)


# What falls back has no figures


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("image", "gate"),
    [
        (Image(answers=InProcess(serve=small_site.plain, ended=ended(stderr=FELL_BACK))), "logs"),
        (Image(answers=InProcess(serve=small_site.plain, ended=ended(exit_code=139))), "exit"),
        (Image(answers=InProcess(serve=small_site.plain, ended=ended(stdout=b""))), "logs"),
        (
            Image(
                answers=InProcess(
                    serve=small_site.plain, changes={"providers_active": ["CPUExecutionProvider"]}
                )
            ),
            "providers",
        ),
        (Image(answers=InProcess(serve=small_site.plain, changes={"placement": []})), "placement"),
        (Image(answers=InProcess(serve=small_site.plain, changes={"loaded": {}})), "versions"),
        (Image(answers=InProcess(serve=small_site.plain, changes={"series": []})), "latency"),
        (Image(seconds=None), "load"),
        (Image(seconds=0.0), "load"),
    ],
)
def test_a_run_that_fails_a_gate_leaves_no_record(place: Place, image: Image, gate: str):
    place.workspace._engine.runner = image  # type: ignore[union-attr, attr-defined]
    report = place.measure("pages", cells=(GPU_8,))
    assert report.records == report.not_run == ()
    [refused] = report.refused
    assert (refused.workload, refused.cell) == ("pages", GPU_8)
    assert gate in {finding.gate for finding in refused.findings}
    assert "latency.first" not in {finding.rule for finding in refused.findings}
    assert place.kept == []
    assert list(place.workspace.scratch.iterdir()) == []


@pytest.mark.usefixtures("with_gpu")
def test_a_refused_cell_does_not_hide_another(place: Place):
    gpu = Image(answers=InProcess(serve=small_site.plain, ended=ended(stderr=FELL_BACK)))

    def runner(container: Container) -> Ended:
        return (gpu if container.gpu else place.image)(container)

    place.workspace._engine.runner = runner  # type: ignore[union-attr, attr-defined]
    report = place.measure("pages", cells=(GPU_8, CPU_8))
    assert [each.cell for each in report.refused] == [GPU_8]
    assert [each.cell for each in report.records] == place.kept == [CPU_8]


def test_the_gates_that_tell_of_a_fallback_stay_as_the_matrix_has_them():
    kept = {"logs", "providers", "placement", "versions"}
    on, off = load_gates(Gates()), load_gates(Gates(**dict.fromkeys(kept, False)))
    assert all(getattr(on, name) for name in kept)
    assert not any(getattr(off, name) for name in kept)
    assert load_gates(Gates(latency=False)).latency
    assert (on.outputs, on.attention, on.utilization) == (False, False, False)


# What a run is asked, and what is kept of it


@pytest.mark.usefixtures("without_gpu")
def test_a_workload_is_asked_as_the_matrix_says(place: Place):
    report = place.measure()
    assert [(each.workload, each.cell) for each in report.records] == [
        ("pages", CPU_8),
        ("large", CPU_16),
    ]
    pages, large = place.image.asked
    settings = [(each["batch"], each["concurrency"]) for each in pages["series"]]
    assert settings == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (pages["steps"], pages["requests"], pages["series_seconds"]) == (1, 5, 60)
    assert (large["steps"], large["requests"], len(large["series"])) == (3, 6, 1)
    shapes = [each["inputs"]["x"]["shape"] for each in pages["series"]]
    assert shapes == [[1, 3, 8, 8]] * 2 + [[2, 3, 8, 8]] * 2


@pytest.mark.usefixtures("without_gpu")
def test_options_lie_over_the_matrix(place: Place):
    options = {"batches": (2,), "concurrency": (3,), "steps": 4, "requests": 9, "seed": 8}
    [record] = place.measure("pages", cells=(CPU_8,), series_seconds=11, **options).records
    [job] = place.image.asked
    # The first series is the workload's too: the profile's optimum is a batch of 1.
    assert [(each["batch"], each["concurrency"]) for each in job["series"]] == [(2, 3)]
    assert (job["steps"], job["requests"], job["series_seconds"]) == (4, 9, 11)
    assert (record.steps, record.seed, record.series[0].requests) == (4, 8, 9)


@pytest.mark.usefixtures("without_gpu")
def test_a_seed_makes_the_same_inputs_again(place: Place):
    for seed in (7, 7, 8):
        place.measure("pages", cells=(CPU_8,), seed=seed)
    first, again, other = place.image.first_inputs
    assert first == again != other
    values = np.frombuffer(first, dtype="float32")
    assert values.size == 3 * 8 * 8
    assert -1 <= values.min() < values.max() < 1


@pytest.mark.usefixtures("without_gpu")
def test_a_record_says_what_it_is_of(place: Place):
    [record] = place.measure("pages", cells=(CPU_8,)).records
    [kept] = loads_of_image(place.workspace.store, place.images["cpu"].digest)
    assert kept == record
    assert (record.image, record.served) == (place.images["cpu"].digest, record.served)
    assert record.versions["onnxruntime"] == "1.31.1"
    assert record.gates["providers"] == record.gates["logs"] == record.gates["exit"] == "passed"
    assert record.gates["outputs"] == "off"
    assert (record.gpu, record.driver) == (host_processor(), "")
    assert "cores" in record.gpu
    assert "sha256" not in record.gpu
    assert [each.requests_per_second for each in record.series] == [10.0] * 4
    assert [each.items_per_second for each in record.series] == [10.0, 10.0, 20.0, 20.0]
    assert record.series[0].gpu_percent is None


@pytest.mark.usefixtures("with_gpu")
def test_a_record_of_a_gpu_names_it_and_has_its_figures(place: Place):
    [record] = place.measure("pages", cells=(GPU_8,)).records
    assert (record.gpu, record.driver) == ("NVIDIA L4, SM 8.9", "580.95.05")
    assert record.gates["utilization"] == "off"
    assert record.series[0].gpu_percent == 80.0
    assert record.series[0].gpu_memory_bytes == 1 << 30
    assert record.gpu_error == ""


@pytest.mark.usefixtures("with_gpu")
def test_a_record_says_that_nvml_could_not_be_asked(
    run: Callable[..., Any], place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(BusyGpu, "samples_since", lambda *_: ())
    monkeypatch.setattr(BusyGpu, "error", "no driver")
    monkeypatch.setattr(BusyGpu.__init__, "__defaults__", ("no driver",))
    shown = run("pages", "--cell", GPU_8)
    assert shown.exit_code == 0, shown.output
    assert "what NVML knows is not whole: no driver" in shown.stderr
    [record] = loads_of_image(place.workspace.store, place.images["gpu"].digest)
    assert record.gpu_error == "no driver"
    assert record.series[0].gpu_percent is record.series[0].gpu_memory_bytes is None


# What cannot run here


@pytest.mark.usefixtures("without_gpu")
def test_cells_that_cannot_run_are_named_and_nothing_is_built_for_them(place: Place):
    report = place.measure("pages")
    assert [each.cell for each in report.records] == [CPU_8]
    assert {each.cell: each.reason for each in report.not_run} == {
        GPU_8: "this machine has no GPU",
        "rtx/plain/8/fp32/sm89": "this machine has no GPU",
    }


@pytest.mark.usefixtures("with_gpu")
def test_another_gpu_is_not_the_cells(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cell_runs, "local_gpus", lambda: (LocalGpu(sm=90, driver="580"),))
    [missed] = place.measure("pages", cells=(GPU_8,)).not_run
    assert missed.reason == "this machine has SM 9.0, the cell needs SM 8.9"


@pytest.mark.usefixtures("with_gpu")
def test_a_plan_that_waits_for_a_gpu_runner_says_what_the_build_said(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    def leave_waiting(work: Build) -> None:
        work.waiting += [WaitingCell(cell=each.id, reason="awaiting") for each in work.cells]

    monkeypatch.setattr(load_runs, "make_plans", leave_waiting)
    [missed] = place.measure("pages", cells=("rtx/plain/8/*",)).not_run
    assert missed.reason == "awaiting"
    monkeypatch.setattr(load_runs, "make_plans", lambda _: None)
    [missed] = place.measure("pages", cells=("rtx/plain/8/*",)).not_run
    assert missed.reason == "it has no plan"


@pytest.mark.usefixtures("with_gpu")
def test_a_plan_that_is_refused_is_that_error(place: Place, monkeypatch: pytest.MonkeyPatch):
    def refuse(work: Build) -> None:
        work.failures.append(PlanFailure(cell="rtx/x", message="no such node", log_tail=("a",)))

    monkeypatch.setattr(load_runs, "make_plans", refuse)
    with pytest.raises(PlanCompileError, match="rtx/x: no such node") as caught:
        place.measure("pages", cells=("rtx/plain/8/*",))
    assert caught.value.log_tail == ("a",)


@pytest.mark.usefixtures("without_gpu")
def test_an_image_with_a_smoke_command_of_its_own_is_not_measured(place: Place):
    images = dict(place.loaded.matrix.images)
    images["cpu"] = msgspec.structs.replace(images["cpu"], smoke=OwnSmoke(command=("/bin/smoke",)))
    matrix = msgspec.structs.replace(place.loaded.matrix, images=images)
    loaded = msgspec.structs.replace(place.loaded, matrix=matrix)
    [missed] = place.measure("adhoc", cells=(CPU_8,), loaded=loaded).not_run
    assert "smoke command of its own" in missed.reason
    assert place.image.asked == []


@pytest.mark.usefixtures("without_gpu")
def test_an_image_that_cannot_be_built_is_that_error(place: Place, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise ImageBuildError("docker build failed")

    monkeypatch.setattr("builders.making_images.make_image", fail)
    monkeypatch.setattr("builders.making_images.index.image_of_recipe", lambda *_: None)
    with pytest.raises(ImageBuildError, match="docker build failed"):
        place.measure("pages", cells=(CPU_8,))


# What is asked wrongly


def orders(place: Place, *names: str, cells: tuple[str, ...] = (), **changes: Any) -> Any:
    matrix = place.loaded.matrix
    points = expand(matrix, load_compat()).cells
    return order_loads(matrix, points, names=names, patterns=cells, changes=changes)


def test_an_unknown_workload_is_named_with_the_nearest(place: Place):
    with pytest.raises(InputError) as caught:
        orders(place, "page", "pages", "nothing")
    first, second = caught.value.problems
    assert first == "'page' is no workload; the matrix has pages, large; did you mean pages?"
    assert second == "'nothing' is no workload; the matrix has pages, large"
    assert "planyard load adhoc" in caught.value.mend


def test_batches_a_profile_does_not_take_are_all_named(place: Place):
    with pytest.raises(InputError) as caught:
        orders(place, "adhoc", cells=("cpu/*",), batches=(1, 3, 4))
    assert caught.value.problems == tuple(
        f"workload adhoc: models.plain.profiles.{profile}.x: a batch of {batch} is not within 1 "
        "to 2"
        for batch in (3, 4)
        for profile in (8, 16)
    )
    assert "--batch" in caught.value.mend


@pytest.mark.parametrize(
    ("names", "cells", "words"),
    [
        (("large",), (GPU_8,), "large is for cpu/plain/16/*, and there is no such cell among"),
        (("pages", "large"), (CPU_8,), "the workload large is for"),
        ((), (GPU_16,), "the workload pages is for"),
        ((), ("nothing/*",), "'nothing/*' matches none"),
    ],
)
def test_no_cell_for_a_workload_is_nothing_selected(
    place: Place, names: tuple[str, ...], cells: tuple[str, ...], words: str
):
    with pytest.raises(NothingSelectedError) as caught:
        orders(place, *names, cells=cells)
    assert words in caught.value.message


def test_without_names_a_workload_for_no_selected_cell_is_left_out(place: Place):
    assert [each.name for each in orders(place, cells=(CPU_8,))] == ["pages"]
    assert [each.name for each in orders(place)] == ["pages", "large"]


def test_options_alone_are_a_workload(place: Place):
    [order] = orders(place, "adhoc", cells=(CPU_8,), steps=2)
    assert order.workload == Workload(cells="*", steps=2)
    matrix = msgspec.structs.replace(place.loaded.matrix, loads={})
    points = expand(matrix, load_compat()).cells
    assert [each.name for each in order_loads(matrix, points)] == ["adhoc"]


# While it runs


def test_progress_follows_the_lines_of_the_scripts():
    said: list[str] = []

    class Step:
        def update(self, text: str) -> None:
            said.append(text)

    progress = SeriesProgress([(1, 1), (1, 4), (8, 1)], Step())
    for piece in (
        b"planyard: session ready, providers\nplanyard: bat",
        b"ch 1, 1 at once: 5 requests, 1.0 to 2.0 ms\n",
        b"planyard: batch 1, 4 at once: 5 requests\nplanyard: batch 8, 1 at once: 5\n",
        b"x" * 100_000,
    ):
        progress(piece)
    assert list(dict.fromkeys(said)) == [
        "series 1 of 3: batch 1, 1 at once",
        "series 2 of 3: batch 1, 4 at once",
    ]


# The verb


@pytest.fixture
def run(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs `planyard load ARGUMENTS` in the place."""
    before = signal.getsignal(signal.SIGTERM)

    @contextlib.contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[Workspace]:
        yield place.workspace

    app = typer.Typer()
    load_verb.add_to(app)
    monkeypatch.setattr(load_verb, "open_workspace", opened)
    measured = functools.partial(measure_loads, instruments=INSTRUMENTS)
    monkeypatch.setattr(load_runs, "measure_loads", measured)
    monkeypatch.chdir(place.root)
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("without_gpu")
def test_the_verb_prints_a_table_and_the_document(run: Callable[..., Any], place: Place):
    shown = run("pages", "--cell", CPU_8, "--batch", "2")
    assert shown.exit_code == 0, shown.output
    assert f"pages on {CPU_8}" in shown.stdout
    assert "5 in 0.5 s" in shown.stdout
    document = run("pages", "--cell", CPU_8, "--json")
    decoded = msgspec.json.decode(document.stdout, type=LoadReport)
    assert [each.cell for each in decoded.records] == [CPU_8]
    assert len(place.kept) == 2


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pages", "--cell", GPU_8], 7, "was not run (pages): this machine has no GPU"),
        (["pages", "--require"], 7, "was not run (pages)"),
        (["pages"], 0, "was not run (pages)"),
        (["large", "--cell", GPU_8], 3, "no such cell"),
        (["other"], 2, "'other' is no workload"),
        (["pages", "--batch", "3"], 2, "not within 1 to 2"),
        (["pages", "--batch", "0"], 2, ""),
        (["pages", "--requests", "4"], 2, ""),
    ],
)
def test_exit_codes(run: Callable[..., Any], arguments: list[str], code: int, words: str):
    ended_with = run(*arguments)
    assert ended_with.exit_code == code, ended_with.output
    assert words in ended_with.stderr


@pytest.mark.usefixtures("with_gpu")
def test_a_fallback_ends_with_findings(run: Callable[..., Any], place: Place):
    place.image.answers = replace(place.image.answers, ended=ended(stderr=FELL_BACK))
    ended_with = run("pages", "--cell", GPU_8, "--json")
    assert ended_with.exit_code == 4, ended_with.output
    assert "An execution provider that was asked for could not be made" in ended_with.stderr
    assert "no figures of pages, the run failed its gates" in ended_with.stderr
    [refused] = json.loads(ended_with.stdout)["refused"]
    assert refused["cell"] == GPU_8
    assert place.kept == []
