"""Compile TensorRT for RTX plans inside the builder container: `python tensorrt_rtx.py JOB.json`.

One JSON object a line goes to stdout for each event; everything the compiler says goes to stderr.
The model is parsed once and its network is built once for each plan. A plan the compiler refuses
ends only that plan. Exit code 0: every plan has its event. Exit code 2: the job could not be
started at all, and the one event is `failed`.

Events: `loaded` (version, parse_seconds), `started` (cell), `compiled` (cell, out, seconds,
size_bytes, sha256, peak_memory_bytes), `refused` (cell, message, errors, log), `failed` (message).
"""

import hashlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

SCHEMA = 1
BACKEND = "tensorrt-rtx"
PIECE_BYTES = 8 << 20
LOG_LINES = 20


class RefusedError(Exception):
    """The compiler does not take this; `errors` are the parser's, each with its node."""

    def __init__(self, message, errors=()):
        super().__init__(message)
        self.errors = list(errors)


def open_events():
    """Keep stdout for events alone: whatever native code prints to it goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event, **fields):
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    return emit


def library_version(trt):
    """All four parts from the library that was really loaded, not from the bindings' metadata."""
    import ctypes

    library = ctypes.CDLL("libtensorrt_rtx.so.1")  # a soname already loaded by the bindings
    parts = ("Major", "Minor", "Patch", "Build")
    found = ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)
    if trt.__version__ != found:
        raise RuntimeError(f"the bindings are {trt.__version__} but the library is {found}")
    return found


def make_log(trt):
    """A logger that writes all but verbose lines to stderr and keeps the errors of one plan."""
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors = []

        def log(self, level, text):
            if level == severity.VERBOSE:
                return
            print(f"[{level.name}] {text}", file=sys.stderr, flush=True)
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(text)

    return Log()


def reason(log):
    """The errors of the plan at hand, less the one every machine without a GPU repeats."""
    told = [line for line in log.errors if "cudaError 35" not in line]
    return "\n".join(told or log.errors)


def parse_model(trt, *, builder, log, path):
    """The network of an ONNX file; weights beside it are found by the parser itself."""
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(path):
        # A file that is no ONNX at all parses to an empty network (measured, 1.7.1.116).
        if network.num_outputs == 0:
            raise RefusedError("the file holds no ONNX graph with an output")
        return network, parser
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        errors.append(
            {
                "message": error.desc().strip(),
                "node": error.node_name(),
                "operator": error.node_operator(),
                "node_index": error.node(),
                "code": str(error.code()).rpartition(".")[2],
            }
        )
    first = errors[0]["message"] if errors else "the parser gave no reason"
    where = f" at node {errors[0]['node']!r}" if errors and errors[0]["node"] else ""
    raise RefusedError(f"the ONNX parser refused the model{where}: {first}", errors)


def add_profile(builder, *, network, config, log, shapes):
    """One optimization profile: min, opt, max for each named input."""
    inputs = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        inputs[tensor.name] = tuple(tensor.shape)
    unknown = sorted(set(shapes) - set(inputs))
    if unknown:
        raise RefusedError(
            f"the model has no input {', '.join(unknown)}; it has {', '.join(inputs)}"
        )
    missing = sorted(name for name, shape in inputs.items() if -1 in shape and name not in shapes)
    if missing:
        raise RefusedError(f"the profile gives no shape for dynamic input {', '.join(missing)}")
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name in sorted(shapes):
        ranges = shapes[name]
        for bound in ("min", "opt", "max"):
            if len(ranges[bound]) != len(inputs[name]):
                raise RefusedError(
                    f"input {name} has {len(inputs[name])} dimensions, {bound} gives "
                    f"{len(ranges[bound])}"
                )
        profile.set_shape(name, ranges["min"], ranges["opt"], ranges["max"])
    if config.add_optimization_profile(profile) < 0:
        raise RefusedError(reason(log) or "the optimization profile is not valid")


