"""Classic TensorRT's bindings and NVIDIA's driver, made up, for `engines/inside/tensorrt.py`.

They keep what the real ones ask (docs of TensorRT 11.2): a network belongs to a builder, a timing
cache is good for one GPU and version, a build with ERROR_ON_TIMING_CACHE_MISS measures nothing, a
plan that carries the lean runtime loads only where host code is allowed. A "model" is a JSON file:
`inputs` (shapes by name), `errors` of the parser, the `tactics` that building it measures.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from pathlib import Path
from typing import Any, ClassVar

VERSION = "11.2.1.2"
HERE = "NVIDIA Made Up, TensorRT 11.2"
"""What a timing cache of this machine says it is for."""


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class BuilderFlag(enum.IntEnum):
    VERSION_COMPATIBLE, EXCLUDE_LEAN_RUNTIME, STRIP_PLAN, REFIT_IDENTICAL = range(4)
    ERROR_ON_TIMING_CACHE_MISS = 4


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE, AMPERE_PLUS = range(2)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    Severity = Severity


class Cache:
    """A timing cache: what it is for, and the tactics it has times of."""

    def __init__(self, made_for: str, tactics: set[str]) -> None:
        self.made_for, self.tactics = made_for, tactics

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.tactics |= other.tactics
        return other.made_for == self.made_for

    def serialize(self) -> bytes:
        return cache_bytes(*self.tactics, made_for=self.made_for)


def cache_bytes(*tactics: str, made_for: str = HERE) -> bytes:
    return json.dumps({"made_for": made_for, "tactics": sorted(tactics)}).encode()


class Config:
    """A builder's configuration."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.flags: set[int] = set()
        self.level = HardwareCompatibilityLevel.NONE
        self.cache: Cache | None = None
        self.profiles: list[dict[str, Any]] = []
        self.workspace_bytes = 0

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        return self.level

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: HardwareCompatibilityLevel) -> None:
        if level.name not in self.builder.ignores:
            self.level = level

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        assert pool == "workspace"
        self.workspace_bytes = limit

    def set_flag(self, flag: BuilderFlag) -> None:
        if flag.name not in self.builder.ignores:
            self.flags.add(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.flags

    def create_timing_cache(self, data: bytes) -> Cache | None:
        if not data:
            return Cache(HERE, set())
        try:
            said = json.loads(data)
        except ValueError:
            self.builder.log.log(Severity.ERROR, "the timing cache has a bad header")
            return None
        return Cache(said["made_for"], set(said["tactics"]))

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return cache.made_for == HERE

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile.shapes)
        return -1 if profile.shapes.get("x", [[0]])[0] == [0] else 0


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = [low, best, high]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: dict[str, Any] = {"inputs": {}}

    @property
    def num_inputs(self) -> int:
        return len(self.model["inputs"])

    @property
    def num_outputs(self) -> int:
        return int(self.model.get("outputs", 1))

    def get_input(self, index: int) -> Any:
        name, shape = list(self.model["inputs"].items())[index]
        return types.SimpleNamespace(name=name, shape=shape)


class Parser:
    """An ONNX parser of models that are JSON."""

    parsed = 0

    def __init__(self, network: Network, log: Any) -> None:
        self.network, self.errors = network, []

    def parse_from_file(self, path: str) -> bool:
        Parser.parsed += 1
        self.network.model = json.loads(Path(path).read_text())
        self.errors = self.network.model.get("errors", [])
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        said = self.errors[index]
        return types.SimpleNamespace(**{key: lambda v=value: v for key, value in said.items()})


