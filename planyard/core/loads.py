"""What a load run measured: each batch size and concurrency of a workload, on one image and GPU.

Only runs that passed the gates have figures: what fell back to something slower is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from planyard.core import errors
from planyard.core.findings import Finding
from planyard.core.matrix_fields import Digest
from planyard.core.results import Verdict

LOAD_SCHEMA = 1

_Time = Annotated[float, Meta(gt=0)]
_Rate = Annotated[float, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=1)]


class LoadSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size and concurrency. A request is `steps` runs of the model, one after another.

    Times are ms of a whole request; `items_per_second` counts batch entries of finished requests
    (a batch of 4 is 4 items). `seconds` is from the first request's beginning to the last one's
    end. What only NVML knows is None without a GPU.
    """

    batch: _Count
    concurrency: _Count
    requests: _Count
    seconds: _Time
    p50_ms: _Time
    p95_ms: _Time
    p99_ms: _Time
    requests_per_second: _Rate
    items_per_second: _Rate
    gpu_percent: float | None = None
    """Mean utilization while this series ran."""
    gpu_memory_bytes: int | None = None
    """Device memory in use at the peak of this series, by whomever."""
    power_watts: float | None = None
    """Mean power while this series ran."""


class LoadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on one cell: the entry of the store's index `loads`, keyed by the image digest."""

    schema: Annotated[int, Meta(ge=LOAD_SCHEMA, le=LOAD_SCHEMA)] = LOAD_SCHEMA
    workload: str
    cell: str
    image: Digest
    """The digest of the image."""
    served: Digest
    """The digest of the plan, or of the model with its weights."""
    gpu: str
    """The GPU's name and SM, or the host's processor for a CPU cell; no host name."""
    steps: _Count
    contexts: _Count | None = None
    """Execution contexts of a plan, where they are bounded: other requests waited for one."""
    seed: int
    series: Annotated[tuple[LoadSeries, ...], Meta(min_length=1)]
    gates: dict[str, Verdict | Literal["off"]] = {}
    """The gates that judged the run, by name; `off` are those that say nothing of a load."""
    versions: dict[str, str] = {}
    """Of the libraries that were loaded, by the names of the pins."""
    driver: str = ""
    gpu_error: str = ""
    """Why NVML could not be asked, or not to the end: its figures are not whole then."""
    created: str
    """UTC, like 2026-11-22T05:00:00Z."""
    planyard_version: str = ""


class LoadRefused(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on a cell whose run failed its gates: no figures, and why."""

    workload: str
    cell: str
    findings: tuple[Finding, ...]


class LoadNotRun(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on a cell that cannot run on this machine, and why."""

    workload: str
    cell: str
    reason: str


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `planyard load --json`. `records` are in the store, the others left none."""

    schema: int = LOAD_SCHEMA
    records: tuple[LoadRecord, ...] = ()
    refused: tuple[LoadRefused, ...] = ()
    not_run: tuple[LoadNotRun, ...] = ()


def load_exit_code(report: LoadReport, *, required: bool = False) -> int:
    """What the process ends with: findings first, then that nothing, or not all, could be run."""
    if report.refused:
        return errors.EXIT_FINDINGS
    if report.not_run and (required or not report.records):
        return errors.SmokeNotRunError.exit_code
    return errors.EXIT_DONE
