"""Compile TensorRT plans inside the builder container: `python tensorrt.py JOB.json`.

The protocol of `tensorrt_rtx.py`. TensorRT compiles for the GPU it runs on (the first, as CUDA
counts them): a plan for another SM, or any plan without a GPU, is `refused` with `awaiting_gpu`
true before anything is built. Networks are strongly typed: precision is the model's own.

The job has also `flags` (of `SETTINGS`; what this TensorRT has not is refused), `timing_caches`
(paths of caches to build from), `timing_cache_out` (a file name in `out`, or null) and `replay`
(an error for a tactic that no cache holds). `loaded` also says `driver`, `cuda` and `gpu`.
`compiled` has `inspector`, `inspector_sha256`, `inspector_size_bytes`, or `inspector_said`: why
not. A cache that is not taken is `cache-refused` (file, message), in a replay a refusal. Last
comes `cache` (out, size_bytes, sha256, combined: the files that went into it).

This file has not yet compiled a plan: no machine of the project has had TensorRT and a GPU.
"""

import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

SCHEMA, BACKEND, LOG_LINES = 1, "tensorrt", 20
SETTINGS = (
    *("version-compatible", "exclude-lean-runtime", "strip-plan", "refit-identical"),
    *("hardware-compatibility=ampere-plus", "hardware-compatibility=same-compute-capability"),
    "error-on-timing-cache-miss",
)


class RefusedError(Exception):
    """The compiler does not take this: why, and the parser's errors, each with its node."""

    def __init__(self, why, errors=()):
        super().__init__(why)
        self.errors = list(errors)


def open_events():
    """Keep stdout for events alone: whatever native code prints to it goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event, **fields):
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    return emit


def find_gpu():
    """The first GPU as the driver tells (sm is None without one), and words on what is here."""
    nothing = {"sm": None, "driver": "", "cuda": "", "gpu": ""}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return nothing, f"no NVIDIA driver ({error})"
    number, device, major, minor = (ctypes.c_int() for _ in range(4))
    name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(96)
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number))
    if code != 0 or number.value == 0:
        return nothing, f"a driver and no GPU it can use (CUDA error {code})"
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    for attribute, value in ((75, major), (76, minor)):  # CUdevice_attribute in cuda.h
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    cuda.cuDeviceGetName(name, len(name), device)
    with contextlib.suppress(OSError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(driver, len(driver))
    said = {"sm": major.value * 10 + minor.value, "driver": driver.value.decode()}
    said |= {"cuda": f"{number.value // 1000}.{number.value % 1000 // 10}"}
    return {**said, "gpu": name.value.decode()}, f"a GPU of SM {said['sm'] / 10}"


def load_tensorrt(wanted):
    """The bindings of the wheels or of NVIDIA's installers; their library has to be `wanted`."""
    # `python tensorrt.py` puts this folder first, where `tensorrt` is this very file.
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    try:
        trt = importlib.import_module("tensorrt_bindings")
    except ModuleNotFoundError:
        trt = importlib.import_module("tensorrt")
    library = ctypes.CDLL(f"libnvinfer.so.{trt.__version__.partition('.')[0]}")
    parts = ("Major", "Minor", "Patch", "Build")
    found = ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
    if found != wanted:
        raise RuntimeError(f"the image has TensorRT {found}, the job asks for {wanted}")
    return trt


def make_log(trt):
    """A logger that writes all but verbose lines to stderr and keeps the errors of one plan."""

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors = []

        def log(self, level, text):
            if level.name != "VERBOSE":
                print(f"[{level.name}] {text}", file=sys.stderr, flush=True)
            if level.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(text)

        def reason(self, otherwise):
            return "\n".join(self.errors) or otherwise

    return Log()


def set_up(trt, *, config, settings):
    """Apply `SETTINGS` by name; each has to be one that this TensorRT has, and takes."""
    for said in settings:
        name, _, level = said.partition("=")
        kind = trt.HardwareCompatibilityLevel if level else trt.BuilderFlag
        value = getattr(kind, (level or name).replace("-", "_").upper(), None)
        if said not in SETTINGS or value is None:
            raise RefusedError(f"TensorRT {trt.__version__} has no builder flag {said!r}")
        if level:
            config.hardware_compatibility_level = value
            is_taken = config.hardware_compatibility_level == value
        else:
            config.set_flag(value)
            is_taken = config.get_flag(value)
        if not is_taken:
            raise RefusedError(f"TensorRT {trt.__version__} did not take {said!r}")


