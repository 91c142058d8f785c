"""What a load run measured: each batch size and concurrency of a workload, on one image and GPU."""

from __future__ import annotations

import msgspec

LOAD_SCHEMA = 1


class LoadSeries(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size and concurrency. A request is `steps` runs of the model, one after another.

    Times are ms of a whole request; `items_per_second` counts batch entries of finished requests
    (a batch of 4 is 4 items). What only NVML knows is None without a GPU.
    """

    batch: int
    concurrency: int
    requests: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests_per_second: float
    items_per_second: float
    gpu_percent: float | None = None
    """Mean utilization while this series ran."""
    gpu_memory_bytes: int | None = None
    """Device memory in use at the peak of this series."""
    power_watts: float | None = None


class LoadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on one cell: the entry of the store's index `loads`, keyed by the image digest."""

    schema: int = LOAD_SCHEMA
    workload: str
    cell: str
    image: str
    """The digest of the image."""
    served: str
    """The digest of the plan, or of the model with its weights."""
    gpu: str
    """The GPU's name and SM, or the host's processor for a CPU cell; no host name."""
    steps: int
    seed: int
    series: tuple[LoadSeries, ...]
    versions: dict[str, str] = {}
    """Of the libraries that were loaded, by the names of the pins."""
    driver: str = ""
    created: str
    """UTC, like 2026-11-22T05:00:00Z."""
    planyard_version: str = ""
