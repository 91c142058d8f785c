"""Stores for the report: a thousand cells with a history, and one whose every text is hostile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engines import index
from engines.channels.moves import Mover, promote
from engines.loads import put_load
from engines.snapshot import BudgetFigures, Snapshot, VersionFound
from engines.store.protocol import Store
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.findings import Finding
from planyard.core.results import (
    ImageRecord,
    LatencyFigures,
    NodePlacement,
    PlanRecord,
    SmokeVerdict,
)
from tests.capability_sites import a_snapshot, a_verdict, recipe_of
from tests.page_loads import a_load, put_loads
from tests.signed_evidence import an_image

IMAGES = {"rtx": True, "rtx-large": True, "ort-gpu": False, "ort-lite": False}
"""Image names, and whether they have plans."""
MODELS = ("ocr-det", "ocr-rec", "unet", "encoder", "detector")
PROFILES = ("320", "640", "960", "1280", "1920")
PRECISIONS = ("fp16", "int8")
SMS = (80, 86, 89, 90, 120)
MARKUP = "</script><img src=x onerror=\"document.title='owned'\">"
HOSTILE = f"{MARKUP}\u2028\u202eevil\x1b[31m'\"&{{{{7*7}}}}"


def of_image(snapshot: Snapshot, image: ImageRecord) -> Snapshot:
    """The same snapshot of another image."""
    return msgspec.structs.replace(snapshot, image=image.digest, image_recipe=image.recipe)


def a_log(store: Store, *, stdout: str = "", stderr: str = "") -> str:
    """The digest of a run's log that is stored."""
    log = canonical_json({"stdout": stdout, "stderr": stderr})
    store.put_blob(digest_of_bytes(log), [log])
    return digest_of_bytes(log)


def log_text(lines: int, *, loss_at: int = 0) -> str:
    """So many lines, one of them a loss."""
    loss = "Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*"
    return "".join(
        f"{loss}\n" if number == loss_at else f"request {number} answered in 2.{number % 10} ms\n"
        for number in range(1, lines + 1)
    )


def a_loss(cell: str, line: int) -> Finding:
    """What the log gate says of that line."""
    message = f"stderr line {line}: a provider was not created, its nodes run elsewhere"
    return Finding(gate="logs", rule="provider-not-created", message=message, where=cell, line=line)


def thousand(
    store: ObjectStore,
    *,
    steps: int = 20,
    models: Sequence[str] = MODELS,
    sms: Sequence[int] = SMS,
    loads: int = 0,
) -> None:
    """A thousand cells of four images, each image in so many steps; channels at two of them.

    Fewer `models` or `sms` make fewer cells; with `unet` and 120 there are cells not run. In the
    last `loads` steps each other cell has a load run.
    """
    log = a_log(store, stdout="ready\n", stderr=log_text(80))
    lost = a_log(store, stdout="ready\n", stderr=log_text(400, loss_at=200))
    for name in IMAGES:
        for step in range(steps):
            verdicts = _Verdicts(step=step, last=step == steps - 1, log=log, lost=lost)
            snapshots = _step(store, name, verdicts, models=models, sms=sms)
            for snapshot in snapshots:
                index.put_snapshot(store, snapshot)
                if step >= steps - loads:
                    cells = [each.cell for each in snapshot.smoke if each.verdict != "not run"]
                    put_loads(store, cells, image=snapshot.image, created=snapshot.created)
            if name == "ort-lite" and step in (steps - 3, steps - 2):
                mover = Mover(by="ann@desk", now=f"2026-10-{step + 1:02}T18:00:00Z")
                channel = "stable" if step == steps - 3 else "canary"
                assert promote(store, channel, snapshots[0].image, mover=mover).moved


@dataclass(frozen=True, kw_only=True)
class _Verdicts:
    """What the cells of one step say."""

    step: int
    last: bool
    log: str
    lost: str


def _step(
    store: Store, name: str, said: _Verdicts, *, models: Sequence[str], sms: Sequence[int]
) -> list[Snapshot]:
    step = said.step
    image = an_image(store, f"{name} {step}")
    made = []
    for sm in sms:
        cells = [f"{m}/{p}/{q}/sm{sm}" for m in models for p in PROFILES for q in PRECISIONS]
        plans = _plans(store, name, cells, sm, step) if IMAGES[name] else ()
        found = "tensorrt_rtx" if IMAGES[name] else "onnxruntime"
        snapshot = a_snapshot(
            plans,
            sm=sm,
            image_name=name,
            smoke=tuple(_verdict(f"{name}/{cell}", at, said) for at, cell in enumerate(cells)),
            versions_found={found: VersionFound(version=f"1.{step // 8}", how="imported")},
            budget=_budget(name, step),
            created=f"2026-10-{step + 1:02}T12:{sm % 60:02}:00Z",
        )
        made.append(of_image(snapshot, image))
    return made


