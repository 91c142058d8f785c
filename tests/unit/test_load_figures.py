"""From series to figures: percentiles, rates, what NVML saw; and what no rate can be told of."""

from __future__ import annotations

import math

import msgspec
import pytest

from planyard.core.loads import LoadNotRun, LoadRefused, LoadReport, load_exit_code
from planyard.core.results import GpuSample, LatencySeries, SmokeRun
from smoke.load import check_series, load_series
from tests.load_records import a_record, a_series
from tests.smoke_runs import BEGAN_SECONDS, report_of, run_of

LATENCIES_MS = tuple(float(10 * each) for each in range(1, 21))
"""20 of them: P50 is the 10th, P95 the 19th, P99 the 20th."""


def series_of(**changes: object) -> LatencySeries:
    fields: dict[str, object] = {
        "batch": 4,
        "concurrency": 2,
        "latencies_ms": LATENCIES_MS,
        "began_seconds": BEGAN_SECONDS + 1,
        "ended_seconds": BEGAN_SECONDS + 3,
    }
    return LatencySeries(**{**fields, **changes})  # type: ignore[arg-type]


def loaded(*series: LatencySeries, samples: tuple[GpuSample, ...] | None = None) -> SmokeRun:
    began = min((each.began_seconds or math.inf for each in series), default=0.0)
    ended = max((each.ended_seconds or 0.0 for each in series), default=0.0)
    report = report_of(series=series, requests_began_seconds=began, requests_ended_seconds=ended)
    return run_of(report, gpu_samples=samples)


def sample(at_seconds: float, *, gpu: str = "GPU 0", **changes: object) -> GpuSample:
    return GpuSample(at_seconds=at_seconds, gpu=gpu, **changes)  # type: ignore[arg-type]


def test_the_figures_of_a_series():
    [found] = load_series(loaded(series_of()))
    assert (found.batch, found.concurrency, found.requests) == (4, 2, 20)
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == (100.0, 190.0, 200.0)
    assert (found.seconds, found.requests_per_second, found.items_per_second) == (2.0, 10.0, 40.0)
    assert (found.gpu_percent, found.gpu_memory_bytes, found.power_watts) == (None, None, None)


def test_series_stay_in_their_order():
    run = loaded(series_of(batch=4), series_of(batch=1), series_of(batch=2))
    assert [each.batch for each in load_series(run)] == [4, 1, 2]
    assert check_series(run) == ()


@pytest.mark.parametrize(
    ("changes", "rule", "words"),
    [
        ({"began_seconds": None}, "load.no-window", "did not say when"),
        ({"ended_seconds": None}, "load.no-window", "did not say when"),
        ({"ended_seconds": BEGAN_SECONDS + 1}, "load.no-window", "0.0 s went by"),
        ({"ended_seconds": BEGAN_SECONDS}, "load.no-window", "-1.0 s went by"),
        ({"ended_seconds": math.inf}, "load.no-window", "inf s went by"),
        # 2.1 s of requests, at most two at once, do not go into one second.
        ({"ended_seconds": BEGAN_SECONDS + 1.9}, "load.clock", "was the clock set"),
        ({"concurrency": 1}, "load.clock", "was the clock set"),
    ],
)
def test_a_rate_that_cannot_be_told_is_a_finding(changes: dict[str, object], rule, words):
    good = series_of(batch=1)
    [found] = check_series(loaded(good, series_of(**changes)))
    assert (found.rule, found.severity) == (rule, "fail")
    assert words in found.message
    assert "batch 4" in found.message


def test_five_requests_of_32_at_once_are_five_at_once():
    slow = series_of(latencies_ms=(900.0,) * 5, concurrency=32, ended_seconds=BEGAN_SECONDS + 2)
    assert check_series(loaded(slow)) == ()
    slower = msgspec.structs.replace(slow, latencies_ms=(1900.0,) * 5)
    assert [each.rule for each in check_series(loaded(slower))] == ["load.clock"]


def test_what_nvml_saw_is_told_by_series():
    samples = tuple(
        sample(at, gpu_percent=percent, memory_used_bytes=memory << 30, power_watts=watts)
        for at, percent, memory, watts in [
            (0.0, 0.0, 1, 60.0),  # before
            (1.0, 50.0, 4, 200.0),
            (2.0, 60.0, 6, 300.0),
            (3.0, 70.0, 5, 400.0),
            (4.0, 90.0, 9, 600.0),  # the second series
            (9.0, 10.0, 20, 100.0),  # after
        ]
    )
    later = series_of(batch=8, began_seconds=BEGAN_SECONDS + 3.5, ended_seconds=BEGAN_SECONDS + 5.5)
    first, second = load_series(loaded(series_of(), later, samples=samples))
    assert (first.gpu_percent, first.gpu_memory_bytes, first.power_watts) == (60.0, 6 << 30, 300.0)
    assert (second.gpu_percent, second.gpu_memory_bytes, second.power_watts) == (90, 9 << 30, 600)


def test_of_two_gpus_the_used_one_counts_however_busy_the_other_is():
    samples = tuple(
        each
        for at in (0.0, 1.0, 2.0, 3.0)
        for each in (
            sample(at, gpu="mine", gpu_percent=40.0, memory_used_bytes=int(at + 1) << 30),
            sample(at, gpu="theirs", gpu_percent=99.0, memory_used_bytes=70 << 30),
        )
    )
    [found] = load_series(loaded(series_of(), samples=samples))
    assert (found.gpu_percent, found.gpu_memory_bytes) == (40.0, 4 << 30)


def test_what_nvml_does_not_know_stays_unknown():
    none = tuple(sample(float(at)) for at in range(4))
    [found] = load_series(loaded(series_of(), samples=none))
    assert (found.gpu_percent, found.gpu_memory_bytes, found.power_watts) == (None, None, None)
    # Samples, but none while this series ran.
    early = (sample(0.0, memory_used_bytes=0), sample(0.5, memory_used_bytes=1 << 30))
    [found] = load_series(loaded(series_of(), samples=early))
    assert (found.gpu_percent, found.gpu_memory_bytes) == (None, None)


NOT_RUN = LoadNotRun(workload="a", cell="rtx/m/8/fp16/sm89", reason="this machine has no GPU")
REFUSED = LoadRefused(workload="a", cell="ort-gpu/m/8/fp32/sm89", findings=())


@pytest.mark.parametrize(
    ("records", "refused", "not_run", "code", "required"),
    [
        (1, 0, 0, 0, 0),
        (1, 0, 1, 0, 7),
        (0, 0, 1, 7, 7),
        (1, 1, 1, 4, 4),
        (0, 1, 0, 4, 4),
    ],
)
def test_exit_codes(records: int, refused: int, not_run: int, code: int, required: int):
    report = LoadReport(
        records=(a_record(series=(a_series(),)),) * records,
        refused=(REFUSED,) * refused,
        not_run=(NOT_RUN,) * not_run,
    )
    assert load_exit_code(report) == code
    assert load_exit_code(report, required=True) == required
