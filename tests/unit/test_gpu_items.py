"""The items of the GPU lane, with the GPU played: what a run, a compiler and TensorRT answer is
made up, everything around that is the lane's own. None of it proves anything of a GPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from planyard.core.results import AttentionFound, LatencySeries, LoadedLibrary, SessionFound
from planyard.edge.docker import Ended
from tests.gpu import items_load, items_ort, items_plans
from tests.gpu.bench import Asked, Bench, Progress
from tests.gpu.compiling import compile_here, header_of
from tests.gpu.items_load import run_sharing, run_workloads
from tests.gpu.items_ort import run_cuda, run_without_libraries
from tests.gpu.items_plans import run_attention, run_classic
from tests.gpu.judging import judged
from tests.gpu.lane import TASKS, Task, run_item
from tests.gpu.machine import TENSORRT, Places, Surroundings
from tests.gpu.record import GpuFound, Item, JudgedRun, MachineFound
from tests.gpu.subjects import UNET, UNET_TOLERANCE, CannotRunError, Subject, lane_matrix
from tests.smoke_runs import CPU, CUDA, busy_gpu, placed, report_of, run_of

NEW, OLD = TENSORRT
PLAN_BYTES = 3 << 20
MATRIX = lane_matrix()
H200 = GpuFound(name="NVIDIA H200", sm=90, driver="580.159.03")
STEP_SECONDS = 0.01


def plan_bytes(version: str, *, seed: int) -> bytes:
    """A classic plan as its header has it; half of it is the same in every plan."""
    head = b"ftrt" + bytes(20) + bytes(int(part) for part in version.split("."))
    shared = np.random.default_rng(1).bytes(PLAN_BYTES // 2)
    return head.ljust(256, b"\0") + shared + np.random.default_rng(seed).bytes(PLAN_BYTES // 2)


@dataclass(kw_only=True)
class PlayedBench(Bench):
    """A bench whose programs answer as they should on a GPU; `broken` says who does not."""

    builds: tuple[str, ...] = (NEW, OLD)
    fused: int = 32
    fallback: bool = False
    ignores_headers: bool = False
    asked: list[Asked] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def run(self, subject: Subject, asked: Asked) -> tuple[JudgedRun, Any]:
        self.asked.append(asked)
        self.left_seconds()
        job, outputs = self._job(subject, asked), {"y": np.linspace(0, 1, 50, dtype="float32")}
        refused = self._refuses(asked)
        if refused:
            run = run_of(report_of(error=refused), cell=job.cell.id, exit_code=1)
            outputs = {}
        else:
            run = run_of(self._report(job, asked), cell=job.cell.id, **self._seen(asked))
        limits = self._limits(subject, job.cell, asked)
        kept = judged(
            job,
            run,
            outputs,
            what=asked.what,
            limits=limits,
            wanted=asked.wanted,
            counts=asked.counts,
        )
        if asked.golden is None and kept.verdict == "passed":
            self._put_golden(kept.run.cell, outputs)
        return kept, run

    def _refuses(self, asked: Asked) -> str:
        if asked.served is None or self.ignores_headers:
            return ""
        made = getattr(header_of(asked.served), "version", "?")
        same = made == asked.tensorrt
        return "" if same else f"a plan of TensorRT {made} does not run on {asked.tensorrt}"

    def _seen(self, asked: Asked) -> dict[str, Any]:
        on_cpu = asked.backend == "onnxruntime-cpu"
        return {"gpu_samples": None if on_cpu else busy_gpu(seconds=20), "seconds": 20.0}

    def _report(self, job: Any, asked: Asked) -> Any:
        first = job.providers[0]
        fell = self.fallback or "libraries" in str(asked.environment.get("LD_LIBRARY_PATH"))
        active = CPU if first == CUDA and fell else first
        operator = "layer" if first == "TensorRT" else "Conv"
        pins = {"onnxruntime": "1.31.1", "cuda": "13.0", "tensorrt": asked.tensorrt or NEW}
        versions = {**pins, "python": self._limits_python()}
        began = run_of().began_seconds + 1
        each_ms = 1000 * STEP_SECONDS * job.steps * job.batch
        at_once = job.limits.concurrency[0]
        times = (each_ms * at_once,) * job.limits.requests
        series = LatencySeries(
            batch=job.batch,
            concurrency=at_once,
            latencies_ms=times,
            reference_ms=(1.0,) * 5,
            began_seconds=began,
            ended_seconds=began + sum(times) / at_once / 1000 + 0.001,
        )
        return report_of(
            providers_asked=(first,),
            providers_active=(active,),
            placement=placed((active, operator, 60)),
            cpu_fallback_refused=False,
            attention=AttentionFound(fused=self.fused),
            session=SessionFound(),
            latencies_ms=times,
            series=(series,),
            loaded={
                name: LoadedLibrary(version=version, path=f"/usr/lib/lib{name}.so")
                for name, version in versions.items()
            },
            requests_began_seconds=began,
            requests_ended_seconds=began + 15,
        )

    def _limits_python(self) -> str:
        import platform

        return platform.python_version()

    def program(
        self, command: tuple[str, ...], *, environment: Mapping[str, str], seconds: float
    ) -> Ended:
        if command[1].endswith("deserialize.py"):
            said = {"version": "", "taken": False, "said": ["the version does not match"]}
            return Ended(exit_code=0, seconds=1.0, stdout=json.dumps(said).encode())
        job = json.loads(Path(command[2]).read_bytes())
        self.jobs.append(job)
        return Ended(exit_code=0, seconds=1.0, stdout=b"\n".join(self._compiled(job)))

    def _compiled(self, job: Mapping[str, Any]) -> list[bytes]:
        """The events of engines/inside/tensorrt.py, and the files it writes."""
        events = []
        if job["version"] not in self.builds:
            said = "no tactic: the driver is older than the PTX"
            events = [
                {"event": "refused", "cell": plan["cell"], "message": said, "errors": []}
                for plan in job["plans"]
            ]
            return [json.dumps(each).encode() for each in events]
        for number, plan in enumerate(job["plans"]):
            path = Path(job["out"], plan["out"])
            path.write_bytes(plan_bytes(job["version"], seed=10 + number))
            layers = [{"Name": "a", "TacticName": "_gemm_mha_v2"}]
            path.with_suffix(".inspector.json").write_text(json.dumps({"Layers": layers}))
            size = path.stat().st_size
            events.append(
                {
                    "event": "compiled",
                    "cell": plan["cell"],
                    "out": plan["out"],
                    "seconds": 2.0 if job["timing_caches"] else 9.5,
                    "size_bytes": size,
                    "sha256": "0" * 64,
                    "inspector": path.with_suffix(".inspector.json").name,
                }
            )
        Path(job["out"], job["timing_cache_out"]).write_bytes(b"timings")
        events.append({"event": "cache", "out": job["timing_cache_out"], "combined": []})
        return [json.dumps(each).encode() for each in events]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in TENSORRT.values():
        (tmp_path / "joined" / f"site-{name}").mkdir(parents=True)
        (tmp_path / "joined" / f"lib-{name}").mkdir()
        (tmp_path / "joined" / f"lib-{name}" / "libnvinfer.so.1").write_bytes(b"")
    return Places(joined=tmp_path / "joined", work=tmp_path / "work")


@pytest.fixture
def bench(places: Places, monkeypatch: pytest.MonkeyPatch) -> PlayedBench:
    play_subjects(places, monkeypatch)
    return PlayedBench(
        places=places,
        around=Surroundings(places=places),
        machine=MachineFound(
            processor="a processor", cores=2, memory_bytes=1 << 33, python="3.12.3", gpu=H200
        ),
        matrix=MATRIX,
        deadline=time.monotonic() + 600,
    )


def play_subjects(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix's models without their files: nothing is fetched, generated or read."""
    graph = places.joined / "graph.onnx"
    graph.write_bytes(b"a graph")
    blocks = {UNET: 32}
    monkeypatch.setattr(Subject, "attention_blocks", lambda self: blocks.get(self.name, 0))

    def subject(name: str, profile: str) -> Subject:
        spec = MATRIX.models[name]
        return Subject(
            name=name,
            profile=profile,
            precision="fp16" if name == UNET else "fp32",
            path=graph,
            spec=spec,
            tolerance=spec.tolerance.get("fp32", UNET_TOLERANCE),
        )

    for module in (items_ort, items_plans, items_load):
        for name, made in {
            "ocr_det": lambda matrix, places, profile="640": subject("ocr-det", profile),
            "ocr_rec": lambda matrix, places: subject("ocr-det", "640"),
            "unet": lambda matrix, places, profile="512": subject(UNET, profile),
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, made)


