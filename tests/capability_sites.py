"""Snapshots to compare and to make node labels of: an image with plans, and images without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engines import index
from engines.snapshot import BudgetFigures, Commit, DeviceReport, Snapshot, VersionFound
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.findings import Finding
from planyard.core.results import (
    AttentionFigures,
    LatencyFigures,
    LoadedLibrary,
    NodePlacement,
    PlanRecord,
    SmokeVerdict,
    UtilizationFigures,
)

PINS = {
    "driver": "580",
    "cuda": "13.0",
    "cudnn": "9.28.0.42",
    "onnxruntime": "1.31.1",
    "tensorrt": "11.2.1.2",
    "tensorrt_rtx": "1.7.1.116",
    "python": "3.11",
}
PROFILES = ("640", "960", "1280")
SMS = (86, 89, 120)


def recipe_of(profile: str = "640", sm: int = 89, **changes: Any) -> dict[str, Any]:
    """All inputs of a plan for TensorRT for RTX."""
    whole = {
        "schema": 1,
        "model": digest_of_bytes(b"model"),
        "backend": "tensorrt-rtx",
        "version": PINS["tensorrt_rtx"],
        "builder_image": digest_of_bytes(b"compiler"),
        "script": digest_of_bytes(b"script"),
        "sm_targets": [sm],
        "profile": {"x": {"min": [1, 3, int(profile)], "max": [4, 3, int(profile)]}},
        "precision": "fp16",
        "workspace_bytes": 2 << 30,
        "optimization_level": None,
        "flags": [],
        "conversion": {"script": digest_of_bytes(b"to fp16"), "packages": {"onnx": "1.20.0"}},
        "built_on": None,
    }
    return whole | changes


def a_plan(
    profile: str = "640",
    sm: int = 89,
    *,
    data: bytes = b"",
    seconds: float = 40.0,
    backend: str = "tensorrt-rtx",
    image: str = "rtx",
    **changes: Any,
) -> PlanRecord:
    """A plan; `changes` are those of its recipe."""
    inputs = recipe_of(profile, sm, **changes)
    return PlanRecord(
        cell=f"{image}/ocr/{profile}/fp16/sm{sm}",
        recipe=digest_of_value(inputs),
        digest=digest_of_bytes(data or canonical_json(inputs)),
        size_bytes=11_000_000,
        backend=backend,
        version=inputs["version"],
        sm=sm,
        model="ocr",
        profile=profile,
        precision="fp16",
        compile_seconds=seconds,
        inputs=inputs,
    )


def a_verdict(cell: str = "rtx/ocr/640/fp16/sm89", verdict: str = "passed", **fields: Any) -> Any:
    """A verdict; with `passed`, everything was measured."""
    whole: dict[str, Any] = {"cell": cell, "verdict": verdict}
    if verdict == "not run":
        return SmokeVerdict(**whole | {"reason": "this machine has no GPU"} | fields)
    whole |= {
        "gates": {"exit": "passed", "logs": verdict, "latency": "passed", "outputs": "passed"},
        "findings": (Finding(gate="logs", rule="slow-path", message="m", severity="warn"),),
        "seconds": 4.0,
        "latencies_ms": (2.0, 2.1),
        "latency": (
            LatencyFigures(
                batch=1,
                concurrency=1,
                requests=20,
                p50_ms=2.0,
                p95_ms=2.5,
                p99_ms=3.0,
                reference_ms=1.0,
                baseline_p50_ms=2.0,
                baseline_p95_ms=2.5,
                baseline_runs=3,
            ),
        ),
        "placement": (NodePlacement(provider="TensorRT-RTX", operator="Conv", count=62),),
        "memcpy_nodes": 2,
        "attention": AttentionFigures(blocks=32, fused=32, how="engine inspector"),
        "utilization": UtilizationFigures(
            samples=9, gpu_percent=80.0, peak_memory_bytes=3 << 30, throttled_percent=0.0
        ),
        "loaded": {"tensorrt_rtx": LoadedLibrary(version="1.7.1.116", path="/usr/lib/l.so")},
        "log_digest": digest_of_bytes(b"log"),
    }
    if verdict == "failed":
        whole["findings"] = (Finding(gate="logs", rule="provider-lost", message="m"),)
    return SmokeVerdict(**whole | fields)


def a_snapshot(
    plans: Iterable[PlanRecord] = (), *, sm: int | None = 89, image: str = "A", **fields: Any
) -> Snapshot:
    """A snapshot of an image; its cells are those of `smoke`, or of its plans, not run."""
    plans = tuple(plans)
    whole: dict[str, Any] = {
        "image": digest_of_bytes(f"image {image}".encode()),
        "image_name": "rtx",
        "image_recipe": digest_of_bytes(f"recipe {image}".encode()),
        "gpu": f"sm{sm}" if sm else "cpu",
        "sm": sm,
        "pins": PINS,
        "versions_found": {},
        "device": DeviceReport(),
        "workspace_bytes": 2 << 30,
        "plans": plans,
        "smoke": tuple(a_verdict(plan.cell, "not run") for plan in plans),
        "gates_off": (),
        "budget": BudgetFigures(
            pull_bytes=111_700_000,
            unpacked_bytes=285_500_000,
            largest_layer_bytes=90_000_000,
            pull_limit_bytes=140_000_000,
        ),
        "commit": Commit(id="a" * 40, dirty=False),
        "matrix_digest": digest_of_bytes(b"matrix"),
        "created": "2026-11-21T15:00:00Z",
        "planyard_version": "0.1.0",
    }
    return Snapshot(**whole | fields)


def nine_plans(
    *, image: str = "A", sms: Sequence[int] = SMS, pins: dict[str, str] | None = None, **recipe: Any
) -> list[Snapshot]:
    """Three profiles on each SM, one snapshot for each, nothing run."""
    made = []
    for sm in sms:
        plans = [a_plan(profile, sm, **recipe) for profile in PROFILES]
        made.append(a_snapshot(plans, sm=sm, image=image, pins=PINS | (pins or {})))
    return made


def proved_fully() -> Snapshot:
    """One cell with everything that can be measured."""
    return a_snapshot(
        [a_plan()],
        smoke=(a_verdict(),),
        versions_found={"tensorrt_rtx": VersionFound(version="1.7.1.116", how="getInferLib…")},
        device=DeviceReport(count=1, driver="580.65.06", fp16=True, int8=True),
        gates_off=("attention for rtx/ocr/*: no attention in this model",),
    )


def an_ort_gpu(*, sms: Sequence[int] = (89,), verdict: str = "not run", **fields: Any) -> list[Any]:
    """ONNX Runtime on CUDA: no plans, and its libraries were found."""
    found = {"onnxruntime": VersionFound(version="1.31.1", how="imported")}
    made = []
    for sm in sms:
        smoke = (a_verdict(f"ort-gpu/ocr/640/fp32/sm{sm}", verdict),)
        whole = {"image_name": "ort-gpu", "versions_found": found, "smoke": smoke} | fields
        made.append(a_snapshot(sm=sm, image="ort", **whole))
    return made


def a_cpu_image(**fields: Any) -> Snapshot:
    """ONNX Runtime on the CPU."""
    smoke = (a_verdict("ort-cpu/ocr/640/fp32/cpu"),)
    return a_snapshot(
        **{"sm": None, "image": "cpu", "image_name": "ort-cpu", "smoke": smoke} | fields
    )


def stored(store: Store, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """The same snapshots in a store, with an image and bytes for everything they name."""
    manifest = canonical_json(
        {"config": {"digest": digest_of_bytes(b"c"), "size": 1}, "layers": []}
    )
    manifest = manifest[:-1] + b',"of":"' + snapshots[0].image.encode() + b'"}'
    image = digest_of_bytes(manifest)
    store.put_blob(image, [manifest])
    kept = []
    for snapshot in snapshots:
        plans = []
        for plan in snapshot.plans:
            data = canonical_json(plan.inputs)
            store.put_blob(digest_of_bytes(data), [data])
            plans.append(msgspec.structs.replace(plan, digest=digest_of_bytes(data)))
        smoke = tuple(msgspec.structs.replace(each, log_digest="") for each in snapshot.smoke)
        changed = {"image": image, "plans": tuple(plans), "smoke": smoke}
        kept.append(msgspec.structs.replace(snapshot, **changed))
        index.put_snapshot(store, kept[-1])
    return kept
