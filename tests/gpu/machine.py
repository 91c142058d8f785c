"""What this machine has: its GPU, its CUDA libraries, and where the lane's own files lie."""

from __future__ import annotations

import ctypes
import os
import platform
import site
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from planyard.edge.gpu import local_gpus
from smoke.reference import host_name_of_speed
from tests.gpu.record import GpuFound, MachineFound

ROOT = Path(__file__).parents[2]
HIDDEN = ("libcudnn.so.9", "libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13")
"""What the CUDA provider of ONNX Runtime 1.31 is linked against, or opens first."""
TENSORRT = {"11.2.1.2": "trt11", "10.15.1.29": "trt10"}
"""Versions of TensorRT, newest first, and the ends of the names of their folders."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of a lane: `joined` is what `bundle.py join` wrote, `work` is kept between calls."""

    joined: Path
    work: Path

    def model(self, name: str) -> Path:
        """A model that travelled with the parts."""
        return self.joined / "models" / f"{name}.onnx"

    def has_tensorrt(self, version: str) -> bool:
        """Whether the bindings and the library of a version are here."""
        name = TENSORRT[version]
        libraries = self.joined / f"lib-{name}"
        return (self.joined / f"site-{name}").is_dir() and any(libraries.glob("libnvinfer.so*"))


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The environments that programs of the lane run in."""

    places: Places

    @cached_property
    def cuda_folders(self) -> tuple[Path, ...]:
        """Folders of CUDA libraries that came as wheels, PyTorch's among them."""
        roots = [self.places.joined / "site", *map(Path, [*site.getsitepackages(), *sys.path])]
        found = (
            folder
            for root in roots
            if (root / "nvidia").is_dir()
            for folder in sorted((root / "nvidia").glob("*/lib"))
        )
        return tuple(dict.fromkeys(found))

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """What LD_LIBRARY_PATH holds already: the driver may be found by nothing else."""
        return tuple(
            Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(":") if each
        )

    def onnxruntime(self) -> dict[str, str]:
        """For ONNX Runtime: its package first, CUDA's libraries on the path."""
        return self._with((*self.cuda_folders, *self.own_folders), sites=("site",))

    def tensorrt(self, version: str) -> dict[str, str]:
        """For one version of TensorRT."""
        name = TENSORRT[version]
        folders = (self.places.joined / f"lib-{name}", *self.cuda_folders, *self.own_folders)
        return self._with(folders, sites=(f"site-{name}",))

    def emptied(self) -> dict[str, str]:
        """CUDA's libraries are on no path; only the driver's folder is left."""
        empty = self.places.work / "no-libraries"
        empty.mkdir(parents=True, exist_ok=True)
        driver = [each for each in self.own_folders if (each / "libcuda.so.1").exists()]
        return self._with((empty, *driver), sites=("site",))

    def hidden(self) -> dict[str, str]:
        """CUDA's libraries are hidden behind empty files of their names: no system path helps."""
        false = self.places.work / "false-libraries"
        false.mkdir(parents=True, exist_ok=True)
        for name in HIDDEN:
            (false / name).write_bytes(b"")
        return self._with((false, *self.own_folders), sites=("site",))

    def _with(self, folders: Iterable[Path], *, sites: tuple[str, ...]) -> dict[str, str]:
        """Absolute paths: programs of the lane start in any folder."""
        packages = [self.places.joined / each for each in sites]
        kept = [each for each in packages if each.is_dir()]
        return {
            "LD_LIBRARY_PATH": ":".join(str(each.absolute()) for each in folders),
            "PYTHONPATH": ":".join(str(each.absolute()) for each in kept),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def machine_found() -> MachineFound:
    """The machine that this runs on; no GPU where none answers."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return MachineFound(
        processor=host_name_of_speed().partition(", sha256")[0],
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=pages * size,
        python=platform.python_version(),
        gpu=gpu_found(),
    )


def gpu_found() -> GpuFound | None:
    """The first GPU of `nvidia-smi`, and what the driver says of CUDA."""
    gpus = local_gpus()
    if not gpus:
        return None
    first = gpus[0]
    cuda, memory_bytes = _driver_says()
    return GpuFound(
        name=first.name, sm=first.sm, driver=first.driver, cuda=cuda, memory_bytes=memory_bytes
    )


def _driver_says() -> tuple[str, int | None]:
    """The newest CUDA that the driver runs, and the memory of the first GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "", None
    number, device, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    if driver.cuInit(0) != 0 or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return "", None
    known = driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    known = known and driver.cuDeviceTotalMem_v2(ctypes.byref(size), device) == 0
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return version, size.value if known else None


def pins_here(pins: Mapping[str, str], *, tensorrt: str | None = None) -> dict[str, str]:
    """The matrix's pins, but for what the machine brings itself: its Python, and its cuDNN."""
    found = {name: version for name, version in pins.items() if name != "cudnn"}
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    if tensorrt:
        found["tensorrt"] = tensorrt
    return found
