"""Smoke runs for tests: evidence as values, and engines that run a container's work right here.

`InProcess` answers as the real script would, in this process; `Subprocess` runs the real script.
Both read the job and write the report through the container's mounts, as an image would.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smoke.reference
from builders.measuring import Instruments
from planyard.core.results import (
    AttentionFound,
    GpuSample,
    LatencySeries,
    LoadedLibrary,
    NodePlacement,
    SessionFound,
    SmokeReport,
    SmokeRun,
)
from planyard.edge.docker import Container, Ended

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
BEGAN_SECONDS = 1_700_000_000.0
READY = b"planyard: session ready\nplanyard: request 1: 1.0 ms\n"


def placed(*counts: tuple[str, str, int]) -> tuple[NodePlacement, ...]:
    """Placements from (provider, operator, count)."""
    return tuple(NodePlacement(provider=p, operator=o, count=c) for p, o, c in counts)


LATENCIES_MS = (1.5, 1.25, 1.375, 1.25, 1.5)
PINS = {"onnxruntime": "1.31.1", "cuda": "13.0"}
LOADED = {**PINS, "python": "3.11.2", "tensorrt_rtx": "1.7.1.116"}
"""Libraries that are loaded wherever `InProcess` stands for an image."""


def report_of(**changes: Any) -> SmokeReport:
    """What a healthy run on CUDA reports."""
    fields: dict[str, Any] = {
        "providers_asked": (CUDA,),
        "providers_active": (CUDA, CPU),
        "placement": placed((CUDA, "Conv", 60), (CPU, "Shape", 4)),
        "memcpy_nodes": 0,
        "cpu_fallback_refused": True,
        "attention": AttentionFound(fused=0),
        "session": SessionFound(),
        "latencies_ms": LATENCIES_MS,
        "series": (LatencySeries(batch=1, concurrency=1, latencies_ms=LATENCIES_MS),),
        "loaded": {
            name: LoadedLibrary(version=version, path=f"/lib/{name}.so")
            for name, version in PINS.items()
        },
        "requests_began_seconds": BEGAN_SECONDS + 0.25,
        "requests_ended_seconds": BEGAN_SECONDS + 1.25,
    }
    return SmokeReport(**{**fields, **changes})


def busy_gpu(*, seconds: float) -> tuple[GpuSample, ...]:
    """What NVML says ten times a second of a GPU that works; its memory fills at the beginning."""
    return tuple(
        GpuSample(
            at_seconds=tick / 10,
            gpu="GPU 0",
            gpu_percent=80.0,
            memory_used_bytes=(1 << 30) if tick else 0,
        )
        for tick in range(int(seconds * 10) + 1)
    )


@dataclass
class BusyGpu:
    """A sampler of a machine with such a GPU, for `builders.measuring.Instruments`."""

    error: str = ""

    def __enter__(self) -> BusyGpu:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def samples_since(self, began_seconds: float) -> tuple[GpuSample, ...]:
        """From the beginning on, for longer than any run here."""
        return busy_gpu(seconds=60)


INSTRUMENTS = Instruments(reference=lambda: (5.0, 5.0), sampler=BusyGpu)


def no_reference_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """For builds that are not about time: the host's load takes 5 ms, without any work."""
    monkeypatch.setattr(smoke.reference, "_time_ms", lambda *_: 5.0)


def run_of(report: SmokeReport | None = None, **changes: Any) -> SmokeRun:
    """A run that ended well, with this report."""
    fields: dict[str, Any] = {
        "cell": "ort-gpu/ocr/640/fp32/sm89",
        "image": "planyard/ort-gpu:0123456789ab",
        "exit_code": 0,
        "timed_out": False,
        "seconds": 1.5,
        "began_seconds": BEGAN_SECONDS,
        "stdout": READY.decode(),
        "stderr": "",
        "report": report,
        "reference_ms": (5.0, 5.0, 5.0),
        "gpu_samples": busy_gpu(seconds=1.5),
    }
    return SmokeRun(**{**fields, **changes})


def host_path(container: Container, path: str) -> Path:
    """Where a path inside a container lies on this machine."""
    for mount in container.mounts:
        if path == mount.target or path.startswith(f"{mount.target}/"):
            return Path(str(mount.source) + path.removeprefix(mount.target))
    raise AssertionError(f"{path} is not mounted")


