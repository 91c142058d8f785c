"""Made-up load runs for the report: what a GPU would measure, a CPU, and one that is hostile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.loads import put_load
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.loads import LoadRecord, LoadSeries

BATCHES = (1, 2, 4, 8)
CONCURRENCY = (1, 2, 4)


def a_series(batch: int = 1, concurrency: int = 1, **fields: Any) -> LoadSeries:
    """One batch size and concurrency, as a processor measures it: nothing of a GPU."""
    p50_ms = fields.pop("p50_ms", (4 + 3 * batch) * (0.4 + 0.6 * concurrency))
    whole: dict[str, Any] = {
        "batch": batch,
        "concurrency": concurrency,
        "requests": 40,
        "seconds": 40 * p50_ms / 1000 / concurrency,
        "p50_ms": p50_ms,
        "p95_ms": p50_ms * 1.15,
        "p99_ms": p50_ms * 1.3,
        "requests_per_second": 1000 * concurrency / p50_ms,
        "items_per_second": 1000 * concurrency * batch / p50_ms,
    }
    return LoadSeries(**whole | fields)


def of_gpu(batch: int, concurrency: int, **fields: Any) -> LoadSeries:
    """The same with what NVML would say."""
    gpu = {"gpu_percent": 40.0 + 5 * batch, "gpu_memory_bytes": 2_500_000_000, "power_watts": 181.5}
    return a_series(batch, concurrency, **gpu | fields)


def every(
    make: Any = of_gpu,
    *,
    batches: Sequence[int] = BATCHES,
    concurrency: Sequence[int] = CONCURRENCY,
    slower: float = 1.0,
) -> tuple[LoadSeries, ...]:
    """A series of each batch size and concurrency; `slower` than usual by a factor."""
    return tuple(
        make(batch, each, p50_ms=slower * (4 + 3 * batch) * (0.4 + 0.6 * each))
        for each in concurrency
        for batch in batches
    )


def a_load(cell: str, *, image: str, **fields: Any) -> LoadRecord:
    """A run on a GPU; `image` is its digest."""
    whole: dict[str, Any] = {
        "workload": "diffusion",
        "cell": cell,
        "image": image,
        "served": digest_of_bytes(f"plan of {cell}".encode()),
        "gpu": "NVIDIA L4, SM 8.9",
        "driver": "580.95.05",
        "steps": 20,
        "seed": 7,
        "series": every(),
        "gates": {"exit": "passed", "logs": "passed", "latency": "off"},
        "versions": {"tensorrt_rtx": "1.7.1.116"},
        "created": "2026-11-21T16:00:00Z",
        "planyard_version": "0.1.0",
    }
    return LoadRecord(**whole | fields)


def a_cpu_load(cell: str, *, image: str, **fields: Any) -> LoadRecord:
    """A run on a processor."""
    cpu: dict[str, Any] = {"gpu": "a processor, 2 threads", "driver": "", "series": every(a_series)}
    return a_load(cell, image=image, **cpu | {"versions": {"onnxruntime": "1.31.1"}} | fields)


def put_loads(store: ObjectStore, cells: Sequence[str], *, image: str, created: str) -> None:
    """A run of each cell."""
    for cell in cells:
        put_load(store, a_load(cell, image=image, created=created))
