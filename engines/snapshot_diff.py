"""What follows when one image's snapshots replace another's: `planyard snapshot diff`. Pure.

Equal snapshots have no changes. When they were written and by which planyard, the commit and the
matrix they came from are shown, but are no difference in what was proved. `COMPARED` and `IGNORED`
name every field of a snapshot, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engines.diffing import changes
from engines.diffing.cells import cell_changes
from engines.diffing.changes import KINDS, SEVERITIES, Change, ChangeSeverity
from engines.diffing.figures import figure_changes
from engines.diffing.machine import machine_changes
from engines.diffing.pins import compatibility_changes, pin_changes
from engines.diffing.plans import Pair, plan_changes, recipe_changes
from engines.diffing.proofs import proof_changes
from engines.diffing.views import View, view_of
from engines.snapshot import BudgetFigures, Commit, DeviceReport, Snapshot, VersionFound, to_json
from planyard.core.digest import digest_of_bytes
from planyard.core.results import (
    AttentionFigures,
    LatencyFigures,
    LoadedLibrary,
    NodePlacement,
    PlanRecord,
    SmokeVerdict,
    UtilizationFigures,
)

__all__ = ["COMPARED", "IGNORED", "Change", "SnapshotDiff", "diff_snapshots", "lines_of_work"]

DIFF_SCHEMA = 1


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared: an image by its snapshots, with their digests by GPU, newest first."""

    image: str
    image_name: str
    backend: str
    snapshots: dict[str, str]
    created: str
    planyard_version: str
    commit: str
    matrix_digest: str


class NotCompared(msgspec.Struct, frozen=True, kw_only=True):
    """Something that cannot be held against the other side, and why."""

    what: str
    why: str


class SnapshotDiff(msgspec.Struct, frozen=True, kw_only=True):
    """Every difference with its consequence, the worst first: `planyard snapshot diff --json`.

    `rebuild` are the cells whose plan cannot be taken over, for whatever reason, `rebuilt` those of
    them that the second side has a plan for; `validate` the cells whose plan stays and that have to
    be run again, `validated` those of both that the second side has run and passed. `carried` have
    a plan of the same recipe on both sides, `unneeded` a plan that nobody wants any more. `seconds`
    is what compiling `rebuild` took the last time.
    """

    schema: int = DIFF_SCHEMA
    before: Side
    after: Side
    severity: ChangeSeverity
    changes: tuple[Change, ...]
    carried: tuple[str, ...] = ()
    rebuild: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    validate: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    unneeded: tuple[str, ...] = ()
    seconds: float | None = None
    not_compared: tuple[NotCompared, ...] = ()


def diff_snapshots(before: Sequence[Snapshot], after: Sequence[Snapshot]) -> SnapshotDiff:
    """The differences between the snapshots of one image and those of another, or of another time.

    Snapshots are matched by the GPU's name. Raises InputError when one side is empty, or has
    snapshots of several images.
    """
    pair = Pair(before=view_of(before, side="before"), after=view_of(after, side="after"))
    pins, explained = pin_changes(pair)
    recipes = recipe_changes(pair, explained=explained)
    found = [*compatibility_changes(pair), *pins, *recipes, *cell_changes(pair)]
    known = {cell.partition("/")[2] for change in found for cell in change.rebuild}
    found += plan_changes(pair, rebuild=known)
    found += [*proof_changes(pair), *figure_changes(pair), *machine_changes(pair)]
    return _summed_up(pair, sorted(found, key=_order))


def _order(change: Change) -> tuple[int, int]:
    return (-SEVERITIES.index(change.severity), KINDS.index(change.kind))


def _summed_up(pair: Pair, found: list[Change]) -> SnapshotDiff:
    rebuild = changes.union(*(each.rebuild for each in found))
    validate = set(changes.union(*(each.validate for each in found))) - set(rebuild)
    has_plan = {*pair.ids(pair.after.plans.keys())}
    passed = {
        pair.id_of(cell)
        for cell, verdict in pair.after.verdicts.items()
        if verdict.verdict == "passed"
    }
    times = {pair.id_of(cell): seconds for cell, seconds in pair.times.items()}
    wanted = pair.after.cell_set if not pair.other_backend else frozenset(pair.after.plans)
    unneeded = [cell for cell in pair.before.plans if cell not in wanted]
    return SnapshotDiff(
        before=_side(pair.before),
        after=_side(pair.after),
        severity=changes.worst(each.severity for each in found),
        changes=tuple(found),
        carried=pair.ids(pair.carried),
        rebuild=rebuild,
        rebuilt=tuple(cell for cell in rebuild if cell in has_plan),
        validate=tuple(sorted(validate)),
        validated=tuple(sorted((validate | set(rebuild)) & passed)),
        unneeded=pair.ids(unneeded),
        seconds=changes.seconds_of(rebuild, times),
        not_compared=tuple(_not_compared(pair)),
    )


def _side(view: View) -> Side:
    newest = view.newest
    commit = newest.commit
    return Side(
        image=newest.image,
        image_name=newest.image_name,
        backend=view.backend or "unknown",
        snapshots={gpu: digest_of_bytes(to_json(each)) for gpu, each in view.gpus.items()},
        created=newest.created,
        planyard_version=newest.planyard_version,
        commit=f"{commit.id}{' and files that differ' * commit.dirty}" if commit else "",
        matrix_digest=newest.matrix_digest,
    )