def item(bench: Bench, run: Any, *, needs_gpu: bool = True) -> tuple[Item, list[Item]]:
    """One item, and all that was saved of it on the way."""
    saved: list[Item] = []
    task = Task(title="an item", run=run, seconds=600, needs_gpu=needs_gpu)
    return run_item(1, task, bench, save=saved.append), saved


def test_cuda_is_held_against_the_cpu(bench):
    found, saved = item(bench, run_cuda)
    assert (found.verdict, found.reason) == ("passed", "")
    assert [run.golden for run in found.runs if run.backend == "onnxruntime-cuda"] == [
        "ort-cpu/ocr-det/640/fp32/cpu",
        "ort-cpu/ocr-det/640/fp32/cpu",
        "ort-cpu/ocr-det/640/fp32/cpu",
        "ort-cpu/sd15-unet/512/fp16/cpu",
    ]
    assert found.figures["sd15-unet 512 CPU to CUDA"] == 1
    assert [len(each.runs) for each in saved[:3]] == [1, 2, 3]
    assert all(each.verdict == "not run" for each in saved)
    exact = next(each for each in bench.asked if "without TF32" in each.what)
    assert exact.environment["NVIDIA_TF32_OVERRIDE"] == "0"
    assert not exact.counts


def test_a_fallback_fails_the_item_and_gives_no_ratio(bench):
    bench.fallback = True
    found, _ = item(bench, run_cuda)
    assert found.verdict == "failed"
    assert "providers.not-active" in found.reason
    assert found.figures == {}


