"""Records of the GPU lane, replayed: today's gates say of each run what they said when it was made.

And evidence that is taken away or falsified is never passed: of the records, and of a run on CUDA
that is made up here, for as long as no record has one.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from planyard.core.matrix import Tolerance
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import SessionFound, SmokeReport
from smoke.job import SmokeJob
from tests.gpu import table
from tests.gpu.judging import LOG_CHARACTERS, NONE, SAMPLES_KEPT, Limits, judge_again, judged
from tests.gpu.machine import ROOT
from tests.gpu.record import (
    GpuFound,
    Item,
    JudgedRun,
    MachineFound,
    Record,
    cleaned,
    cleaner,
    read_record,
    with_item,
    write_record,
)
from tests.gpu.subjects import OCR_DET, Subject, gates_here, lane_matrix
from tests.smoke_runs import CPU, CUDA, busy_gpu, placed, report_of, run_of

RECORDS = sorted(table.FOLDER.glob("*.json"))
MATRIX = lane_matrix()
ARRAY = np.linspace(0, 1, 60, dtype="float32").reshape(3, 20)
TOLERANCE = Tolerance(max_abs=0.001, mean_abs=0.0001)


def kept_runs() -> list[Any]:
    return [
        pytest.param(run, id=f"{path.stem}-{item.number}-{number}")
        for path in RECORDS
        for item in read_record(path).items
        for number, run in enumerate(item.runs)
    ]


def job() -> SmokeJob:
    """The detector of text on CUDA."""
    subject = Subject(
        name=OCR_DET,
        profile="640",
        precision="fp32",
        path=Path("ocr-det.onnx"),
        spec=MATRIX.models[OCR_DET],
        tolerance=TOLERANCE,
    )
    return SmokeJob(
        cell=subject.cell("onnxruntime-cuda", sm=90),
        image="ort-gpu",
        python="python3",
        served=subject.path,
        inputs={},
        limits=SmokeLimits(),
        gpu=True,
    )


def made_up(
    *,
    report: dict[str, Any] | None = None,
    output: np.ndarray = ARRAY,
    golden: np.ndarray | None = ARRAY,
    **run: Any,
) -> JudgedRun:
    """A run on CUDA as the lane would keep it."""
    fields = {"session": SessionFound(), **(report or {})}
    limits = Limits(
        gates=gates_here(MATRIX, job().cell),
        pins={"onnxruntime": "1.31.1", "cuda": "13.0"},
        needed=("onnxruntime", "cuda"),
        attention_blocks=0,
        tolerance=TOLERANCE,
        golden="ort-cpu/ocr-det/640/fp32/cpu" if golden is not None else NONE,
        arrays={"y": golden} if golden is not None else None,
    )
    given = run_of(report_of(**fields), cell=job().cell.id, **run)
    return judged(job(), given, {"y": output}, what="made up", limits=limits)


def with_report(kept: JudgedRun, **changes: Any) -> JudgedRun:
    report = msgspec.structs.replace(kept.run.report or SmokeReport(), **changes)
    return with_run(kept, report=report)


def with_run(kept: JudgedRun, **changes: Any) -> JudgedRun:
    return msgspec.structs.replace(kept, run=msgspec.structs.replace(kept.run, **changes))


def on_cpu(kept: JudgedRun) -> JudgedRun:
    """Every node where a GPU's would not be."""
    nodes = kept.run.report.placement if kept.run.report else ()
    moved = tuple(msgspec.structs.replace(node, provider=CPU) for node in nodes)
    return with_report(kept, placement=moved)


def far_off(kept: JudgedRun) -> JudgedRun:
    far = [msgspec.structs.replace(each, max_abs=9.0, mean_abs=9.0) for each in kept.outputs]
    return msgspec.structs.replace(kept, outputs=tuple(far))


def not_finite(kept: JudgedRun) -> JudgedRun:
    bad = [msgspec.structs.replace(each, not_finite=1) for each in kept.outputs]
    return msgspec.structs.replace(kept, outputs=tuple(bad))


