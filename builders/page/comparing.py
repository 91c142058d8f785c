"""Figures of every image for a comparison of any two, and what follows for those side by side.

The page's script compares figures. What follows from a change needs planyard: it is worked out for
neighbours in time and for the places of channels, and for others the page says which command does.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, permutations
from typing import Any

import msgspec

from builders.page.collect import History, Step
from engines.diffing.views import key_of
from engines.snapshot_diff import SnapshotDiff, diff_snapshots, lines_of_work
from planyard.core.digest import short
from planyard.core.loads import LoadRecord
from planyard.core.results import PlanRecord, SmokeVerdict

MOST_PAIRS = 200
MOST_CHANGES = 60
MOST_CELLS = 8
"""Cells that are named under a change."""
MOST_SERIES = 4000
"""Series of load runs that can be compared: 150 kB of the page."""


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """What a change brings, for people: a line of a comparison."""

    severity: str
    subject: str
    before: str
    after: str
    consequence: str
    why: str
    cells: tuple[str, ...]
    more: int


class Follows(msgspec.Struct, frozen=True, kw_only=True):
    """What follows when one image replaces another; `left_out` changes are not listed."""

    severity: str
    changes: tuple[Followed, ...]
    left_out: int
    work: tuple[str, ...]
    not_compared: tuple[str, ...]


def follows(before: Step, after: Step) -> Follows:
    """What follows when `after` replaces `before`."""
    return _plain(diff_snapshots(before.view.snapshots, after.view.snapshots))


def _plain(diff: SnapshotDiff) -> Follows:
    changes = tuple(
        Followed(
            severity=each.severity,
            subject=each.subject,
            before=each.before,
            after=each.after,
            consequence=each.consequence,
            why=each.why,
            cells=each.cells[:MOST_CELLS],
            more=max(len(each.cells) - MOST_CELLS, 0),
        )
        for each in diff.changes[:MOST_CHANGES]
    )
    return Follows(
        severity=diff.severity,
        changes=changes,
        left_out=len(diff.changes) - len(changes),
        work=tuple(lines_of_work(diff)),
        not_compared=tuple(f"{each.what}: {each.why}" for each in diff.not_compared),
    )


def pairs_of(histories: Iterable[History]) -> list[tuple[Step, Step]]:
    """The pairs whose consequences are worked out: the newest first, each once."""
    found: dict[tuple[str, str], tuple[Step, Step]] = {}
    for history in histories:
        for before, after in _pairs(history):
            if before.image != after.image:
                found.setdefault((before.image, after.image), (before, after))
    return list(found.values())[:MOST_PAIRS]


def _pairs(history: History) -> Iterator[tuple[Step, Step]]:
    marked = [step for step in history.steps if step.channels]
    yield from reversed(list(pairwise(history.steps)))
    yield from permutations(marked, 2)
    yield from ((step, history.now) for step in marked)


def figures(
    histories: Iterable[History],
    known: dict[tuple[str, str], Follows],
    loads: Sequence[LoadRecord] = (),
) -> dict[str, Any]:
    """The document that the page's script reads: images oldest first, cells by their number.

    A cell is `[verdict, p50_ms, p95_ms, plan recipe, plan bytes, failed gates]`, a load run
    `[workload, cell, GPU, steps, [[batch, concurrency, p50_ms, p95_ms, items per second], …]]`.
    """
    numbers: dict[str, int] = {}
    images: dict[str, dict[str, Any]] = {}
    for history in histories:
        for step in history.steps:
            images.pop(step.image, None)  # one that came back stands where it came back
            images[step.image] = _figures_of(step, numbers)
    for record in loads_to_compare(loads, images):
        images[record.image]["loads"].append(_load_row(record, numbers))
    places = {image: number for number, image in enumerate(images)}
    pairs = {
        f"{places[before]}-{places[after]}": msgspec.to_builtins(follow)
        for (before, after), follow in known.items()
    }
    return {"keys": list(numbers), "images": list(images.values()), "follows": pairs}


def _figures_of(step: Step, numbers: dict[str, int]) -> dict[str, Any]:
    budget = step.newest.budget
    sizes = {
        name: [getattr(budget, f"{name}_bytes"), getattr(budget, f"{name}_limit_bytes")]
        for name in ("pull", "unpacked", "largest_layer")
    }
    found = {name: each.version for name, each in step.newest.versions_found.items()}
    return {
        "digest": step.image,
        "name": step.name,
        "created": step.created,
        "channels": step.channels,
        "sizes": sizes,
        "pins": step.newest.pins,
        "found": found,
        "cells": {
            str(numbers.setdefault(key, len(numbers))): _row(
                step.view.verdicts.get(key), step.view.plans.get(key)
            )
            for key in step.view.cells
        },
        "loads": [],
    }


def loads_to_compare(
    loads: Iterable[LoadRecord], images: Container[str], *, most: int = MOST_SERIES
) -> list[LoadRecord]:
    """The newest run of each workload, cell, GPU and number of steps on each of `images`.

    The newest first, until they have `most` series: the page holds no more.
    """
    found: dict[tuple[str, str, str, str, int], LoadRecord] = {}
    for each in sorted(loads, key=lambda each: each.created, reverse=True):
        if each.image in images:
            key = (each.image, each.workload, key_of(each.cell), each.gpu, each.steps)
            found.setdefault(key, each)
    series = accumulate(len(each.series) for each in found.values())
    return [each for each, count in zip(found.values(), series, strict=True) if count <= most]


def _load_row(record: LoadRecord, numbers: dict[str, int]) -> list[object]:
    key = key_of(record.cell)
    series = [
        [each.batch, each.concurrency]
        + [round(value, 3) for value in (each.p50_ms, each.p95_ms)]
        + [float(f"{each.items_per_second:.4g}")]
        for each in record.series
    ]
    cell = numbers.setdefault(key, len(numbers))
    return [record.workload, cell, record.gpu, record.steps, series]


def _row(verdict: SmokeVerdict | None, plan: PlanRecord | None) -> Sequence[object]:
    timed = verdict.latency[0] if verdict and verdict.latency else None
    failed = [name for name, said in verdict.gates.items() if said == "failed"] if verdict else []
    row = [
        verdict.verdict if verdict else "no evidence",
        round(timed.p50_ms, 3) if timed else None,
        round(timed.p95_ms, 3) if timed else None,
        short(plan.recipe) if plan else None,
        plan.size_bytes if plan else None,
        " ".join(failed) or None,
    ]
    while row[-1] is None:
        row.pop()
    return row