def test_broken_libraries_have_to_be_refused(bench):
    found, _ = item(bench, run_without_libraries)
    assert found.verdict == "passed"
    assert [(run.verdict, run.wanted) for run in found.runs] == [("failed", "refused")] * 2


def test_a_gate_that_lets_broken_libraries_pass_fails_the_item(bench, monkeypatch):
    monkeypatch.setattr(Surroundings, "hidden", Surroundings.onnxruntime)
    found, _ = item(bench, run_without_libraries)
    assert found.verdict == "failed"
    assert "the gates did not refuse it" in found.reason


def test_what_is_refused_for_something_else_proves_nothing(bench, monkeypatch):
    """The provider was there, and only nobody could ask NVML."""
    monkeypatch.setattr(Surroundings, "hidden", Surroundings.onnxruntime)
    monkeypatch.setattr(PlayedBench, "_seen", lambda self, asked: {"gpu_samples": None})
    found, _ = item(bench, run_without_libraries)
    assert found.runs[1].verdict == "failed"
    assert found.verdict == "failed"


def test_classic_tensorrt_builds_rebuilds_and_refuses(bench):
    found, _ = item(bench, run_classic)
    assert (found.verdict, found.reason) == ("passed", "")
    assert [(each.version, each.timing_cache, each.compile_seconds) for each in found.plans] == [
        (NEW, "written", 9.5),
        (NEW, "used", 2.0),
        (OLD, "written", 9.5),
        (OLD, "used", 2.0),
    ]
    assert {each.header["version"] for each in found.plans} == {NEW, OLD}
    refused = [run for run in found.runs if run.wanted == "refused"]
    assert [run.verdict for run in refused] == ["failed", "failed"]
    assert "does not run on" in refused[0].run.report.error
    assert found.figures[f"TensorRT {NEW} without our check"].startswith("refused it")
    assert not any("did not say it first" in note for note in found.notes)


def test_one_version_alone_refuses_its_own_plan_marked_as_another(bench):
    bench.builds = (OLD,)
    found, _ = item(bench, run_classic)
    assert found.verdict == "passed"
    assert any(f"TensorRT {NEW} built no plan" in note for note in found.notes)
    assert any(f"marked as one of {NEW}" in note for note in found.notes)
    assert found.figures["versions that build here"] == OLD


def test_no_version_that_builds_fails_the_item(bench):
    bench.builds = ()
    found, _ = item(bench, run_classic)
    assert found.verdict == "failed"
    assert found.reason.startswith("no version of TensorRT built a plan; the last: TensorRT 10.15")
    assert "the driver is older than the PTX" in found.reason


def test_a_plan_of_another_version_that_runs_fails_the_item(bench):
    bench.ignores_headers = True
    found, _ = item(bench, run_classic)
    assert found.verdict == "failed"
    assert any("did not say it first" in note for note in found.notes)


def test_no_libraries_are_not_run(bench, places):
    for name in TENSORRT.values():
        (places.joined / f"lib-{name}" / "libnvinfer.so.1").unlink()
    found, _ = item(bench, run_classic)
    assert found.verdict == "not run"
    assert "no TensorRT is here" in found.reason


def test_attention_is_counted_in_the_plan(bench):
    item(bench, run_cuda)
    found, _ = item(bench, run_attention)
    assert (found.verdict, found.reason) == ("passed", "")
    assert found.figures["attention blocks of the graph"] == 32
    assert found.figures["fused by the inspector"] == 32
    assert found.figures["y: cosine to fp32"] == 1
    assert [plan["out"] for plan in bench.jobs[-1]["plans"]] == [
        "sd15-unet-512.plan",
        "sd15-unet-1024.plan",
    ]


def test_unfused_attention_fails_the_item(bench):
    item(bench, run_cuda)
    bench.fused = 31
    found, _ = item(bench, run_attention)
    assert found.verdict == "failed"
    assert "attention.unfused" in found.reason


