"""A driver's libnvidia-ml.so.1 for tests: C functions that ctypes makes from Python.

pynvml finds them as it finds the real library's: by name, called through ctypes with its own
structures. So all of pynvml and of planyard/edge/nvml.py runs; only the driver is not there.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_char, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass, field
from typing import Any

import pynvml

SUCCESS, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 0, 2, 3, 4, 6
DRIVER_NOT_LOADED, GPU_IS_LOST, NO_DATA, UNKNOWN = 9, 15, 21, 999
WAIT_SECONDS = 20
"""Far more than anything takes here; a test that waits this long has failed."""


@dataclass(kw_only=True)
class Slice:
    """A MIG device: its GPU instance, its memory, and what its counters say it was used."""

    uuid: str
    instance: int
    memory_used: int = 1 << 30
    percent: float = 75.0


@dataclass(kw_only=True)
class Board:
    """A GPU; `slices` by their index when it is in MIG mode, None for a hole."""

    uuid: str
    percent: int = 90
    memory_percent: int = 40
    memory_used: int = 8 << 30
    reserved: int = 512 << 20
    sm_clock: int = 1980
    memory_clock: int = 2619
    milliwatts: int = 650_500
    reasons: int = 0
    slices: tuple[Slice | None, ...] | None = None
    has_counters: bool = True


@dataclass(kw_only=True)
class FakeNvml:
    """The library. `refuse` names functions with the error they return, `on_call` what they do.

    A function of `on_call` gets the number of the call (from 1) and returns an error code or None.
    """

    boards: list[Board] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    on_call: dict[str, Callable[[int], int | None]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    allocated: int = 0
    metric_return: int = SUCCESS
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _counters: dict[int, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """The C function `name`, as `ctypes.CDLL` gives it."""
        made = FUNCTIONS.get(name)
        if made is None or name in self.missing:
            raise AttributeError(name)
        arguments, body = made

        def call(*given: Any) -> int:
            with self._changed:
                self.calls[name] += 1
                self._changed.notify_all()
            code = self.refuse.get(name, SUCCESS)
            if name in self.on_call:
                code = self.on_call[name](self.calls[name]) or code
            return code or body(self, *given)

        function = ctypes.CFUNCTYPE(c_int, *arguments)(call)
        self.__dict__[name] = function
        return function

    def wait_for(self, name: str, calls: int) -> None:
        """Wait until a function was called this many times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls[name] >= calls, WAIT_SECONDS), name

    def board(self, handle: int) -> Board | Slice:
        """What a handle stands for: 100 and so on are GPUs, 10,000 and so on their slices."""
        if handle < 10_000:
            return self.boards[handle - 100]
        found = (self.boards[handle // 10_000 - 1].slices or ())[handle % 10_000]
        assert found is not None
        return found


def fake_driver(fake: FakeNvml, monkeypatch: Any) -> FakeNvml:
    """Put the fake in the place of the driver's library."""
    monkeypatch.setattr(pynvml, "nvmlLib", fake)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return fake


def _handle(number: int) -> Any:
    return ctypes.cast(c_void_p(number), pynvml.c_nvmlDevice_t)


def _nothing(fake: FakeNvml, *_: Any) -> int:
    return SUCCESS


def _count(fake: FakeNvml, out: Any) -> int:
    out[0] = len(fake.boards)
    return SUCCESS


def _by_index(fake: FakeNvml, index: int, out: Any) -> int:
    out[0] = _handle(100 + index)
    return SUCCESS


def _uuid(fake: FakeNvml, handle: int, out: Any, size: int) -> int:
    text = fake.board(handle).uuid.encode() + b"\0"
    assert len(text) <= size
    ctypes.memmove(out, text, len(text))
    return SUCCESS


def _mig_mode(fake: FakeNvml, handle: int, current: Any, pending: Any) -> int:
    board = fake.board(handle)
    assert isinstance(board, Board)
    current[0] = pending[0] = int(board.slices is not None)
    return SUCCESS


def _mig_count(fake: FakeNvml, handle: int, out: Any) -> int:
    board = fake.board(handle)
    assert isinstance(board, Board)
    out[0] = len(board.slices or ())
    return SUCCESS


def _mig_by_index(fake: FakeNvml, handle: int, index: int, out: Any) -> int:
    board = fake.board(handle)
    assert isinstance(board, Board)
    if (board.slices or ())[index] is None:
        return NOT_FOUND
    out[0] = _handle((handle - 99) * 10_000 + index)
    return SUCCESS


def _instance(fake: FakeNvml, handle: int, out: Any) -> int:
    out[0] = fake.board(handle).instance  # type: ignore[union-attr]
    return SUCCESS


def _rates(fake: FakeNvml, handle: int, out: Any) -> int:
    board = fake.board(handle)
    if isinstance(board, Slice) or board.slices is not None:
        return NOT_SUPPORTED
    out[0].gpu, out[0].memory = board.percent, board.memory_percent
    return SUCCESS


def _memory(fake: FakeNvml, handle: int, out: Any) -> int:
    board = fake.board(handle)
    out[0].used = board.memory_used + (board.reserved if isinstance(board, Board) else 0)
    return SUCCESS


def _memory_v2(fake: FakeNvml, handle: int, out: Any) -> int:
    if out[0].version != pynvml.nvmlMemory_v2:
        return 25  # NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    out[0].used = fake.board(handle).memory_used
    return SUCCESS


def _clock(fake: FakeNvml, handle: int, kind: int, out: Any) -> int:
    board = fake.board(handle)
    if isinstance(board, Slice):
        return NOT_SUPPORTED
    out[0] = {1: board.sm_clock, 2: board.memory_clock}[kind]
    return SUCCESS


def _power(fake: FakeNvml, handle: int, out: Any) -> int:
    board = fake.board(handle)
    if isinstance(board, Slice):
        return INVALID_ARGUMENT
    out[0] = board.milliwatts
    return SUCCESS


def _reasons(fake: FakeNvml, handle: int, out: Any) -> int:
    board = fake.board(handle)
    if isinstance(board, Slice):
        return NOT_SUPPORTED
    out[0] = board.reasons
    return SUCCESS


def _gpm_support(fake: FakeNvml, handle: int, out: Any) -> int:
    board = fake.board(handle)
    assert isinstance(board, Board)
    out[0].isSupportedDevice = int(board.has_counters)
    return SUCCESS


def _gpm_alloc(fake: FakeNvml, out: Any) -> int:
    fake.allocated += 1
    out[0] = ctypes.cast(c_void_p(0x1000 + fake.calls["nvmlGpmSampleAlloc"]), GPM_SAMPLE)
    return SUCCESS


def _gpm_free(fake: FakeNvml, sample: int) -> int:
    fake.allocated -= 1
    return SUCCESS


def _gpm_mig_sample(fake: FakeNvml, handle: int, instance: int, sample: int) -> int:
    fake._counters[sample] = instance
    return SUCCESS


def _gpm_metrics(fake: FakeNvml, out: Any) -> int:
    asked = out[0]
    first, second = (ctypes.cast(each, c_void_p).value for each in (asked.sample1, asked.sample2))
    assert (asked.version, asked.numMetrics, asked.metrics[0].metricId) == (1, 1, 1)
    assert first != second
    assert fake._counters[first] == fake._counters[second]
    asked.metrics[0].nvmlReturn = fake.metric_return
    asked.metrics[0].value = next(
        each.percent for each in _all_slices(fake) if each.instance == fake._counters[first]
    )
    return SUCCESS


def _all_slices(fake: FakeNvml) -> Iterator[Slice]:
    for board in fake.boards:
        yield from (each for each in board.slices or () if each)


DEVICE = POINTER(pynvml.c_nvmlDevice_t)
GPM_SAMPLE = pynvml.c_nvmlGpmSample_t
FUNCTIONS: dict[str, tuple[tuple[Any, ...], Callable[..., int]]] = {
    "nvmlInitWithFlags": ((c_uint,), _nothing),
    "nvmlShutdown": ((), _nothing),
    "nvmlDeviceGetCount_v2": ((POINTER(c_uint),), _count),
    "nvmlDeviceGetHandleByIndex_v2": ((c_uint, DEVICE), _by_index),
    "nvmlDeviceGetUUID": ((c_void_p, POINTER(c_char), c_uint), _uuid),
    "nvmlDeviceGetMigMode": ((c_void_p, POINTER(c_uint), POINTER(c_uint)), _mig_mode),
    "nvmlDeviceGetMaxMigDeviceCount": ((c_void_p, POINTER(c_uint)), _mig_count),
    "nvmlDeviceGetMigDeviceHandleByIndex": ((c_void_p, c_uint, DEVICE), _mig_by_index),
    "nvmlDeviceGetGpuInstanceId": ((c_void_p, POINTER(c_uint)), _instance),
    "nvmlDeviceGetUtilizationRates": ((c_void_p, POINTER(pynvml.c_nvmlUtilization_t)), _rates),
    "nvmlDeviceGetMemoryInfo": ((c_void_p, POINTER(pynvml.c_nvmlMemory_t)), _memory),
    "nvmlDeviceGetMemoryInfo_v2": ((c_void_p, POINTER(pynvml.c_nvmlMemory_v2_t)), _memory_v2),
    "nvmlDeviceGetClockInfo": ((c_void_p, c_uint, POINTER(c_uint)), _clock),
    "nvmlDeviceGetPowerUsage": ((c_void_p, POINTER(c_uint)), _power),
    "nvmlDeviceGetCurrentClocksEventReasons": ((c_void_p, POINTER(c_ulonglong)), _reasons),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ((c_void_p, POINTER(c_ulonglong)), _reasons),
    "nvmlGpmQueryDeviceSupport": ((c_void_p, POINTER(pynvml.c_nvmlGpmSupport_t)), _gpm_support),
    "nvmlGpmSampleAlloc": ((POINTER(GPM_SAMPLE),), _gpm_alloc),
    "nvmlGpmSampleFree": ((c_void_p,), _gpm_free),
    "nvmlGpmMigSampleGet": ((c_void_p, c_uint, c_void_p), _gpm_mig_sample),
    "nvmlGpmMetricsGet": ((POINTER(pynvml.c_nvmlGpmMetricsGet_t),), _gpm_metrics),
}
"""What the fake driver has; everything else is missing, as in a driver that is too old."""
