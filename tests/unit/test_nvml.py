"""The NVML sampler against a fake driver, through all of pynvml: see tests/fake_nvml.py."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from planyard.core.results import GpuSample
from planyard.edge.nvml import Picture, Sampler
from tests.fake_nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    INVALID_ARGUMENT,
    NO_DATA,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    WAIT_SECONDS,
    Board,
    FakeNvml,
    Slice,
    fake_driver,
)

TICK = 0.001
EACH = "nvmlDeviceGetMemoryInfo_v2"
"""Asked once for each GPU in each tick."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    """Put a fake driver in place."""

    def put(*boards: Board, **changes: object) -> FakeNvml:
        return fake_driver(FakeNvml(boards=list(boards), **changes), monkeypatch)

    return put


def sampled(fake: FakeNvml, *, calls: int = 3, until: str = EACH) -> Sampler:
    """A sampler that ended after some ticks of a fake that answers."""
    with Sampler(interval_seconds=TICK, patience_seconds=WAIT_SECONDS) as sampler:
        fake.wait_for(until, calls)
    return sampler


def test_a_gpu_is_sampled_with_everything_nvml_says(driver):
    fake = driver(Board(uuid="GPU-a", reasons=0x04 | 0x40 | 0x01 | 0x02))
    sampler = sampled(fake, calls=4)
    assert sampler.error == ""
    assert len(sampler.samples) >= 3
    assert sampler.samples[0] == GpuSample(
        at_seconds=sampler.samples[0].at_seconds,
        gpu="GPU-a",
        gpu_percent=90.0,
        memory_percent=40.0,
        memory_used_bytes=8 << 30,
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        power_watts=650.5,
        throttled=("software power cap", "hardware thermal slowdown"),
    )
    times = [each.at_seconds for each in sampler.samples]
    assert times == sorted(times)
    assert fake.calls["nvmlShutdown"] == 1


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x01, None),  # idle
        (0x02, None),  # application clocks
        (0x04, "software power cap"),
        (0x08, "hardware slowdown"),
        (0x10, None),  # sync boost
        (0x20, "software thermal slowdown"),
        (0x40, "hardware thermal slowdown"),
        (0x80, "hardware power brake"),
        (0x100, None),  # display clocks
    ],
)
def test_only_heat_and_power_count_as_throttling(driver, bit, name):
    samples = sampled(driver(Board(uuid="GPU-a", reasons=bit)), calls=1).samples
    assert samples[0].throttled == ((name,) if name else ())


def test_the_bits_are_those_of_pynvml():
    assert pynvml.nvmlClocksEventReasonSwPowerCap == 0x04
    assert pynvml.nvmlClocksThrottleReasonHwSlowdown == 0x08
    assert pynvml.nvmlClocksEventReasonSwThermalSlowdown == 0x20
    assert pynvml.nvmlClocksThrottleReasonHwThermalSlowdown == 0x40
    assert pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown == 0x80


def test_two_gpus_are_told_apart(driver):
    fake = driver(Board(uuid="GPU-a", percent=5), Board(uuid="GPU-b", percent=95))
    sampler = sampled(fake, calls=6)
    assert {(each.gpu, each.gpu_percent) for each in sampler.samples} == {
        ("GPU-a", 5.0),
        ("GPU-b", 95.0),
    }
    assert [each.gpu for each in sampler.samples[:4]] == ["GPU-a", "GPU-b"] * 2


def two_slices(**changes: object) -> Board:
    slices = (
        Slice(uuid="MIG-a", instance=3, memory_used=1 << 30, percent=12.5),
        None,
        Slice(uuid="MIG-b", instance=5, memory_used=2 << 30, percent=80.0),
    )
    return Board(uuid="GPU-mig", slices=slices, reasons=0x08, **changes)


def test_in_mig_mode_each_slice_is_sampled_by_its_counters(driver):
    fake = driver(two_slices())
    sampler = sampled(fake, until="nvmlGpmMetricsGet", calls=4)
    assert sampler.error == ""
    assert {each.gpu for each in sampler.samples} == {"MIG-a", "MIG-b"}
    first, last = sampler.samples[:2], sampler.samples[-2:]
    assert [each.gpu_percent for each in first] == [None, None]  # one sample is no interval
    assert [each.gpu_percent for each in last] == [12.5, 80.0]
    assert [each.memory_used_bytes for each in last] == [1 << 30, 2 << 30]
    # The board's clocks are the slices' clocks; its power is not theirs alone.
    assert {(each.sm_clock_mhz, each.power_watts) for each in last} == {(1980, None)}
    assert {each.throttled for each in last} == {("hardware slowdown",)}
    times = [each.at_seconds for each in sampler.samples if each.gpu == "MIG-a"]
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.1  # the counters need it
    assert fake.calls["nvmlGpmSampleAlloc"] == 4
    assert fake.allocated == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"refuse": {"nvmlGpmMigSampleGet": NOT_SUPPORTED}},
        {"refuse": {"nvmlGpmMetricsGet": NOT_SUPPORTED}},
        {"missing": {"nvmlGpmQueryDeviceSupport"}},
        {"metric_return": NO_DATA},
    ],
)
def test_a_slice_without_counters_has_memory_and_no_utilization(driver, changes):
    fake = driver(two_slices(), **changes)
    sampler = sampled(fake, calls=4)
    assert sampler.error == ""
    assert {each.gpu_percent for each in sampler.samples} == {None}
    assert {each.memory_used_bytes for each in sampler.samples} == {1 << 30, 2 << 30}


def test_a_board_older_than_hopper_is_not_asked_for_counters(driver):
    fake = driver(two_slices(has_counters=False))
    sampler = sampled(fake, calls=4)
    assert {each.gpu_percent for each in sampler.samples} == {None}
    assert fake.calls["nvmlGpmMigSampleGet"] == 0


def test_mig_mode_without_a_slice_is_no_gpu(driver):
    sampler = sampled(driver(Board(uuid="GPU-a", slices=(None, None))), calls=0)
    assert sampler.samples == ()
    assert "no GPU" in sampler.error


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, INVALID_ARGUMENT, NO_DATA])
def test_what_a_gpu_does_not_say_is_none(driver, code):
    names = (
        "UtilizationRates",
        "MemoryInfo",
        "MemoryInfo_v2",
        "ClockInfo",
        "PowerUsage",
        "MigMode",
    )
    refuse = {f"nvmlDeviceGet{name}": code for name in names}
    sampler = sampled(driver(Board(uuid="GPU-a"), refuse=refuse))
    assert sampler.error == ""
    first = sampler.samples[0]
    assert first == GpuSample(at_seconds=first.at_seconds, gpu="GPU-a")


def test_an_older_driver_is_asked_by_older_names(driver):
    missing = {EACH, "nvmlDeviceGetCurrentClocksEventReasons"}
    fake = driver(Board(uuid="GPU-a", reasons=0x80), missing=missing)
    sampler = sampled(fake, until="nvmlDeviceGetMemoryInfo")
    assert sampler.samples[0].throttled == ("hardware power brake",)
    assert sampler.samples[0].memory_used_bytes == (8 << 30) + (512 << 20)


@pytest.mark.parametrize(
    ("code", "said"), [(GPU_IS_LOST, "GPU is lost"), (UNKNOWN, "Unknown Error")]
)
def test_a_gpu_lost_in_the_middle_ends_with_an_error_and_what_was_seen(driver, code, said):
    fake = driver(Board(uuid="GPU-a"))
    fake.on_call["nvmlDeviceGetUtilizationRates"] = lambda call: code if call > 2 else None
    sampler = sampled(fake, until="nvmlShutdown", calls=1)
    assert said in sampler.error
    assert len(sampler.samples) == 2


def test_a_driver_that_hangs_is_given_up(driver):
    release, hung = threading.Event(), threading.Event()
    fake = driver(Board(uuid="GPU-a"))

    def hang(call: int) -> None:
        if call == 3:
            hung.set()
            release.wait(WAIT_SECONDS)

    fake.on_call["nvmlDeviceGetPowerUsage"] = hang
    try:
        with Sampler(interval_seconds=TICK, patience_seconds=WAIT_SECONDS) as sampler:
            assert hung.wait(WAIT_SECONDS)
            sampler._patience_seconds = 0.01  # until here, a slow machine must not end it
        assert "has not answered" in sampler.error
        assert "nvidia-smi" in sampler.error
        assert len(sampler.samples) == 2
    finally:
        release.set()
    fake.wait_for("nvmlShutdown", 1)
    assert len(sampler.samples) == 2  # what came too late is not evidence


def test_an_answer_that_comes_too_late_is_an_error(driver):
    """A hole in the picture, though the driver is well when the run ends."""
    fake, waits = driver(Board(uuid="GPU-a")), threading.Event()

    def pause(call: int) -> None:
        if call == 2:
            waits.wait(0.2)

    fake.on_call["nvmlDeviceGetPowerUsage"] = pause
    with Sampler(interval_seconds=TICK, patience_seconds=0.05) as sampler:
        fake.wait_for("nvmlShutdown", 1)
    assert "answer" in sampler.error


def test_a_driver_that_hangs_while_it_starts_is_given_up(driver):
    release = threading.Event()
    fake = driver(Board(uuid="GPU-a"))
    fake.on_call["nvmlInitWithFlags"] = lambda call: release.wait(WAIT_SECONDS) and None
    try:
        with Sampler(interval_seconds=TICK, patience_seconds=0.05) as sampler:
            pass
        assert "has not answered" in sampler.error
        assert sampler.samples == ()
    finally:
        release.set()
    fake.wait_for("nvmlShutdown", 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sampling_that_ended_by_a_bug_is_no_whole_picture(driver, monkeypatch):
    fake, seen = driver(Board(uuid="GPU-a")), []

    def read(nvml: object, place: object, at_seconds: float) -> GpuSample:
        seen.append(at_seconds)
        if len(seen) == 3:
            raise RuntimeError("a bug")
        return sample(1)

    monkeypatch.setattr("planyard.edge.nvml._read", read)
    sampler = sampled(fake, until="nvmlShutdown", calls=1)
    assert len(sampler.samples) == 2
    assert "before the run did" in sampler.error


HANGS = """
import threading
from unittest.mock import patch
from planyard.edge.nvml import Sampler
from tests.fake_nvml import Board, FakeNvml
import pynvml
fake = FakeNvml(boards=[Board(uuid="GPU-a")])
fake.on_call["nvmlDeviceGetPowerUsage"] = lambda call: threading.Event().wait()
pynvml.nvmlLib = fake
with Sampler(interval_seconds=0.001, patience_seconds=0.05) as sampler:
    pass
