"""The whole line on a store that holds the images: an engine that is this machine, no Docker."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builders.loading import load
from builders.pipeline import AWAITING_GPU, build
from builders.workspace import Workspace
from engines import index
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import ImageBuildError, IntegrityError, NothingSelectedError
from planyard.core.findings import failures
from planyard.core.reader import LoadedMatrix
from planyard.core.report import BuildReport, exit_code
from planyard.core.results import ImageRecord
from planyard.edge.docker import Container, Ended
from planyard.edge.gpu import local_gpus
from tests import small_site
from tests.smoke_runs import InProcess, ended, host_path, no_reference_load

HEAD = (Path(__file__).parents[1] / "data/plans/rtx-1.7.1.116-sm89.head").read_bytes()


def whole_plan(cell: str) -> bytes:
    """A small plan for SM 8.9 whose header is a real one's, with its sizes put right."""
    data = bytearray(HEAD + cell.encode() + bytes(4))
    struct.pack_into("<Q", data, 16, len(data))
    struct.pack_into("<QQ", data, 96, len(HEAD), len(data) - 4 - len(HEAD))  # the weights
    return bytes(data)


PROBE = {
    "schema": 1,
    "versions": {"onnxruntime": {"version": "1.31.1", "how": "imported from /x"}},
    "device": {"count": 0, "driver": None, "fp16": None, "int8": None},
}


@dataclass
class Machine:
    """Answers what each script would: smoke runs, probes, compilers."""

    smoke: InProcess = field(default_factory=lambda: InProcess(serve=small_site.plain))
    refused: tuple[str, ...] = ()
    spoil: Callable[[bytes], bytes] = bytes
    """What becomes of each plan on its way out of the compiler."""
    ran: list[str] = field(default_factory=list)

    def __call__(self, container: Container) -> Ended:
        script = Path(container.command[1]).name
        self.ran.append(f"{script} in {container.image.split('/')[1].split(':')[0]}")
        if script == "probe.py":
            return ended(stdout=json.dumps(PROBE).encode())
        return self.smoke(container) if script == "smoke.py" else self._compile(container)

    def _compile(self, container: Container) -> Ended:
        job = json.loads(host_path(container, "/job/job.json").read_bytes())
        events = [{"event": "loaded", "schema": 1}]
        for plan in job["plans"]:
            if plan["cell"] in self.refused:
                words = {"message": "no such operator", "log": ["E: no such operator"]}
                events.append({"event": "refused", "cell": plan["cell"], **words})
                continue
            data = self.spoil(whole_plan(plan["cell"]))
            (host_path(container, "/out") / plan["out"]).write_bytes(data)
            found = {"seconds": 0.5, "size_bytes": len(data), "sha256": digest_of_bytes(data)[7:]}
            events.append({"event": "compiled", "cell": plan["cell"], **found})
        lines = "\n".join(json.dumps(event) for event in events)
        return ended(stdout=f"{lines}\nnot an event\n".encode(), stderr=b"tail")


@dataclass
class Line:
    """A laid out matrix, its workspace, its machine."""

    loaded: LoadedMatrix
    workspace: Workspace
    machine: Machine

    def build(self, *patterns: str, **options: Any) -> BuildReport:
        return build(self.loaded, patterns=patterns, workspace=self.workspace, **options)

    def again(self) -> Line:
        """The next start of planyard in the same workspace."""
        machine = Machine()
        return Line(
            load(self.workspace.root / "matrix.yaml"),
            small_site.workspace_of(self.workspace.root, machine),
            machine,
        )


@pytest.fixture(autouse=True)
def _no_reference_load(monkeypatch: pytest.MonkeyPatch) -> None:
    no_reference_load(monkeypatch)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    small_site.put_images(small_site.lay_out(root), small_site.workspace_of(root, Machine()))
    return root


@pytest.fixture
def line(tmp_path: Path, template: Path) -> Line:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    machine = Machine()
    workspace = small_site.workspace_of(tmp_path, machine)
    return Line(load(tmp_path / "matrix.yaml"), workspace, machine)


without_gpu = pytest.mark.skipif(bool(local_gpus()), reason="this machine has a GPU to smoke on")


