"""Say which versions are really inside this image: `python probe.py`, one JSON object on stdout.

A version counts as found only when the library itself says it: packages' names and metadata do
not. Nothing needs a GPU; the driver and the devices are asked when they are there.
"""

import ctypes
import glob
import json
import os
import platform
import sys

FP16_FROM_SM = 53  # CUDA C++ programming guide: arithmetic throughput, half precision
INT8_FROM_SM = 61  # the same table: 4-way byte dot product


def open_library(pattern):
    """A library by its soname, or by a glob over the loader's folders."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders += ["/usr/lib/x86_64-linux-gnu", "/usr/local/cuda/lib64", "/usr/lib"]
    for folder in filter(None, folders):
        for path in sorted(glob.glob(os.path.join(folder, pattern))):
            try:
                return ctypes.CDLL(path), path
            except OSError:
                continue
    return None, ""


def cuda_version(number):
    """13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def find_cuda_runtime():
    library, path = open_library("libcudart.so.*")
    number = ctypes.c_int()
    if library and library.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
        return {"version": cuda_version(number.value), "how": f"cudaRuntimeGetVersion of {path}"}
    return None


def find_cudnn():
    library, path = open_library("libcudnn.so.*")
    if not library:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = library.cudnnGetVersion()
    version = f"{number // 10000}.{number % 10000 // 100}.{number % 100}"
    return {"version": version, "how": f"cudnnGetVersion of {path}"}


def find_infer_library(*patterns):
    """The first of these that is here: TensorRT's full runtime comes before its lean one."""
    library, path = next(filter(all, map(open_library, patterns)), (None, ""))
    if not library:
        return None
    parts = [getattr(library, f"getInferLib{part}Version", None) for part in PARTS]
    if not all(parts):
        return None
    return {"version": ".".join(str(part()) for part in parts), "how": f"getInferLib… of {path}"}


PARTS = ("Major", "Minor", "Patch", "Build")


def find_onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        return None
    how = f"imported from {os.path.dirname(onnxruntime.__file__)}"
    return {"version": onnxruntime.__version__, "how": how}


def ask_devices():
    """The driver and the devices, through the driver's own library; nulls when it is not here."""
    nothing = {"count": 0, "driver": None, "fp16": None, "int8": None}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return nothing
    count, version = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return nothing
    cuda.cuDriverGetVersion(ctypes.byref(version))
    sms = [device_sm(cuda, index) for index in range(count.value)]
    return {
        "count": count.value,
        "driver": driver_version() or f"CUDA {cuda_version(version.value)}",
        "fp16": all(sm >= FP16_FROM_SM for sm in sms) if sms else None,
        "int8": all(sm >= INT8_FROM_SM for sm in sms) if sms else None,
    }


def device_sm(cuda, index):
    """86 for compute capability 8.6; attributes 75 and 76 of the driver API."""
    device, value, parts = ctypes.c_int(), ctypes.c_int(), []
    cuda.cuDeviceGet(ctypes.byref(device), index)
    for attribute in (75, 76):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(value.value)
    return parts[0] * 10 + parts[1]


def driver_version():
    """`580.82.07` from the kernel module, when it is visible."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), None)


def main():
    """Ask everything once."""
    sys.stdout, report = sys.stderr, sys.stdout  # what libraries print is not the answer
    found = {
        "python": {"version": platform.python_version(), "how": "the interpreter itself"},
        "onnxruntime": find_onnxruntime(),
        "tensorrt_rtx": find_infer_library("libtensorrt_rtx.so.*"),
        "tensorrt": find_infer_library("libnvinfer.so.*", "libnvinfer_lean.so.*"),
        "cuda": find_cuda_runtime(),
        "cudnn": find_cudnn(),
    }
    versions = {name: entry for name, entry in found.items() if entry}
    report.write(json.dumps({"schema": 1, "versions": versions, "device": ask_devices()}) + "\n")


if __name__ == "__main__":
    main()