def set_target(trt, *, config, sm):
    """Compile for SM `sm` (86 is 8.6), whatever GPU is here or not."""
    targets = {
        name: value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if f"SM{sm}" not in targets:
        known = sorted(int(name[2:]) for name in targets)
        raise RefusedError(
            f"TensorRT for RTX {trt.__version__} has no target SM {sm / 10}; it has "
            + ", ".join(str(target / 10) for target in known)
        )
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(targets[f"SM{sm}"], 0):
        raise RefusedError(f"the compiler does not take SM {sm}")


def build_plan(trt, *, builder, network, log, job, plan):
    """The serialized plan, in the compiler's own memory; None when it was refused."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    # The plan names its kernels, so that a smoke run can count fused attention; no byte larger.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job.get("optimization_level") is not None:
        config.builder_optimization_level = job["optimization_level"]
    set_target(trt, config=config, sm=plan["sm"])
    add_profile(builder, network=network, config=config, log=log, shapes=plan["profile"])
    return builder.build_serialized_network(network, config)


def write_plan(memory, *, path):
    """Write and hash in one pass, without a second copy in memory; appears under `path` whole."""
    digest = hashlib.sha256()
    view = memoryview(memory).cast("B")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                file.write(piece)
                digest.update(piece)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return {"size_bytes": len(view), "sha256": digest.hexdigest()}


def compile_plan(trt, emit, *, builder, network, log, job, plan):
    """One plan, from build to file, and its event."""
    emit("started", cell=plan["cell"])
    log.errors.clear()
    begin = time.monotonic()
    try:
        memory = build_plan(trt, builder=builder, network=network, log=log, job=job, plan=plan)
        if memory is None:
            raise RefusedError(reason(log) or "the compiler gave no reason")
    except (RefusedError, ValueError, RuntimeError) as error:
        refuse(emit, plan=plan, error=error, log=log)
        return
    seconds = time.monotonic() - begin
    written = write_plan(memory, path=Path(job["out"], plan["out"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    emit(
        "compiled",
        cell=plan["cell"],
        out=plan["out"],
        seconds=round(seconds, 3),
        peak_memory_bytes=peak,
        **written,
    )


def refuse(emit, *, plan, error, log):
    """Say why, in the compiler's own words."""
    emit(
        "refused",
        cell=plan["cell"],
        message=str(error),
        errors=getattr(error, "errors", []),
        log=log.errors[-LOG_LINES:],
    )


def check_job(job):
    """Refuse a job of another protocol, and names that would leave the out folder."""
    if job.get("schema") != SCHEMA or job.get("backend") != BACKEND:
        raise ValueError(f"a job has schema {SCHEMA} and backend {BACKEND!r}")
    for plan in job["plans"]:
        if Path(plan["out"]).name != plan["out"] or plan["out"].startswith("."):
            raise ValueError(f"not a plain file name: {plan['out']!r}")


def run(job, emit):
    """Parse once, then compile each plan in turn; never two plans in memory."""
    # The package `tensorrt_rtx` only renames this one, and beside it is this very file.
    import tensorrt_rtx_bindings as trt

    check_job(job)
    found = library_version(trt)
    if found != job["version"]:
        raise RuntimeError(
            f"the image has TensorRT for RTX {found}, the job asks for {job['version']}"
        )
    log = make_log(trt)
    builder = trt.Builder(log)
    begin = time.monotonic()
    try:
        # The parser owns the weights of the network: it has to live as long.
        network, parser = parse_model(trt, builder=builder, log=log, path=job["model"])
    except RefusedError as error:
        for plan in job["plans"]:
            refuse(emit, plan=plan, error=error, log=log)
        return
    emit(
        "loaded",
        schema=SCHEMA,
        backend=BACKEND,
        version=found,
        plans=len(job["plans"]),
        parse_seconds=round(time.monotonic() - begin, 3),
    )
    for plan in job["plans"]:
        compile_plan(trt, emit, builder=builder, network=network, log=log, job=job, plan=plan)
    del parser


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
