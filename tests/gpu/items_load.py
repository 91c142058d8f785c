"""Items 5 and 6: the workload table, and what two plans of one model share in the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engines.store.local_store import LocalStore
from engines.store.objects import AREAS
from planyard.core.digest import digest_of_bytes
from planyard.core.matrix_runtime import Workload
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import Verdict
from planyard.edge.files import digest_of_file
from smoke.load import check_series, load_series
from tests.gpu.bench import LEAST_SECONDS, Asked, Bench, Progress
from tests.gpu.compiling import kept_plan
from tests.gpu.items_plans import versions_here
from tests.gpu.record import JudgedRun, LoadRow
from tests.gpu.subjects import UNET, CannotRunError, Subject, unet

PROFILES = ("512", "1024")
REQUESTS, WARMUP = 5, 1
"""Of each series, at the least one for each that is under way at once."""
ROW_SECONDS = 240
START_SECONDS = 12.0
"""What a row takes besides its requests: loading the plan, and the host's reference load."""
NOT_ASKED = ("outputs", "attention", "latency", "utilization")
"""Gates of a smoke run that say nothing of a load (builders/load_runs.py); utilization is in the
figures."""


def run_workloads(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 5: each row in a program of its own, the shortest first; what there is no time for is
    in the table with the reason."""
    bench.sm  # noqa: B018 - raises where there is no GPU
    rows = list(_rows(bench))
    if not rows:
        raise CannotRunError("no plan of the UNet is here: item 4 makes them")
    one_at_once: dict[tuple[str, int], float] = {}
    done = failed = 0
    for name, workload, subject, plan, batch, concurrency in sorted(rows, key=_weight):
        bare = LoadRow(
            workload=name,
            served=digest_of_file(plan),
            steps=workload.steps,
            contexts=workload.contexts,
            seed=workload.seed,
            pictures=batch // 2,
            concurrency=concurrency,
        )
        known = one_at_once.get((name, batch))
        if concurrency > 1 and known is None:
            progress.add(msgspec.structs.replace(bare, why="one at a time could not be measured"))
            continue
        requests = max(REQUESTS, concurrency)
        one = known or 2 * one_at_once.get((name, batch // 2), 0.0)  # twice the pictures
        expected = START_SECONDS + one * (requests + WARMUP)
        if expected > min(ROW_SECONDS, _left(bench)):
            why = f"not run: it would have taken about {expected:.0f} s"
            progress.add(msgspec.structs.replace(bare, why=why))
            continue
        row, kept = _measure(bench, bare, workload, subject, plan, batch=batch, requests=requests)
        progress.add(row)
        if row.series is None:
            failed += 1
            progress.add(kept)
            continue
        done += 1
        if concurrency == 1:
            one_at_once[name, batch] = row.series.p50_ms / 1000
            progress.add(kept)
    if not done:
        return "failed", "no row of the table was measured"
    missing = len(rows) - done
    if failed:
        return "failed", f"{failed} of {len(rows)} rows failed: each says why"
    return (
        "passed",
        f"{missing} of {len(rows)} rows were not run for want of time" if missing else "",
    )


def _rows(bench: Bench) -> Iterator[tuple[str, Workload, Subject, Path, int, int]]:
    """The matrix's workloads of the UNet, one row for each batch size and concurrency."""
    versions = versions_here(bench)
    for profile in PROFILES:
        subject = unet(bench.matrix, bench.places, profile=profile)
        plans = [kept_plan(bench, subject, version=each) for each in versions]
        plan = next(filter(None, plans), None)
        name = f"sd15-{profile}"
        workload = bench.matrix.loads.get(name)
        if plan and workload:
            for batch in workload.batches:
                for concurrency in workload.concurrency:
                    yield name, workload, subject, plan, batch, concurrency


def _weight(row: tuple[str, Workload, Subject, Path, int, int]) -> tuple[bool, float]:
    """The shortest first: one at a time before many, small pictures before large."""
    _, workload, subject, _, batch, concurrency = row
    pixels = math.prod(subject.shapes["sample"][2:])
    return (concurrency > 1, workload.steps * batch * pixels * concurrency)


def _measure(
    bench: Bench,
    bare: LoadRow,
    workload: Workload,
    subject: Subject,
    plan: Path,
    *,
    batch: int,
    requests: int,
) -> tuple[LoadRow, JudgedRun]:
    """One row; its figures only where the gates that judge a load pass."""
    version = plan.parent.name
    kept, run = bench.run(
        subject,
        Asked(
            what=f"{bare.workload}: {bare.pictures} pictures, {bare.concurrency} at once",
            backend="tensorrt",
            environment=bench.around.tensorrt(version),
            served=plan,
            tensorrt=version,
            batch=batch,
            steps=workload.steps,
            contexts=workload.contexts,
            seed=workload.seed,
            gates_off=NOT_ASKED,
            counts=False,
            limits=SmokeLimits(
                warmup=WARMUP,
                requests=requests,
                series_seconds=ROW_SECONDS,
                timeout_seconds=ROW_SECONDS,
                concurrency=(bare.concurrency,),
            ),
        ),
    )
    findings = check_series(run)
    series = load_series(run)
    if kept.verdict != "passed" or findings or not series:
        said = [each.message for each in (*kept.findings, *findings) if each.severity == "fail"]
        why = "; ".join(said)[:300] or "it reported no series"
        return msgspec.structs.replace(bare, why=why), kept
    return msgspec.structs.replace(bare, series=series[0]), kept


def _left(bench: Bench) -> float:
    """Seconds that are left, 0 where there are too few for anything."""
    try:
        return bench.left_seconds() - LEAST_SECONDS
    except CannotRunError:
        return 0.0


def run_sharing(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 6: both resolutions in one store, one family; what each added to it."""
    bench.sm  # noqa: B018 - raises where there is no GPU
    for version in versions_here(bench):
        found = [
            kept_plan(bench, unet(bench.matrix, bench.places, profile=each), version=version)
            for each in PROFILES
        ]
        plans = [each for each in found if each is not None]
        if len(plans) == len(PROFILES):
            with bench.scratch() as folder:
                progress.figures |= shared_bytes(plans, folder / "store")
            progress.note(f"Plans of TensorRT {version}, in the order {', '.join(PROFILES)}.")
            return "passed", ""
    raise CannotRunError("both plans of the UNet are needed: item 4 makes them")


def shared_bytes(plans: list[Path], root: Path) -> dict[str, float | str]:
    """What each plan added to a store that cuts them into chunks of one family, in bytes.

    The sizes are those of the store's own listing of its objects.
    """
    store, family = LocalStore(root), digest_of_bytes(UNET.encode())
    figures: dict[str, float | str] = {}
    before = 0
    for number, plan in enumerate(plans, start=1):
        store.put_blob(digest_of_file(plan), plan, family=family)
        stored = stored_bytes(store)
        size_bytes = plan.stat().st_size
        figures[f"plan {number}: bytes"] = size_bytes
        figures[f"plan {number}: bytes it added"] = stored - before
        if number > 1:
            share = 1 - (stored - before) / size_bytes
            figures[f"plan {number}: shared with those before it, %"] = round(100 * share, 2)
        before = stored
    return figures


def stored_bytes(store: LocalStore) -> int:
    """What the objects of a store weigh, by its own listing."""
    return sum(each.size_bytes for area in AREAS for each in store.objects.listing(area))
