"""Answer requests with a plan inside the image, one of either TensorRT: `python trt.py JOB.json`.

The same job and report as `ort.py`; `model` is the plan. The image has no NumPy: tensors are raw
bytes, device memory comes from the driver. A plan holds only what its compiler placed on the GPU,
so every layer counts as placed there. A request is `steps` executions of the plan: its inputs lie
on the device before, and what comes out stays there, but for the first one.

Of all this no GPU has run anything yet: the logic was tried with fakes of the driver and of the
bindings (tests/unit/test_inside_trt.py), the layer names with plans compiled without a GPU.
"""

import collections
import concurrent.futures
import ctypes
import importlib.util
import json
import math
import os
import pathlib
import platform
import queue
import re
import sys
import time

SCHEMA, HEADER_BYTES = 1, 32
# The provider's name, a plan's first bytes, and the bindings in the order they are looked for.
BACKENDS = {
    "tensorrt-rtx": ("TensorRT-RTX", b"vtrt", ("tensorrt_rtx_bindings",)),
    "tensorrt": ("TensorRT", b"ftrt", ("tensorrt_lean_bindings", "tensorrt_bindings", "tensorrt")),
}
LEAST_REQUESTS = 5  # a series has so many, however long they take
REFERENCE_BYTES, REFERENCE_COPIES = 64 << 20, 8  # in one timing
REFERENCE_TIMINGS = 10  # before a series' requests, and as many after them
LIBRARIES = {"tensorrt_rtx": "libtensorrt_rtx", "tensorrt": "libnvinfer(_lean)?"}
LIBRARIES |= {"cuda": "libcudart"}
# The kernel's own name, never the layer's: that one repeats what people call their nodes. Measured
# in plans of 1.7.1.116: `_gemm_mha_v2_0x2f56…`. TensorRT writes `_gemv_mha_v1` where the query is
# one token (pytorch/TensorRT), `_fused_mha_v2` (NVIDIA/TensorRT#4537, #3243: names with `_mha`).
ATTENTION = re.compile(r"(_(?:gemm|gemv|fused)_mha_v\d+)(?:_0x[0-9a-f]+)?")
KINDS = {"FLOAT": "float32", "HALF": "float16"}  # NumPy's names, by the bindings'
KINDS |= {kind.upper(): kind for kind in ("int64", "int32", "int8", "uint8", "bool")}


class Cuda:
    """The few calls of the driver API that moving tensors takes; every error is raised."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.enter()

    def __call__(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else code}")

    def enter(self):
        """Every thread that calls the driver says first which context it means."""
        self("cuCtxSetCurrent", self.context)

    def make(self, call):
        """A stream or an event. Streams come after what was uploaded before: flags are 0."""
        made = ctypes.c_void_p()
        self(call, ctypes.byref(made), ctypes.c_uint(0))
        return made

    def allocate(self, size_bytes):
        """Device memory; an empty tensor has an address as well."""
        pointer = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size_bytes, 1)))
        return pointer


class Reference:
    """A fixed load on the device: copies inside its memory, timed by the driver's own events."""

    def __init__(self, cuda):
        self.cuda, self.stream = cuda, cuda.make("cuStreamCreate")
        self.source, self.target = cuda.allocate(REFERENCE_BYTES), cuda.allocate(REFERENCE_BYTES)
        self.begin, self.end = cuda.make("cuEventCreate"), cuda.make("cuEventCreate")

    def times_ms(self):
        """The first one wakes the device up, and is not kept."""
        cuda, elapsed, size = self.cuda, ctypes.c_float(), ctypes.c_size_t(REFERENCE_BYTES)
        found = []
        for _ in range(REFERENCE_TIMINGS + 1):
            cuda("cuEventRecord", self.begin, self.stream)
            for _ in range(REFERENCE_COPIES):
                cuda("cuMemcpyDtoDAsync_v2", self.target, self.source, size, self.stream)
            cuda("cuEventRecord", self.end, self.stream)
            cuda("cuEventSynchronize", self.end)
            cuda("cuEventElapsedTime", ctypes.byref(elapsed), self.begin, self.end)
            found.append(round(elapsed.value, 4))
        return found[1:]