def for_sm_86(plan: bytes) -> bytes:
    return plan[:32] + (1 << 2).to_bytes(8, "little") + plan[40:]


def of_another_version(plan: bytes) -> bytes:
    return plan[:24] + bytes([1, 6, 1, 120]) + plan[28:]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (for_sm_86, "SM"),
        (of_another_version, "version 1.6.1.120"),
        (lambda plan: plan[:-1], "truncated"),
        (lambda plan: b"not a plan" + plan, "wrote no plan"),
    ],
)
def test_a_plan_that_is_not_what_was_asked_for_is_refused(
    line: Line, spoil: Callable[[bytes], bytes], said: str
) -> None:
    line.machine.spoil = spoil
    with pytest.raises(IntegrityError, match=said):
        line.build()
    assert not list(line.workspace.store.keys("plans"))


@without_gpu
def test_one_matrix_goes_all_the_way(line: Line) -> None:
    report = line.build()
    assert exit_code(report) == 0
    assert exit_code(report, require_smoke=True) == 7
    assert [(each.name, each.plans, each.plans_wanted, each.smoke) for each in report.images] == [
        ("cpu", 0, 0, {"passed": 2}),
        ("gpu", 0, 0, {"not run": 2}),
        ("rtx", 2, 2, {"not run": 2}),
    ]
    assert report.compiled == ("rtx/plain/8/fp32/sm89", "rtx/plain/16/fp32/sm89")
    assert {(each.image, each.gpu) for each in report.snapshots} == {
        (report.images[0].digest, "cpu"),
        (report.images[1].digest, "sm89"),
        (report.images[2].digest, "sm89"),
    }
    assert sorted(line.machine.ran) == [
        "inside.py in compiler",
        "probe.py in cpu",
        "probe.py in gpu",
        "probe.py in rtx",
        "smoke.py in cpu",
        "smoke.py in cpu",
    ]
    assert list(line.workspace.scratch.iterdir()) == []


@without_gpu
def test_what_is_in_the_snapshots_is_what_was_found(line: Line) -> None:
    report = line.build()
    [cpu] = index.snapshots_of_image(line.workspace.store, report.images[0].digest or "")
    assert cpu.versions_found["onnxruntime"].version == "1.31.1"
    assert [verdict.verdict for verdict in cpu.smoke] == ["passed", "passed"]
    [rtx] = index.snapshots_of_image(line.workspace.store, report.images[2].digest or "")
    assert [verdict.verdict for verdict in rtx.smoke] == ["not run", "not run"]
    assert [plan.digest for plan in rtx.plans] == [plan.digest for plan in report.plans]
    assert rtx.device.count == 0
    assert rtx.device.fp16 is None


@without_gpu
def test_a_second_build_finds_everything(line: Line) -> None:
    first = line.build()
    second = line.again()
    report = second.build()
    assert second.machine.ran == []
    assert report.compiled == ()
    assert [plan.digest for plan in report.plans] == [plan.digest for plan in first.plans]
    assert report.verdicts == first.verdicts
    assert report.snapshots == first.snapshots


@without_gpu
def test_a_changed_profile_compiles_its_own_cells(line: Line) -> None:
    line.build()
    path = line.workspace.root / "matrix.yaml"
    path.write_text(path.read_text().replace("max: [2, 3, 16, 16]", "max: [4, 3, 16, 16]"))
    assert line.again().build().compiled == ("rtx/plain/16/fp32/sm89",)


@without_gpu
def test_a_refused_plan_ends_its_cell_and_no_other(line: Line) -> None:
    line.machine.refused = ("rtx/plain/8/fp32/sm89",)
    report = line.build()
    assert exit_code(report) == 6
    [failure] = report.plan_failures
    assert (failure.cell, failure.message) == ("rtx/plain/8/fp32/sm89", "no such operator")
    assert failure.log_tail == ("E: no such operator",)
    assert report.compiled == ("rtx/plain/16/fp32/sm89",)
    reasons = {each.cell: each.reason for each in report.verdicts}
    assert reasons["rtx/plain/8/fp32/sm89"] == "it has no plan"
    assert line.again().build().compiled == ("rtx/plain/8/fp32/sm89",)