def parser_refusal(parser):
    """What the ONNX parser does not take, and at which nodes."""
    errors = [
        {"message": error.desc().strip(), "node": error.node_name(), "node_index": error.node(),
         "operator": error.node_operator(), "code": str(error.code()).rpartition(".")[2]}
        for error in map(parser.get_error, range(parser.num_errors))
    ]  # fmt: skip
    first = errors[0] if errors else {"message": "the parser gave no reason", "node": ""}
    where = f" at node {first['node']!r}" if first["node"] else ""
    return RefusedError(f"the ONNX parser refused the model{where}: {first['message']}", errors)


def check_shapes(network, shapes):
    """Every dynamic input has a shape of its rank, and nothing else has one."""
    inputs = {t.name: tuple(t.shape) for t in map(network.get_input, range(network.num_inputs))}
    if unknown := sorted(set(shapes) - set(inputs)):
        raise RefusedError(f"the model has no input {', '.join(unknown)}; it has {list(inputs)}")
    if missing := sorted({name for name in inputs if -1 in inputs[name]} - set(shapes)):
        raise RefusedError(f"the profile gives no shape for dynamic input {', '.join(missing)}")
    for name, ranges in shapes.items():
        rank, given = len(inputs[name]), {bound: len(shape) for bound, shape in ranges.items()}
        if set(given.values()) != {rank}:
            raise RefusedError(f"input {name} has {rank} dimensions; the profile gives {given}")


def write_whole(memory, *, path):
    """Write and hash without a second copy in memory; the file appears under `path` whole."""
    view, partial = memoryview(memory).cast("B"), path.with_name(f".{path.name}.partial")
    partial.write_bytes(view)
    partial.replace(path)
    return {"size_bytes": len(view), "sha256": hashlib.sha256(view).hexdigest()}


