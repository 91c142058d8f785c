"""The latency gate on any samples, and on recorded ones: false alarms and what it finds.

The recorded runs are real (docs/latency-gate.md says how they were made), windows are drawn from
them with fixed seeds, and a slowdown multiplies the recorded latencies. No clock decides here.
"""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planyard.core.findings import Finding, failures
from planyard.core.matrix_smoke import LatencyLimits
from planyard.core.results import LatencySeries, SmokeReport, SmokeRun
from smoke.baseline import AcceptedRun, accepted_run, percentile_ms
from smoke.gates.latency import check_latency, needs_second_run

RECORDED = Path(__file__).parents[1] / "data" / "latency_runs.json"
LIMITS = LatencyLimits()
RELATIVE = LatencyLimits(relative=0.25, absolute_ms=0)
ONE = ((1, 1),)

unhurried = settings(deadline=None)
TIMES = st.lists(st.floats(0.5, 500), min_size=5, max_size=40)
REFERENCES = st.lists(st.floats(1, 100), min_size=1, max_size=5)
FACTORS = st.floats(1.0, 3.9)


def run_of(latencies_ms: Sequence[float], reference_ms: Sequence[float]) -> SmokeRun:
    series = LatencySeries(batch=1, concurrency=1, latencies_ms=tuple(latencies_ms))
    return SmokeRun(
        cell="ort-cpu/stack/128/fp32/cpu",
        image="i",
        exit_code=0,
        timed_out=False,
        seconds=1.0,
        stdout="",
        stderr="",
        report=SmokeReport(series=(series,)),
        reference_ms=tuple(reference_ms),
    )


def accepted(runs: Sequence[SmokeRun]) -> tuple[AcceptedRun, ...]:
    return tuple(
        accepted_run(run, created=f"{number:05}", image=str(number), served="")
        for number, run in enumerate(runs)
    )


def check(
    run: SmokeRun, window: Sequence[AcceptedRun], *, limits: LatencyLimits = LIMITS, **rest: Any
) -> tuple[Finding, ...]:
    return failures(check_latency(run, asked=ONE, window=window, limits=limits, **rest))


RUNS = st.builds(run_of, TIMES, REFERENCES)
WINDOWS = st.lists(RUNS, min_size=1, max_size=12).map(accepted)


@unhurried
@given(
    values=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=200), percent=st.integers(1, 100)
)
def test_a_percentile_is_the_smallest_that_so_many_are_not_above(
    values: list[float], percent: int
) -> None:
    found = percentile_ms(values, percent)
    assert found in values
    assert sum(each <= found for each in values) * 100 >= percent * len(values)
    assert sum(each < found for each in values) * 100 < percent * len(values)


@unhurried
@given(run=RUNS, window=WINDOWS, factor=FACTORS)
def test_slower_is_never_better(
    run: SmokeRun, window: tuple[AcceptedRun, ...], factor: float
) -> None:
    assert run.report is not None
    latencies_ms = [each * factor for each in run.report.series[0].latencies_ms]
    slower = check(run_of(latencies_ms, run.reference_ms), window)
    assert {each.rule for each in check(run, window)} <= {each.rule for each in slower}


@unhurried
@given(times=TIMES, unit=st.floats(0.25, 4), count=st.integers(5, 12))
def test_a_unit_does_not_matter(times: list[float], unit: float, count: int) -> None:
    """A quarter slower is the limit in ms and in any other unit."""
    window = accepted([run_of([each * unit for each in times], (7.0,))] * count)
    for by, found in ((1.24, False), (1.26, True)):
        run = run_of([each * unit * by for each in times], (7.0,))
        assert bool(check(run, window, limits=RELATIVE)) == found


@unhurried
@given(times=TIMES, count=st.integers(1, 12), factor=FACTORS, reference=st.floats(1, 100))
def test_a_machine_slowed_as_a_whole_changes_nothing(
    times: list[float], count: int, factor: float, reference: float
) -> None:
    window = accepted([run_of(times, (reference,))] * count)
    slow_machine = run_of([each * factor for each in times], (reference * factor,))
    assert check(slow_machine, window) == ()


@unhurried
@given(first=RUNS, second=RUNS, window=WINDOWS)
def test_a_second_run_only_takes_away(
    first: SmokeRun, second: SmokeRun, window: tuple[AcceptedRun, ...]
) -> None:
    alone = check(first, window), check(second, window)
    both = check(first, window, again=second)
    assert bool(both) == (bool(alone[0]) and bool(alone[1]))
    assert set(both) <= set(alone[1])
    assert needs_second_run(alone[0]) == bool(alone[0])