class Client:
    """One of those who ask at the same time: an execution context, a stream, memory of its own."""

    def __init__(self, trt, cuda, engine, steps=1):
        self.trt, self.cuda, self.engine, self.steps = trt, cuda, engine, steps
        self.context = engine.create_execution_context()
        if self.context is None:
            raise RuntimeError("no execution context could be made; the log says why")
        self.stream = cuda.make("cuStreamCreate")
        self.memory, self.kept, self.outputs = [], [], []

    def kind(self, name):
        """Bytes of an element, and NumPy's name of its type."""
        named = self.engine.get_tensor_dtype(name).name
        if named not in KINDS:
            raise RuntimeError(f"{name} is {named}, which NumPy has no type for")
        return int(re.search(r"\d*$", KINDS[named])[0] or 8) // 8, KINDS[named]

    def bind(self, inputs, folder):
        """Give every tensor its memory, for these inputs."""
        engine, modes = self.engine, self.trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in (each for each in names if engine.get_tensor_mode(each) == modes.INPUT):
            if name not in inputs:
                raise RuntimeError(f"the job has no input {name}, which the plan asks for")
            entry, (width, kind) = inputs[name], self.kind(name)
            data = (folder / entry["file"]).read_bytes()
            if kind != entry["dtype"] or len(data) != math.prod(entry["shape"]) * width:
                raise RuntimeError(f"the plan takes {name} as {kind}, the job has {entry}")
            if not self.context.set_input_shape(name, entry["shape"]):
                raise RuntimeError(f"the plan does not take {entry['shape']} for {name}")
            if engine.get_tensor_location(name) == self.trt.TensorLocation.HOST:
                self.kept.append(ctypes.create_string_buffer(data, len(data)))
                self.context.set_tensor_address(name, ctypes.addressof(self.kept[-1]))
            else:
                size = ctypes.c_size_t(len(data))
                self.cuda("cuMemcpyHtoD_v2", self.place(name, len(data)), data, size)
        for name in (each for each in names if engine.get_tensor_mode(each) == modes.OUTPUT):
            shape, (width, kind) = list(self.context.get_tensor_shape(name)), self.kind(name)
            if min(shape, default=0) < 0:
                raise RuntimeError(f"the shape of output {name} depends on the data: {shape}")
            size = math.prod(shape) * width
            self.outputs.append((name, self.place(name, size), size, shape, kind))

    def place(self, name, size_bytes):
        pointer = self.cuda.allocate(size_bytes)
        self.memory.append(pointer)
        self.context.set_tensor_address(name, pointer.value)
        return pointer

    def release(self):
        for pointer in self.memory:
            self.cuda("cuMemFree_v2", pointer)
        self.memory, self.kept, self.outputs = [], [], []

    def request(self):
        """One answer, waited for: the plan as many times as a picture takes."""
        for _ in range(self.steps):
            if not self.context.execute_async_v3(self.stream.value):
                raise RuntimeError("the plan could not be executed; the log says why")
        self.cuda("cuStreamSynchronize", self.stream)

    def write_outputs(self, folder):
        """What the last request computed, as raw files in `folder`."""
        written = []
        for index, (name, pointer, size_bytes, shape, kind) in enumerate(self.outputs):
            file = f"output-{index}.bin"
            data = ctypes.create_string_buffer(size_bytes)
            self.cuda("cuMemcpyDtoH_v2", data, pointer, ctypes.c_size_t(size_bytes))
            (folder / file).write_bytes(data.raw)
            written.append({"name": name, "dtype": kind, "shape": shape, "file": file})
        return written


def fused_attention(trt, engine):
    """Fused attention in the plan; None where a plan, compiled less detailed, names no kernels."""
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = [layer for layer in json.loads(told)["Layers"] if "TacticName" in layer]
        kernels = [(layer["TacticName"], layer.get("Metadata")) for layer in layers]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    found = {  # kernels that name the same nodes of the model are one block
        nodes or number: kernel[1]
        for number, (name, nodes) in enumerate(kernels)
        if (kernel := ATTENTION.fullmatch(name))
    }
    kinds, how = collections.Counter(found.values()), "kernels named by the engine inspector"
    return {"fused": len(found), "kinds": kinds, "how": how} if kernels else None