def without_some(kept: JudgedRun) -> JudgedRun:
    return msgspec.structs.replace(kept, missing_outputs=("another",))


ANY: dict[str, Callable[[JudgedRun], JudgedRun]] = {
    "it crashed": lambda kept: with_run(kept, exit_code=139),
    "it was stopped": lambda kept: with_run(kept, exit_code=None, timed_out=True),
    "it reported nothing": lambda kept: with_run(kept, report=None),
    "its provider is missing": lambda kept: with_report(kept, providers_active=("Another",)),
    "no provider is active": lambda kept: with_report(kept, providers_active=()),
    "no node was placed": lambda kept: with_report(kept, placement=()),
    "no outputs": lambda kept: msgspec.structs.replace(kept, outputs=()),
    "outputs are no numbers": not_finite,
    "nothing was timed": lambda kept: with_report(kept, series=(), latencies_ms=()),
    "it said nothing": lambda kept: with_run(kept, stdout="", stderr=""),
    "no library was loaded": lambda kept: with_report(kept, loaded={}),
}
ON_A_GPU = {
    "nodes are on the CPU": on_cpu,
    "nobody sampled NVML": lambda kept: with_run(kept, gpu_samples=None),
    "no samples": lambda kept: with_run(kept, gpu_samples=()),
    "NVML gave up": lambda kept: with_run(kept, gpu_error="the GPU is lost"),
}
AGAINST_A_GOLDEN = {
    "outputs are far off": far_off,
    "an output is missing": without_some,
    "the golden is gone": lambda kept: msgspec.structs.replace(kept, golden=NONE),
    "nobody set a limit": lambda kept: msgspec.structs.replace(kept, tolerance=None),
}


@pytest.mark.parametrize("kept", kept_runs())
def test_a_record_is_judged_as_it_was(kept: JudgedRun):
    verdict = judge_again(kept)
    assert verdict.gates == kept.verdicts
    assert verdict.verdict == kept.verdict
    fresh, then = ({each.rule for each in found} for found in (verdict.findings, kept.findings))
    assert fresh == then


@pytest.mark.parametrize("kept", kept_runs())
def test_falsified_evidence_of_a_record_is_refused(kept: JudgedRun):
    if kept.verdict != "passed":
        pytest.skip("the gates refuse it as it is")
    breaks = dict(ANY)
    if kept.backend != "onnxruntime-cpu":
        breaks |= ON_A_GPU if kept.verdicts.get("utilization") == "passed" else {}
    if kept.golden != "own" and kept.verdicts["outputs"] == "passed":
        breaks |= AGAINST_A_GOLDEN
    if kept.verdicts["outputs"] == "off":
        breaks = {name: each for name, each in breaks.items() if "output" not in name}
    if kept.verdicts["latency"] == "off":
        breaks.pop("nothing was timed")
    passed = [name for name, each in breaks.items() if judge_again(each(kept)).verdict == "passed"]
    assert passed == []


def test_there_is_a_record_to_replay():
    assert kept_runs()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_no_machine(path: Path):
    text = path.read_text()
    assert not re.search(r"(?<![\w.…])/(home|root|work|tmp|opt|usr|var|lib|proc|mnt|data)\b", text)
    assert not re.search(r"\b(GPU|MIG)-[0-9a-f]{8}-", text)
    assert len(platform.node()) < 3 or platform.node() not in text
    assert "://" not in text


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_passed_item_rests_on_runs_as_they_were_wanted(path: Path):
    record = read_record(path)
    assert (record.kind == "gpu") == (record.machine.gpu is not None)
    for item in record.items:
        counting = [run for run in item.runs if run.counts]
        assert item.verdict != "passed" or all(run.is_as_wanted for run in counting)
        assert item.verdict == "passed" or item.reason
        if record.kind == "cpu":
            assert all(run.backend == "onnxruntime-cpu" for run in item.runs)