assert "has not answered" in sampler.error, sampler.error
"""


def test_a_driver_that_hangs_does_not_keep_the_program_from_ending():
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        cwd=Path(__file__).parents[2],
        timeout=60,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_block_begins_with_a_first_sample(driver):
    """So that the memory in use before the container is among the evidence."""
    fake = driver(Board(uuid="GPU-a"))
    with Sampler(interval_seconds=TICK, patience_seconds=WAIT_SECONDS):
        assert fake.calls[EACH] >= 1


def test_no_driver_says_so(monkeypatch):
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    with Sampler() as sampler:
        pass
    assert sampler.error == "NVML: NVML Shared Library Not Found"
    assert sampler.samples == ()


def test_a_driver_that_is_not_loaded_says_so(driver):
    driver(Board(uuid="GPU-a"), refuse={"nvmlInitWithFlags": DRIVER_NOT_LOADED})
    with Sampler() as sampler:
        pass
    assert sampler.error == "NVML: Driver Not Loaded"


def test_no_gpu_is_an_error(driver):
    assert "no GPU" in sampled(driver(), calls=0).error


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Sampler() as sampler:
        pass
    assert "nvidia-ml-py is not installed" in sampler.error


def test_samples_can_count_from_the_start_of_the_container(driver):
    sampler = sampled(driver(Board(uuid="GPU-a")))
    moved = sampler.samples_since(sampler.began_seconds + 1000)
    assert len(moved) == len(sampler.samples)
    for one, other in zip(moved, sampler.samples, strict=True):
        assert one.at_seconds == pytest.approx(other.at_seconds - 1000, abs=0.001)
        assert one.at_seconds < 0


def sample(number: int, **changes: object) -> GpuSample:
    fields = {"gpu_percent": float(number), "memory_used_bytes": number, "power_watts": 1.0}
    return GpuSample(at_seconds=float(number), gpu="GPU-a", **{**fields, **changes})


def test_a_long_run_is_thinned_out_and_keeps_its_picture():
    picture, number = Picture(limit=64), 0
    while number < 1000:
        peak = {"memory_used_bytes": 10**9} if 500 <= number < 532 else {}
        picture.add((sample(number, **peak),))
        number += picture.stride
    kept = picture.samples()
    assert 32 <= len(kept) <= 64
    assert picture.stride == 16
    assert kept[0] == sample(0)
    assert kept[-1].at_seconds >= 1000 - 16
    pauses = {b.at_seconds - a.at_seconds for a, b in itertools.pairwise(kept[1:])}
    assert pauses == {16.0}
    assert max(each.memory_used_bytes or 0 for each in kept) == 10**9
    times = [each.at_seconds for each in kept]
    assert times == sorted(times)


def test_thinning_leaves_the_mean_as_it_was():
    picture = Picture(limit=8)
    for number in range(9):
        picture.add((sample(number),))
    assert [each.gpu_percent for each in picture.samples()] == [0.0, 1.5, 3.5, 5.5, 7.5]


def test_thinning_keeps_what_is_unknown_unknown():
    picture = Picture(limit=2)
    for number in range(3):
        picture.add((sample(number, gpu_percent=None, memory_used_bytes=None),))
    assert [each.gpu_percent for each in picture.samples()] == [None, None]
    assert [each.memory_used_bytes for each in picture.samples()] == [None, None]


def test_thinning_merges_what_one_of_two_knows():
    picture = Picture(limit=2)
    for each in (sample(0), sample(1, gpu_percent=None), sample(2, memory_used_bytes=None)):
        picture.add((each,))
    assert picture.samples()[1].gpu_percent == 2.0
    assert picture.samples()[1].memory_used_bytes == 1


def test_thinning_takes_zero_for_a_number():
    picture = Picture(limit=2)
    for each in (sample(0), sample(0), sample(2)):
        picture.add((each,))
    assert picture.samples()[1].gpu_percent == 1.0
    assert picture.samples()[1].memory_used_bytes == 2


def test_a_short_run_is_not_thinned():
    picture = Picture(limit=64)
    for number in range(64):
        picture.add((sample(number), sample(number, gpu_percent=0.0)))
    assert len(picture.samples()) == 128
    assert picture.stride == 1
