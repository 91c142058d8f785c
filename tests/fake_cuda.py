"""A driver and bindings of both TensorRTs that compute on this machine, for `trt.py`.

They keep what the real ones ask: calls come from a thread that entered the context, memory is
allocated before it is used and freed once, and an execution has happened only when its stream was
waited for. The engine computes `y = 2·x`.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import json
import re
import threading
import types
from typing import Any, NamedTuple

import numpy as np

MODES = types.SimpleNamespace(INPUT="input", OUTPUT="output")
PLACES = types.SimpleNamespace(DEVICE="device", HOST="host")
CONTEXT = 0xC0
ERROR = 999


def _method(name: str) -> str:
    """`_cu_mem_alloc` for `cuMemAlloc_v2`."""
    return "_" + re.sub("(?=[A-Z])", "_", name.removesuffix("_v2")).lower()


class Driver:
    """libcuda.so.1: every call gives 0, or the code of `fails[name]`."""

    def __init__(self, *, fails: dict[str, int] | None = None) -> None:
        self.fails = fails or {}
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.pending: dict[int, list[Any]] = {}
        self.entered: set[int] = set()
        self.begun = False
        self.handles = 0x1000
        self.clock_ms = 0.0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name]
            if name not in {"cuInit", "cuGetErrorString"}:
                assert self.begun, f"{name} before cuInit"
            if name.startswith(("cuMem", "cuStream", "cuEvent")):
                assert threading.get_ident() in self.entered, f"{name}: no context in this thread"
            code: int = getattr(self, _method(name))(*arguments) or 0
            return code

        return call

    def _cu_init(self, flags: int) -> None:
        self.begun = True

    def _cu_get_error_string(self, code: int, text: Any) -> None:
        text._obj.value = b"out of memory" if code == 2 else None

    def _cu_device_get(self, device: Any, ordinal: int) -> None:
        assert ordinal == 0

    def _cu_device_primary_ctx_retain(self, context: Any, device: Any) -> None:
        context._obj.value = CONTEXT

    def _cu_ctx_set_current(self, context: Any) -> None:
        assert context.value == CONTEXT
        self.entered.add(threading.get_ident())

    def _handle(self, made: Any, flags: Any) -> None:
        assert flags.value == 0  # others are not ordered after an upload
        self.handles += 1
        made._obj.value = self.handles

    _cu_stream_create = _cu_event_create = _handle

    def _cu_mem_alloc(self, pointer: Any, size: Any) -> None:
        assert size.value > 0
        buffer = (ctypes.c_ubyte * size.value)()
        pointer._obj.value = ctypes.addressof(buffer)
        self.memory[ctypes.addressof(buffer)] = buffer

    def _cu_mem_free(self, pointer: Any) -> None:
        del self.memory[pointer.value]

    def _cu_memcpy_hto_d(self, pointer: Any, data: bytes, size: Any) -> None:
        assert len(data) == size.value <= len(self.memory[pointer.value])
        ctypes.memmove(pointer.value, data, size.value)

    def _cu_memcpy_dto_h(self, data: Any, pointer: Any, size: Any) -> None:
        assert size.value <= len(self.memory[pointer.value])
        ctypes.memmove(data, pointer.value, size.value)

    def _cu_memcpy_dto_d_async(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        assert {target.value, source.value} <= self.memory.keys()
        assert target.value != source.value
        self.clock_ms += size.value / 2**26

    def _cu_stream_synchronize(self, stream: Any) -> None:
        for work in self.pending.pop(stream.value, []):
            work()

    def _cu_event_record(self, event: Any, stream: Any) -> None:
        self.pending.setdefault(event.value, []).append(self.clock_ms)

    def _cu_event_synchronize(self, event: Any) -> None:
        assert event.value in self.pending

    def _cu_event_elapsed_time(self, elapsed: Any, begin: Any, end: Any) -> None:
        elapsed._obj.value = self.pending[end.value][-1] - self.pending[begin.value][-1]


class Executed(NamedTuple):
    """An execution that was asked for: where, and with what shape and addresses."""

    context: Context
    shape: list[int]
    addresses: dict[str, int]


class Context:
    """An execution context: shapes and addresses of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shape: list[int] | None = None
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: list[int]) -> bool:
        assert name == "x"
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "y"
        assert self.shape, "input shapes come first"
        return self.engine.output_shape or tuple(self.shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        engine.executed.append(Executed(self, self.shape or [], dict(self.addresses)))
        if len(engine.executed) == engine.fails_at:
            return False
        assert self.shape
        if engine.meeting:
            engine.meeting.wait(timeout=10)
        count, shape = int(np.prod(self.shape)), self.shape

        def work() -> None:
            x, y = (self._array(name, count) for name in ("x", "y"))
            y[:] = 2 * x

        assert shape[0] <= 4
        engine.driver.pending.setdefault(stream, []).append(work)
        return True

    def _array(self, name: str, count: int) -> Any:
        address = self.addresses[name]
        assert address in self.engine.driver.memory or self.engine.place == PLACES.HOST
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


class Engine:
    """A plan of one input and one output, and its layers as the inspector tells them."""

    num_layers = 7
    num_io_tensors = 2
    output_shape: tuple[int, ...] | None = None
    fails_at = 0
    kind = "FLOAT"
    place = PLACES.DEVICE
    no_context = False

    def __init__(self, driver: Driver, *, layers: Any = ()) -> None:
        self.driver = driver
        self.told = layers if isinstance(layers, str) else json.dumps({"Layers": layers})
        self.executed: list[Executed] = []
        self.contexts_made = 0
        self.meeting: threading.Barrier | None = None

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return str(MODES.INPUT if name == "x" else MODES.OUTPUT)

    def get_tensor_location(self, name: str) -> str:
        return str(self.place)

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=self.kind)

    def create_execution_context(self) -> Context | None:
        self.contexts_made += 1
        return None if self.no_context else Context(self)

    def create_engine_inspector(self) -> Any:
        return types.SimpleNamespace(get_engine_information=lambda form: self.told)


