"""From evidence to a verdict: no gate speaks for another, and one that is off is written down."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from planyard.core.matrix import Tolerance
from planyard.core.matrix_smoke import Gates
from planyard.core.results import SmokeRun, SmokeVerdict
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from tests.smoke_runs import CPU, placed, report_of, run_of

GATES = ("exit", "logs", "providers", "placement", "outputs")
ALLOWED = Gates(cpu_operators=("Shape",))
GOLDEN = {"y": np.array([1.0, 2.0], dtype="float32")}


def verdict_of(run: SmokeRun, gates: Gates = ALLOWED, **changes: Any) -> SmokeVerdict:
    fields: dict[str, Any] = {
        "run": run,
        "outputs": GOLDEN,
        "golden": GOLDEN,
        "tolerance": Tolerance(max_abs=0, mean_abs=0),
    }
    return judge(Evidence(**{**fields, **changes}), gates=gates, rules=load_rules())


def failed(verdict: SmokeVerdict) -> set[str]:
    return {name for name, found in verdict.gates.items() if found == "failed"}


def test_a_healthy_run_passes_every_gate() -> None:
    verdict = verdict_of(run_of(report_of()))
    assert verdict.verdict == "passed"
    assert verdict.gates == dict.fromkeys(GATES, "passed")
    assert verdict.findings == ()
    assert (verdict.seconds, verdict.latencies_ms) == (1.5, (1.5, 1.25))
    assert verdict.placement == report_of().placement


LOSS = "Failed to create CUDAExecutionProvider because its libraries are missing"
BAD = {
    "exit": (run_of(report_of(), exit_code=1), {}),
    "logs": (run_of(report_of(), stderr=LOSS), {}),
    "providers": (run_of(report_of(providers_active=(CPU,))), {}),
    "placement": (run_of(report_of(placement=placed((CPU, "Conv", 60)))), {}),
    "outputs": (run_of(report_of()), {"outputs": {"y": np.array([9.0, 9.0], dtype="float32")}}),
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
    off = Gates(logs=False, providers=False, placement=False, outputs=False)
    assert verdict_of(run_of(None, exit_code=1), off).verdict == "failed"
    assert verdict_of(run_of(None, timed_out=True, exit_code=None), off).verdict == "failed"


def test_the_fallback_is_found_with_the_log_ignored() -> None:
    """The real failure: ONNX Runtime's GPU build works on the CPU and looks healthy."""
    report = report_of(providers_active=(CPU,), placement=placed((CPU, "Conv", 60)))
    verdict = verdict_of(run_of(report), msgspec.structs.replace(ALLOWED, logs=False))
    assert failed(verdict) == {"providers", "placement"}


def test_without_any_evidence_every_gate_fails() -> None:
    verdict = verdict_of(run_of(None, stdout="", exit_code=None), outputs={})
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
