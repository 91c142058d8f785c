"""From a run's series to the figures of a load: percentiles, rates, and what NVML saw meanwhile.

Pure. Percentiles are those of the latency gate (`smoke/baseline.py`). What NVML says of a series
are its samples between the beginning of the first timed request and the end of the last one; this
part has been fed recorded samples only, never those of a GPU at work.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import msgspec

from planyard.core.findings import Finding
from planyard.core.loads import LoadSeries
from planyard.core.results import LatencySeries, SmokeReport, SmokeRun, UtilizationFigures
from smoke.baseline import percentile_ms
from smoke.gates.utilization import utilization_figures

GATE = "load"
_DIGITS = 4
_DIGITS_OF_SECONDS = 6
_LEAST_SECONDS = 1e-6
_CLOCKS_DIFFER = 0.02
"""Latencies are of one clock, a series' beginning and end of another: they may differ by this."""


def check_series(run: SmokeRun) -> tuple[Finding, ...]:
    """Findings for series whose rate cannot be told: no beginning or end, or one that is not so.

    Requests that were under way at once cannot have taken longer, taken together, than the series
    times their number: then somebody set the clock, or the report is wrong. Which series had to be
    there, and their latencies, are the latency gate's to check.
    """
    return tuple(_faults(run))


def load_series(run: SmokeRun) -> tuple[LoadSeries, ...]:
    """The figures of each series, in the order they were asked; `check_series` finds no fault."""
    gpu = _gpu_of(run)
    return tuple(_figures(run, each, gpu=gpu) for each in _series(run))


def _faults(run: SmokeRun) -> Iterator[Finding]:
    for series in _series(run):
        words = f"batch {series.batch}, concurrency {series.concurrency}"
        seconds = _seconds(series)
        if seconds is None:
            message = f"{words}: the run did not say when its requests began and ended"
            yield _finding(run, "no-window", message)
        elif not (math.isfinite(seconds) and seconds >= _LEAST_SECONDS):
            message = f"{words}: from its first request to its last {seconds} s went by"
            yield _finding(run, "no-window", message)
        elif (taken := sum(series.latencies_ms) / 1000) > _most(series, seconds):
            message = (
                f"{words}: its requests took {taken:.3f} s together, which does not go into "
                f"{seconds:.3f} s: was the clock set?"
            )
            yield _finding(run, "clock", message)


def _most(series: LatencySeries, seconds: float) -> float:
    """The most seconds that all requests of a series can have taken together."""
    at_once = min(series.concurrency, max(1, len(series.latencies_ms)))
    return at_once * seconds * (1 + _CLOCKS_DIFFER) + at_once * _CLOCKS_DIFFER


def _figures(run: SmokeRun, series: LatencySeries, *, gpu: str | None) -> LoadSeries:
    seconds, requests = _seconds(series) or math.nan, len(series.latencies_ms)
    percentiles = {
        f"p{percent}_ms": round(percentile_ms(series.latencies_ms, percent), _DIGITS)
        for percent in (50, 95, 99)
    }
    seen = _seen_by_nvml(run, series, gpu=gpu) if gpu else None
    power = _power_watts(run, series, gpu=gpu) if gpu else None
    return LoadSeries(
        batch=series.batch,
        concurrency=series.concurrency,
        requests=requests,
        seconds=round(seconds, _DIGITS_OF_SECONDS),
        requests_per_second=round(requests / seconds, _DIGITS),
        items_per_second=round(series.batch * requests / seconds, _DIGITS),
        gpu_percent=_rounded(seen.gpu_percent if seen else None),
        gpu_memory_bytes=seen.peak_memory_bytes if seen else None,
        power_watts=_rounded(power),
        **percentiles,
    )


def _gpu_of(run: SmokeRun) -> str | None:
    """The GPU, or slice, that the run used: of several the busiest, as for the utilization gate."""
    best, most = None, (-math.inf, -math.inf)
    for gpu in dict.fromkeys(sample.gpu for sample in run.gpu_samples or ()):
        if found := _of_gpu(run, gpu, report=run.report or SmokeReport()):
            percent, memory = found.gpu_percent, found.peak_memory_bytes
            rank = (-1.0 if percent is None else percent, -1.0 if memory is None else memory)
            if rank > most:
                best, most = gpu, rank
    return best


def _seen_by_nvml(run: SmokeRun, series: LatencySeries, *, gpu: str) -> UtilizationFigures | None:
    window = msgspec.structs.replace(
        run.report or SmokeReport(),
        requests_began_seconds=series.began_seconds,
        requests_ended_seconds=series.ended_seconds,
    )
    return _of_gpu(run, gpu, report=window)


def _of_gpu(run: SmokeRun, gpu: str, *, report: SmokeReport) -> UtilizationFigures | None:
    """What NVML said of one GPU, if the run used it, while the requests of `report` were made."""
    samples = tuple(each for each in run.gpu_samples or () if each.gpu == gpu)
    return utilization_figures(msgspec.structs.replace(run, gpu_samples=samples, report=report))


def _power_watts(run: SmokeRun, series: LatencySeries, *, gpu: str) -> float | None:
    began, ended = series.began_seconds or 0.0, series.ended_seconds or 0.0
    known = [
        each.power_watts
        for each in run.gpu_samples or ()
        if each.gpu == gpu
        and each.power_watts is not None
        and began <= run.began_seconds + each.at_seconds <= ended
    ]
    return statistics.fmean(known) if known else None


def _seconds(series: LatencySeries) -> float | None:
    if series.began_seconds is None or series.ended_seconds is None:
        return None
    return series.ended_seconds - series.began_seconds


def _series(run: SmokeRun) -> tuple[LatencySeries, ...]:
    return run.report.series if run.report else ()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