def test_a_compiler_that_ends_early_fails_what_it_left(line: Line) -> None:
    line.machine._compile = lambda _: ended(exit_code=1, stdout=b"", stderr=b"Segmentation fault")  # type: ignore[method-assign]
    report = line.build("rtx/*", until="plans")
    assert [failure.message for failure in report.plan_failures] == [
        "the compiler ended before this plan"
    ] * 2
    assert report.plan_failures[0].log_tail == ("Segmentation fault",)


def test_only_what_was_selected_is_made(line: Line) -> None:
    report = line.build("cpu/*/8/*")
    assert [each.name for each in report.images] == ["cpu"]
    assert [each.cell for each in report.verdicts] == ["cpu/plain/8/fp32/cpu"]
    with pytest.raises(NothingSelectedError):
        line.build("nothing/*")


def test_a_build_may_stop_early(line: Line) -> None:
    report = line.build(until="images")
    assert [each.digest is not None for each in report.images] == [True] * 3
    assert (report.plans, report.verdicts, report.snapshots) == ((), (), ())
    assert line.machine.ran == []


def refuse_builds(line: Line, names: tuple[str, ...]) -> None:
    """Take images out of the store, and let the engine refuse to build them."""
    store = line.workspace.store
    for recipe in list(store.keys(index.IMAGES)):
        record = index.image_of_recipe(store, recipe)
        if record and record.name in names:
            forget(line, record)

    def refuse(args: object, *, on_line: Callable[[str], None]) -> None:
        raise ImageBuildError("docker build failed", log_tail=("ERROR: no space",))

    line.workspace.engine().build = refuse  # type: ignore[method-assign, assignment]


def forget(line: Line, record: ImageRecord) -> None:
    blob = line.workspace.store.root / "blobs" / "sha256" / record.digest[7:]
    blob.unlink()


@without_gpu
def test_an_image_that_cannot_be_built_ends_its_own_cells(line: Line) -> None:
    refuse_builds(line, ("gpu",))
    report = line.build()
    assert exit_code(report) == 5
    assert [(each.name, each.error) for each in report.images] == [
        ("cpu", ""),
        ("gpu", "docker build failed"),
        ("rtx", ""),
    ]
    assert report.images[1].digest is None
    assert [each.reason for each in report.verdicts if each.cell.startswith("gpu/")] == [
        "its image was not built"
    ] * 2
    assert report.images[0].smoke == {"passed": 2}
    assert report.images[2].plans == 2


def test_without_its_compiler_an_image_has_no_plans(line: Line) -> None:
    refuse_builds(line, ("compiler",))
    report = line.build("rtx/*")
    assert exit_code(report) == 5
    assert (report.plans, report.compiled) == ((), ())


def test_classic_tensorrt_waits_for_its_gpu_and_is_not_dropped(tmp_path: Path) -> None:
    matrix = small_site.MATRIX.replace("tensorrt-rtx", "tensorrt")
    loaded = small_site.lay_out(tmp_path, matrix=matrix)
    workspace = small_site.workspace_of(tmp_path, Machine())
    rtx = small_site.put_image_of("rtx", loaded, workspace)
    report = build(loaded, patterns=("rtx/*",), workspace=workspace)
    assert rtx.digest == report.images[0].digest
    assert {(each.cell, each.reason) for each in report.waiting} == {
        ("rtx/plain/8/fp32/sm89", AWAITING_GPU),
        ("rtx/plain/16/fp32/sm89", AWAITING_GPU),
    }
    assert exit_code(report) == 0
    assert exit_code(report, require_smoke=True) == 7


def test_a_budget_that_is_passed_is_a_finding_of_a_finished_build(line: Line) -> None:
    path = line.workspace.root / "matrix.yaml"
    text = path.read_text()
    path.write_text(text.replace("context: ours}\n", "context: ours, budget: {pull: 10 B}}\n", 1))
    report = line.again().build("cpu/*")
    assert [each.rule for each in failures(report.images[0].findings)] == ["budget.pull"]
    assert exit_code(report) == 4
    assert report.images[0].smoke == {"passed": 2}
