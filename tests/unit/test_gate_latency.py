"""The latency gate on samples made by hand: what it refuses, what it lets pass, what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from planyard.core.findings import Finding
from planyard.core.matrix_smoke import LatencyLimits
from planyard.core.results import LatencySeries, SmokeRun
from smoke.baseline import AcceptedRun, accepted_run, noise_of, percentile_ms
from smoke.gates.latency import check_latency, latency_figures, needs_second_run
from smoke.reference import host_name_of_speed, measure_reference
from tests.smoke_runs import report_of, run_of

LIMITS = LatencyLimits(relative=0.25, absolute_ms=2.0, window=10)
ONE = (1, 1)
STEADY = tuple(20.0 + 0.01 * number for number in range(20))
REFERENCE = (5.0, 5.1, 4.9, 5.0, 5.0)


def series_of(latencies_ms: Sequence[float] = STEADY, **changes: Any) -> LatencySeries:
    return LatencySeries(
        **{"batch": 1, "concurrency": 1, "latencies_ms": tuple(latencies_ms), **changes}
    )


def timed(
    *series: LatencySeries, reference_ms: Sequence[float] = REFERENCE, **changes: Any
) -> SmokeRun:
    """A run with these series; with none, one of 20 requests of 20 ms."""
    report = report_of(series=series or (series_of(),))
    return run_of(report, reference_ms=tuple(reference_ms), **changes)


def slowed(by: float, *, latencies_ms: Sequence[float] = STEADY) -> tuple[float, ...]:
    return tuple(each * by for each in latencies_ms)


def accepted(number: int, run: SmokeRun | None = None) -> AcceptedRun:
    created = f"2026-11-21T00:{number // 60:02}:{number % 60:02}Z"
    return accepted_run(run or timed(), created=created, image=f"i{number}", served="m")


def window_of(*runs: SmokeRun, count: int = 10) -> tuple[AcceptedRun, ...]:
    """As many accepted runs, all alike unless they are given."""
    return tuple(accepted(number, run) for number, run in enumerate(runs or (timed(),) * count))


def check(run: SmokeRun, window: Sequence[AcceptedRun] = (), **changes: Any) -> tuple[Finding, ...]:
    fields: dict[str, Any] = {"asked": (ONE,), "window": window, "limits": LIMITS}
    return check_latency(run, **{**fields, **changes})


def rules(found: Sequence[Finding]) -> list[str]:
    return [each.rule.removeprefix("latency.") for each in found]


@pytest.mark.parametrize("window", [(), window_of()], ids=["first", "later"])
@pytest.mark.parametrize(
    ("run", "rule"),
    [
        (run_of(None), "no-evidence"),
        (run_of(report_of(series=()), reference_ms=REFERENCE), "no-evidence"),
        (timed(series_of(())), "too-few"),
        (timed(series_of((20.0,) * 4)), "too-few"),
        (timed(series_of((20.0,) * 19 + (0.0,))), "not-a-time"),
        (timed(series_of((20.0,) * 19 + (-1.0,))), "not-a-time"),
        (timed(series_of((20.0,) * 19 + (math.nan,))), "not-a-time"),
        (timed(series_of((20.0,) * 19 + (math.inf,))), "not-a-time"),
        (timed(reference_ms=()), "no-reference"),
        (timed(reference_ms=(5.0, 0.0)), "no-reference"),
        (timed(reference_ms=(5.0, math.nan)), "no-reference"),
        (timed(series_of(reference_ms=(math.inf,))), "no-reference"),
        (timed(series_of(batch=2), reference_ms=REFERENCE), "missing"),
        (timed(series_of(concurrency=2), reference_ms=REFERENCE), "missing"),
        (timed(series_of(), series_of(slowed(0.5))), "repeated"),
    ],
)
def test_evidence_that_is_missing_or_cannot_be_true_fails(
    run: SmokeRun, rule: str, window: tuple[AcceptedRun, ...]
) -> None:
    found = check(run, window)
    assert rule in rules(found)
    assert {each.severity for each in found} == {"fail"}
    assert not needs_second_run(found)


def test_a_second_run_without_evidence_fails() -> None:
    found = check(timed(series_of(slowed(3))), window_of(), again=run_of(None))
    assert rules(found) == ["no-evidence"]


def test_the_first_run_is_said_to_be_the_first() -> None:
    [finding] = check(timed())
    assert (finding.rule, finding.severity) == ("latency.first", "warn")
    assert "no accepted run to compare with" in finding.message
    assert "P50 20.09 ms" in finding.message
    assert finding.where == timed().cell


def test_a_new_series_beside_known_ones_is_a_first() -> None:
    run = timed(series_of(), series_of(batch=4))
    [finding] = check(run, window_of(), asked=(ONE, (4, 1)))
    assert finding.rule == "latency.first"
    assert finding.message.startswith("batch 4, concurrency 1:")


def test_the_same_again_passes_without_a_word() -> None:
    assert check(timed(), window_of()) == ()


@pytest.mark.parametrize(
    ("slower", "found"), [(1.0, False), (1.24, False), (1.26, True), (1.5, True), (10.0, True)]
)
def test_the_relative_limit_decides_on_long_requests(slower: float, *, found: bool) -> None:
    run = timed(series_of(slowed(slower)))
    assert rules(check(run, window_of())) == (["p50", "p95"] if found else [])


@pytest.mark.parametrize(("more_ms", "found"), [(0.5, False), (1.9, False), (2.1, True)])
def test_the_absolute_limit_decides_on_short_requests(more_ms: float, *, found: bool) -> None:
    short = timed(series_of((1.0,) * 20))
    run = timed(series_of((1.0 + more_ms,) * 20))
    assert bool(check(run, window_of(*[short] * 10))) == found


def test_faster_is_never_wrong() -> None:
    assert check(timed(series_of(slowed(0.2))), window_of()) == ()


def test_a_quota_shows_in_the_slow_requests_alone() -> None:
    """What a CPU quota does: most requests are as fast as ever, one in five waits for its time."""
    run = timed(series_of((20.0, 20.0, 20.0, 20.0, 80.0) * 4))
    assert rules(check(run, window_of())) == ["p95"]


def test_p95_needs_twenty_requests_and_p99_a_hundred() -> None:
    few = timed(series_of((20.0,) * 19))
    assert check(timed(series_of((20.0,) * 17 + (80.0,) * 2)), window_of(*[few] * 10)) == ()
    enough = timed(series_of((20.0,) * 99))
    assert check(timed(series_of((20.0,) * 97 + (80.0,) * 2)), window_of(*[enough] * 10)) == ()
    many = timed(series_of((20.0,) * 100))
    slow = timed(series_of((20.0,) * 98 + (80.0,) * 2))
    assert rules(check(slow, window_of(*[many] * 10))) == ["p99"]


def test_a_series_cut_short_is_judged_by_what_it_has() -> None:
    """A slow run answers fewer requests in its seconds: that must not hide its P95."""
    run = timed(series_of((20.0,) * 5 + (80.0,)))
    assert rules(check(run, window_of())) == ["p95"]


def test_a_slow_machine_is_cancelled_and_a_slow_product_on_it_is_not() -> None:
    busy = tuple(2 * each for each in REFERENCE)
    assert check(timed(series_of(slowed(2)), reference_ms=busy), window_of()) == ()
    found = check(timed(series_of(slowed(3)), reference_ms=busy), window_of())
    assert rules(found) == ["p50", "p95"]
    assert "scaled by 2.00 for the machine" in found[0].message


def test_each_accepted_run_is_scaled_by_its_own_machine() -> None:
    """Half of the window was measured while the machine was three times as slow."""
    busy = timed(series_of(slowed(3)), reference_ms=tuple(3 * each for each in REFERENCE))
    window = window_of(*[timed(), busy] * 5)
    assert check(timed(), window) == ()
    assert check(busy, window) == ()
    assert rules(check(timed(series_of(slowed(1.3))), window)) == ["p50", "p95"]


def test_a_machine_that_is_far_too_slow_excuses_no_more_than_four_times() -> None:
    very_busy = tuple(8 * each for each in REFERENCE)
    [finding] = check(timed(series_of(slowed(4.9)), reference_ms=very_busy), window_of())
    assert (finding.rule, finding.severity) == ("latency.machine", "warn")
    assert "8.0 times as slow as for the baseline; 4 are allowed for" in finding.message
    found = check(timed(series_of(slowed(5.1)), reference_ms=very_busy), window_of())
    assert rules(found) == ["machine", "p50", "p95"]
    assert "scaled by 4.00 for the machine" in found[1].message
    assert needs_second_run(found)


def test_the_device_s_own_reference_comes_before_the_host_s() -> None:
    on_device = timed(series_of(reference_ms=(2.0,) * 5))
    window = window_of(*[on_device] * 10)
    slow_host = tuple(3 * each for each in REFERENCE)
    slow = timed(series_of(slowed(2), reference_ms=(2.0,) * 5), reference_ms=slow_host)
    assert rules(check(slow, window)) == ["p50", "p95"]
    slow_gpu = timed(series_of(slowed(2), reference_ms=(4.0,) * 5))
    assert check(slow_gpu, window) == ()


def test_a_reference_from_elsewhere_is_no_first_run() -> None:
    """An image that stops timing the device must not get a new window by it."""
    window = window_of(*[timed(series_of(reference_ms=(2.0,) * 5))] * 10)
    found = check(timed(series_of(slowed(3))), window)
    assert rules(found) == ["reference"]
    assert found[0].severity == "fail"
    assert not needs_second_run(found)


def test_a_noisy_window_needs_a_larger_excess() -> None:
    noisy = [timed(series_of(slowed(by))) for by in (0.9, 1.15, 0.85, 1.1, 0.95) * 2]
    run = timed(series_of(slowed(1.5)))
    assert rules(check(run, window_of())) == ["p50", "p95"]
    assert check(run, window_of(*noisy)) == ()
    assert rules(check(timed(series_of(slowed(2.2))), window_of(*noisy))) == ["p50", "p95"]


def test_a_drift_is_not_taken_for_noise() -> None:
    """Every run 6 % slower than the one before: the median stays behind, and finds it."""
    drifting = [timed(series_of(slowed(1 + 0.06 * step))) for step in range(11)]
    assert rules(check(drifting[10], window_of(*drifting[:10]))) == ["p50", "p95"]


def test_a_drift_too_slow_for_the_window_is_said() -> None:
    steps = [timed(series_of(slowed(1 + 0.02 * step))) for step in range(31)]
    [finding] = check(steps[30], window_of(*steps[:30]))
    assert (finding.rule, finding.severity) == ("latency.drift", "warn")
    assert "the first 10 of 30 accepted runs" in finding.message
    quicker = [timed(series_of(slowed(1 + 0.03 * step))) for step in range(16)]
    assert check(quicker[15], window_of(*quicker[:15])) == ()  # too few to tell a first and a last


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_runs_tell_no_noise_so_twice_as_slow_is_needed(count: int) -> None:
    assert check(timed(series_of(slowed(1.9))), window_of(count=count)) == ()
    found = check(timed(series_of(slowed(2.1))), window_of(count=count))
    assert rules(found) == ["p50", "p95"]


def test_few_runs_that_vary_need_more_than_twice_as_slow() -> None:
    wide = timed(series_of((20.0,) * 12 + (100.0,) * 8))
    assert check(timed(series_of((70.0,) * 20)), window_of(wide)) == ()
    assert rules(check(timed(series_of((101.0,) * 20)), window_of(wide))) == ["p50"]


def test_only_the_last_runs_are_the_baseline() -> None:
    old = [timed(series_of(slowed(3)))] * 15
    window = window_of(*old, *[timed()] * 10)
    assert rules(check(timed(series_of(slowed(2))), window)) == ["p50", "p95"]
    [figures] = latency_figures(timed(), window=window, limits=LIMITS)
    assert (figures.baseline_p50_ms, figures.baseline_runs) == (20.09, 10)


def test_a_few_slow_runs_that_were_accepted_do_not_move_the_baseline() -> None:
    window = window_of(*[timed()] * 7, *[timed(series_of(slowed(1.24)))] * 3)
    assert rules(check(timed(series_of(slowed(1.3))), window)) == ["p50", "p95"]


def test_what_both_runs_show_fails_and_what_one_shows_was_noise() -> None:
    slow, window = timed(series_of(slowed(2))), window_of()
    found = check(slow, window)
    assert needs_second_run(found)
    assert check(slow, window, again=timed()) == ()
    assert rules(check(slow, window, again=timed(series_of(slowed(1.5))))) == ["p50", "p95"]
    assert "30.14 ms" in check(slow, window, again=timed(series_of(slowed(1.5))))[0].message


def test_two_runs_that_were_slow_in_different_series_pass() -> None:
    both = (ONE, (4, 1))
    window = window_of(*[timed(series_of(), series_of(batch=4))] * 10)
    first = timed(series_of(slowed(2)), series_of(batch=4))
    second = timed(series_of(), series_of(slowed(2), batch=4))
    assert needs_second_run(check(first, window, asked=both))
    assert check(first, window, asked=both, again=second) == ()
    assert rules(check(first, window, asked=both, again=first)) == ["p50", "p95"]


def test_a_run_that_passed_or_was_first_needs_no_second() -> None:
    assert not needs_second_run(check(timed(), window_of()))
    assert not needs_second_run(check(timed()))
    assert not needs_second_run(())


def test_what_fails_by_another_rule_too_is_not_measured_again() -> None:
    slow = check(timed(series_of(slowed(2))), window_of())
    other = Finding(gate="logs", rule="logs.no-evidence", message="it printed nothing")
    assert needs_second_run(slow)
    assert not needs_second_run((*slow, other))


def test_limits_of_zero_leave_the_noise() -> None:
    strict = LatencyLimits(relative=0, absolute_ms=0, window=10)
    wavering = [timed(series_of(slowed(by))) for by in (1.0, 1.01) * 5]
    assert check(timed(series_of(slowed(1.02))), window_of(*wavering), limits=strict) == ()
    found = check(timed(series_of(slowed(1.06))), window_of(*wavering), limits=strict)
    assert rules(found) == ["p50", "p95"]
    assert check(timed(), window_of(), limits=strict) == ()


def test_the_message_says_how_slow_and_why_that_is_too_much() -> None:
    found = check(timed(series_of((30.0,) * 20)), window_of(*[timed(series_of((20.0,) * 20))] * 10))
    assert found[0].message == (
        "batch 1, concurrency 1: P50 is 30.00 ms, 10.00 ms or 50 % over the 20.00 ms of "
        "10 accepted runs; allowed are 5.00 ms (0.00 for their noise)"
    )


def test_figures_say_what_was_measured_and_against_what() -> None:
    busy = timed(series_of(slowed(2)), reference_ms=tuple(2 * each for each in REFERENCE))
    [figures] = latency_figures(busy, window=window_of(), limits=LIMITS)
    assert (figures.p50_ms, figures.p95_ms, figures.p99_ms) == (40.18, 40.36, 40.38)
    assert (figures.baseline_p50_ms, figures.baseline_p95_ms) == (40.18, 40.36)
    assert (figures.requests, figures.reference_ms, figures.baseline_runs) == (20, 10.0, 10)
    [first] = latency_figures(timed(), window=(), limits=LIMITS)
    assert (first.baseline_p50_ms, first.baseline_runs, first.p50_ms) == (None, 0, 20.09)


def test_figures_of_bad_evidence_are_left_out() -> None:
    assert latency_figures(run_of(None), window=(), limits=LIMITS) == ()
    assert latency_figures(timed(series_of((1.0, math.nan))), window=(), limits=LIMITS) == ()
    [figures] = latency_figures(timed(reference_ms=()), window=window_of(), limits=LIMITS)
    assert (figures.p50_ms, figures.reference_ms, figures.baseline_p50_ms) == (20.09, None, None)
    assert msgspec.json.decode(msgspec.json.encode(figures), type=type(figures)) == figures


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [(1, 10, 1), (1, 99, 1), (5, 50, 3), (20, 50, 10), (20, 95, 19), (20, 99, 20), (20, 10, 2),
     (100, 95, 95), (100, 99, 99), (101, 99, 100), (10, 95, 10)],
)  # fmt: skip
def test_percentiles_are_nearest_ranks(count: int, percent: int, rank: int) -> None:
    values = [float(each) for each in range(count, 0, -1)]
    assert percentile_ms(values, percent) == rank


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no latencies"):
        percentile_ms((), 50)


def test_noise_of_a_level_is_its_standard_deviation_and_of_a_drift_its_step() -> None:
    import random

    rng = random.Random(7)
    assert noise_of([rng.gauss(100, 5) for _ in range(4000)]) == pytest.approx(5, rel=0.05)
    assert noise_of([float(each) for each in range(100)]) == pytest.approx(0.886, rel=0.01)
    assert noise_of([3.0] * 10) == 0


def test_the_reference_load_is_timed_as_often_as_asked() -> None:
    found = measure_reference(repetitions=6)
    assert len(found) == 6
    assert all(each > 0 for each in found)
    assert len(measure_reference(repetitions=1000, limit_seconds=0)) == 5


def test_the_name_of_the_host_s_speed_tells_processors_apart(tmp_path: Any) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    text = "processor: 0\ncpu family\t: 6\nmodel\t\t: 167\nmodel name\t: Xeon\nstepping\t: 8\n"
    cpuinfo.write_text(text + "\nmodel name: the second core\n")
    name = host_name_of_speed(cpuinfo)
    assert name.startswith("Xeon (6/167/8), ")
    assert " cores, sha256/1 by OpenSSL " in name
    cpuinfo.write_text(text.replace("167", "106"))
    assert host_name_of_speed(cpuinfo) != name
    assert host_name_of_speed(tmp_path / "absent").partition(",")[0]