class Compiler:
    """One model in TensorRT's builder, and the timing cache that all its plans share."""

    def __init__(self, trt, *, job, log):
        self.trt, self.job, self.log, self.combined = trt, job, log, []
        self.builder = trt.Builder(log)

    def parse_model(self):
        """A strongly typed network; before TensorRT 11 that had to be asked for."""
        strong = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.network = self.builder.create_network(0 if strong is None else 1 << int(strong))
        # The parser owns the weights of the network: it has to live as long.
        self.parser = self.trt.OnnxParser(self.network, self.log)
        if not self.parser.parse_from_file(self.job["model"]):
            raise parser_refusal(self.parser)
        if self.network.num_outputs == 0:
            raise RefusedError("the file holds no ONNX graph with an output")

    def open_timings(self, emit):
        """Make one cache of all those given that TensorRT takes."""
        self.cache = self.builder.create_builder_config().create_timing_cache(b"")
        for path in map(Path, self.job.get("timing_caches", ())):
            self.log.errors.clear()
            config = self.builder.create_builder_config()
            given = config.create_timing_cache(path.read_bytes())
            # Setting it holds it against this GPU: documented, where combining is vague.
            if given and config.set_timing_cache(given, False) and self.cache.combine(given, False):
                self.combined.append(path.name)
                continue
            why = self.log.reason("it is of another GPU or another TensorRT")
            if self.job.get("replay"):
                raise RefusedError(f"the timing cache to replay was not taken: {why}")
            emit("cache-refused", file=path.name, message=why)

    def build_plan(self, shapes):
        """The serialized plan, in the compiler's own memory; raises RefusedError."""
        trt, job, config = self.trt, self.job, self.builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
        # The plan names its kernels, so that a smoke run can count fused attention.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if job.get("optimization_level") is not None:
            config.builder_optimization_level = job["optimization_level"]
        replay = ["error-on-timing-cache-miss"] if job.get("replay") else []
        set_up(trt, config=config, settings=[*job.get("flags", ()), *replay])
        if not config.set_timing_cache(self.cache, False):
            raise RefusedError(self.log.reason("TensorRT did not take its own timing cache"))
        check_shapes(self.network, shapes)
        if shapes:
            profile = self.builder.create_optimization_profile()
            for name, ranges in sorted(shapes.items()):
                profile.set_shape(name, ranges["min"], ranges["opt"], ranges["max"])
            if config.add_optimization_profile(profile) < 0:
                raise RefusedError(self.log.reason("the optimization profile is not valid"))
        memory = self.builder.build_serialized_network(self.network, config)
        if memory is None:
            raise RefusedError(self.log.reason("the compiler gave no reason"))
        return memory

    def inspect_plan(self, memory, *, path):
        """What the engine inspector says of the layers, written beside the plan; or why nothing."""
        self.log.errors.clear()
        try:
            runtime = self.trt.Runtime(self.log)
            # Such a plan may carry the lean runtime, which is code: that of the plan just built.
            runtime.engine_host_code_allowed = "version-compatible" in self.job.get("flags", ())
            engine = runtime.deserialize_cuda_engine(memory)
            if engine is None:
                return {"inspector_said": self.log.reason("the plan could not be loaded again")}
            inspector = engine.create_engine_inspector()
            text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
            json.loads(text)["Layers"][0]  # nothing is kept that tells of no layer
            written = write_whole(text.encode(), path=path)
        except Exception as error:  # whatever it is, the plan itself is built
            return {"inspector_said": f"{type(error).__name__}: {error}"}
        return {"inspector": path.name, **{f"inspector_{key}": written[key] for key in written}}

    def compile_plan(self, emit, plan):
        """One plan, from build to file, and its event."""
        emit("started", cell=plan["cell"])
        self.log.errors.clear()
        begin, path = time.monotonic(), Path(self.job["out"], plan["out"])
        try:
            memory = self.build_plan(plan["profile"])
        except (RefusedError, ValueError, RuntimeError, TypeError) as error:
            refuse(emit, plan=plan, error=error, log=self.log.errors)
            return
        written = {"seconds": round(time.monotonic() - begin, 3), **write_whole(memory, path=path)}
        written |= self.inspect_plan(memory, path=path.with_suffix(".inspector.json"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        emit("compiled", cell=plan["cell"], out=plan["out"], peak_memory_bytes=peak, **written)


def refuse(emit, *, plan, error, log=(), awaiting_gpu=False):
    """Say why, in the compiler's own words."""
    emit("refused", cell=plan["cell"], message=str(error), errors=getattr(error, "errors", []),
         log=log[-LOG_LINES:], awaiting_gpu=awaiting_gpu)  # fmt: skip


def compile_plans(job, emit, *, plans, gpu):
    """Parse once, then compile each plan in turn, all with one timing cache."""
    trt = load_tensorrt(job["version"])
    log, begin = make_log(trt), time.monotonic()
    try:
        compiler = Compiler(trt, job=job, log=log)
        compiler.parse_model()
        emit("loaded", schema=SCHEMA, backend=BACKEND, version=job["version"], plans=len(plans),
             parse_seconds=round(time.monotonic() - begin, 3), **gpu)  # fmt: skip
        compiler.open_timings(emit)
    except (RefusedError, TypeError) as error:  # the latter of a builder that there is none of
        why = error if isinstance(error, RefusedError) else RefusedError(log.reason(str(error)))
        for plan in plans:
            refuse(emit, plan=plan, error=why, log=log.errors)
        return
    for plan in plans:
        compiler.compile_plan(emit, plan)
    if job.get("timing_cache_out"):
        out = Path(job["out"], job["timing_cache_out"])
        written = write_whole(compiler.cache.serialize(), path=out)
        emit("cache", out=out.name, combined=compiler.combined, **written)


def run(job, emit):
    """Refuse what this machine's GPU cannot build, and compile the rest."""
    if job.get("schema") != SCHEMA or job.get("backend") != BACKEND:
        raise ValueError(f"a job has schema {SCHEMA} and backend {BACKEND!r}")
    for name in [*(plan["out"] for plan in job["plans"]), job.get("timing_cache_out") or "x"]:
        if Path(name).name != name or name.startswith("."):
            raise ValueError(f"not a plain file name: {name!r}")
    gpu, found = find_gpu()
    plans = [plan for plan in job["plans"] if plan["sm"] == gpu["sm"]]
    for plan in [each for each in job["plans"] if each["sm"] != gpu["sm"]]:
        error = RefusedError(f"needs a GPU of SM {plan['sm'] / 10}; here is {found}")
        refuse(emit, plan=plan, error=error, awaiting_gpu=True)
    if plans:
        compile_plans(job, emit, plans=plans, gpu=gpu)


def main(arguments):
    """Read the job, run it; the only place that decides the exit code."""
    emit = open_events()
    try:
        run(json.loads(Path(arguments[1]).read_text(encoding="utf-8")), emit)
    except Exception as error:
        traceback.print_exc()
        emit("failed", message=f"{type(error).__name__}: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