def ask(cuda, clients, *, count, concurrency, seconds=None):
    """Make `count` requests, so many at once; their times in ms as they ended.

    Where clients are fewer, a request waits for one, and its time counts that. After `seconds` no
    other one is begun, but for the first LEAST_REQUESTS.
    """
    numbers, latencies, failures, free = iter(range(count)), [], [], queue.SimpleQueue()
    deadline = time.perf_counter() + (seconds or math.inf)
    for client in clients:
        free.put(client)

    def asks(_):
        cuda.enter()
        for number in numbers:
            begin = time.perf_counter()
            if failures or (number >= LEAST_REQUESTS and begin > deadline):
                return
            client = free.get()
            try:
                client.request()
            except BaseException as error:
                failures.append(error)
                raise
            finally:
                free.put(client)  # somebody may be waiting for it
            latencies.append(round((time.perf_counter() - begin) * 1000, 3))

    with concurrent.futures.ThreadPoolExecutor(concurrency) as threads:
        list(threads.map(asks, range(concurrency)))
    return latencies


def answer(cuda, clients, job, folder):
    """Every series of the job; also when the first timed request began, and the last had ended."""
    reference, began, timed, outputs = Reference(cuda), None, [], []
    for number, series in enumerate(job["series"]):
        batch, concurrency = series["batch"], series["concurrency"]
        asking, warmup = clients[:concurrency], job["warmup"]
        for client in asking:
            client.bind(series["inputs"], folder)
        if number == 0:  # the first of all, and the one whose outputs are kept
            asking[0].request()
            outputs, warmup = asking[0].write_outputs(pathlib.Path(job["out"])), max(0, warmup - 1)
        ask(cuda, asking, count=warmup, concurrency=concurrency)
        before = reference.times_ms()
        begins = time.time()
        began = began or begins
        count, seconds = job["requests"], job["series_seconds"]
        latencies = ask(cuda, asking, count=count, concurrency=concurrency, seconds=seconds)
        answered_at = time.time()
        last = number + 1 == len(job["series"])
        while last and time.time() < began + job.get("least_seconds", 0):  # NVML has to see it
            asking[0].request()
        ended = time.time()
        timed.append({"batch": batch, "concurrency": concurrency, "latencies_ms": latencies})
        timed[-1] |= {"began_seconds": begins, "ended_seconds": answered_at}
        timed[-1]["reference_ms"] = before + reference.times_ms()
        answered = f"{len(latencies)} requests answered"
        print(f"planyard: batch {batch}, {concurrency} at once: {answered}", flush=True)
        for client in asking:
            client.release()
    return outputs, timed, began, ended


def loaded_libraries(maps=None):
    """Versions and paths by the names of the pins, from the text of /proc/self/maps.

    Where two are loaded both are named, so that neither passes for the one that was wanted.
    """
    maps = maps or pathlib.Path("/proc/self/maps").read_text(errors="replace")
    found = {"python": {os.path.realpath("/proc/self/exe"): platform.python_version()}}
    mapped = (line.split(None, 5) for line in maps.split("\n"))
    for path in sorted({each[5] for each in mapped if len(each) == 6 and "x" in each[1]}):
        for name, stem in LIBRARIES.items():
            if re.match(rf"{stem}(-[0-9a-f]+)?\.so(\.|$)", os.path.basename(path)):
                found.setdefault(name, {})[path] = version_of(name, path)
    return {
        name: {"version": " and ".join(sorted(set(by_path.values()))), "path": ", ".join(by_path)}
        for name, by_path in found.items()
    }


def version_of(name, path):
    """What a loaded library says of itself: 13000 is CUDA 13.0."""
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        if name == "cuda":
            number = ctypes.c_int()
            library.cudaRuntimeGetVersion(ctypes.byref(number))
            return f"{number.value // 1000}.{number.value % 1000 // 10}"
        calls = (f"getInferLib{part}Version" for part in ("Major", "Minor", "Patch", "Build"))
        return ".".join(str(getattr(library, call)()) for call in calls)
    except (OSError, AttributeError):
        return "unknown"


def bindings_of(backend):
    """The first bindings that are installed; that they cannot be loaded is an error."""
    here = pathlib.Path(__file__).resolve().parent  # no file beside this one is a module to import
    sys.path[:] = [each for each in sys.path if pathlib.Path(each).resolve() != here]
    names = BACKENDS[backend][2]
    found = [name for name in names if importlib.util.find_spec(name)]
    if not found:
        raise ModuleNotFoundError(f"the image has none of {', '.join(names)}")
    return importlib.import_module(found[0])


