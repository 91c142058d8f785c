"""Clients of `ort.py` whose tensors stay on the device; laid beside job.json, which names it.

`smoke/job.py` does so where a session has I/O binding (docs/sessions.md), and `ort.py` takes
`Client` from it in place of its own. It needs nothing but what it is given and the standard
library. Inputs are copied to the device once, outputs stay there, and both keep their addresses: a
replayed CUDA graph asks for that. With page-locked memory a request also copies its inputs in and
its outputs out; ONNX Runtime's Python has no such memory to give, so the CUDA runtime is asked,
which the CUDA provider has loaded.

Tried on the CPU provider, and with a fake of the CUDA runtime: no GPU has run any of it yet.
"""

import ctypes
import itertools
import os
import pathlib
import re

CPU = "CPUExecutionProvider"
# One graph is captured for each id, at the addresses of one client. 0 is ONNX Runtime's own.
GRAPHS = itertools.count(1)
ANY_DIRECTION = 4  # cudaMemcpyDefault: the addresses say which way


class Cuda:
    """The CUDA runtime in this process's memory; every error is raised."""

    def __init__(self, maps):
        pattern = r"^\S+ \S*x\S* .*?(/.*/libcudart(?:-[0-9a-f]+)?\.so[^/]*)$"
        paths = sorted(set(re.findall(pattern, maps, re.MULTILINE)))
        if len(paths) != 1:
            raise RuntimeError(f"page-locked memory needs one CUDA runtime, loaded are {paths}")
        self.library = ctypes.CDLL(paths[0], mode=os.RTLD_NOLOAD | os.RTLD_LAZY)

    def __call__(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: CUDA error {code}")

    def copy(self, target, source, size_bytes):
        """Copy, and wait until it is done."""
        ends = (ctypes.c_void_p(target), ctypes.c_void_p(source))
        self("cudaMemcpy", *ends, ctypes.c_size_t(size_bytes), ctypes.c_int(ANY_DIRECTION))


class PageLocked:
    """Host memory that CUDA has locked, as large as a tensor on the device, and copies of it."""

    def __init__(self, cuda, value):
        self.cuda, self.value, self.size_bytes = cuda, value, value.tensor_size_in_bytes()
        self.host = ctypes.c_void_p()
        # An empty tensor has an address as well.
        size = ctypes.c_size_t(max(self.size_bytes, 1))
        cuda("cudaHostAlloc", ctypes.byref(self.host), size, ctypes.c_uint(0))

    def __del__(self):
        if self.host:
            self.cuda.library.cudaFreeHost(self.host)

    def to_device(self):
        self.cuda.copy(self.value.data_ptr(), self.host.value, self.size_bytes)

    def to_host(self):
        self.cuda.copy(self.host.value, self.value.data_ptr(), self.size_bytes)


class Client:
    """One of those who ask at the same time: a binding of its own, and the tensors bound in it."""

    def __init__(self, session, job, feeds):
        import onnxruntime as ort

        self.session, self.steps = session, job.get("steps", 1)
        self.device = "cpu" if job["providers"][0] == CPU else "cuda"
        self.options = ort.RunOptions()
        self.options.add_run_config_entry("gpu_graph_id", str(next(GRAPHS)))
        self.binding = session.io_binding()
        self.inputs, self.given, self.taken = [], [], []
        for name, array in feeds.items():
            self.inputs.append(ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
            self.binding.bind_ortvalue_input(name, self.inputs[-1])
        self.names = [output.name for output in session.get_outputs()]
        for name in self.names:
            self.binding.bind_output(name, self.device, 0)
        self.run()  # now the outputs have their shapes, and their memory
        if job["session"]["pinned_memory"]:
            cuda = Cuda(pathlib.Path("/proc/self/maps").read_bytes().decode(errors="replace"))
            self.given = [PageLocked(cuda, value) for value in self.inputs]
            self.taken = [PageLocked(cuda, value) for value in self.binding.get_outputs()]
            for each in self.given:
                each.to_host()

    def run(self):
        """The model once. ONNX Runtime waits for the device before it returns."""
        self.session.run_with_iobinding(self.binding, self.options)

    def __call__(self, steps=None):
        """A request: the model as many times as a picture takes; gives what reads its outputs."""
        for each in self.given:
            each.to_device()
        for _ in range(steps or self.steps):
            self.run()
        for each in self.taken:
            each.to_host()
        return self.outputs

    def outputs(self):
        """The outputs by their names, as NumPy's arrays."""
        arrays = self.binding.copy_outputs_to_cpu()
        return {name: arrays[index] for index, name in enumerate(self.names)}

    def said(self):
        """How requests are made. Where the outputs are, they say themselves."""
        on_cpu = {value.device_name() == "cpu" for value in self.binding.get_outputs()}
        return {
            "io_binding": on_cpu == {self.device == "cpu"},
            "pinned_memory": bool(self.given and self.taken),
        }
