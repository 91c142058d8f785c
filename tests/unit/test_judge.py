"""From evidence to a verdict: no gate speaks for another, and one that is off is written down."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from planyard.core.gates import GATE_NAMES
from planyard.core.matrix import Tolerance
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.matrix_smoke import Gates
from planyard.core.results import (
    AttentionFigures,
    LatencySeries,
    LoadedLibrary,
    SessionFound,
    SmokeReport,
    SmokeRun,
    SmokeVerdict,
)
from smoke.baseline import accepted_run
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from smoke.session import session_document
from tests.smoke_runs import CPU, LATENCIES_MS, PINS, placed, report_of, run_of

GATES = ("exit", *GATE_NAMES)
ALLOWED = Gates(cpu_operators=("Shape",))
ACCEPTED = accepted_run(
    run_of(report_of()),
    created="2026-11-21T00:00:00Z",
    image="sha256:" + "1" * 64,
    served="sha256:" + "2" * 64,
)
GOLDEN = {"y": np.array([1.0, 2.0], dtype="float32")}


def verdict_of(run: SmokeRun, gates: Gates = ALLOWED, **changes: Any) -> SmokeVerdict:
    fields: dict[str, Any] = {
        "run": run,
        "outputs": GOLDEN,
        "golden": GOLDEN,
        "tolerance": Tolerance(max_abs=0, mean_abs=0),
        "backend": "onnxruntime-cuda",
        "pins": PINS,
        "needed": ("onnxruntime", "cuda"),
        "attention_blocks": 0,
        "asked": ((1, 1),),
        "window": (ACCEPTED,),
    }
    return judge(Evidence(**{**fields, **changes}), gates=gates, rules=load_rules())


def failed(verdict: SmokeVerdict) -> set[str]:
    return {name for name, found in verdict.gates.items() if found == "failed"}


def test_a_healthy_run_passes_every_gate() -> None:
    verdict = verdict_of(run_of(report_of()))
    assert verdict.verdict == "passed"
    assert verdict.gates == dict.fromkeys(GATES, "passed")
    assert verdict.findings == ()
    assert (verdict.seconds, verdict.latencies_ms) == (1.5, LATENCIES_MS)
    assert verdict.placement == report_of().placement
    assert verdict.loaded == report_of().loaded
    assert [(each.p50_ms, each.baseline_p50_ms) for each in verdict.latency] == [(1.375, 1.375)]
    assert verdict.attention == AttentionFigures(blocks=0, fused=0)
    assert verdict.utilization
    assert verdict.utilization.gpu_percent == 80


def slower(factor: float) -> tuple[LatencySeries, ...]:
    times_ms = tuple(factor * each for each in LATENCIES_MS)
    return (LatencySeries(batch=1, concurrency=1, latencies_ms=times_ms),)


LOSS = "Failed to create CUDAExecutionProvider because its libraries are missing"
BAD = {
    "exit": (run_of(report_of(), exit_code=1), {}),
    "logs": (run_of(report_of(), stderr=LOSS), {}),
    "providers": (run_of(report_of(providers_active=(CPU,))), {}),
    "placement": (run_of(report_of(placement=placed((CPU, "Conv", 60)))), {}),
    "attention": (run_of(report_of()), {"attention_blocks": 2}),
    "outputs": (run_of(report_of()), {"outputs": {"y": np.array([9.0, 9.0], dtype="float32")}}),
    "latency": (run_of(report_of(series=slower(10))), {}),
    "utilization": (run_of(report_of(), gpu_samples=None), {}),
    "versions": (run_of(report_of()), {"pins": {**PINS, "onnxruntime": "1.31.2"}}),
}


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_fails_a_run_on_its_own(gate: str) -> None:
    run, changes = BAD[gate]
    verdict = verdict_of(run, **changes)
    assert verdict.verdict == "failed"
    assert failed(verdict) == {gate}
    assert {finding.gate for finding in verdict.findings} == {gate}


@pytest.mark.parametrize("gate", GATES[1:])
def test_a_gate_that_is_off_is_named_and_stops_nothing(gate: str) -> None:
    run, changes = BAD[gate]
    verdict = verdict_of(run, msgspec.structs.replace(ALLOWED, **{gate: False}), **changes)
    assert verdict.verdict == "passed"
    assert verdict.gates[gate] == "off"


def test_with_every_gate_off_a_run_must_still_end() -> None:
    off = Gates(**dict.fromkeys(GATE_NAMES, False))
    assert verdict_of(run_of(None, exit_code=1), off).verdict == "failed"
    assert verdict_of(run_of(None, timed_out=True, exit_code=None), off).verdict == "failed"


def test_the_fallback_is_found_with_the_log_ignored() -> None:
    """The real failure: ONNX Runtime's GPU build works on the CPU and looks healthy."""
    report = report_of(providers_active=(CPU,), placement=placed((CPU, "Conv", 60)))
    verdict = verdict_of(run_of(report), msgspec.structs.replace(ALLOWED, logs=False))
    assert failed(verdict) == {"providers", "placement"}


