"""The utilization gate: an idle GPU, a throttled one, another's load and no data all fail."""

from __future__ import annotations

from typing import Any

import pytest

from planyard.core.findings import failures
from planyard.core.matrix_smoke import UtilizationFloor
from planyard.core.results import GpuSample, LatencySeries, SmokeReport, SmokeRun
from planyard.core.units import ByteSize
from smoke.gates.utilization import check_utilization, utilization_figures
from tests.smoke_runs import report_of, run_of

BEGAN = 1_000_000.0
"""When the container started; requests are answered from its 5th second to its 7th."""
GIB = 2**30
FLOOR = UtilizationFloor(gpu_percent=20, throttled_percent=50)


def gpu(
    percent: float | None = 80.0,
    *,
    name: str = "GPU-a",
    memory: int | None = 4 * GIB,
    before: int | None = GIB,
    throttled: tuple[str, ...] = (),
    throttled_count: int = 20,
    count: int = 20,
    idle_percent: float | None = 0.0,
) -> list[GpuSample]:
    """A GPU that is idle, but while requests are answered: `count` samples in those 2 seconds."""
    around = [
        GpuSample(at_seconds=at, gpu=name, gpu_percent=idle_percent, memory_used_bytes=used)
        for at, used in ((-0.1, before), (1.0, before), (4.9, memory), (7.1, memory), (8.0, before))
    ]
    during = [
        GpuSample(
            at_seconds=5 + 2 * number / count,
            gpu=name,
            gpu_percent=percent,
            memory_used_bytes=memory,
            throttled=throttled if number < throttled_count else (),
        )
        for number in range(count)
    ]
    return sorted([*around, *during], key=lambda each: each.at_seconds)


def report_with_times(began: float | None = 5.0, ended: float | None = 7.0) -> SmokeReport:
    return report_of(
        requests_began_seconds=None if began is None else BEGAN + began,
        requests_ended_seconds=None if ended is None else BEGAN + ended,
        series=(LatencySeries(batch=1, concurrency=1, latencies_ms=(100.0,) * 20),),
    )


def run_with(*samples: list[GpuSample], **changes: Any) -> SmokeRun:
    fields: dict[str, Any] = {
        "report": report_with_times(),
        "began_seconds": BEGAN,
        "seconds": 8.0,
        "gpu_samples": tuple(each for group in samples for each in group),
    }
    return run_of(**{**fields, **changes})


def rules(run: SmokeRun, floor: UtilizationFloor = FLOOR) -> list[str]:
    found = check_utilization(run, floor=floor)
    assert found == failures(found)
    assert {each.where for each in found} <= {run.cell}
    return [each.rule.removeprefix("utilization.") for each in found]


def said(run: SmokeRun, floor: UtilizationFloor = FLOOR) -> str:
    [finding] = check_utilization(run, floor=floor)
    return finding.message


def test_a_busy_gpu_passes():
    run = run_with(gpu(80.0))
    assert rules(run) == []
    figures = utilization_figures(run)
    assert figures is not None
    assert figures.samples == 20
    assert figures.gpu_percent == 80.0
    assert figures.peak_memory_bytes == 4 * GIB
    assert (figures.throttled_percent, figures.throttled_by) == (0.0, ())


def test_an_idle_gpu_fails_and_is_named():
    run = run_with(gpu(3.0))
    assert rules(run) == ["idle"]
    assert said(run) == "GPU-a was 3.0 % busy, 20 % is the least"


@pytest.mark.parametrize(("percent", "found"), [(20.0, []), (19.99, ["idle"])])
def test_the_floor_itself_is_enough(percent, found):
    assert rules(run_with(gpu(percent))) == found


def test_load_before_and_after_the_requests_does_not_count():
    """Optimizing a graph keeps a GPU busy; serving it is another matter."""
    run = run_with(gpu(1.0, idle_percent=100.0))
    assert rules(run) == ["idle"]
    figures = utilization_figures(run)
    assert figures is not None
    assert figures.gpu_percent == 1.0