def test_the_page_is_made_from_the_records():
    written = (table.FOLDER / table.PAGE).read_text()
    assert written == table.page(table.records()), "run: python tests/gpu table"


def test_the_readme_leads_to_the_page():
    assert "docs/gpu/README.md" in (ROOT / "README.md").read_text()


# A run on CUDA, made up.


def test_a_made_up_run_on_cuda_passes():
    kept = made_up()
    assert kept.findings == () or all(each.severity == "warn" for each in kept.findings)
    assert kept.verdict == "passed"
    assert kept.verdicts["utilization"] == "passed"
    assert judge_again(kept).gates == kept.verdicts


@pytest.mark.parametrize("how", {**ANY, **ON_A_GPU, **AGAINST_A_GOLDEN})
def test_falsified_evidence_is_refused(how: str):
    broken = {**ANY, **ON_A_GPU, **AGAINST_A_GOLDEN}[how](made_up())
    assert judge_again(broken).verdict == "failed"


def test_a_golden_of_another_shape_is_no_golden():
    assert made_up(golden=ARRAY[:2]).verdicts["outputs"] == "failed"


def test_outputs_beyond_their_limit_fail_when_they_are_kept_and_ever_after():
    kept = made_up(output=ARRAY + np.float32(0.01))
    assert kept.verdicts["outputs"] == "failed"
    assert {each.rule for each in kept.findings if each.gate == "outputs"} == {
        "outputs.max-abs",
        "outputs.mean-abs",
    }
    assert made_up(output=ARRAY + np.float32(0.00005)).verdicts["outputs"] == "passed"


def test_a_silent_fallback_is_refused():
    fallback = {"providers_active": (CPU,), "placement": placed((CPU, "Conv", 60))}
    kept = made_up(report=fallback)
    assert kept.verdict == "failed"
    assert {"providers.not-active", "placement.none"} <= {each.rule for each in kept.findings}


def test_the_matrix_lets_shape_arithmetic_be_on_the_cpu():
    nodes = placed((CUDA, "Conv", 60), (CPU, "Shape", 4))
    assert made_up(report={"placement": nodes}).verdict == "passed"
    nodes = placed((CUDA, "Conv", 60), (CPU, "Conv", 1))
    assert made_up(report={"placement": nodes}).verdict == "failed"


def test_a_long_log_is_cut_in_its_middle():
    kept = made_up(stdout="a line\n" * 20_000)
    assert len(kept.run.stdout) < LOG_CHARACTERS + 100
    assert "characters are left out here" in kept.run.stdout


def test_a_log_whose_verdict_is_in_its_middle_stays_whole():
    quiet = "a line\n" * 10_000
    loss = "Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 12.*"
    kept = made_up(stdout=f"{quiet}{loss}\n{quiet}")
    assert kept.verdicts["logs"] == "failed"
    assert len(kept.run.stdout) > 2 * len(quiet)


def test_samples_are_merged_where_they_say_the_same():
    began = run_of().began_seconds
    long = {"requests_began_seconds": began + 1, "requests_ended_seconds": began + 290}
    kept = made_up(report=long, gpu_samples=busy_gpu(seconds=300))
    assert len(kept.run.gpu_samples or ()) <= SAMPLES_KEPT
    assert kept.verdicts["utilization"] == "passed"


def test_samples_of_a_short_time_in_a_long_run_stay():
    samples = busy_gpu(seconds=300)
    kept = made_up(gpu_samples=samples)
    assert len(kept.run.gpu_samples or ()) == len(samples)
    assert kept.verdicts["utilization"] == "passed"


# What is taken out of a record.