def ended(*, exit_code: int | None = 0, stdout: bytes = READY, stderr: bytes = b"") -> Ended:
    """A container that ended by itself."""
    return Ended(
        exit_code=exit_code,
        timed_out=False,
        out_of_memory=False,
        seconds=0.5,
        stdout=stdout,
        stderr=stderr,
    )


Serve = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(kw_only=True)
class InProcess:
    """An image whose model is a Python function; `changes` are laid over its report."""

    serve: Serve
    changes: Mapping[str, Any] = field(default_factory=dict)
    ended: Ended = field(default_factory=ended)
    containers: list[Container] = field(default_factory=list)

    def __call__(self, container: Container) -> Ended:
        """Do what `smoke/inside/ort.py` does, with the container's own files."""
        self.containers.append(container)
        path = host_path(container, container.command[2])
        job, folder, began_seconds = json.loads(path.read_bytes()), path.parent, time.time()
        feeds = {
            name: np.fromfile(folder / entry["file"], dtype=entry["dtype"]).reshape(entry["shape"])
            for name, entry in job["series"][0]["inputs"].items()
        }
        out, outputs = host_path(container, job["out"]), []
        for number, (name, array) in enumerate(self.serve(feeds).items()):
            array.tofile(out / f"output-{number}.bin")
            entry = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
            outputs.append({**entry, "file": f"output-{number}.bin"})
        asked, times_ms = job["providers"], [1.0] * job["requests"]
        report = {
            "providers_asked": asked,
            "providers_active": asked,
            "placement": [{"provider": asked[0], "operator": "Relu", "count": 2}],
            "memcpy_nodes": 0,
            "cpu_fallback_refused": False,
            "attention": {"fused": 0},
            "session": {},
            "outputs": outputs,
            "latencies_ms": times_ms,
            "series": [
                {
                    "batch": each["batch"],
                    "concurrency": each["concurrency"],
                    "latencies_ms": times_ms,
                }
                for each in job["series"]
            ],
            "loaded": {
                name: {"version": version, "path": f"/lib/{name}.so"}
                for name, version in LOADED.items()
            },
            "requests_began_seconds": began_seconds,
            "requests_ended_seconds": began_seconds + 1,
            **self.changes,
        }
        (out / "report.json").write_text(json.dumps(report))
        return self.ended


@dataclass(kw_only=True)
class Subprocess:
    """An image that is this machine's own Python: the mounted script really runs."""

    arguments: Sequence[str] = ()
    containers: list[Container] = field(default_factory=list)

    def __call__(self, container: Container) -> Ended:
        """Run the container's script with the paths of its job as they are here."""
        self.containers.append(container)
        script = host_path(container, container.command[1])
        arguments = [str(self._local(container, each)) for each in container.command[2:]]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, *self.arguments, str(script), *arguments],
            capture_output=True,
            check=False,
            timeout=container.timeout_seconds,
        )
        return Ended(
            exit_code=done.returncode,
            timed_out=False,
            out_of_memory=False,
            seconds=time.monotonic() - started,
            stdout=done.stdout,
            stderr=done.stderr,
        )

    def _local(self, container: Container, argument: str) -> Path:
        """The job with this machine's paths, beside the one with the container's."""
        path = host_path(container, argument)
        job = json.loads(path.read_bytes())
        job["model"] = str(host_path(container, job["model"]))
        job["out"] = str(host_path(container, job["out"]))
        local = path.with_name("job-here.json")
        local.write_text(json.dumps(job))
        return local


class LocalEngine:
    """An engine that holds every image, and runs containers by a runner."""

    def __init__(self, runner: Callable[[Container], Ended], *, gpu_runtime: bool = False) -> None:
        self.runner = runner
        self.gpu_runtime = gpu_runtime

    def has_image(self, reference: str) -> bool:
        """Every image is there."""
        return True

    def has_gpu_runtime(self) -> bool:
        """As it was made."""
        return self.gpu_runtime

    def run(self, container: Container, *, on_output: object = None) -> Ended:
        """Run it here."""
        return self.runner(container)
