"""What NVML says of this machine's GPUs while something runs on them; nothing else asks it.

A thread asks. A driver that is absent, goes away or hangs ends the sampling with an error, and
never the program. What NVML does not offer for a GPU or a MIG slice is None.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import msgspec

from planyard.core.results import GpuSample

GPM_SECONDS = 0.12
"""Two samples of a slice's counters have to be more than 0.1 s apart (nvmlGpmMetricsGet)."""
KEPT_TICKS = 8192
"""Moments that are kept of each GPU: 13 minutes at ten a second."""
THROTTLE_REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that are heat or power; not idle, not settings."""

_Answer = TypeVar("_Answer")
_Tick = tuple[GpuSample, ...]


class _SilentError(Exception):
    """NVML answered after all, but too late."""


class Sampler:
    """Samples every GPU, or every slice of a GPU in MIG mode, while its block runs.

    The block begins once there is a first sample: the memory in use before anything ran. `error`
    says why the picture is not whole: no driver, a lost GPU, no answer for `patience_seconds`.
    """

    def __init__(self, *, interval_seconds: float = 0.1, patience_seconds: float = 20.0) -> None:
        self.began_seconds = 0.0
        """When the sampling began, in seconds of the epoch: what `samples` count from."""
        self.samples: tuple[GpuSample, ...] = ()
        """All samples in order of time, once the block has ended; thinned out on long runs."""
        self.error = ""
        self._interval_seconds = interval_seconds
        self._patience_seconds = patience_seconds
        self._picture = Picture()
        self._begun, self._stop = threading.Event(), threading.Event()
        self._problem: str | None = "the sampling of NVML ended before the run did"
        self._answered = 0.0
        # A daemon: where the driver hangs, nothing can end this thread but the program's end.
        self._thread = threading.Thread(target=self._work, name="nvml", daemon=True)

    def __enter__(self) -> Self:
        """Start, and wait for the first sample."""
        self.began_seconds, self._answered = time.time(), time.monotonic()
        self._thread.start()
        self._begun.wait(self._patience_seconds)
        return self

    def __exit__(self, *_: object) -> None:
        """End the sampling, or give it up."""
        self._stop.set()
        patience = self._patience_seconds
        self._thread.join(max(0.0, patience - (time.monotonic() - self._answered)))
        self.error = self._problem or ""
        if self._thread.is_alive():
            self.error = f"NVML has not answered for {patience:g} s: try nvidia-smi on this machine"
        self.samples = self._picture.samples()

    def samples_since(self, began_seconds: float) -> tuple[GpuSample, ...]:
        """The samples with times that count from another moment; those before it are negative."""
        earlier = began_seconds - self.began_seconds
        return tuple(
            msgspec.structs.replace(each, at_seconds=round(each.at_seconds - earlier, 4))
            for each in self.samples
        )

    def _work(self) -> None:
        try:
            import pynvml
        except ImportError:
            self._problem = "nvidia-ml-py is not installed: python3 -m pip install nvidia-ml-py"
            self._begun.set()
            return
        try:
            pynvml.nvmlInit()
            try:
                self._sample(pynvml)
            finally:
                pynvml.nvmlShutdown()
        except (pynvml.NVMLError, _SilentError) as error:
            self._problem = f"NVML: {error}"
        finally:
            self._begun.set()

    def _sample(self, nvml: Any) -> None:
        """Until the block ends; raises NVMLError for all that is worse than "not supported"."""
        places = tuple(_places(nvml))
        if not places:
            self._problem = "NVML sees no GPU, or only GPUs in MIG mode without a slice"
            return
        counters = [place.gpm for place in places if place.gpm]
        least = GPM_SECONDS if counters else 0.0
        try:
            self._repeat(nvml, places, interval=max(self._interval_seconds, least))
        finally:
            for each in counters:
                each.close()

    def _repeat(self, nvml: Any, places: tuple[_Place, ...], *, interval: float) -> None:
        while True:
            at_seconds = round(time.time() - self.began_seconds, 4)
            self._picture.add(tuple(_read(nvml, place, at_seconds) for place in places))
            answered, before = time.monotonic(), self._answered
            if answered - before > interval * self._picture.stride + self._patience_seconds:
                raise _SilentError(f"no answer for {answered - before:.1f} s")
            self._answered = answered
            self._begun.set()
            if self._stop.wait(interval * self._picture.stride):
                self._problem = None
                return


class Picture:
    """At most `limit` ticks, each a sample of every GPU; beyond it neighbours become one.

    Two that become one leave the mean of their rates and the peak of their memory, so that means
    and peaks over the whole stay what they were. The first tick stays as it was.
    """

    def __init__(self, *, limit: int = KEPT_TICKS) -> None:
        self.stride = 1
        """How many times longer the pauses are now: one tick stands for as much as any other."""
        self._limit = limit
        self._ticks: list[_Tick] = []

    def add(self, tick: _Tick) -> None:
        """Add the next tick; its samples are of the same GPUs in the same order as any other's."""
        self._ticks.append(tick)
        if len(self._ticks) <= self._limit:
            return
        first, *rest = self._ticks
        pairs = itertools.zip_longest(rest[::2], rest[1::2])
        self._ticks = [first, *(_merged(a, b) if b else a for a, b in pairs)]
        self.stride *= 2

    def samples(self) -> tuple[GpuSample, ...]:
        """All samples in order of time."""
        return tuple(itertools.chain.from_iterable(self._ticks))