def test_without_a_golden_outputs_are_not_proved(bench):
    found, _ = item(bench, run_attention)
    assert found.verdict == "failed"
    assert "outputs.no-golden" in found.reason


def test_the_table_of_workloads(bench):
    item(bench, run_attention)
    bench.deadline = time.monotonic() + 10_000
    found, saved = item(bench, run_workloads)
    assert found.verdict == "passed"
    assert len(found.loads) == 2 * 4 * 3
    measured = {(row.workload, row.pictures, row.concurrency): row for row in found.loads}
    first = measured["sd15-512", 1, 1]
    assert first.series.p50_ms == pytest.approx(1000 * STEP_SECONDS * 25 * 2)
    assert first.series.items_per_second == pytest.approx(1 / (25 * STEP_SECONDS), rel=0.01)
    assert first.steps == 25
    assert first.series.gpu_percent == 80
    late = measured["sd15-1024", 8, 32]
    assert late.series is None
    assert "it would have taken about" in late.why
    assert "were not run for want of time" in found.reason
    assert saved[0].loads[0].concurrency == 1


def test_rows_are_measured_shortest_first(bench):
    item(bench, run_attention)
    bench.deadline = time.monotonic() + 10_000
    found, _ = item(bench, run_workloads)
    assert [row.concurrency for row in found.loads[:8]] == [1] * 8
    assert (found.loads[0].workload, found.loads[0].pictures) == ("sd15-512", 1)


def test_a_row_that_fails_says_why(bench, monkeypatch):
    item(bench, run_attention)
    monkeypatch.setattr(PlayedBench, "_refuses", lambda self, asked: "CUDA out of memory")
    found, _ = item(bench, run_workloads)
    assert found.verdict == "failed"
    assert all(row.series is None for row in found.loads)
    assert "CUDA out of memory" in found.loads[0].why
    assert "one at a time could not be measured" in {row.why for row in found.loads}


def test_workloads_need_plans(bench):
    found, _ = item(bench, run_workloads)
    assert found.verdict == "not run"
    assert "item 4 makes them" in found.reason


def test_what_two_plans_share(bench):
    item(bench, run_attention)
    found, _ = item(bench, run_sharing)
    assert found.verdict == "passed"
    assert found.figures["plan 1: bytes"] == PLAN_BYTES + 256
    assert found.figures["plan 1: bytes it added"] >= PLAN_BYTES
    assert 30 < found.figures["plan 2: shared with those before it, %"] < 50


def test_sharing_needs_both_plans(bench):
    assert item(bench, run_sharing)[0].verdict == "not run"


def test_the_compiler_that_is_cut_off_says_so(bench, monkeypatch):
    def cut(self: Any, command: Any, **_: Any) -> Ended:
        line = b'{"event": "started", "cell": "a"}\n{"event": "comp'
        return Ended(exit_code=None, timed_out=True, seconds=9.0, stdout=line, stderr=b"[INFO] x")

    monkeypatch.setattr(PlayedBench, "program", cut)
    subject = items_plans.ocr_det(MATRIX, bench.places)
    made = compile_here(bench, [subject], version=NEW, seconds=10)
    assert made.plans == {}
    assert "it ran out of time: [INFO] x" in made.why_not


# Whatever goes wrong in an item.


def test_an_item_that_raises_has_failed(bench):
    def breaks(bench: Bench, progress: Progress) -> Any:
        raise ZeroDivisionError("a bug")

    found, _ = item(bench, breaks)
    assert (found.verdict, found.reason) == ("failed", "ZeroDivisionError: a bug")


def test_an_item_that_was_cut_short_is_not_passed(bench):
    def half(bench: Bench, progress: Progress) -> Any:
        progress.add(run_classic and bench.run(items_ort.ocr_det(None, None), CPU_RUN)[0])
        raise CannotRunError("the time for this item was over")

    found, _ = item(bench, half)
    assert found.verdict == "failed"
    assert found.reason == "only a part of it was run: the time for this item was over"


CPU_RUN = Asked(what="a run", backend="onnxruntime-cpu", environment={})


def test_no_time_left_is_not_run(bench):
    bench.deadline = time.monotonic() + 3
    found, _ = item(bench, run_cuda)
    assert found.verdict == "not run"
    assert "the time for this item was over" in found.reason
    assert bench.asked == []


@pytest.mark.parametrize("number", [each for each, task in TASKS.items() if task.needs_gpu])
def test_without_a_gpu_nothing_is_claimed(bench, number):
    bench.machine = msgspec.structs.replace(bench.machine, gpu=None)
    found = run_item(number, TASKS[number], bench, save=lambda item: None)
    assert (found.verdict, found.reason) == ("not run", "this machine has no GPU")
