"""Accepted runs as the latency gate remembers them, and how far a run is over them. Pure.

A percentile is the nearest rank: the smallest latency that at least so many percent of all are not
above. Of 20 latencies P50 is the 10th, P95 the 19th, and P99 the largest. The noise of accepted
runs is told from the differences between neighbours, so that a slow drift is none.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from planyard.core.matrix_smoke import LatencyLimits
from planyard.core.results import LatencySeries, SmokeRun

REQUESTS_FOR = {50: 5, 95: 20, 99: 100}
"""The percentiles that are judged, each where accepted runs had so many requests.

With fewer, P95 and P99 are the largest of all.
"""
SPREADS = 4.5
"""How many standard deviations of the accepted runs' noise an excess has to be."""
RUNS_FOR_NOISE = 5
"""A window of fewer runs cannot tell its noise."""
FEW_RUNS_EXCESS = 1.0
"""What an excess over such a window has to be: twice as slow, and over the way from P50 to P95."""
MOST_SCALE = 4.0
"""A machine that is even slower than this many times is no excuse any more."""
_SIGMA_OF_DIFFERENCES = math.sqrt(math.pi) / 2
"""From the mean difference of neighbours to the standard deviation of one, for normal noise."""
_DIGITS = 4

Count = Annotated[int, Meta(ge=1)]
Time = Annotated[float, Meta(gt=0)]
ReferenceKind = Literal["device", "host"]
"""Where the reference load ran: on the GPU beside the requests, or on the host's cores."""


class AcceptedSeries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Percentiles in ms of one series of an accepted run, and of the reference load beside it."""

    batch: Count
    concurrency: Count
    requests: Count
    p50_ms: Time
    p95_ms: Time
    p99_ms: Time
    reference_ms: Time
    """The median."""
    reference: ReferenceKind

    def percentile_ms(self, percent: int) -> float:
        """P50, P95 or P99."""
        return float(getattr(self, f"p{percent}_ms"))


class AcceptedRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run that passed its gates: when (RFC 3339 in UTC), which image, what it served.

    `served` is the digest of its plan, or the identity of its model.
    """

    created: str
    image: str
    served: str
    series: Annotated[tuple[AcceptedSeries, ...], Meta(min_length=1)]

    def series_of(self, batch: int, concurrency: int) -> AcceptedSeries | None:
        """The series at one batch size and concurrency."""
        for each in self.series:
            if (each.batch, each.concurrency) == (batch, concurrency):
                return each
        return None


def percentile_ms(latencies_ms: Sequence[float], percent: int) -> float:
    """The nearest rank of at least one latency; `percent` is 1 to 100."""
    if not latencies_ms:
        raise ValueError("no latencies have no percentile")
    rank = -(-percent * len(latencies_ms) // 100)  # rounded up, without floating point
    return sorted(latencies_ms)[max(1, rank) - 1]


def reference_of(run: SmokeRun, series: LatencySeries) -> tuple[tuple[float, ...], ReferenceKind]:
    """The times of the reference load that belong to a series: the device's before the host's."""
    if series.reference_ms:
        return series.reference_ms, "device"
    return run.reference_ms, "host"


def accepted_series(run: SmokeRun, series: LatencySeries) -> AcceptedSeries:
    """What is kept of a series; it has latencies, and a reference load beside it."""
    reference_ms, kind = reference_of(run, series)
    found = {
        f"p{percent}_ms": round(percentile_ms(series.latencies_ms, percent), _DIGITS)
        for percent in REQUESTS_FOR
    }
    return AcceptedSeries(
        batch=series.batch,
        concurrency=series.concurrency,
        requests=len(series.latencies_ms),
        reference_ms=round(statistics.median(reference_ms), _DIGITS),
        reference=kind,
        **found,
    )


def accepted_run(run: SmokeRun, *, created: str, image: str, served: str) -> AcceptedRun:
    """What is kept of a run that passed the latency gate. `image` is its OCI manifest digest."""
    series = run.report.series if run.report else ()
    return AcceptedRun(
        created=created,
        image=image,
        served=served,
        series=tuple(accepted_series(run, each) for each in series),
    )


@dataclass(frozen=True, kw_only=True)
class Excess:
    """A percentile of a series and its baseline, in ms, scaled to the machine of this run."""

    percent: int
    now_ms: float
    baseline_ms: float
    noise_ms: float
    """What the accepted runs' own noise allows."""
    allowed_ms: float
    """The most of the relative limit, the absolute one and the noise."""

    @property
    def is_too_slow(self) -> bool:
        """Whether the excess is more than everything that is allowed."""
        return not self.now_ms - self.baseline_ms <= self.allowed_ms


def compare(
    now: AcceptedSeries, before: Sequence[AcceptedSeries], limits: LatencyLimits
) -> tuple[Excess, ...]:
    """Each percentile that can be judged against the same series of accepted runs, oldest first.

    A series that was cut short is judged all the same: slow runs have fewer requests.
    """
    found = []
    for percent, requests in REQUESTS_FOR.items():
        judged = [each for each in before if each.requests >= requests]
        if judged:
            found.append(_excess(percent, now, judged, limits))
    return tuple(found)


def _excess(
    percent: int, now: AcceptedSeries, before: Sequence[AcceptedSeries], limits: LatencyLimits
) -> Excess:
    scaled = [each.percentile_ms(percent) * scale(now, each) for each in before]
    baseline_ms = statistics.median(scaled)
    if len(scaled) >= RUNS_FOR_NOISE:
        noise_ms = SPREADS * noise_of(scaled)
    else:
        way_ms = statistics.median(
            (each.p95_ms - each.p50_ms) * scale(now, each) for each in before
        )
        noise_ms = max(FEW_RUNS_EXCESS * baseline_ms, way_ms)
    return Excess(
        percent=percent,
        now_ms=now.percentile_ms(percent),
        baseline_ms=baseline_ms,
        noise_ms=noise_ms,
        allowed_ms=max(limits.relative * baseline_ms, limits.absolute_ms, noise_ms),
    )


def slower(now: AcceptedSeries, then: AcceptedSeries) -> float:
    """How much slower the reference load was now than then."""
    return now.reference_ms / then.reference_ms


def scale(now: AcceptedSeries, then: AcceptedSeries) -> float:
    """By how much a latency may be longer now than then; there is an end to blaming the machine."""
    return min(slower(now, then), MOST_SCALE)


def noise_of(values: Sequence[float]) -> float:
    """The standard deviation of at least two values around a level that may drift.

    The mean, not the median: most neighbours are alike where a machine is busy now and then.
    """
    differences = [abs(after - before) for before, after in itertools.pairwise(values)]
    return _SIGMA_OF_DIFFERENCES * statistics.fmean(differences)