PLACES = {
    "at /opt/torch/lib/libcudnn.so.9: no such file": "at …/libcudnn.so.9: no such file",
    "LD=/usr/lib:/opt/x/y": "LD=…/lib:…/y",
    "file:///home/somebody/model.onnx": "file://…/model.onnx",
    "node /down_blocks.0/attentions.1/Mul": "node /down_blocks.0/attentions.1/Mul",
    "ort-gpu/ocr-det/640/fp32/sm90": "ort-gpu/ocr-det/640/fp32/sm90",
    "1/2 of lib/x": "1/2 of lib/x",
    "GPU-01234567-89ab-cdef-0123-456789abcdef is busy": "GPU 0 is busy",
    "on box-17 today": "on HOST today",
}


@pytest.mark.parametrize(("text", "clean"), PLACES.items())
def test_places_are_taken_out(text: str, clean: str):
    change = cleaner(roots=["opt", "home", "usr"], host="box-17")
    assert change(text) == clean
    assert change(clean) == clean


def test_serial_numbers_stay_apart():
    first, second = (f"GPU-{each}1234567-89ab-cdef-0123-456789abcdef" for each in "01")
    run = run_of(report_of(), gpu_samples=busy_gpu(seconds=1))
    named = msgspec.structs.replace(
        run,
        gpu_samples=tuple(
            msgspec.structs.replace(each, gpu=name)
            for each in run.gpu_samples or ()
            for name in (first, second)
        ),
    )
    assert {each.gpu for each in cleaned(named).gpu_samples or ()} == {"GPU 0", "GPU 1"}


# Records and their page.


def record_with(*items: Item, gpu: GpuFound | None = None) -> Record:
    machine = MachineFound(
        processor="a processor", cores=2, memory_bytes=1 << 30, python="3.12.3", gpu=gpu
    )
    created = "2026-11-22T05:00:00Z"
    kind = "gpu" if gpu else "cpu"
    return Record(kind=kind, created=created, machine=machine, items=items)


H200 = GpuFound(name="NVIDIA H200", sm=90, driver="580.159.03")


def test_a_record_comes_back_as_it_was(tmp_path: Path):
    record = record_with(Item(number=1, title="one", verdict="passed", runs=(made_up(),)), gpu=H200)
    write_record(record, tmp_path / "record.json")
    again = read_record(tmp_path / "record.json")
    assert again.items[0].runs[0].run == cleaned(record.items[0].runs[0].run)
    assert judge_again(again.items[0].runs[0]).verdict == "passed"
    write_record(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "record.json").read_bytes()


def test_a_record_of_another_schema_is_refused(tmp_path: Path):
    path = tmp_path / "record.json"
    write_record(msgspec.structs.replace(record_with(), schema=9), path)
    with pytest.raises(ValueError, match="schema 9"):
        read_record(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no record of the GPU lane"):
        read_record(path)


def test_an_item_replaces_the_earlier_one_of_its_number():
    record = record_with(Item(number=2, title="two", verdict="failed", reason="why"))
    record = with_item(record, Item(number=1, title="one", verdict="not run", reason="why"))
    record = with_item(record, Item(number=2, title="two", verdict="passed"))
    assert [(each.number, each.verdict) for each in record.items] == [(1, "not run"), (2, "passed")]


def test_the_page_says_what_is_not_proved():
    text = table.page({"cpu.json": record_with(Item(number=0, title="", verdict="passed"))})
    assert text.count(table.UNPROVED) == 6
    assert "No record of a GPU is here yet" in text
    assert "a CPU, no GPU: a processor" in text


def test_the_page_says_what_ran_on_which_gpu_and_when():
    items = (
        Item(number=1, title="", verdict="passed", began="2026-11-23T10:00:00Z", runs=(made_up(),)),
        Item(
            number=3, title="", verdict="failed", reason="no | plan", began="2026-11-23T10:05:00Z"
        ),
    )
    text = table.page({"h200.json": record_with(*items, gpu=H200)})
    where = "NVIDIA H200, SM 9.0, driver 580.159.03 | 2026-11-23"
    assert f"| {where} | [passed](h200.json) |" in text
    assert f"| {where} | [failed](h200.json): no / plan |" in text
    assert text.count(table.UNPROVED) == 4
    assert "No record of a GPU" not in text
