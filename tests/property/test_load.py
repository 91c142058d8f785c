"""The figures of any series: what has to hold between them, whatever was measured."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from planyard.core.results import GpuSample, LatencySeries, SmokeReport, SmokeRun
from smoke.baseline import percentile_ms
from smoke.load import check_series, load_series

BEGAN = 1_700_000_000.0
TIMES_MS = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=5, max_size=60)
PERCENTS = st.one_of(st.none(), st.floats(min_value=0, max_value=100))


def run_of(series: LatencySeries, samples: tuple[GpuSample, ...] | None = None) -> SmokeRun:
    report = SmokeReport(
        series=(series,),
        requests_began_seconds=series.began_seconds,
        requests_ended_seconds=series.ended_seconds,
    )
    return SmokeRun(
        cell="a/b/c/fp32/cpu",
        image="a",
        exit_code=0,
        timed_out=False,
        seconds=1e9,
        stdout="",
        stderr="",
        began_seconds=BEGAN,
        report=report,
        gpu_samples=samples,
    )


@st.composite
def measured(draw: st.DrawFn) -> LatencySeries:
    """A series as clients really make one: each takes the next request when its last has ended."""
    times_ms, concurrency = draw(TIMES_MS), draw(st.integers(1, 40))
    clients = [0.0] * concurrency
    for time_ms in times_ms:
        first = clients.index(min(clients))
        clients[first] += time_ms / 1000
    began = BEGAN + draw(st.floats(min_value=0, max_value=1000))
    return LatencySeries(
        batch=draw(st.integers(1, 64)),
        concurrency=concurrency,
        latencies_ms=tuple(times_ms),
        began_seconds=began,
        ended_seconds=began + max(clients) + draw(st.floats(min_value=1e-3, max_value=1)),
    )


@given(measured())
def test_a_series_that_clients_made_has_no_fault(series: LatencySeries):
    assert check_series(run_of(series)) == ()


@given(measured())
def test_figures_agree_with_each_other(series: LatencySeries):
    [found] = load_series(run_of(series))
    times = series.latencies_ms
    assert found.p50_ms <= found.p95_ms <= found.p99_ms
    assert math.isclose(found.p50_ms, percentile_ms(times, 50), abs_tol=1e-4)
    assert min(times) - 1e-4 <= found.p50_ms
    assert found.p99_ms <= max(times) + 1e-4
    assert found.requests == len(times)
    seconds = (series.ended_seconds or 0) - (series.began_seconds or 0)
    assert math.isclose(found.seconds, seconds, abs_tol=1e-6)
    per_second = len(times) / seconds
    assert math.isclose(found.requests_per_second, per_second, abs_tol=1e-4)
    assert math.isclose(found.items_per_second, series.batch * per_second, abs_tol=1e-4)


@given(measured(), st.randoms(use_true_random=False))
def test_the_order_of_requests_does_not_matter(series: LatencySeries, chance: random.Random):
    shuffled = list(series.latencies_ms)
    chance.shuffle(shuffled)
    other = LatencySeries(
        batch=series.batch,
        concurrency=series.concurrency,
        latencies_ms=tuple(shuffled),
        began_seconds=series.began_seconds,
        ended_seconds=series.ended_seconds,
    )
    assert load_series(run_of(series)) == load_series(run_of(other))


@given(measured(), st.floats(min_value=1.2, max_value=100))
def test_a_clock_that_was_set_back_is_seen(series: LatencySeries, share: float):
    """All requests at once for the whole time: then the series cannot have been any shorter."""
    seconds, began = 10.0, series.began_seconds or 0.0
    full = LatencySeries(
        batch=1,
        concurrency=5,
        latencies_ms=(seconds * 1000,) * 5,
        began_seconds=began,
        ended_seconds=began + seconds / share,
    )
    assert [each.rule for each in check_series(run_of(full))] == ["load.clock"]


@given(measured(), st.lists(PERCENTS, min_size=1, max_size=20), st.lists(PERCENTS, max_size=20))
def test_samples_outside_a_series_do_not_count(
    series: LatencySeries, inside: list[float | None], outside: list[float | None]
):
    began, ended = series.began_seconds or 0.0, series.ended_seconds or 0.0

    def sample(at: float, percent: float | None) -> GpuSample:
        return GpuSample(at_seconds=at - BEGAN, gpu="GPU 0", gpu_percent=percent)

    span = ended - began
    middle = [
        sample(began + span * (0.1 + 0.8 * number / len(inside)), each)
        for number, each in enumerate(inside)
    ]
    others = [sample(ended + 1 + number, each) for number, each in enumerate(outside)]
    with_others = load_series(run_of(series, (*middle, *others)))
    assert with_others == load_series(run_of(series, tuple(middle)))
    known = [each for each in inside if each is not None]
    [found] = with_others
    if known:
        assert found.gpu_percent is not None
        assert min(known) - 0.1 <= found.gpu_percent <= max(known) + 0.1
    else:
        assert found.gpu_percent is None
