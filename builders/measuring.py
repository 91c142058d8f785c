"""A smoke run with what only the host can see of it: how fast the machine is, what NVML says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from planyard.core.results import GpuSample, SmokeRun
from planyard.edge.nvml import Sampler
from smoke.job import SmokeJob
from smoke.reference import measure_reference
from smoke.run import Runner, run_job

if TYPE_CHECKING:
    from smoke.job import Arrays


class Sampling(Protocol):
    """What NVML said while a block ran: `planyard.edge.nvml.Sampler`."""

    error: str

    def samples_since(self, began_seconds: float) -> tuple[GpuSample, ...]:
        """The samples, their times counted from a moment of the epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What measures beside a run: the host's reference load (times in ms), and NVML."""

    reference: Callable[[], tuple[float, ...]] = measure_reference
    sampler: Callable[[], AbstractContextManager[Sampling]] = Sampler


def measure(
    job: SmokeJob, *, runner: Runner, scratch: Path, instruments: Instruments
) -> tuple[SmokeRun, Arrays]:
    """Run a cell; a run on the CPU has the host's reference load around it, one on a GPU NVML.

    A GPU's own reference load is timed inside the container, beside the requests; where it was
    not (ONNX Runtime has no way to), the host's load stands in for it.
    """
    before = instruments.reference()
    if job.gpu:
        with instruments.sampler() as sampling:
            run, outputs = run_job(job, runner=runner, scratch=scratch)
        samples = sampling.samples_since(run.began_seconds)
        run = msgspec.structs.replace(run, gpu_samples=samples, gpu_error=sampling.error)
    else:
        run, outputs = run_job(job, runner=runner, scratch=scratch)
    return msgspec.structs.replace(run, reference_ms=before + instruments.reference()), outputs
