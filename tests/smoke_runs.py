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

from planyard.core.results import NodePlacement, SmokeReport, SmokeRun
from planyard.edge.docker import Container, Ended

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
READY = b"planyard: session ready\nplanyard: request 1: 1.0 ms\n"


def placed(*counts: tuple[str, str, int]) -> tuple[NodePlacement, ...]:
    """Placements from (provider, operator, count)."""
    return tuple(NodePlacement(provider=p, operator=o, count=c) for p, o, c in counts)


def report_of(**changes: Any) -> SmokeReport:
    """What a healthy run on CUDA reports."""
    fields: dict[str, Any] = {
        "providers_asked": (CUDA,),
        "providers_active": (CUDA, CPU),
        "placement": placed((CUDA, "Conv", 60), (CPU, "Shape", 4)),
        "latencies_ms": (1.5, 1.25),
    }
    return SmokeReport(**{**fields, **changes})


def run_of(report: SmokeReport | None = None, **changes: Any) -> SmokeRun:
    """A run that ended well, with this report."""
    fields: dict[str, Any] = {
        "cell": "ort-gpu/ocr/640/fp32/sm89",
        "image": "planyard/ort-gpu:0123456789ab",
        "exit_code": 0,
        "timed_out": False,
        "seconds": 1.5,
        "stdout": READY.decode(),
        "stderr": "",
        "report": report,
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
        job = json.loads(host_path(container, container.command[2]).read_bytes())
        feeds = {
            name: np.fromfile(host_path(container, entry["file"]), dtype=entry["dtype"]).reshape(
                entry["shape"]
            )
            for name, entry in job["inputs"].items()
        }
        out, outputs = host_path(container, job["out"]), []
        for number, (name, array) in enumerate(self.serve(feeds).items()):
            array.tofile(out / f"output-{number}.bin")
            entry = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
            outputs.append({**entry, "file": f"output-{number}.bin"})
        asked = job["providers"]
        report = {
            "providers_asked": asked,
            "providers_active": asked,
            "placement": [{"provider": asked[0], "operator": "Relu", "count": 2}],
            "outputs": outputs,
            "latencies_ms": [1.0] * job["requests"],
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
        for entry in job["inputs"].values():
            entry["file"] = str(host_path(container, entry["file"]))
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
