"""The latency gate: a run is not slower than the last accepted runs of its cell and machine.

For each series and percentile the baseline is the median of the accepted runs, each scaled by how
much slower the reference load was in this run than in that one. A run fails that is over it by
more than the relative limit, and the absolute one, and the noise of the accepted runs themselves.
Where a second run was made in a fresh container, a series fails that is too slow in both.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from planyard.core.findings import Finding, Severity, failures
from planyard.core.matrix_smoke import LatencyLimits
from planyard.core.results import LatencyFigures, LatencySeries, SmokeRun
from smoke.baseline import (
    MOST_SCALE,
    REQUESTS_FOR,
    AcceptedRun,
    AcceptedSeries,
    Excess,
    accepted_series,
    compare,
    percentile_ms,
    reference_of,
    slower,
)

GATE = "latency"
LEAST_REQUESTS = 5
TOO_SLOW = frozenset(f"{GATE}.p{percent}" for percent in REQUESTS_FOR)
"""Rules that noise can break: a second run may prove that it was."""

Setting = tuple[int, int]
"""Batch size and concurrency of a series."""
Found = dict[Setting, tuple[Finding, ...]]
"""Findings by series."""


def check_latency(
    run: SmokeRun,
    *,
    asked: Sequence[Setting],
    window: Sequence[AcceptedRun],
    limits: LatencyLimits,
    again: SmokeRun | None = None,
) -> tuple[Finding, ...]:
    """Findings for evidence that is missing or cannot be true, and for what is too slow.

    `asked` are the batch sizes and concurrencies the job asked for; whatever else was reported is
    judged too. `window` holds accepted runs, oldest first: the last `limits.window` are the
    baseline, the first a witness of drift. `again` is the run that `needs_second_run` asked for.
    """
    runs = [run] if again is None else [run, again]
    faults = tuple(fault for each in runs for fault in _faults(each, asked))
    if faults:
        return faults
    found = [_judge(each, window=window, limits=limits) for each in runs]
    troubled = set.intersection(*(_troubled(each) for each in found))
    return tuple(
        each
        for setting, series in found[-1].items()
        for each in series
        if each.severity == "warn" or setting in troubled
    )


def needs_second_run(findings: Sequence[Finding]) -> bool:
    """Whether a run failed only in what noise can do, and may be measured once more."""
    failed = failures(tuple(findings))
    return bool(failed) and all(each.rule in TOO_SLOW for each in failed)


def latency_figures(
    run: SmokeRun, *, window: Sequence[AcceptedRun], limits: LatencyLimits
) -> tuple[LatencyFigures, ...]:
    """The percentiles of each series that has latencies, beside their scaled baselines."""
    found = []
    for series in _series(run):
        if not _are_times(series.latencies_ms):
            continue
        p50_ms, p95_ms, p99_ms = (percentile_ms(series.latencies_ms, each) for each in (50, 95, 99))
        figures = LatencyFigures(
            batch=series.batch,
            concurrency=series.concurrency,
            requests=len(series.latencies_ms),
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            p99_ms=p99_ms,
        )
        if _are_times(reference_of(run, series)[0]):
            now = accepted_series(run, series)
            before = _comparable(now, window[-limits.window :])
            baseline = {e.percent: round(e.baseline_ms, 3) for e in compare(now, before, limits)}
            figures = msgspec.structs.replace(
                figures,
                reference_ms=now.reference_ms,
                baseline_p50_ms=baseline.get(50),
                baseline_p95_ms=baseline.get(95),
                baseline_runs=len(before),
            )
        found.append(figures)
    return tuple(found)


def _faults(run: SmokeRun, asked: Sequence[Setting]) -> Iterator[Finding]:
    """What makes the evidence of a run none."""
    reported = Counter((each.batch, each.concurrency) for each in _series(run))
    if not reported:
        yield _finding(run, "no-evidence", "the run reported no latencies")
        return
    for setting in sorted(set(asked) - reported.keys()):
        yield _finding(run, "missing", f"{_words(setting)}: asked for, and not reported")
    for setting, count in sorted(reported.items()):
        if count > 1:
            yield _finding(run, "repeated", f"{_words(setting)}: reported {count} times")
    for series in _series(run):
        words = _words((series.batch, series.concurrency))
        count = len(series.latencies_ms)
        if count < LEAST_REQUESTS:
            message = f"{words}: {count} requests were timed, {LEAST_REQUESTS} are needed"
            yield _finding(run, "too-few", message)
        elif not _are_times(series.latencies_ms):
            wrong = next(each for each in series.latencies_ms if not _is_time(each))
            yield _finding(run, "not-a-time", f"{words}: a request took {wrong} ms")
        elif not _are_times(reference_of(run, series)[0]):
            yield _finding(run, "no-reference", f"{words}: no reference load was timed beside it")


def _judge(run: SmokeRun, *, window: Sequence[AcceptedRun], limits: LatencyLimits) -> Found:
    """What is wrong with each series of a run whose evidence is whole."""
    return {
        (each.batch, each.concurrency): tuple(
            _judge_series(run, accepted_series(run, each), window, limits)
        )
        for each in _series(run)
    }


def _troubled(found: Found) -> set[Setting]:
    return {setting for setting, findings in found.items() if failures(findings)}


def _judge_series(
    run: SmokeRun, now: AcceptedSeries, window: Sequence[AcceptedRun], limits: LatencyLimits
) -> Iterator[Finding]:
    words, baseline = _words((now.batch, now.concurrency)), window[-limits.window :]
    before = _comparable(now, baseline)
    if not before:
        if any(each.series_of(now.batch, now.concurrency) for each in baseline):
            message = f"{words}: the accepted runs had their reference load elsewhere than on the "
            yield _finding(run, "reference", f"{message}{now.reference}")
        else:
            message = f"{words}: no accepted run to compare with; P50 {now.p50_ms:.2f} ms, "
            message += f"P95 {now.p95_ms:.2f} ms: recorded as the first if the run passes"
            yield _finding(run, "first", message, severity="warn")
        return
    machine = statistics.median(slower(now, each) for each in before)
    if machine > MOST_SCALE:
        message = f"{words}: by the reference load ({now.reference_ms:.1f} ms) this machine is "
        message += (
            f"{machine:.1f} times as slow as for the baseline; {MOST_SCALE:.0f} are allowed for"
        )
        yield _finding(run, "machine", message, severity="warn")
    too_slow = [each for each in compare(now, before, limits) if each.is_too_slow]
    for excess in too_slow:
        message = f"{words}: {_said(excess, len(before), min(machine, MOST_SCALE))}"
        yield _finding(run, f"p{excess.percent}", message)
    if not too_slow and len(window) >= 2 * limits.window:
        oldest = _comparable(now, window[: limits.window])
        for excess in compare(now, oldest, limits):
            if excess.is_too_slow:
                message = f"{words}: no run was too slow, but {excess.percent} % of the requests "
                message += f"took up to {excess.baseline_ms:.2f} ms in the first {len(oldest)} of "
                message += f"{len(window)} accepted runs, and {excess.now_ms:.2f} ms now"
                yield _finding(run, "drift", message, severity="warn")
                return


def _said(excess: Excess, runs: int, scaled: float) -> str:
    """How slow, against what, and why that is too much."""
    over_ms = excess.now_ms - excess.baseline_ms
    # A machine so fast that its scaled baseline is nothing at all lies, and is still judged.
    share = over_ms / excess.baseline_ms if excess.baseline_ms else math.inf
    machine = "" if abs(scaled - 1) < 0.01 else f", scaled by {scaled:.2f} for the machine"
    return (
        f"P{excess.percent} is {excess.now_ms:.2f} ms, {over_ms:.2f} ms or "
        f"{100 * share:.0f} % over the {excess.baseline_ms:.2f} ms of "
        f"{runs} accepted runs{machine}; allowed are {excess.allowed_ms:.2f} ms "
        f"({excess.noise_ms:.2f} for their noise)"
    )


def _comparable(now: AcceptedSeries, window: Sequence[AcceptedRun]) -> tuple[AcceptedSeries, ...]:
    """The same series of accepted runs, where the same kind of reference load was timed."""
    found = (each.series_of(now.batch, now.concurrency) for each in window)
    return tuple(each for each in found if each and each.reference == now.reference)


def _series(run: SmokeRun) -> tuple[LatencySeries, ...]:
    return run.report.series if run.report else ()


def _are_times(values_ms: Sequence[float]) -> bool:
    return bool(values_ms) and all(_is_time(each) for each in values_ms)


def _is_time(value_ms: float) -> bool:
    return math.isfinite(value_ms) and value_ms > 0


def _words(setting: Setting) -> str:
    return f"batch {setting[0]}, concurrency {setting[1]}"


def _finding(run: SmokeRun, rule: str, message: str, *, severity: Severity = "fail") -> Finding:
    return Finding(
        gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message, severity=severity
    )