def _not_compared(pair: Pair) -> list[NotCompared]:
    before, after = pair.before.newest, pair.after.newest
    found = []
    if before.image_name != after.image_name:
        why = "cells are matched without the image's name, by model, profile, precision and GPU"
        found.append(NotCompared(what=f"{before.image_name} and {after.image_name}", why=why))
    if pair.before.backend != pair.after.backend:
        backends = [view.backend or "an unknown backend" for view in (pair.before, pair.after)]
        why = "a plan of one backend is nothing to another: none can carry over"
        found.append(NotCompared(what=" and ".join(backends), why=why))
    if before.matrix_digest != after.matrix_digest:
        why = "limits of gates and shapes are in the matrix, not in a snapshot: they may differ"
        found.append(NotCompared(what="the matrices", why=why))
        if not (pair.before.plans and pair.after.plans):
            why = "only plans name the digest of their model: that it is the same is not shown"
            found.append(NotCompared(what="the models", why=why))
    for view, other in ((pair.before, pair.after), (pair.after, pair.before)):
        alone = [gpu for gpu in view.gpus if gpu not in other.gpus]
        like = {snapshot.sm: gpu for gpu, snapshot in other.gpus.items()}
        for gpu in alone:
            sm = view.gpus[gpu].sm
            if view is pair.before and like.get(sm, gpu) not in (gpu, *pair.gpus):
                why = "the SM is the same, but GPUs are matched by their name"
                found.append(NotCompared(what=f"{gpu} and {like[sm]}", why=why))
    if not pair.cells:
        why = "no cell is on both sides"
        found.append(NotCompared(what="plans, verdicts and figures", why=why))
    return found


def lines_of_work(diff: SnapshotDiff) -> list[str]:
    """What there is to do in all, for people; the last lines of a report."""
    lines = []
    if diff.rebuild:
        timed = "" if diff.seconds is None else f", {changes.about(diff.seconds)} of compiling"
        lines.append(f"{changes.count(len(diff.rebuild), 'plan')} to rebuild{timed}")
        lines[-1] += f"; {len(diff.rebuilt)} of them are built already"
    again = len(diff.validate) + len(diff.rebuild)
    if again:
        passed = f"{len(diff.validated)} of them have passed already"
        lines.append(f"{changes.count(again, 'cell')} to validate; {passed}")
    if diff.carried:
        lines.append(f"{changes.count(len(diff.carried), 'plan')} taken over unchanged")
    if diff.unneeded:
        lines.append(f"{changes.count(len(diff.unneeded), 'plan')} nobody needs")
    return lines


# Every field, so that none is forgotten: tests change each and look at the answer.

COMPARED: dict[type, frozenset[str]] = {
    Snapshot: frozenset(
        {"image", "image_name", "image_recipe", "gpu", "sm", "pins", "versions_found", "device"}
        | {"workspace_bytes", "plans", "smoke", "gates_off", "budget"}
    ),
    PlanRecord: frozenset({"cell", "recipe", "digest", "size_bytes", "backend", "inputs"}),
    SmokeVerdict: frozenset(
        {"cell", "verdict", "gates", "findings", "latency", "placement", "memcpy_nodes"}
        | {"attention", "utilization", "loaded"}
    ),
    VersionFound: frozenset({"version"}),
    DeviceReport: frozenset({"count", "driver", "fp16", "int8"}),
    BudgetFigures: frozenset(BudgetFigures.__struct_fields__),
    NodePlacement: frozenset({"provider", "operator", "count"}),
    LoadedLibrary: frozenset({"version"}),
    LatencyFigures: frozenset({"batch", "concurrency", "p50_ms", "reference_ms"}),
    AttentionFigures: frozenset({"blocks", "fused"}),
    UtilizationFigures: frozenset(
        {"gpu_percent", "peak_memory_bytes", "throttled_percent", "throttled_by"}
    ),
}
_FROM_RECIPE = "is in the recipe's inputs"
_JUDGED = "is judged by the latency gate, against its own baseline"
IGNORED: dict[type, dict[str, str]] = {
    Snapshot: {
        "schema": "another one is not read at all",
        "commit": "where it came from: shown",
        "matrix_digest": "where it came from: shown, and said where it hides something",
        "audit": "what images hold: `image diff` compares it",
        "created": "when it was written: shown",
        "planyard_version": "who wrote it: shown",
    },
    Commit: {"id": "where it came from: shown", "dirty": "where it came from: shown"},
    PlanRecord: {
        "version": _FROM_RECIPE,
        "sm": _FROM_RECIPE,
        "model": "is in the cell's id",
        "profile": "is in the cell's id",
        "precision": "is in the cell's id",
        "compile_seconds": "an estimate of what a rebuild takes, no capability",
        "inspector": "what the compiler says of the plan's layers: the plan has its own digest",
        "timing_cache": "what was measured while it was built: the plan has its own digest",
    },
    SmokeVerdict: {
        "reason": "words for the verdict: shown with it",
        "seconds": "how long the run took, its start included",
        "latencies_ms": "`latency` has the percentiles",
        "log_digest": "every run writes another log",
    },
    VersionFound: {"how": "how it was found out"},
    LoadedLibrary: {"path": "where the library lies"},
    LatencyFigures: {
        "requests": "how many were timed",
        "p95_ms": _JUDGED,
        "p99_ms": _JUDGED,
        "baseline_p50_ms": _JUDGED,
        "baseline_p95_ms": _JUDGED,
        "baseline_runs": _JUDGED,
    },
    AttentionFigures: {"how": "how it was counted"},
    UtilizationFigures: {"samples": "how many there were"},
}
