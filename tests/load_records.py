"""Load records for tests."""

from __future__ import annotations

from typing import Any

from planyard.core.loads import LoadRecord, LoadSeries

IMAGE = "sha256:" + "1" * 64


def a_series(**changes: Any) -> LoadSeries:
    """A series on a CPU."""
    fields: dict[str, Any] = {
        "batch": 1,
        "concurrency": 1,
        "requests": 20,
        "seconds": 2.0,
        "p50_ms": 95.0,
        "p95_ms": 120.0,
        "p99_ms": 130.0,
        "requests_per_second": 10.0,
        "items_per_second": 10.0,
    }
    return LoadSeries(**{**fields, **changes})


def a_record(**changes: Any) -> LoadRecord:
    """A workload on a cell."""
    fields: dict[str, Any] = {
        "workload": "pages",
        "cell": "ort-cpu/ocr-det/640/fp32/cpu",
        "image": IMAGE,
        "served": "sha256:" + "2" * 64,
        "gpu": "A processor (6/85/7), 2 cores",
        "steps": 1,
        "seed": 0,
        "series": (a_series(),),
        "created": "2026-11-22T05:00:00Z",
    }
    return LoadRecord(**{**fields, **changes})
