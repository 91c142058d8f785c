"""The utilization gate: a GPU was busy, and held data of this run, while requests were answered.

NVML is asked by the host. No data is a failure. A GPU whose memory in use never changed was not
used by this run, however busy somebody else keeps it. What NVML's rates mean: docs/gpu-gates.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from planyard.core.findings import Finding
from planyard.core.matrix_smoke import UtilizationFloor
from planyard.core.results import GpuSample, SmokeReport, SmokeRun, UtilizationFigures
from planyard.core.units import format_bytes

GATE = "utilization"
MIN_SAMPLES = 3
USED_BYTES = 32 * 2**20
"""A program that uses a GPU takes more than this: the CUDA context alone does."""
TELLING_SECONDS = 2.0
"""Requests for this long are sure to show: a rate of NVML covers up to one second."""


def utilization_figures(run: SmokeRun) -> UtilizationFigures | None:
    """Means and peaks of the busiest GPU that the run used, or None where nothing was sampled."""
    samples = _busiest(run)
    if not samples:
        return None
    throttled = [each for each in samples if each.throttled]
    return UtilizationFigures(
        samples=len(samples),
        gpu_percent=_mean_percent(samples),
        peak_memory_bytes=_peak_memory(samples),
        throttled_percent=100 * len(throttled) / len(samples),
        throttled_by=tuple(sorted(_reasons(samples))),
    )


def check_utilization(run: SmokeRun, *, floor: UtilizationFloor) -> tuple[Finding, ...]:
    """Findings when the GPU was less busy than the floor, or NVML did not say what it was."""
    if run.gpu_error:
        message = f"NVML could not be sampled to the end of the run: {run.gpu_error}"
        return (_finding(run, "no-evidence", message),)
    if not run.gpu_samples:
        return (_finding(run, "no-evidence", "NVML was not sampled during the run"),)
    if not _used(run.gpu_samples):
        message = "memory in use changed on no GPU: nothing of this run was on one"
        return (_finding(run, "unused", message),)
    samples = _busiest(run)
    if len(samples) < MIN_SAMPLES:
        return (_finding(run, "too-short", _too_short(run, len(samples))),)
    return (
        *_check_busy(run, samples, floor=floor),
        *_check_memory(run, samples, floor=floor),
        *_check_throttling(run, samples, floor=floor),
    )


def _check_busy(
    run: SmokeRun, samples: Sequence[GpuSample], *, floor: UtilizationFloor
) -> Iterator[Finding]:
    measured = sum(each.gpu_percent is not None for each in samples)
    mean = _mean_percent(samples)
    if floor.gpu_percent == 0:
        return
    if mean is None:
        message = (
            f"NVML cannot say how busy {samples[0].gpu} was (a MIG slice before Hopper, a vGPU): "
            "set utilization_floor.gpu_percent to 0 and ask for memory instead"
        )
        yield _finding(run, "not-measured", message)
    elif measured < MIN_SAMPLES:
        yield _finding(run, "too-short", _too_short(run, measured))
    elif not mean >= floor.gpu_percent:
        message = f"{samples[0].gpu} was {mean:.1f} % busy, {floor.gpu_percent:g} % is the least"
        if _seconds(run) < TELLING_SECONDS:
            message += f"; the requests took {_seconds(run):.2f} s, and a rate covers up to 1 s"
        yield _finding(run, "idle", message)


def _check_memory(
    run: SmokeRun, samples: Sequence[GpuSample], *, floor: UtilizationFloor
) -> Iterator[Finding]:
    if floor.memory is None:
        return
    peak = _peak_memory(samples)
    if peak is None:
        message = f"NVML cannot say how much memory of {samples[0].gpu} was in use"
        yield _finding(run, "not-measured", message)
    elif peak < floor.memory:
        message = (
            f"{format_bytes(peak)} of {samples[0].gpu} were in use at the peak, "
            f"{format_bytes(floor.memory)} is the least"
        )
        yield _finding(run, "memory", message)


def _check_throttling(
    run: SmokeRun, samples: Sequence[GpuSample], *, floor: UtilizationFloor
) -> Iterator[Finding]:
    throttled = sum(bool(each.throttled) for each in samples)
    if 100 * throttled <= floor.throttled_percent * len(samples):
        return
    reasons = ", ".join(f"{name} ({count})" for name, count in _reasons(samples).most_common())
    message = (
        f"the clocks of {samples[0].gpu} were held down in {throttled} of {len(samples)} samples, "
        f"{floor.throttled_percent:g} % may be: {reasons}"
    )
    yield _finding(run, "throttled", message)


def _busiest(run: SmokeRun) -> tuple[GpuSample, ...]:
    """The samples of the GPU with the highest mean, taken while requests were answered."""
    began, ended = _window(run)
    by_gpu: dict[str, list[GpuSample]] = {}
    for each in _used(run.gpu_samples or ()):
        if began <= run.began_seconds + each.at_seconds <= ended:
            by_gpu.setdefault(each.gpu, []).append(each)

    busiest = max(by_gpu.values(), key=_rank, default=[])
    return tuple(busiest)


def _rank(samples: Sequence[GpuSample]) -> tuple[float, int]:
    mean = _mean_percent(samples)
    return (-1.0 if mean is None else mean, _peak_memory(samples) or 0)


def _used(samples: Sequence[GpuSample]) -> tuple[GpuSample, ...]:
    """The samples of GPUs whose memory in use changed at all, before or during the requests.

    Where NVML does not know the memory (one memory for CPU and GPU) this cannot be told apart.
    """
    least: dict[str, int] = {}
    most: dict[str, int] = {}
    for each in samples:
        if each.memory_used_bytes is not None:
            least[each.gpu] = min(each.memory_used_bytes, least.get(each.gpu, 2**63))
            most[each.gpu] = max(each.memory_used_bytes, most.get(each.gpu, 0))
    unused = {gpu for gpu in least if most[gpu] - least[gpu] < USED_BYTES}
    return tuple(each for each in samples if each.gpu not in unused)


def _window(run: SmokeRun) -> tuple[float, float]:
    """When requests were answered, in seconds of the epoch; the whole run where nothing says."""
    report = run.report or SmokeReport()
    began, ended = report.requests_began_seconds, report.requests_ended_seconds
    if began is None or ended is None:
        return run.began_seconds, run.began_seconds + run.seconds
    return began, ended


def _seconds(run: SmokeRun) -> float:
    began, ended = _window(run)
    return max(0.0, ended - began)


def _too_short(run: SmokeRun, count: int) -> str:
    """What to do about requests that were over before NVML had seen them."""
    seconds, report = _seconds(run), run.report or SmokeReport()
    message = f"{count} samples in the {seconds:.2f} s of the requests are too few to tell"
    longest = max((len(each.latencies_ms) for each in report.series), default=0)
    if longest and seconds:
        enough = math.ceil(longest * TELLING_SECONDS / seconds)
        return f"{message}: raise smoke.requests to {max(enough, longest + 1)}"
    return f"{message}: let the requests take {TELLING_SECONDS:g} s"


def _mean_percent(samples: Sequence[GpuSample]) -> float | None:
    known = [each.gpu_percent for each in samples if each.gpu_percent is not None]
    return sum(known) / len(known) if known else None


def _peak_memory(samples: Sequence[GpuSample]) -> int | None:
    known = [each.memory_used_bytes for each in samples if each.memory_used_bytes is not None]
    return max(known, default=None)


def _reasons(samples: Sequence[GpuSample]) -> Counter[str]:
    return Counter(reason for each in samples for reason in each.throttled)


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
