"""The gates: each fails on what it exists for, and without evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from planyard.core.findings import failures
from planyard.core.matrix import Tolerance
from planyard.core.results import SmokeReport, SmokeRun
from smoke.gates.outputs import check_outputs
from smoke.gates.placement import check_placement
from smoke.gates.providers import check_providers
from smoke.judge import check_exit
from tests.smoke_runs import CPU, CUDA, placed, report_of, run_of

LIMITS = Tolerance(max_abs=0.1, mean_abs=0.01)
TENSORRT = "TensorrtExecutionProvider"
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
    asked = (TENSORRT, CUDA)
    assert rules_of_providers(providers_asked=asked) == ["providers.not-active"]


def test_another_provider_may_not_come_first() -> None:
    assert rules_of_providers(providers_active=(CPU, CUDA)) == ["providers.order"]
    both = (TENSORRT, CUDA)
    found = rules_of_providers(providers_asked=both, providers_active=(CUDA, TENSORRT, CPU))
    assert found == ["providers.order"]
    assert rules_of_providers(providers_asked=both, providers_active=(*both, CPU)) == []
    found = rules_of_providers(providers_asked=both, providers_active=(TENSORRT, CPU, CUDA))
    assert found == ["providers.order"]


def test_a_provider_that_nobody_asked_for_is_found() -> None:
    found = check_providers(run_of(report_of(providers_active=(CUDA, TENSORRT, CPU))))
    assert [each.rule for each in found] == ["providers.unasked"]
    assert "TensorrtExecutionProvider is active" in found[0].message


@pytest.mark.parametrize(
    "names", [(CUDA, CUDA), (CUDA, CPU, CUDA), (CUDA, ""), (" ", CUDA), ("",), (CPU, CPU)]
)
def test_names_that_no_session_has_fail(names: tuple[str, ...]) -> None:
    assert rules_of_providers(providers_active=names) == ["providers.malformed"]
    found = rules_of_providers(providers_asked=names)
    assert found == ["providers.malformed"]


@pytest.mark.parametrize(
    ("asked", "wanted", "by_script", "by_command"),
    [
        ((CUDA,), (CUDA,), [], []),
        ((CPU,), (CUDA,), ["providers.not-asked"], ["providers.not-asked"]),
        ((CPU, CUDA), (CUDA,), ["providers.not-asked"], ["providers.not-asked"]),
        ((TENSORRT, CUDA), (CUDA,), ["providers.not-asked"], []),
        ((CUDA, CPU), (CUDA,), ["providers.not-asked"], []),
        ((TENSORRT, CUDA), (TENSORRT, CUDA), [], []),
        ((CUDA, TENSORRT), (TENSORRT, CUDA), ["providers.not-asked"], []),
        ((TENSORRT,), (TENSORRT, CUDA), ["providers.not-asked"], []),
        ((CUDA,), (TENSORRT, CUDA), ["providers.not-asked"], []),
        ((CPU,), (TENSORRT, CUDA), ["providers.not-asked"], ["providers.not-asked"]),
        ((CPU,), (CPU,), [], []),
        ((CPU,), ("TensorRT",), ["providers.not-asked"], ["providers.not-asked"]),
        ((CPU,), (), [], []),
    ],
)
def test_a_run_has_to_ask_for_what_its_cell_is_for(
    asked: tuple[str, ...], wanted: tuple[str, ...], by_script: list[str], by_command: list[str]
) -> None:
    """A command of the image's own may ask for more, but not for the CPU in a GPU's place."""
    report = report_of(providers_asked=asked, providers_active=asked)
    for own_command, rules in ((False, by_script), (True, by_command)):
        found = check_providers(run_of(report, own_command=own_command), wanted=wanted)
        assert [each.rule for each in found] == rules
        assert found == failures(found)


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


def gpu_report(*counts: tuple[str, str, int], **changes: Any) -> SmokeReport:
    """A session on CUDA with these nodes, and a second witness that agrees with them."""
    refused = any(provider == CPU for provider, _, _ in counts)
    fields = {"placement": placed(*counts), "memcpy_nodes": 0, "cpu_fallback_refused": refused}
    return report_of(**{**fields, **changes})


def rules_of_placement(
    *counts: tuple[str, str, int],
    allowed: tuple[str, ...] = (),
    budget: int = 0,
    **changes: Any,
) -> list[str]:
    run = run_of(gpu_report(*counts, **changes))
    found = check_placement(run, cpu_operators=allowed, memcpy_nodes=budget)
    return [f"{each.severity} {each.rule.removeprefix('placement.')}" for each in found]


def test_nodes_where_they_should_be_pass() -> None:
    assert rules_of_placement((CUDA, "Conv", 60)) == []
    assert rules_of_placement((CUDA, "Conv", 60), (CPU, "Shape", 4), allowed=("Shape",)) == []


def test_one_operator_elsewhere_is_found_and_named() -> None:
    report = gpu_report((CUDA, "Conv", 60), (CPU, "Resize", 3), (CPU, "Shape", 2))
    [finding] = check_placement(run_of(report), cpu_operators=("Shape",), memcpy_nodes=0)
    assert finding.rule == "placement.elsewhere"
    assert "3 of 65 nodes are not on CUDAExecutionProvider" in finding.message
    assert "3 Resize on CPUExecutionProvider" in finding.message


def test_a_session_that_placed_nothing_on_the_gpu_fails_whatever_is_allowed() -> None:
    """The provider is listed as active all the same."""
    assert rules_of_placement((CPU, "Shape", 4), allowed=("Shape",)) == ["fail none"]


def test_allowed_operators_do_not_speak_for_others() -> None:
    assert rules_of_placement((CUDA, "Conv", 1), (CPU, "Shape", 4)) == ["fail elsewhere"]


def test_allowed_operators_are_allowed_on_the_cpu_alone() -> None:
    counts = ((CUDA, "Conv", 1), ("DmlExecutionProvider", "Shape", 4))
    assert rules_of_placement(*counts, allowed=("Shape",)) == ["fail elsewhere"]


@pytest.mark.parametrize(
    "run",
    [
        run_of(None),
        run_of(report_of(placement=())),
        run_of(report_of(providers_asked=())),
    ],
)
def test_nothing_said_of_placement_fails(run: SmokeRun) -> None:
    found = check_placement(run, cpu_operators=("Shape",), memcpy_nodes=0)
    assert [each.rule for each in found] == ["placement.no-evidence"]
    assert failures(found)


@pytest.mark.parametrize(
    "bad",
    [
        (CUDA, "Conv", -1),
        (CPU, "Shape", -4),
        (CUDA, "Conv", 10_000_001),
        ("", "Conv", 3),
        (" ", "Conv", 3),
        (CUDA, "", 3),
        (CPU, "Shape", 1 << 40),
    ],
)
def test_what_cannot_be_a_placement_fails(bad: tuple[str, str, int]) -> None:
    """A negative count would hide as many nodes elsewhere; a node without a provider is nowhere."""
    for counts in ((bad, (CUDA, "Conv", 60)), ((CUDA, "Conv", 60), bad)):
        assert rules_of_placement(*counts, allowed=("Shape", "Conv")) == ["fail malformed"]


def test_negative_counts_do_not_cancel_nodes_elsewhere() -> None:
    counts = ((CUDA, "Conv", 9), (CPU, "Resize", 3), (CPU, "Resize", -3))
    assert rules_of_placement(*counts) == ["fail malformed"]


@pytest.mark.parametrize(
    ("count", "budget", "found"),
    [
        (0, 0, []),
        (2, 2, []),
        (3, 2, ["fail copies"]),
        (1, 0, ["fail copies"]),
        (-1, 0, ["fail malformed"]),
        (None, 100, ["fail no-copy-count"]),
    ],
)
def test_copies_have_a_budget(count: int | None, budget: int, found: list[str]) -> None:
    counts = (CUDA, "Conv", 60)
    assert rules_of_placement(counts, memcpy_nodes=count, budget=budget) == found


def test_copies_that_the_placement_shows_count_too() -> None:
    counts = ((CUDA, "Conv", 60), (CUDA, "MemcpyToHost", 2), (CUDA, "MemcpyFromHost", 1))
    assert rules_of_placement(*counts) == ["fail copies"]
    assert rules_of_placement(*counts, budget=3) == []


ON_CPU = ((CUDA, "Conv", 60), (CPU, "Shape", 4))


@pytest.mark.parametrize(
    ("counts", "refused", "found"),
    [
        (ON_CPU, True, []),
        (ON_CPU[:1], False, []),
        (ON_CPU[:1], True, ["fail contradiction"]),
        (ON_CPU, False, ["warn witness-differs"]),
        (ON_CPU, None, ["fail no-witness"]),
        (ON_CPU[:1], None, ["fail no-witness"]),
    ],
)
def test_the_second_witness_has_to_agree(
    counts: tuple[tuple[str, str, int], ...], refused: bool | None, found: list[str]
) -> None:
    got = rules_of_placement(*counts, allowed=("Shape",), cpu_fallback_refused=refused)
    assert got == found


def test_a_witness_does_not_excuse_nodes_elsewhere() -> None:
    for refused in (True, False):
        assert "fail elsewhere" in rules_of_placement(*ON_CPU, cpu_fallback_refused=refused)


def test_a_session_that_named_the_cpu_is_refused_whatever_its_placement() -> None:
    found = rules_of_placement(
        ON_CPU[0], cpu_fallback_refused=True, providers_asked=(CUDA, CPU), budget=0
    )
    assert found == []


def test_an_own_command_cannot_report_a_witness() -> None:
    run = run_of(gpu_report(*ON_CPU, cpu_fallback_refused=None), own_command=True)
    assert check_placement(run, cpu_operators=("Shape",), memcpy_nodes=0) == ()


@pytest.mark.parametrize("provider", [CPU, "TensorRT-RTX", "TensorRT"])
def test_where_nothing_can_fall_back_there_is_no_witness_and_no_count(provider: str) -> None:
    report = report_of(
        providers_asked=(provider,), placement=placed((provider, "Conv", 60)), memcpy_nodes=None
    )
    assert check_placement(run_of(report), cpu_operators=(), memcpy_nodes=0) == ()


def test_a_command_that_asked_for_the_cpu_is_judged_by_its_cell() -> None:
    """Else every image could serve a GPU cell from the CPU by asking for nothing better."""
    report = report_of(providers_asked=(CPU,), placement=placed((CPU, "Conv", 60)))
    run = run_of(report, own_command=True)
    found = check_placement(run, cpu_operators=(), memcpy_nodes=0, wanted=(CUDA,))
    assert [each.rule for each in found] == ["placement.none"]
    assert check_placement(run, cpu_operators=(), memcpy_nodes=0, wanted=(CPU,)) == ()


def test_a_command_may_ask_for_more_than_its_cell() -> None:
    counts = ((TENSORRT, "Conv", 60), (CPU, "Shape", 4))
    run = run_of(gpu_report(*counts, providers_asked=(TENSORRT, CUDA)), own_command=True)
    operators = ("Shape",)
    assert check_placement(run, cpu_operators=operators, memcpy_nodes=0, wanted=(CUDA,)) == ()


BOTH = (TENSORRT, CUDA)


@pytest.mark.parametrize(
    ("counts", "allowed", "found"),
    [
        (((TENSORRT, "TRTKernel_0", 1), (CUDA, "Resize", 3)), (), []),
        (((TENSORRT, "TRTKernel_0", 1),), (), []),
        (((TENSORRT, "TRTKernel_0", 1), (CUDA, "Resize", 3), (CPU, "Shape", 2)), ("Shape",), []),
        (((TENSORRT, "TRTKernel_0", 1), (CPU, "Shape", 2)), (), ["fail elsewhere"]),
        (
            ((TENSORRT, "TRTKernel_0", 1), ("DmlExecutionProvider", "Conv", 2)),
            (),
            ["fail elsewhere"],
        ),
        (((CUDA, "Conv", 60),), (), ["fail none"]),
        (((TENSORRT, "TRTKernel_0", 0), (CUDA, "Conv", 60)), (), ["fail none"]),
    ],
)
def test_of_several_providers_the_first_must_have_nodes_and_the_next_may(
    counts: tuple[tuple[str, str, int], ...], allowed: tuple[str, ...], found: list[str]
) -> None:
    assert rules_of_placement(*counts, allowed=allowed, providers_asked=BOTH) == found


def test_a_first_provider_that_has_nothing_is_named_with_the_one_that_has() -> None:
    report = gpu_report((CUDA, "Conv", 60), providers_asked=BOTH)
    [finding] = check_placement(run_of(report), cpu_operators=(), memcpy_nodes=0, wanted=BOTH)
    assert finding.message == (
        f"none of 60 nodes was placed on {TENSORRT}: it was asked for first, and {CUDA} behind it "
        "has nodes"
    )


def test_a_cpu_provider_behind_the_gpu_means_no_nodes_there() -> None:
    report = gpu_report((CUDA, "Conv", 60), (CPU, "Resize", 3), providers_asked=(CUDA, CPU))
    run = run_of(report, own_command=True)
    found = check_placement(run, cpu_operators=("Shape",), memcpy_nodes=0, wanted=(CUDA,))
    assert [each.rule for each in found] == ["placement.elsewhere"]


def test_nodes_counted_as_none_are_no_nodes() -> None:
    assert rules_of_placement((CUDA, "Conv", 0)) == ["fail none"]
    assert (
        rules_of_placement((CUDA, "Conv", 1), (CPU, "Resize", 0), cpu_fallback_refused=False) == []
    )


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