class Builder:
    """Builds "plans": the header of a real one, and what it was asked for as JSON."""

    ignores: tuple[str, ...] = ()
    """Flags that this TensorRT takes without doing anything."""
    made: ClassVar[list[Config]] = []

    def __init__(self, log: Any) -> None:
        self.log = log

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config(self)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert network.flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert config.cache is not None
        Builder.made.append(config)
        self.log.log(Severity.VERBOSE, "not worth a line")
        missing = set(network.model.get("tactics", ())) - config.cache.tactics
        if missing and BuilderFlag.ERROR_ON_TIMING_CACHE_MISS in config.flags:
            self.log.log(Severity.ERROR, f"no time of {min(missing)} in the timing cache")
            return None
        config.cache.tactics |= missing
        return plan_bytes(
            flags=sorted(BuilderFlag(flag).name for flag in config.flags),
            layers=network.model.get("layers", ["conv"]),
        )


def plan_bytes(version: str = VERSION, **said: Any) -> bytes:
    """A plan whose header is that of classic TensorRT."""
    parts = bytes(int(part) for part in version.split("."))
    return b"ftrt" + bytes(20) + parts + json.dumps(said).encode()


class Runtime:
    """Loads plans to inspect them; `fails` makes it raise."""

    fails = False

    def __init__(self, log: Any) -> None:
        self.log, self.engine_host_code_allowed = log, False

    def deserialize_cuda_engine(self, memory: bytes) -> Any:
        if Runtime.fails:
            raise RuntimeError("out of memory")
        said = json.loads(bytes(memory)[28:])
        if "VERSION_COMPATIBLE" in said["flags"] and not self.engine_host_code_allowed:
            self.log.log(Severity.ERROR, "host code is not allowed")
            return None
        if "STRIP_PLAN" in said["flags"]:
            return None
        text = json.dumps({"Layers": said["layers"], "Bindings": []})
        inspector = types.SimpleNamespace(get_engine_information=lambda how: text)
        return types.SimpleNamespace(create_engine_inspector=lambda: inspector)


def bindings(**changes: Any) -> Any:
    """The module `tensorrt_bindings`; `changes` replace names in it."""
    Builder.made, Builder.ignores, Parser.parsed, Runtime.fails = [], (), 0, False
    names = {
        "__version__": VERSION,
        "ILogger": ILogger,
        "BuilderFlag": BuilderFlag,
        "HardwareCompatibilityLevel": HardwareCompatibilityLevel,
        "NetworkDefinitionCreationFlag": NetworkDefinitionCreationFlag,
        "ProfilingVerbosity": types.SimpleNamespace(DETAILED="detailed"),
        "MemoryPoolType": types.SimpleNamespace(WORKSPACE="workspace"),
        "LayerInformationFormat": types.SimpleNamespace(JSON="json"),
        "OnnxParser": Parser,
        "Builder": Builder,
        "Runtime": Runtime,
    }
    return types.SimpleNamespace(**{**names, **changes})


class Machine:
    """The libraries of a machine with one GPU, or none: what `ctypes.CDLL` gives for a name."""

    def __init__(self, *, sm: int | None = 90, version: str = VERSION, nvml: bool = True) -> None:
        self.sm, self.version, self.nvml = sm, version, nvml

    def library(self, name: str) -> Any:
        if name == "libcuda.so.1" and self.sm is not None:
            return _Cuda(self.sm)
        if name == "libnvidia-ml.so.1" and self.nvml:
            return _Nvml()
        if name == f"libnvinfer.so.{self.version.partition('.')[0]}":
            parts = zip(("Major", "Minor", "Patch", "Build"), self.version.split("."), strict=True)
            calls = {f"getInferLib{part}Version": lambda n=number: int(n) for part, number in parts}
            return types.SimpleNamespace(**calls)
        raise OSError(f"{name}: cannot open shared object file")


class _Cuda:
    """libcuda.so.1 of a machine whose driver is for CUDA 13.0. SM 0 stands for a GPU gone."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return 0 if self.sm else 100

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 1
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 13000
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 7
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        assert device.value == 7
        value._obj.value = {75: self.sm // 10, 76: self.sm % 10}[attribute]
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        assert isinstance(name, ctypes.Array)
        assert size <= len(name)
        name.value = b"NVIDIA Made Up"
        return 0


class _Nvml:
    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:  # noqa: N802
        text.value = b"580.95.05"
        return 0