@unhurried
@given(
    latencies_ms=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30),
    reference_ms=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=3),
    window=st.just(()) | WINDOWS,
)
def test_nothing_that_is_no_time_passes_or_breaks(
    latencies_ms: list[float], reference_ms: list[float], window: tuple[AcceptedRun, ...]
) -> None:
    values = [*latencies_ms, *reference_ms]
    whole = len(latencies_ms) >= 5 and bool(reference_ms)
    found = check(run_of(latencies_ms, reference_ms), window)
    if not whole or not all(math.isfinite(each) and each > 0 for each in values):
        assert found
        assert not needs_second_run(found)


@functools.cache
def sets() -> dict[str, list[tuple[list[float], list[float]]]]:
    """Latencies and reference load of each run: the recorded sets, and the simulated one."""
    found = {
        each["name"]: [(run["latencies_ms"], run["reference_ms"]) for run in each["runs"]]
        for each in json.loads(RECORDED.read_text())["sets"]
    }
    return {**found, "steady": simulated(random.Random(20261121))}


def simulated(chance: random.Random) -> list[tuple[list[float], list[float]]]:
    """120 runs of 100 requests of 20 ms: 4 % between runs, 3 % within; one in five has a burst."""
    found = []
    for _ in range(120):
        level = 20 * math.exp(chance.gauss(0, 0.04))
        times = [level * math.exp(abs(chance.gauss(0, 0.03))) for _ in range(100)]
        if chance.random() < 0.2:
            start = chance.randrange(90)
            times[start : start + 10] = [each * chance.uniform(1.2, 4) for each in times[:10]]
        found.append((times, [5 * math.exp(chance.gauss(0, 0.04)) for _ in range(2)]))
    return found


def recorded(name: str, *, requests: int = 100, slower: float = 1.0) -> list[SmokeRun]:
    """The runs of a set, the first requests of each, all of them so many times slower."""
    return [
        run_of([each * slower for each in latencies_ms[:requests]], reference_ms)
        for latencies_ms, reference_ms in sets()[name]
    ]


def is_alarm(run: SmokeRun, again: SmokeRun, window: Sequence[AcceptedRun]) -> bool:
    """Judged as a build does: a second run where the first is too slow."""
    found = check(run, window)
    return bool(found and needs_second_run(found) and check(run, window, again=again))


def alarms_in_order(runs: Sequence[SmokeRun]) -> int:
    """How many of the first hundred fail, each against those accepted before it."""
    window: list[AcceptedRun] = []
    alarms = 0
    for number, kept in enumerate(accepted(runs[:100])):
        if is_alarm(runs[number], runs[number + 1], window):
            alarms += 1
        else:
            window.append(kept)
    return alarms


def share_failed(name: str, *, requests: int, slower: float, runs: int = 10) -> float:
    """How many of 400 slowed runs fail, in percent, against windows drawn from the others."""
    kept = accepted(recorded(name, requests=requests))
    slow, chance, failed = recorded(name, requests=requests, slower=slower), random.Random(11), 0
    for _ in range(400):
        number = chance.randrange(len(slow) - 1)
        others = [each for each in range(len(slow)) if each not in (number, number + 1)]
        window = [kept[each] for each in chance.sample(others, runs)]
        failed += is_alarm(slow[number], slow[number + 1], window)
    return failed / 4


@pytest.mark.parametrize("requests", [20, 100])
@pytest.mark.parametrize("name", sets())
def test_a_hundred_unchanged_runs_give_one_false_alarm_at_most(name: str, requests: int) -> None:
    runs = recorded(name, requests=requests)
    assert len(runs) > 100
    assert alarms_in_order(runs) <= 1


@pytest.mark.parametrize("requests", [20, 100])
@pytest.mark.parametrize("name", sets())
def test_windows_of_real_noise_give_one_false_alarm_in_a_hundred(name: str, requests: int) -> None:
    assert share_failed(name, requests=requests, slower=1.0) <= 1.0


@pytest.mark.parametrize(
    ("name", "slower", "least_percent"),
    [
        ("steady", 1.5, 95),
        ("steady", 2.0, 99),
        ("crowded", 5.0, 70),
        ("crowded", 10.0, 95),
        ("held-out", 5.0, 75),
        ("held-out", 10.0, 95),
        ("alone", 10.0, 95),
    ],
)
def test_a_slowdown_is_found(name: str, slower: float, least_percent: float) -> None:
    found = share_failed(name, requests=20, slower=slower)
    print(f"{name}, {slower} times as slow: {found} % fail")
    assert found >= least_percent


def test_longer_series_find_more_in_a_crowd() -> None:
    few, many = (share_failed("crowded", requests=count, slower=3.0) for count in (20, 100))
    assert many > few + 10
