"""A smoke run before it starts: the cell, what it serves and is asked, the script's job file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planyard.core.cells import Cell
from planyard.core.matrix import Backend
from planyard.core.matrix_smoke import SmokeLimits
from smoke.inputs import write_inputs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

INSIDE = Path(__file__).parent / "inside"
JOB_SCHEMA = 1
# What a session of each backend is asked to run on. No CPU beside a GPU: nothing to fall back to.
PROVIDERS: Mapping[Backend, tuple[str, ...]] = {
    "onnxruntime-cpu": ("CPUExecutionProvider",),
    "onnxruntime-cuda": ("CUDAExecutionProvider",),
    "tensorrt-rtx": ("TensorRT-RTX",),
    "tensorrt": ("TensorRT",),
}
SCRIPTS: Mapping[Backend, str] = {
    "onnxruntime-cpu": "ort.py",
    "onnxruntime-cuda": "ort.py",
    "tensorrt-rtx": "trt_rtx.py",
}


@dataclass(frozen=True, kw_only=True)
class SmokeJob:
    """A cell to run: its image in the engine, the file it serves, the inputs it is asked.

    `served` is the ONNX file, or the plan; its folder is mounted read-only. `command` is the
    image's own smoke command, instead of planyard's script.
    """

    cell: Cell
    image: str
    python: str
    served: Path
    inputs: Arrays
    limits: SmokeLimits
    gpu: bool
    command: tuple[str, ...] = ()


def can_smoke(backend: Backend) -> bool:
    """Whether there is a script that runs this backend."""
    return backend in SCRIPTS


def write_job(job: SmokeJob, work: Path) -> None:
    """Write `job.json` and the inputs into `work`, which the container sees as /job."""
    described = write_inputs(job.inputs, work)
    for entry in described.values():
        entry["file"] = f"/job/{entry['file']}"  # type: ignore[index]
    document = {
        "schema": JOB_SCHEMA,
        "model": f"/model/{job.served.name}",
        "providers": list(PROVIDERS[job.cell.backend]),
        "inputs": described,
        "requests": job.limits.requests,
        "out": "/out",
    }
    (work / "job.json").write_text(json.dumps(document))