def plan_of(version: str, *, magic: bytes = b"ftrt", body: bytes = b"plan") -> bytes:
    """A plan's file as far as this script and these bindings look at it (engines/header.py)."""
    parts = bytes(int(part) for part in version.split("."))
    return magic + bytes(20) + parts + bytes(4) + body


def bindings(
    engine: Engine | None, *, name: str = "tensorrt_rtx_bindings", version: str = "1.7.1.116"
) -> Any:
    """Bindings of this name, whose plans all are this engine; `runtimes` are those that were made.

    A plan with the body `host` has host code, and is taken only where that is allowed.
    """
    module: Any = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__version__ = version
    module.TensorIOMode, module.TensorLocation = MODES, PLACES
    module.LayerInformationFormat = types.SimpleNamespace(JSON="json")
    module.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
    module.runtimes = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            module.runtimes.append(self)

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            taken = [b"plan", b"host"] if self.engine_host_code_allowed else [b"plan"]
            return engine if data[32:] in taken else None

    module.Runtime = Runtime
    return module


class Weights:
    """The weights of a stripped plan: `needed` by the plan, `given` by the ONNX file."""

    def __init__(self, *, needed: tuple[str, ...] = ("a", "b"), given: str = "ab") -> None:
        self.needed, self.given = needed, given
        self.source = ""
        self.taken: set[str] = set()
        self.done = False
        self.refuses = False
        self.unreadable = False

    def add_to(self, module: Any) -> None:
        """Give full TensorRT's refitter and its ONNX parser to bindings."""
        module.Refitter = lambda engine, log: self
        module.OnnxParserRefitter = lambda refitter, log: refitter

    num_errors = 1

    def get_error(self, index: int) -> Any:
        return types.SimpleNamespace(desc=lambda: "node /conv: no such initializer")

    def refit_from_file(self, source: str) -> bool:
        self.source, self.taken = source, {name for name in self.needed if name in self.given}
        return not self.unreadable

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.needed if name not in self.taken]

    def get_all_weights(self) -> list[str]:
        return list(self.needed)

    def refit_cuda_engine(self) -> bool:
        self.done = not self.refuses and not self.get_missing_weights()
        return self.done