def _merged(one: _Tick, other: _Tick) -> _Tick:
    return tuple(
        msgspec.structs.replace(
            b,
            gpu_percent=_mean(a.gpu_percent, b.gpu_percent),
            memory_percent=_mean(a.memory_percent, b.memory_percent),
            memory_used_bytes=max(_known(a.memory_used_bytes, b.memory_used_bytes), default=None),
            power_watts=_mean(a.power_watts, b.power_watts),
        )
        for a, b in zip(one, other, strict=True)
    )


def _mean(*values: float | None) -> float | None:
    known = _known(*values)
    return sum(known) / len(known) if known else None


def _known(*values: _Answer | None) -> list[_Answer]:
    return [each for each in values if each is not None]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What is sampled: a whole GPU, or a slice of one (`gpm` then), by its UUID."""

    name: str
    handle: Any
    board: Any
    gpm: _SliceLoad | None = None


def _places(nvml: Any) -> Iterator[_Place]:
    for index in range(nvml.nvmlDeviceGetCount()):
        board = nvml.nvmlDeviceGetHandleByIndex(index)
        mode = _ask(nvml, functools.partial(nvml.nvmlDeviceGetMigMode, board))
        if mode and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE:
            yield from _slices(nvml, board)
        else:
            yield _Place(name=nvml.nvmlDeviceGetUUID(board), handle=board, board=board)


def _slices(nvml: Any, board: Any) -> Iterator[_Place]:
    support = _ask(nvml, lambda: nvml.nvmlGpmQueryDeviceSupport(board))
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(board)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(board, index)
        except nvml.NVMLError_NotFound:
            continue
        gpm = _SliceLoad(
            nvml,
            board=board,
            instance=nvml.nvmlDeviceGetGpuInstanceId(handle),
            supported=bool(support and support.isSupportedDevice),
        )
        yield _Place(name=nvml.nvmlDeviceGetUUID(handle), handle=handle, board=board, gpm=gpm)


class _SliceLoad:
    """Utilization of a MIG slice from its counters (GPM), which Hopper is the first to have.

    nvmlDeviceGetUtilizationRates is not supported in MIG mode, on GPU and slice alike.
    """

    def __init__(self, nvml: Any, *, board: Any, instance: int, supported: bool) -> None:
        self._nvml, self._board, self._instance = nvml, board, instance
        self._supported = supported
        self._before: Any = None
        self._spare: Any = None

    def percent(self) -> float | None:
        """Share of the time since the last call in which anything ran; None for the first call."""
        return _ask(self._nvml, self._measure) if self._supported else None

    def close(self) -> None:
        """Give the counters' memory back."""
        for each in filter(None, (self._before, self._spare)):
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlGpmSampleFree(each)

    def _measure(self) -> float | None:
        nvml, before = self._nvml, self._before
        now = self._spare or nvml.nvmlGpmSampleAlloc()
        nvml.nvmlGpmMigSampleGet(self._board, self._instance, now)
        self._before, self._spare = now, before
        if before is None:
            return None
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
        asked.sample1, asked.sample2 = before, now
        asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_GRAPHICS_UTIL
        metric = nvml.nvmlGpmMetricsGet(asked).metrics[0]
        return float(metric.value) if metric.nvmlReturn == nvml.NVML_SUCCESS else None


def _read(nvml: Any, place: _Place, at_seconds: float) -> GpuSample:
    """One sample; a slice has the clocks of its board, and no power of its own."""
    handle, board = place.handle, place.board
    power_mw = None
    if place.gpm:
        percent, memory_percent = place.gpm.percent(), None
    else:
        rates = _ask(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        percent = float(rates.gpu) if rates else None
        memory_percent = float(rates.memory) if rates else None
        power_mw = _ask(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    return GpuSample(
        at_seconds=at_seconds,
        gpu=place.name,
        gpu_percent=percent,
        memory_percent=memory_percent,
        memory_used_bytes=_memory_used(nvml, handle),
        sm_clock_mhz=_ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(board, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=_ask(
            nvml, lambda: nvml.nvmlDeviceGetClockInfo(board, nvml.NVML_CLOCK_MEM)
        ),
        power_watts=None if power_mw is None else power_mw / 1000,
        throttled=_throttled(nvml, board),
    )


def _memory_used(nvml: Any, handle: Any) -> int | None:
    """Bytes in use by programs; drivers before 510 count what they reserve themselves as well."""
    memory = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))
    memory = memory or _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return int(memory.used) if memory else None


def _throttled(nvml: Any, board: Any) -> tuple[str, ...]:
    bits = _ask(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(board))
    if bits is None:  # drivers before 535 know it by its old name
        bits = _ask(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(board))
    return tuple(name for bit, name in THROTTLE_REASONS.items() if (bits or 0) & bit)


def _ask(nvml: Any, question: Callable[[], _Answer]) -> _Answer | None:
    """The answer, or None where this GPU or driver cannot say; all other errors are raised."""
    try:
        return question()
    except (
        nvml.NVMLError_NotSupported,
        nvml.NVMLError_NoPermission,
        nvml.NVMLError_FunctionNotFound,
        nvml.NVMLError_InvalidArgument,
        nvml.NVMLError_NoData,
    ):
        return None
