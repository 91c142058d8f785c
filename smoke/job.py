"""A smoke run before it starts: the cell, what it serves and is asked, the script's job file.

`job.json` is what every script of `smoke/inside` reads (the report is `SmokeReport`):

    schema          1
    backend         the cell's backend
    model           path of the ONNX file, or of the plan
    source          path of the ONNX file a plan without weights is filled from; null otherwise
    version_compatible  whether the plan also runs on later versions of its TensorRT
    providers       what the session is asked to run on, in order
    session         how ONNX Runtime's session is made (smoke/session.py); null for plans
    client          a file beside job.json, whose Client asks in place of ort.py's own; null
                    where no session has I/O binding
    steps           runs of the model, one after another, that make one request
    contexts        execution contexts of a plan, for which requests wait; null: one for each
                    request under way
    series          the series of requests, in the order they are asked; at least one. Each has
        batch           the batch size
        concurrency     how many requests are under way at once
        inputs          name → {file, dtype, shape}: raw little-endian bytes, C order; `file` is
                        relative to the folder of job.json
    warmup          requests before the first timed one, in each series
    requests        timed requests of each series
    series_seconds  a series ends after this time, but not before its 5th request
    least_seconds   requests go on, untimed, for this long after the first timed one
    out             folder for report.json and the files of the outputs

Outputs are those of the first series, whose shapes are always the profile's optimum: what the
goldens were made with. Series with the same inputs name the same files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from planyard.core.cells import Cell
from planyard.core.errors import InputError
from planyard.core.matrix import Backend
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.matrix_smoke import SmokeLimits
from smoke.inputs import write_inputs
from smoke.session import providers_of, session_document

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

INSIDE = Path(__file__).parent / "inside"
JOB_SCHEMA = 1
SCRIPTS: Mapping[Backend, str] = {
    "onnxruntime-cpu": "ort.py",
    "onnxruntime-cuda": "ort.py",
    "tensorrt-rtx": "trt.py",
    "tensorrt": "trt.py",
}
_CLIENT = "bound.py"
_NVML_SECONDS = 2.5
"""A rate of NVML covers up to a second: a GPU has to work for longer to be seen at it."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the script finds the model's folder and writes to: those of a container."""

    model: str = "/model"
    source: str = "/source"
    out: str = "/out"


@dataclass(frozen=True, kw_only=True)
class SmokeJob:
    """A cell to run: its image in the engine, the file it serves, the inputs it is asked.

    `served` is the ONNX file, or the plan; its folder is mounted read-only. `inputs` are those of
    the profile's optimum, whose batch size is `batch`; `inputs_at` makes those of another batch
    (`limits.batches`). `command` is the image's own smoke command, instead of planyard's script.
    `source` is the ONNX file that a plan without weights is filled from. A request is `steps` runs;
    of a plan, at most `contexts` are executed at the same time.
    """

    cell: Cell
    image: str
    python: str
    served: Path
    inputs: Arrays
    limits: SmokeLimits
    gpu: bool
    batch: int = 1
    inputs_at: Callable[[int], Arrays] | None = None
    command: tuple[str, ...] = ()
    session: SessionSpec = field(default_factory=SessionSpec)
    source: Path | None = None
    steps: int = 1
    contexts: int | None = None
    version_compatible: bool = False

    @property
    def providers(self) -> tuple[str, ...]:
        """What the session is asked to run on, in order."""
        return providers_of(self.session, self.cell.backend)


def series_of(job: SmokeJob) -> tuple[tuple[int, int], ...]:
    """Batch and concurrency of each series; the first is the profile's optimum, always."""
    limits = job.limits
    batches = limits.batches or (job.batch,)
    asked = [(batch, number) for batch in batches for number in limits.concurrency]
    return tuple(dict.fromkeys([(job.batch, limits.concurrency[0]), *asked]))


def write_job(job: SmokeJob, work: Path, *, places: Places = Places()) -> None:
    """Write `job.json` and the inputs into `work`, which the container sees as /job.

    The inputs of a batch size are made, written once and let go before those of the next. Raises
    InputError for what a session with a CUDA graph cannot answer.
    """
    _refuse_graph_of_many(job)
    described = {job.batch: write_inputs(job.inputs, work)}
    series = []
    for batch, concurrency in series_of(job):
        if batch not in described:
            if job.inputs_at is None:
                raise ValueError(f"{job.cell.id}: nothing makes inputs of batch {batch}")
            described[batch] = write_inputs(job.inputs_at(batch), work, stem=f"batch-{batch}")
        series.append(
            {"batch": batch, "concurrency": concurrency, "inputs": described[batch]},
        )
    document = {
        "schema": JOB_SCHEMA,
        "backend": job.cell.backend,
        "model": f"{places.model}/{job.served.name}",
        "source": f"{places.source}/{job.source.name}" if job.source else None,
        "version_compatible": job.version_compatible,
        "providers": list(job.providers),
        "session": session_document(job.session, job.cell.backend),
        "client": _lay_client(job, work),
        "steps": job.steps,
        "contexts": job.contexts,
        "series": series,
        "warmup": job.limits.warmup,
        "requests": job.limits.requests,
        "series_seconds": job.limits.series_seconds,
        "least_seconds": _NVML_SECONDS if job.gpu else 0,
        "out": places.out,
    }
    (work / "job.json").write_text(json.dumps(document))


def _refuse_graph_of_many(job: SmokeJob) -> None:
    """ONNX Runtime replays a CUDA graph for one request at a time (its CUDA provider's pages)."""
    many = max(concurrency for _, concurrency in series_of(job))
    if job.session.cuda_graph and many > 1:
        raise InputError(
            [
                f"images.{job.cell.image}.session.cuda_graph: a graph is replayed for one request "
                f"at a time, and {job.cell.id} is asked {many} at once"
            ],
            mend="ask one at a time (concurrency: [1]), or remove cuda_graph",
        )


def _lay_client(job: SmokeJob, work: Path) -> str | None:
    """What keeps tensors on the device has no room in ort.py, and goes into an image beside it."""
    if not job.session.io_binding or job.command:
        return None
    shutil.copyfile(INSIDE / _CLIENT, work / _CLIENT)
    return _CLIENT