def check_header(head, *, job, version):
    """Say plainly, before TensorRT is asked, that it cannot run a plan (engines/header.py)."""
    name, magic, _ = BACKENDS[job["backend"]]
    if head[:4] != magic or len(head) < HEADER_BYTES:
        raise RuntimeError(f"no plan of {name}: it starts with {head[:8].hex(' ') or 'nothing'}")
    made, here = [*head[24:28]], [int(part) for part in re.findall(r"\d+", version)]
    later = made[0] == here[0] and made < here  # where a version-compatible plan runs as well
    if made != here and not (later and job.get("version_compatible")):
        text = ".".join(map(str, made))
        advice = f"compile it with {version}, or serve it with {text}"
        raise RuntimeError(f"a plan of {name} {text} does not run on {version}: {advice}")


def load_plan(trt, job, log):
    """The engine of a plan, with its weights."""
    runtime = trt.Runtime(log)
    # It brings a lean runtime, which is host code; those for the lean runtime itself bring none.
    if job.get("version_compatible") and trt.__name__ != "tensorrt_lean_bindings":
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(pathlib.Path(job["model"]).read_bytes())
    if engine is None:
        raise RuntimeError("the plan could not be deserialized; the log says why")
    print(f"planyard: plan ready, {engine.num_layers} layers", flush=True)
    if job.get("source"):
        refit(trt, log, engine, job)
    return engine


def refit(trt, log, engine, job):
    """Put the weights back into a plan that was made without them."""
    source = job["source"]
    if job["backend"] != "tensorrt" or not hasattr(trt, "OnnxParserRefitter"):
        raise RuntimeError(f"{trt.__name__} has nothing to read weights with: take full TensorRT")
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(source):
        said = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise RuntimeError(f"the weights of {source} were not taken: {'; '.join(said)}")
    if missing := refitter.get_missing_weights():
        raise RuntimeError(f"{source} lacks {len(missing)} weights: {', '.join(missing[:5])}")
    if not refitter.refit_cuda_engine():
        raise RuntimeError("the plan could not be refitted; the log says why")
    print(f"planyard: refitted {len(refitter.get_all_weights())} weights", flush=True)


def run(job, folder):
    """Load the plan, answer the requests, say what happened."""
    if job.get("schema") != SCHEMA or job.get("backend") not in BACKENDS:
        raise ValueError(f"a job has schema {SCHEMA} and a backend, {' or '.join(BACKENDS)}")
    trt, provider = bindings_of(job["backend"]), BACKENDS[job["backend"]][0]
    library = loaded_libraries().get(job["backend"].replace("-", "_"), {})
    with open(job["model"], "rb") as file:
        head = file.read(HEADER_BYTES)
    check_header(head, job=job, version=library.get("version", trt.__version__))
    cuda, log = Cuda(), trt.Logger(trt.Logger.WARNING)
    engine = load_plan(trt, job, log)
    at_once = max(series["concurrency"] for series in job["series"])
    contexts = min(at_once, job.get("contexts") or at_once)
    clients = [Client(trt, cuda, engine, job.get("steps", 1)) for _ in range(contexts)]
    outputs, series, began, ended = answer(cuda, clients, job, folder)
    return {
        "providers_asked": job["providers"],
        "providers_active": [provider],
        "placement": [{"provider": provider, "operator": "layer", "count": engine.num_layers}],
        "attention": fused_attention(trt, engine),
        "outputs": outputs,
        "latencies_ms": series[0]["latencies_ms"],
        "series": series,
        "requests_began_seconds": began,
        "requests_ended_seconds": ended,
        "loaded": loaded_libraries(),
        "versions": {trt.__name__: trt.__version__},
    }


def main(arguments):
    """The report is written whatever happens; the exit code says whether requests were answered."""
    path = pathlib.Path(arguments[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    out, code = pathlib.Path(job["out"]), 0
    try:
        report = json.dumps(run(job, path.parent))
    except BaseException as error:  # a library that calls sys.exit(0) has answered nothing
        said = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        report, code = json.dumps({"error": said[:20_000]}), 1
        print(said, file=sys.stderr)
        for file in out.glob("output-*.bin"):
            file.unlink()  # of a run that failed; the disk may be full
    part = out / "report.json.part"  # whole or not at all
    part.write_text(report, encoding="utf-8")
    os.replace(part, out / "report.json")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