def test_idle_time_around_the_requests_does_not_count_either():
    assert rules(run_with(gpu(25.0, idle_percent=0.0))) == []


@pytest.mark.parametrize("times", [(None, None), (5.0, None), (None, 7.0)])
def test_without_times_the_whole_run_counts(times):
    run = run_with(gpu(80.0), report=report_with_times(*times))
    figures = utilization_figures(run)
    assert figures is not None
    assert figures.samples == 24  # but not the one before the container
    assert figures.gpu_percent == pytest.approx(80 * 20 / 24)
    assert rules(run_with(gpu(80.0), report=None)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_samples": None}, "not sampled"),
        ({"gpu_samples": ()}, "not sampled"),
        ({"gpu_error": "NVML: GPU is lost"}, "GPU is lost"),
        ({"gpu_samples": None, "gpu_error": "NVML: Driver Not Loaded"}, "Driver Not Loaded"),
    ],
)
def test_no_data_and_broken_data_fail(changes, words):
    run = run_with(gpu(80.0), **changes)
    assert rules(run) == ["no-evidence"]
    assert words in said(run)


def test_no_samples_have_no_figures():
    assert utilization_figures(run_with()) is None
    assert utilization_figures(run_with(gpu_samples=None)) is None


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_samples_are_too_short_and_say_what_to_raise(count):
    report = report_with_times(5.0, 5.25)
    run = run_with(gpu(80.0, count=16), report=report)
    assert rules(run) == []  # three samples: 5.0, 5.125, 5.25
    run = run_with(gpu(80.0, count=count), report=report_with_times(5.0, 6.0))
    assert rules(run) == ["too-short"]
    assert said(run) == (
        f"{count} samples in the 1.00 s of the requests are too few to tell: "
        "raise smoke.requests to 40"
    )


def test_the_peak_is_a_peak():
    peak = GpuSample(at_seconds=6.01, gpu="GPU-a", gpu_percent=80.0, memory_used_bytes=7 * GIB)
    outside = GpuSample(at_seconds=4.0, gpu="GPU-a", gpu_percent=80.0, memory_used_bytes=9 * GIB)
    figures = utilization_figures(run_with([outside], gpu(80.0), [peak]))
    assert figures is not None
    assert figures.peak_memory_bytes == 7 * GIB


def test_a_window_without_samples_is_too_short():
    run = run_with(gpu(80.0), report=report_with_times(20.0, 22.0))
    assert rules(run) == ["too-short"]
    backwards = run_with(gpu(80.0), report=report_with_times(7.0, 5.0))
    assert rules(backwards) == ["too-short"]
    assert "the 0.00 s of the requests" in said(backwards)
    assert rules(run_with(gpu(80.0), began_seconds=0.0)) == ["too-short"]


def test_requests_that_took_no_time_are_too_short():
    run = run_with(gpu(80.0), report=report_with_times(5.01, 5.01))
    assert rules(run) == ["too-short"]
    assert said(run).endswith("let the requests take 2 s")


def test_an_idle_gpu_in_short_requests_says_that_they_were_short():
    assert "0.50 s" in said(run_with(gpu(3.0), report=report_with_times(5.0, 5.5)))


def test_somebody_elses_load_on_another_gpu_does_not_count():
    """All GPUs of the machine are passed; the run was on the idle one."""
    other = gpu(99.0, name="GPU-other", memory=30 * GIB, before=30 * GIB, idle_percent=99.0)
    run = run_with(other, gpu(2.0))
    assert rules(run) == ["idle"]
    assert "GPU-a was 2.0 %" in said(run)
    assert rules(run_with(other, gpu(60.0))) == []


def test_a_run_that_took_no_memory_was_on_no_gpu():
    """A silent fallback to the CPU, while somebody else keeps the GPU busy."""
    run = run_with(gpu(99.0, memory=GIB + 2**20, before=GIB))
    assert rules(run) == ["unused"]
    assert utilization_figures(run) is None


