"""Compile TensorRT plans inside the builder container: `python tensorrt.py JOB.json`.

The same job and events as `tensorrt_rtx.py`. TensorRT compiles for the GPU it runs on, so a plan
for another SM, or any plan without a GPU, is `refused` with `awaiting_gpu` true and with what was
found instead. Networks are strongly typed: the precision is the model's own. `loaded` also says
`driver` and `cuda`, which belong to the recipe of a plan built on a GPU.

This file has not yet compiled a plan: no machine of the project has had TensorRT and a GPU.
"""

import ctypes
import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

SCHEMA = 1
BACKEND = "tensorrt"
PIECE_BYTES = 8 << 20
LOG_LINES = 20
SM_MAJOR, SM_MINOR = 75, 76  # CUdevice_attribute, cuda.h


class RefusedError(Exception):
    """The compiler does not take this plan."""


def open_events():
    """Keep stdout for events alone: whatever native code prints to it goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event, **fields):
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    return emit


def find_gpu():
    """The first GPU as the driver tells: sm (None without one), driver, cuda, and words on it."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"sm": None, "driver": "", "cuda": "", "found": f"no NVIDIA driver ({error})"}
    code, number = cuda.cuInit(0), ctypes.c_int()
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(number))
    if code != 0 or number.value == 0:
        found = f"a driver and no GPU it can use (CUDA error {code})"
        return {"sm": None, "driver": driver_version(), "cuda": "", "found": found}
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), SM_MAJOR, 0)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), SM_MINOR, 0)
    sm = major.value * 10 + minor.value
    found = f"a GPU of SM {sm / 10}"
    return {"sm": sm, "driver": driver_version(), "cuda": version, "found": found}


def driver_version():
    """The driver's own version, like 580.95.05; empty when it does not say."""
    text = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlSystemGetDriverVersion(text, len(text)) != 0:
        return ""
    return text.value.decode()


def import_tensorrt():
    """The bindings of the wheels, or the package of NVIDIA's own installers."""
    # `python tensorrt.py` puts this folder first, where `tensorrt` is this very file.
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    try:
        import tensorrt_bindings
    except ModuleNotFoundError:
        import tensorrt

        return tensorrt
    return tensorrt_bindings


def library_version(trt):
    """All four parts from the library that was really loaded."""
    library = ctypes.CDLL(f"libnvinfer.so.{trt.__version__.partition('.')[0]}")
    parts = ("Major", "Minor", "Patch", "Build")
    return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)


def make_log(trt):
    """A logger that writes all but verbose lines to stderr and keeps the errors of one plan."""

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors = []

        def log(self, level, text):
            if level == trt.ILogger.Severity.VERBOSE:
                return
            print(f"[{level.name}] {text}", file=sys.stderr, flush=True)
            if level in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)

    return Log()


def parse_model(trt, *, builder, log, path):
    """A strongly typed network; before TensorRT 11 that had to be asked for."""
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path) or network.num_outputs == 0:
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        text = "; ".join(errors) or "no ONNX graph with an output"
        raise RefusedError(f"the ONNX parser refused the model: {text}")
    return network, parser


def build_plan(trt, *, builder, network, job, plan):
    """The serialized plan, in the compiler's own memory; None when it was refused."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    if job.get("optimization_level") is not None:
        config.builder_optimization_level = job["optimization_level"]
    if plan["profile"]:
        profile = builder.create_optimization_profile()
        for name, ranges in sorted(plan["profile"].items()):
            profile.set_shape(name, ranges["min"], ranges["opt"], ranges["max"])
        if config.add_optimization_profile(profile) < 0:
            raise RefusedError("the optimization profile is not valid")
    return builder.build_serialized_network(network, config)


def write_plan(memory, *, path):
    """Write and hash in one pass, without a second copy in memory; appears under `path` whole."""
    digest, view = hashlib.sha256(), memoryview(memory).cast("B")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for start in range(0, len(view), PIECE_BYTES):
                file.write(view[start : start + PIECE_BYTES])
                digest.update(view[start : start + PIECE_BYTES])
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return {"size_bytes": len(view), "sha256": digest.hexdigest()}


def compile_plans(job, emit, *, plans, gpu):
    """Parse once, then compile each plan in turn."""
    trt = import_tensorrt()
    version = library_version(trt)
    if version != job["version"]:
        raise RuntimeError(f"the image has TensorRT {version}, the job asks for {job['version']}")
    log = make_log(trt)
    builder = trt.Builder(log)
    network, parser = None, None
    emit("loaded", schema=SCHEMA, backend=BACKEND, version=version, plans=len(plans),
         driver=gpu["driver"], cuda=gpu["cuda"])  # fmt: skip
    for plan in plans:
        emit("started", cell=plan["cell"])
        log.errors.clear()
        begin = time.monotonic()
        try:
            if network is None:
                network, parser = parse_model(trt, builder=builder, log=log, path=job["model"])
            memory = build_plan(trt, builder=builder, network=network, job=job, plan=plan)
            if memory is None:
                raise RefusedError("\n".join(log.errors) or "the compiler gave no reason")
        except (RefusedError, ValueError, RuntimeError) as error:
            emit("refused", cell=plan["cell"], message=str(error), errors=[],
                 log=log.errors[-LOG_LINES:], awaiting_gpu=False)  # fmt: skip
            continue
        seconds = round(time.monotonic() - begin, 3)
        written = write_plan(memory, path=Path(job["out"], plan["out"]))
        emit("compiled", cell=plan["cell"], out=plan["out"], seconds=seconds, **written)
    del parser  # it owns the weights of the network until here


def run(job, emit):
    """Refuse what this machine's GPU cannot build, and compile the rest."""
    if job.get("schema") != SCHEMA or job.get("backend") != BACKEND:
        raise ValueError(f"a job has schema {SCHEMA} and backend {BACKEND!r}")
    if any(Path(p["out"]).name != p["out"] or p["out"].startswith(".") for p in job["plans"]):
        raise ValueError("an out name is a plain file name")
    gpu = find_gpu()
    for plan in job["plans"]:
        if plan["sm"] != gpu["sm"]:
            message = f"needs a GPU of SM {plan['sm'] / 10}; here is {gpu['found']}"
            emit("refused", cell=plan["cell"], message=message, errors=[], log=[],
                 awaiting_gpu=True)  # fmt: skip
    plans = [plan for plan in job["plans"] if plan["sm"] == gpu["sm"]]
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