def _budget(name: str, step: int) -> BudgetFigures:
    grown = 100_000_000 + step * 1_500_000 + (12_000_000 if step > 12 else 0)
    limit = 160_000_000 if step < 10 else 142_000_000
    return BudgetFigures(
        pull_bytes=grown if name == "rtx" else 96_000_000 + step * 200_000,
        unpacked_bytes=285_000_000 + step * 900_000,
        largest_layer_bytes=90_000_000,
        pull_limit_bytes=limit if name != "ort-gpu" else None,
        unpacked_limit_bytes=340_000_000,
    )


def _plans(
    store: Store, name: str, cells: Sequence[str], sm: int, step: int
) -> tuple[PlanRecord, ...]:
    plan = b"a plan, the same for all: the page reads none"
    store.put_blob(digest_of_bytes(plan), [plan])
    made = []
    for cell in cells:
        model, profile, precision, _ = cell.split("/")
        inputs = recipe_of(profile, sm, precision=precision, version=f"1.7.{step // 8}")
        made.append(
            PlanRecord(
                cell=f"{name}/{cell}",
                recipe=digest_of_value(inputs),
                digest=digest_of_bytes(plan),
                size_bytes=11_000_000 + step * 1000,
                backend="tensorrt-rtx",
                version=str(inputs["version"]),
                sm=sm,
                model=model,
                profile=profile,
                precision=precision,
                compile_seconds=41.0,
                inputs=inputs,
            )
        )
    return tuple(made)


def _verdict(cell: str, number: int, said: _Verdicts) -> SmokeVerdict:
    step = said.step
    if said.last and cell.startswith("rtx-large/unet/") and cell.endswith("sm120"):
        return a_verdict(cell, "not run")
    failed = said.last and number % 23 == 7 and not cell.startswith("ort-lite")
    p50 = (2 + number * 0.7) * (1 + 0.03 * math.sin(step + number)) * (1.4 if failed else 1)
    timed = LatencyFigures(
        batch=1,
        concurrency=1,
        requests=20,
        p50_ms=p50,
        p95_ms=p50 * 1.2,
        p99_ms=p50 * 1.3,
        reference_ms=1.0,
        baseline_p50_ms=2 + number * 0.7 if step else None,
        baseline_p95_ms=(2 + number * 0.7) * 1.2 if step else None,
        baseline_runs=min(step, 10),
    )
    placed = (
        NodePlacement(provider="CUDAExecutionProvider", operator="Conv", count=62),
        NodePlacement(provider="CUDAExecutionProvider", operator="Relu", count=40),
        NodePlacement(provider="CPUExecutionProvider", operator="Shape", count=3),
    )
    changes: dict[str, Any] = {"latency": (timed,), "placement": placed, "log_digest": said.log}
    if failed:
        changes |= {"findings": (a_loss(cell, 200),), "log_digest": said.lost}
    return a_verdict(cell, "failed" if failed else "passed", **changes)


def hostile(store: ObjectStore) -> None:
    """One image whose names, reasons, versions, recipe and log try to be more than text."""
    cell = f"rtx/{MARKUP.replace('/', ' ')}/<b>640/fp16/sm89"
    image = an_image(store, "hostile")
    inputs = recipe_of("640", 89, flags=[HOSTILE])
    data = canonical_json(inputs)
    store.put_blob(digest_of_bytes(data), [data])
    plan = PlanRecord(
        cell=cell,
        recipe=digest_of_value(inputs),
        digest=digest_of_bytes(data),
        size_bytes=1,
        backend="tensorrt-rtx",
        version=HOSTILE,
        sm=89,
        model="x",
        profile="640",
        precision="fp16",
        compile_seconds=1.0,
        inputs=inputs,
    )
    finding = Finding(
        gate="logs", rule=HOSTILE, message=f"stderr line 2: {HOSTILE}", evidence=(HOSTILE,), line=2
    )
    verdict = a_verdict(
        cell,
        "failed",
        reason=HOSTILE,
        findings=(finding,),
        gates={"logs": "failed", HOSTILE: "off"},
        placement=(NodePlacement(provider=HOSTILE, operator=HOSTILE, count=1),),
        log_digest=a_log(store, stdout=HOSTILE, stderr=f"one\n{HOSTILE}\nthree\n"),
    )
    other = an_image(store, "before")
    for record, created in ((other, "2026-11-20T15:00:00Z"), (image, "2026-11-21T15:00:00Z")):
        snapshot = a_snapshot(
            (plan,),
            image_name=f"rtx{HOSTILE}",
            smoke=(verdict,),
            created=created,
            pins={"driver": HOSTILE, "x": created},
            versions_found={HOSTILE: VersionFound(version=HOSTILE, how=HOSTILE)},
            planyard_version=HOSTILE,
        )
        index.put_snapshot(store, of_image(snapshot, record))
        names = {"workload": HOSTILE, "gpu": HOSTILE, "driver": HOSTILE, "versions": {HOSTILE: "1"}}
        shown = f"rtx{HOSTILE}/{cell.removeprefix('rtx/')}"
        put_load(store, a_load(shown, image=record.digest, created=created, **names))
