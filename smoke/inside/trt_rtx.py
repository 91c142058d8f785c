"""Answer requests with a TensorRT for RTX plan inside the image: `python trt_rtx.py JOB.json`.

The same job and report as `ort.py`; `model` is the plan. The image has no numpy: tensors are raw
bytes, and device memory comes from the driver's own library. A plan holds only what its compiler
placed on the GPU, so every layer counts as placed on TensorRT-RTX.

Not yet run on a GPU: docs/gpu says what was proved on which hardware.
"""

import ctypes
import json
import pathlib
import sys
import time

SCHEMA = 1
PROVIDER = "TensorRT-RTX"


class Cuda:
    """The few calls of the driver API that moving tensors takes; every error is raised."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        self.stream = ctypes.c_void_p()
        self("cuStreamCreate", ctypes.byref(self.stream), 0)

    def __call__(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else code}")

    def allocate(self, size_bytes):
        """Device memory; it lives as long as the process."""
        pointer = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        return pointer

    def upload(self, pointer, data):
        self("cuMemcpyHtoD_v2", pointer, data, ctypes.c_size_t(len(data)))

    def download(self, pointer, size_bytes):
        data = ctypes.create_string_buffer(size_bytes)
        self("cuMemcpyDtoH_v2", data, pointer, ctypes.c_size_t(size_bytes))
        return data.raw

    def wait(self):
        self("cuStreamSynchronize", self.stream)


def load_engine(trt, path):
    """The engine of a plan; its digest was checked on the host before this container started."""
    logger = trt.Logger(trt.Logger.WARNING)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(pathlib.Path(path).read_bytes())
    if engine is None:
        raise RuntimeError("the plan could not be deserialized; the log says why")
    return runtime, engine


# Element sizes in bytes and numpy's names, by the bindings' names.
KINDS = {
    "FLOAT": (4, "float32"),
    "HALF": (2, "float16"),
    "INT32": (4, "int32"),
    "INT64": (8, "int64"),
    "INT8": (1, "int8"),
    "UINT8": (1, "uint8"),
    "BOOL": (1, "bool"),
}


def bind(trt, cuda, engine, context, inputs):
    """Give every tensor its memory; returns (name, pointer, bytes, shape, kind) of each output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            entry = inputs[name]
            if not context.set_input_shape(name, entry["shape"]):
                raise RuntimeError(f"the plan does not take {entry['shape']} for {name}")
            data = pathlib.Path(entry["file"]).read_bytes()
            pointer = cuda.allocate(len(data))
            cuda.upload(pointer, data)
            context.set_tensor_address(name, pointer.value)
    outputs = []
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            shape = list(context.get_tensor_shape(name))
            width, kind = KINDS[engine.get_tensor_dtype(name).name]
            size_bytes = width
            for dimension in shape:
                size_bytes *= dimension
            pointer = cuda.allocate(size_bytes)
            context.set_tensor_address(name, pointer.value)
            outputs.append((name, pointer, size_bytes, shape, kind))
    return outputs


def run(job):
    """Load the plan, answer the requests, say what happened."""
    import tensorrt_rtx_bindings as trt

    if job.get("schema") != SCHEMA:
        raise ValueError(f"a job has schema {SCHEMA}")
    cuda = Cuda()
    runtime, engine = load_engine(trt, job["model"])
    context = engine.create_execution_context()
    outputs = bind(trt, cuda, engine, context, job["inputs"])
    print(f"planyard: plan ready, {engine.num_layers} layers", flush=True)
    latencies = []
    for request in range(job["requests"]):
        begin = time.perf_counter()
        if not context.execute_async_v3(cuda.stream.value):
            raise RuntimeError("the plan could not be executed; the log says why")
        cuda.wait()
        latencies.append(round((time.perf_counter() - begin) * 1000, 3))
        print(f"planyard: request {request + 1}: {latencies[-1]} ms", flush=True)
    written = []
    for index, (name, pointer, size_bytes, shape, kind) in enumerate(outputs):
        file = f"output-{index}.bin"
        data = cuda.download(pointer, size_bytes)
        (pathlib.Path(job["out"]) / file).write_bytes(data)
        written.append({"name": name, "dtype": kind, "shape": shape, "file": file})
    layers = [{"provider": PROVIDER, "operator": "layer", "count": engine.num_layers}]
    del context, engine, runtime
    return {
        "providers_asked": job["providers"],
        "providers_active": [PROVIDER],
        "placement": layers,
        "outputs": written,
        "latencies_ms": latencies,
        "versions": {"tensorrt_rtx": trt.__version__},
    }


def main(arguments):
    """The report is written whatever happens; the exit code says whether requests were answered."""
    job = json.loads(pathlib.Path(arguments[1]).read_text(encoding="utf-8"))
    try:
        report, code = run(job), 0
    except Exception as error:
        report, code = {"error": f"{type(error).__name__}: {error}"}, 1
        print(report["error"], file=sys.stderr)
    (pathlib.Path(job["out"]) / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
