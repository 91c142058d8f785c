"""The figures of the output gate: what each is, at its edges, and that every limit is asked."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from planyard.core.findings import failures
from planyard.core.matrix import Tolerance
from smoke.gates import outputs as gate
from smoke.gates.outputs import BrokenLimit, broken_limits, check_outputs, measure
from tests.smoke_runs import report_of, run_of

WIDE = Tolerance(max_abs=1e9, mean_abs=1e9)


def limits(**changes: float) -> Tolerance:
    return Tolerance(**{"max_abs": 1e9, "mean_abs": 1e9, **changes})


def rules(array: object, golden: object, tolerance: Tolerance = WIDE) -> list[str]:
    outputs, wanted = {"y": np.asarray(array)}, {"y": np.asarray(golden)}
    found = check_outputs(run_of(report_of()), outputs=outputs, golden=wanted, tolerance=tolerance)
    assert found == failures(found)
    return [each.rule for each in found]


def random(shape: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_the_figures_are_those_of_their_definitions() -> None:
    golden, array = random((3, 5, 7)), random((3, 5, 7), seed=1)
    found = measure(array, golden)
    difference = np.abs(array - golden)
    assert found.max_abs == pytest.approx(difference.max())
    assert found.mean_abs == pytest.approx(difference.mean())
    lengths = np.linalg.norm(array) * np.linalg.norm(golden)
    assert found.cosine == pytest.approx((array * golden).sum() / lengths)
    peak = golden.max() - golden.min()
    assert found.psnr_db == pytest.approx(10 * math.log10(peak**2 / (difference**2).mean()))
    assert found.values == 105
    assert found.place == np.unravel_index(difference.argmax(), difference.shape)
    assert (found.found, found.wanted) == (array[found.place], golden[found.place])


def test_the_peak_is_the_goldens_range_not_its_largest_value() -> None:
    golden, array = np.array([1000.0, 1001.0]), np.array([1000.1, 1001.1])
    assert measure(array, golden).psnr_db == pytest.approx(20, abs=0.01)
    assert measure(golden, array * 2).psnr_db != pytest.approx(20, abs=0.01)


def test_more_than_one_block_is_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    golden, array = random((4, 9)), random((4, 9), seed=1)
    whole = measure(array, golden)
    monkeypatch.setattr(gate, "_BLOCK_VALUES", 5)
    blocks = measure(array, golden)
    assert blocks.place == whole.place
    for name in ("max_abs", "mean_abs", "cosine", "psnr_db"):
        assert getattr(blocks, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_large_outputs_are_not_copied_whole() -> None:
    golden = np.zeros(8 << 20, dtype="float16")
    array = np.ones_like(golden)
    tracemalloc.start()
    try:
        measure(array, golden)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < golden.size * 8 / 2


def test_equal_outputs_keep_every_limit_there_is() -> None:
    strictest = limits(max_abs=0, mean_abs=0, cosine=1, psnr_db=200)
    for array in (random((99,)), np.zeros(4), np.full(3, 7.0), np.array([1e-30, 3e-30])):
        found = measure(array, array.copy())
        assert (found.cosine, found.psnr_db) == (1.0, math.inf)
        assert rules(array, array, strictest) == []


@pytest.mark.parametrize(
    ("array", "golden", "cosine"),
    [([0.0, 0.0], [1.0, 0.0], 0.0), ([1.0, 0.0], [0.0, 0.0], 0.0), ([0.0], [0.0], 1.0)],
)
def test_a_zero_vector_is_like_another_and_like_nothing_else(
    array: list[float], golden: list[float], cosine: float
) -> None:
    assert measure(np.array(array), np.array(golden)).cosine == cosine
    expected = [] if cosine else ["outputs.cosine"]
    assert rules(array, golden, limits(cosine=0.01)) == expected


def test_a_constant_that_is_missed_has_no_psnr_at_all() -> None:
    assert measure(np.array([1.0, 1.1]), np.array([1.0, 1.0])).psnr_db == -math.inf
    assert rules([1.0, 1.1], [1.0, 1.0], limits(psnr_db=0)) == ["outputs.psnr"]


@pytest.mark.parametrize(
    ("tolerance", "rule"),
    [
        (limits(max_abs=0.0999), "outputs.max-abs"),
        (limits(mean_abs=0.0499), "outputs.mean-abs"),
        (limits(cosine=0.9999), "outputs.cosine"),
        (limits(psnr_db=23.1), "outputs.psnr"),
    ],
)
def test_each_limit_is_asked_alone(tolerance: Tolerance, rule: str) -> None:
    array, golden = [1.0, 2.1], [1.0, 2.0]
    assert rules(array, golden, tolerance) == [rule]
    assert (
        rules(array, golden, limits(max_abs=0.11, mean_abs=0.051, cosine=0.9998, psnr_db=23)) == []
    )


def test_a_cosine_alone_does_not_see_another_scale() -> None:
    golden = random((50,))
    assert rules(golden * 2, golden, limits(cosine=0.9999)) == []
    assert rules(golden * 2, golden, limits(cosine=0.9999, psnr_db=30)) == ["outputs.psnr"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_golden_that_is_no_number_keeps_no_limit(bad: float) -> None:
    asked = limits(cosine=0, psnr_db=0)
    every = ["outputs.max-abs", "outputs.mean-abs", "outputs.cosine", "outputs.psnr"]
    assert rules([1.0, 2.0], [1.0, bad], asked) == every


def test_numbers_at_the_ends_of_their_type_are_compared() -> None:
    top = np.finfo("float32").max
    assert rules(np.float32([top, -top]), np.float32([top, -top]), limits(cosine=1)) == []
    huge = np.array([1e200, 2e200])
    assert measure(huge * (1 + 1e-9), huge).cosine == pytest.approx(1)
    assert measure(huge * -1, huge).cosine == pytest.approx(-1)
    assert measure(huge / 1e250, huge / 1e250 * 2).cosine == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_are_told_apart_where_float64_could_not(dtype: str) -> None:
    golden = np.array([2**62, 5], dtype=dtype)
    array = golden + np.array([1, 0], dtype=dtype)
    assert float(array[0]) == float(golden[0])  # what a comparison in float64 would see
    assert measure(array, golden).max_abs == 1
    assert rules(array, golden, limits(max_abs=0.5)) == ["outputs.max-abs"]
    assert rules(array, golden, limits(max_abs=1)) == []


def test_small_unsigned_integers_do_not_wrap() -> None:
    assert measure(np.uint8([0]), np.uint8([255])).max_abs == 255


def test_booleans_count_as_one_and_zero() -> None:
    array, golden = np.array([True, False, True, True]), np.array([True, True, True, True])
    found = measure(array, golden)
    assert (found.max_abs, found.mean_abs) == (1.0, 0.25)
    assert rules(array, golden, limits(max_abs=0.9)) == ["outputs.max-abs"]
    assert rules(array, golden, limits(mean_abs=0.25)) == []


@pytest.mark.parametrize(
    ("array", "golden"),
    [(np.int64([1]), np.float32([1])), (np.float32([1]), np.int8([1])), (np.bool_([1]), [1])],
)
def test_another_kind_of_number_is_another_output(array: np.ndarray, golden: object) -> None:
    assert rules(array, golden) == ["outputs.kind"]


def test_integers_and_floats_may_be_wider_or_narrower() -> None:
    assert rules(np.int32([7]), np.int64([7]), limits(max_abs=0)) == []
    assert rules(np.uint8([7]), np.int64([7]), limits(max_abs=0)) == []
    assert rules(np.float16([0.5]), np.float32([0.5]), limits(max_abs=0)) == []


@pytest.mark.parametrize("dtype", ["complex64", "U1"])
def test_what_holds_no_numbers_fails_with_and_without_a_golden(dtype: str) -> None:
    array = np.zeros(2, dtype=dtype)
    assert rules(array, array) == ["outputs.no-numbers"]
    found = check_outputs(run_of(), outputs={"y": array}, golden=None, tolerance=None)
    assert [each.rule for each in found] == ["outputs.no-numbers"]


def test_scalars_have_a_place_too() -> None:
    found = measure(np.float32(2), np.float32(1))
    assert (found.max_abs, found.place, found.values) == (1.0, (), 1)


def test_a_finding_carries_every_figure_and_the_worst_value() -> None:
    asked = Tolerance(max_abs=0.05, mean_abs=1, cosine=0.5, psnr_db=10)
    outputs, golden = {"y": np.array([[1.0, 2.1]])}, {"y": np.array([[1.0, 2.0]])}
    [found] = check_outputs(run_of(), outputs=outputs, golden=golden, tolerance=asked)
    assert found.message == "largest difference of y is 0.1, the limit is 0.05"
    figures, worst = found.evidence
    for words in (
        "y: max_abs 0.1 (limit 0.05)",
        "mean_abs 0.05 (limit 1)",
        "cosine 0.9998",
        "(least 0.5)",
        "psnr_db 23.01 (least 10)",
        "over 2 values",
    ):
        assert words in figures
    assert worst == "y[0, 1]: 2.1, the golden has 2"


def test_nan_and_inf_are_counted_apart() -> None:
    outputs = {"y": np.float16([1, np.nan, np.inf, -np.inf])}
    [found] = check_outputs(run_of(), outputs=outputs, golden=None, tolerance=None)
    assert found.message == "3 of 4 values of y are NaN or Inf"
    assert found.evidence == ("y: 1 NaN, 2 Inf",)


def test_what_was_written_instead_is_named() -> None:
    outputs, golden = {"z": np.ones(1)}, {"y": np.ones(1)}
    [found] = check_outputs(run_of(), outputs=outputs, golden=golden, tolerance=WIDE)
    assert (found.rule, found.evidence) == ("outputs.missing", ("it wrote z",))


def test_a_limit_that_nothing_was_measured_for_is_broken() -> None:
    unknown = gate.Distance(
        max_abs=math.nan, mean_abs=math.nan, cosine=math.nan, psnr_db=math.nan, values=1
    )
    found = broken_limits(unknown, limits(cosine=0, psnr_db=0))
    assert [each.rule for each in found] == ["max-abs", "mean-abs", "cosine", "psnr"]
    assert isinstance(found[0], BrokenLimit)