def test_memory_that_is_held_to_the_end_was_taken_all_the_same():
    samples = [each for each in gpu(80.0) if each.at_seconds < 8]
    assert samples[-1].memory_used_bytes == 4 * GIB
    assert rules(run_with(samples)) == []


@pytest.mark.parametrize(("more", "found"), [(32 * 2**20, []), (32 * 2**20 - 1, ["unused"])])
def test_a_cuda_context_is_enough_memory(more, found):
    assert rules(run_with(gpu(99.0, memory=GIB + more, before=GIB))) == found


def test_where_memory_is_unknown_utilization_alone_counts():
    """One memory for CPU and GPU: NVML does not say what is in use."""
    run = run_with(gpu(99.0, memory=None, before=None))
    assert rules(run) == []
    floor = UtilizationFloor(memory=ByteSize(GIB))
    assert rules(run, floor) == ["not-measured"]


def test_of_two_gpus_the_busiest_counts():
    run = run_with(gpu(5.0), gpu(70.0, name="GPU-b", memory=2 * GIB))
    figures = utilization_figures(run)
    assert figures is not None
    assert (figures.gpu_percent, figures.peak_memory_bytes) == (70.0, 2 * GIB)
    assert rules(run) == []


def test_a_slice_without_utilization_fails_unless_only_memory_is_asked_for():
    run = run_with(gpu(None, name="MIG-a", idle_percent=None))
    assert rules(run) == ["not-measured"]
    assert "gpu_percent to 0" in said(run)
    assert rules(run, UtilizationFloor(gpu_percent=0, memory=ByteSize(3 * GIB))) == []
    assert rules(run, UtilizationFloor(gpu_percent=0, memory=ByteSize(5 * GIB))) == ["memory"]


def test_a_slice_that_was_measured_once_is_too_short():
    samples = gpu(None, name="MIG-a")
    samples.append(GpuSample(at_seconds=6.01, gpu="MIG-a", gpu_percent=90.0))
    assert rules(run_with(samples)) == ["too-short"]


def test_a_slice_with_utilization_beats_one_without():
    run = run_with(gpu(None, name="MIG-a", memory=9 * GIB), gpu(30.0, name="MIG-b"))
    assert rules(run) == []
    figures = utilization_figures(run)
    assert figures is not None
    assert figures.gpu_percent == 30.0


@pytest.mark.parametrize(("least", "found"), [(4 * GIB, []), (4 * GIB + 1, ["memory"]), (None, [])])
def test_too_little_memory_fails(least, found):
    floor = UtilizationFloor(memory=None if least is None else ByteSize(least))
    assert rules(run_with(gpu(80.0)), floor) == found


def test_memory_names_both_numbers():
    floor = UtilizationFloor(memory=ByteSize(8_000_000_000))
    run = run_with(gpu(80.0, memory=4_000_000_000))
    assert "4.0 GB of GPU-a" in said(run, floor)
    assert "8.0 GB is the least" in said(run, floor)


@pytest.mark.parametrize(("count", "found"), [(10, []), (11, ["throttled"])])
def test_clocks_held_down_too_long_fail(count, found):
    reasons = ("software power cap", "hardware thermal slowdown")
    run = run_with(gpu(80.0, throttled=reasons, throttled_count=count))
    assert rules(run) == found
    figures = utilization_figures(run)
    assert figures is not None
    assert figures.throttled_percent == 5 * count
    assert figures.throttled_by == ("hardware thermal slowdown", "software power cap")


def test_throttling_names_its_reasons():
    run = run_with(gpu(80.0, throttled=("hardware power brake",), throttled_count=15))
    assert said(run) == (
        "the clocks of GPU-a were held down in 15 of 20 samples, 50 % may be: "
        "hardware power brake (15)"
    )


def test_everything_wrong_is_said_at_once():
    floor = UtilizationFloor(gpu_percent=50, memory=ByteSize(9 * GIB), throttled_percent=0)
    run = run_with(gpu(10.0, throttled=("software power cap",)))
    assert rules(run, floor) == ["idle", "memory", "throttled"]