def test_without_any_evidence_every_gate_fails() -> None:
    verdict = verdict_of(
        run_of(None, stdout="", exit_code=None, gpu_samples=None), outputs={}, attention_blocks=None
    )
    assert failed(verdict) == set(GATES)
    assert (verdict.latencies_ms, verdict.placement) == ((), ())


def test_a_golden_that_should_be_there_and_is_not_fails() -> None:
    verdict = verdict_of(run_of(report_of()), golden=None, golden_missing=True)
    assert failed(verdict) == {"outputs"}
    assert [finding.rule for finding in verdict.findings] == ["outputs.no-golden"]


def test_the_run_that_makes_the_golden_needs_only_numbers() -> None:
    assert verdict_of(run_of(report_of()), golden=None, tolerance=None).verdict == "passed"
    bad = {"y": np.array([np.nan], dtype="float32")}
    assert verdict_of(run_of(report_of()), golden=None, outputs=bad).verdict == "failed"


def test_nvml_has_nothing_to_say_of_a_run_on_the_cpu() -> None:
    report = report_of(providers_asked=(CPU,), placement=placed((CPU, "Conv", 60)))
    verdict = verdict_of(run_of(report, gpu_samples=None), backend="onnxruntime-cpu")
    assert "utilization" not in verdict.gates


def test_a_second_run_may_take_a_slow_one_back() -> None:
    slow, fast = run_of(report_of(series=slower(10))), run_of(report_of())
    assert verdict_of(slow, again=fast).verdict == "passed"
    assert failed(verdict_of(slow, again=slow)) == {"latency"}


@pytest.mark.parametrize("gate", ["exit", "logs", "providers", "placement"])
def test_a_second_run_that_fell_back_fails_too(gate: str) -> None:
    """The first was slow on the accelerator; the second is quick and did not use it."""
    slow = run_of(report_of(series=slower(10)))
    again, _ = BAD[gate]
    assert failed(verdict_of(slow, again=again)) == {gate}


def test_what_both_runs_say_is_said_once() -> None:
    run = run_of(report_of(series=slower(10)), stderr=LOSS)
    verdict = verdict_of(run, again=run)
    assert [each.gate for each in verdict.findings].count("logs") == 1


TENSORRT_FIRST = SessionSpec(providers=("TensorrtExecutionProvider", "CUDAExecutionProvider"))


def report_of_tensorrt(**changes: Any) -> SmokeReport:
    """A healthy run on TensorRT before CUDA, in an image that says so."""
    names = TENSORRT_FIRST.providers
    fields: dict[str, Any] = {
        "providers_asked": names,
        "providers_active": (*names, CPU),
        "placement": placed((names[0], "TRTKernel", 1), (names[1], "Resize", 3)),
        "cpu_fallback_refused": False,
        "session": SessionFound(baked=session_document(TENSORRT_FIRST, "onnxruntime-cuda")),
    }
    return report_of(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "gates"),
    [
        ({}, set()),
        ({"loaded": report_of().loaded}, {"versions"}),
        ({"session": SessionFound()}, {"providers"}),
        ({"session": None}, {"providers"}),
        ({"providers_asked": TENSORRT_FIRST.providers[1:]}, {"providers", "placement"}),
        ({"placement": placed((TENSORRT_FIRST.providers[1], "Conv", 60))}, {"placement"}),
    ],
)
def test_a_session_on_tensorrt_is_held_to_all_of_it(
    changes: dict[str, Any], gates: set[str]
) -> None:
    """Without its library in memory, its file in the image, its place or a node on it: failed."""
    tensorrt = {"tensorrt": LoadedLibrary(version="11.2.1", path="/lib/libnvinfer.so.11")}
    report = report_of_tensorrt(**{"loaded": {**report_of().loaded, **tensorrt}, **changes})
    pins = {**PINS, "tensorrt": "11.2.1"}
    assert failed(verdict_of(run_of(report), session=TENSORRT_FIRST, pins=pins)) == gates


def test_a_run_as_the_backend_has_it_is_not_what_the_matrix_asks() -> None:
    verdict = verdict_of(run_of(report_of()), session=SessionSpec(copy_stream="own"))
    assert failed(verdict) == {"providers"}
    rules = [finding.rule for finding in verdict.findings]
    assert rules == ["providers.session-not-baked", "providers.session-unsaid"]
