"""The gates: each fails on what it exists for, and without evidence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from planyard.core.findings import failures
from planyard.core.matrix import Tolerance
from planyard.core.results import SmokeRun
from smoke.gates.outputs import check_outputs
from smoke.gates.placement import check_placement
from smoke.gates.providers import check_providers
from smoke.judge import check_exit
from tests.smoke_runs import CPU, CUDA, placed, report_of, run_of

LIMITS = Tolerance(max_abs=0.1, mean_abs=0.01)
Arrays = dict[str, np.ndarray]


def y(*values: float, dtype: str = "float32") -> Arrays:
    return {"y": np.array(values, dtype=dtype)}


def rules_of_providers(**changes: object) -> list[str]:
    return [each.rule for each in check_providers(run_of(report_of(**changes)))]


def test_providers_that_are_active_pass() -> None:
    assert check_providers(run_of(report_of())) == ()


def test_a_silent_fallback_to_cpu_is_found() -> None:
    """What onnxruntime-gpu does without a GPU: the session works, on the CPU."""
    [finding] = check_providers(run_of(report_of(providers_active=(CPU,))))
    assert finding.rule == "providers.not-active"
    assert "CUDAExecutionProvider was asked for" in finding.message
    assert finding.where == "ort-gpu/ocr/640/fp32/sm89"
    assert failures((finding,))


def test_one_of_two_providers_is_not_enough() -> None:
    asked = ("TensorrtExecutionProvider", CUDA)
    assert rules_of_providers(providers_asked=asked) == ["providers.not-active"]


def test_another_provider_may_not_come_first() -> None:
    assert rules_of_providers(providers_active=(CPU, CUDA)) == ["providers.order"]


@pytest.mark.parametrize(
    "run",
    [
        run_of(None),
        run_of(report_of(providers_asked=())),
        run_of(report_of(providers_active=())),
        run_of(report_of(providers_asked=(), providers_active=(), placement=())),
    ],
)
def test_nothing_said_of_providers_fails(run: SmokeRun) -> None:
    assert [each.rule for each in check_providers(run)] == ["providers.no-evidence"]
    assert failures(check_providers(run))


def rules_of_placement(
    *counts: tuple[str, str, int], allowed: tuple[str, ...] = (), **changes: object
) -> list[str]:
    run = run_of(report_of(placement=placed(*counts), **changes))
    found = check_placement(run, cpu_operators=allowed)
    assert found == failures(found)
    return [each.rule for each in found]


def test_nodes_where_they_should_be_pass() -> None:
    assert rules_of_placement((CUDA, "Conv", 60)) == []
    assert rules_of_placement((CUDA, "Conv", 60), (CPU, "Shape", 4), allowed=("Shape",)) == []


def test_one_operator_elsewhere_is_found_and_named() -> None:
    report = report_of(placement=placed((CUDA, "Conv", 60), (CPU, "Resize", 3), (CPU, "Shape", 2)))
    [finding] = check_placement(run_of(report), cpu_operators=("Shape",))
    assert finding.rule == "placement.elsewhere"
    assert "3 of 65 nodes are not on CUDAExecutionProvider" in finding.message
    assert "3 Resize on CPUExecutionProvider" in finding.message


def test_a_session_that_placed_nothing_on_the_gpu_fails_whatever_is_allowed() -> None:
    assert rules_of_placement((CPU, "Shape", 4), allowed=("Shape",)) == ["placement.none"]


def test_allowed_operators_do_not_speak_for_others() -> None:
    assert rules_of_placement((CUDA, "Conv", 1), (CPU, "Shape", 4)) == ["placement.elsewhere"]


@pytest.mark.parametrize(
    "run",
    [
        run_of(None),
        run_of(report_of(placement=())),
        run_of(report_of(providers_asked=())),
    ],
)
def test_nothing_said_of_placement_fails(run: SmokeRun) -> None:
    found = check_placement(run, cpu_operators=("Shape",))
    assert [each.rule for each in found] == ["placement.no-evidence"]


def test_nodes_counted_as_none_are_no_nodes() -> None:
    assert rules_of_placement((CUDA, "Conv", 0)) == ["placement.none"]


def rules_of_outputs(
    outputs: Mapping[str, np.ndarray],
    golden: Mapping[str, np.ndarray] | None,
    tolerance: Tolerance | None = LIMITS,
) -> list[str]:
    run = run_of(report_of())
    found = check_outputs(run, outputs=outputs, golden=golden, tolerance=tolerance)
    assert found == failures(found)
    return [each.rule for each in found]


def test_outputs_within_their_limits_pass() -> None:
    assert rules_of_outputs(y(1.0, 2.0), y(1.0, 2.0)) == []
    golden = {"y": np.zeros(100, dtype="float32")}
    near = {"y": np.zeros(100, dtype="float32")}
    near["y"][0] = 0.1
    assert rules_of_outputs(near, golden, Tolerance(max_abs=0.11, mean_abs=0.0011)) == []
    assert rules_of_outputs(near, golden, Tolerance(max_abs=0.09, mean_abs=1)) == [
        "outputs.max-abs"
    ]
    assert rules_of_outputs(near, golden, Tolerance(max_abs=1, mean_abs=0.0009)) == [
        "outputs.mean-abs"
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_what_is_no_number_fails_with_and_without_a_golden(value: float, dtype: str) -> None:
    outputs = y(1.0, value, dtype=dtype)
    assert rules_of_outputs(outputs, None) == ["outputs.not-finite"]
    assert rules_of_outputs(outputs, outputs) == ["outputs.not-finite"]


def test_a_golden_that_is_no_number_passes_nothing() -> None:
    assert rules_of_outputs(y(1.0), y(np.nan)) == ["outputs.max-abs", "outputs.mean-abs"]


def test_another_shape_fails_even_where_numbers_could_be_compared() -> None:
    assert rules_of_outputs(y(1.0), y(1.0, 1.0)) == ["outputs.shape"]
    assert rules_of_outputs({"y": np.ones((2, 1))}, {"y": np.ones((1, 2))}) == ["outputs.shape"]


def test_an_output_that_the_golden_has_may_not_be_missing() -> None:
    golden = {**y(1.0), "z": np.ones(1)}
    assert rules_of_outputs(y(1.0), golden) == ["outputs.missing"]
    assert rules_of_outputs({"other": np.ones(1)}, y(1.0)) == ["outputs.missing"]


def test_whole_numbers_are_compared_without_overflow() -> None:
    outputs, golden = y(255, dtype="uint8"), y(0, dtype="uint8")
    assert rules_of_outputs(golden, outputs) == ["outputs.max-abs", "outputs.mean-abs"]
    assert rules_of_outputs(y(1, dtype="int64"), y(1, dtype="int32")) == []
    assert rules_of_outputs(y(1, dtype="bool"), y(1, dtype="bool")) == []


def test_fp16_is_compared_as_wide_as_the_golden() -> None:
    assert rules_of_outputs(y(60000.0, dtype="float16"), y(60000.0)) == []
    assert rules_of_outputs(y(60000.0, dtype="float16"), y(-60000.0)) != []


@pytest.mark.parametrize(
    ("outputs", "golden", "tolerance", "rule"),
    [
        ({}, y(1.0), LIMITS, "no-evidence"),
        ({}, None, LIMITS, "no-evidence"),
        ({"y": np.zeros(0)}, {"y": np.zeros(0)}, LIMITS, "empty"),
        (y(1.0), {}, LIMITS, "no-golden"),
        (y(1.0), y(1.0), None, "no-limit"),
    ],
)
def test_outputs_without_evidence_fail(
    outputs: Arrays, golden: Arrays | None, tolerance: Tolerance | None, rule: str
) -> None:
    assert rules_of_outputs(outputs, golden, tolerance) == [f"outputs.{rule}"]


def test_a_limit_of_zero_is_a_limit() -> None:
    exact = Tolerance(max_abs=0, mean_abs=0)
    assert rules_of_outputs(y(1.0), y(1.0), exact) == []
    assert len(rules_of_outputs(y(1.0), y(1.0001), exact)) == 2


def test_a_run_that_ended_by_itself_with_zero_passes() -> None:
    assert check_exit(run_of(report_of())) == ()


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_of(report_of(error="ValueError: x"), exit_code=1), "code 1: ValueError: x"),
        (run_of(None, exit_code=137, stderr="one\nKilled\n"), "code 137: Killed"),
        (run_of(None, exit_code=2, stdout="a\nlast\n"), "code 2: last"),
        (run_of(None, exit_code=2, stdout=" \n"), "code 2: it said nothing"),
        (run_of(None, exit_code=None, timed_out=True, seconds=600.2), "time limit (600 s)"),
        (run_of(report_of(), timed_out=True), "did not end"),
        (run_of(report_of(), exit_code=None), "code None"),
    ],
)
def test_a_run_that_did_not_end_well_fails(run: SmokeRun, said: str) -> None:
    [finding] = check_exit(run)
    assert (finding.gate, finding.rule) == ("exit", "exit.not-zero")
    assert said in finding.message
    assert failures((finding,))
