"""Cells: every point of the matrix, in its order, but those that a rule drops with its reason.

The built-in rules come first (`compat.*`, see `compat.py`), then the matrix's own `drop` rules in
their order; the first that matches wins. A cell's id is its only handle.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product

import msgspec

from planyard.core.compat import Compat, Refusal, refusal
from planyard.core.errors import NothingSelectedError
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Backend, Drop, Gpu, Matrix, Precision

GITHUB_JOBS = 256
"""Jobs that GitHub accepts in one matrix."""
HOSTED_RUNNER = ("ubuntu-latest",)
"""Where a job runs when its GPU names no runner labels."""
_NEAREST = 3
_COMPARED = 1000


class Cell(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One point of the matrix. `sm` is None on a CPU."""

    id: str
    image: str
    model: str
    profile: str
    precision: Precision
    gpu: str
    sm: int | None
    backend: Backend


class Dropped(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A point that a rule took out: the rule's id, why in words, and where that is written."""

    id: str
    rule: str
    reason: str
    source: str


class Expansion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole matrix: what is left, what was dropped, and drop rules that match no point."""

    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]
    idle_rules: tuple[str, ...] = ()


class CompileGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Cells whose plans one container compiles: same image, model and precision."""

    image: str
    model: str
    precision: Precision
    backend: Backend
    cells: tuple[Cell, ...]


class _DropRule(msgspec.Struct, frozen=True, kw_only=True):
    """A drop rule of the matrix, its pattern compiled."""

    id: str
    pattern: re.Pattern[str]
    refusal: Refusal


def expand(matrix: Matrix, compat: Compat) -> Expansion:
    """Every point, images x models x profiles x precisions x GPUs, as a cell or dropped.

    A rule in `idle_rules` matches no point at all, not even one that another rule dropped.
    """
    rules = tuple(_drop_rule(drop) for drop in matrix.drop)
    any_rule = re.compile("|".join(rule.pattern.pattern for rule in rules)) if rules else None
    refusals = _builtin_refusals(matrix, compat)
    cells: list[Cell] = []
    dropped: list[Dropped] = []
    fired: set[_DropRule] = set()
    for point in _points(matrix):
        refused = refusals[point.image, point.precision, point.gpu]
        if refused is None and any_rule and any_rule.match(point.id):
            rule = next(rule for rule in rules if rule.pattern.match(point.id))
            fired.add(rule)
            refused = rule.refusal
        if refused is None:
            cells.append(point)
        else:
            dropped.append(_dropped(point.id, refused))
    idle = _idle_rules(rules, fired, dropped)
    return Expansion(cells=tuple(cells), dropped=tuple(dropped), idle_rules=idle)


def _idle_rules(
    rules: Sequence[_DropRule], fired: Collection[_DropRule], dropped: Sequence[Dropped]
) -> tuple[str, ...]:
    """The rules that match no point; the cells that are left match none of them anyway."""
    silent = [rule for rule in rules if rule not in fired]
    return tuple(
        rule.id for rule in silent if not any(rule.pattern.match(drop.id) for drop in dropped)
    )


def _points(matrix: Matrix) -> Iterator[Cell]:
    """Every point, in the order of the matrix."""
    precisions = tuple(dict.fromkeys(matrix.precisions))
    for (image, spec), (model, shapes) in product(matrix.images.items(), matrix.models.items()):
        for profile, precision in product(shapes.profiles, precisions):
            stem = f"{image}/{model}/{profile}/{precision}/"
            for name, gpu in matrix.gpus.items():
                yield Cell(
                    id=stem + name,
                    image=image,
                    model=model,
                    profile=profile,
                    precision=precision,
                    gpu=name,
                    sm=gpu.sm,
                    backend=spec.backend,
                )


def _builtin_refusals(
    matrix: Matrix, compat: Compat
) -> dict[tuple[str, Precision, str], Refusal | None]:
    """The built-in rules by image, precision and GPU: models and profiles do not matter to them."""
    return {
        (image, precision, gpu): _builtin_refusal(matrix, compat, spec.backend, precision, gpu)
        for (image, spec), precision, gpu in product(
            matrix.images.items(), matrix.precisions, matrix.gpus
        )
    }


def _builtin_refusal(
    matrix: Matrix, compat: Compat, backend: Backend, precision: Precision, name: str
) -> Refusal | None:
    gpu = matrix.gpus[name]
    if backend not in gpu.backends:
        reason = f"{name} runs {', '.join(gpu.backends)}, not {backend}"
    elif backend not in GPU_BACKENDS:
        return None
    elif gpu.sm is None:
        reason = f"{backend} needs a GPU, and {name} has no SM"
    else:
        return refusal(compat, matrix.pins, backend=backend, precision=precision, sm=gpu.sm)
    return Refusal(rule="compat.backend", reason=reason, source=f"matrix.yaml, gpus.{name}")


def _drop_rule(drop: Drop) -> _DropRule:
    return _DropRule(
        id=drop.id,
        pattern=re.compile(fnmatch.translate(drop.cells)),
        refusal=Refusal(rule=drop.id, reason=drop.reason, source="matrix.yaml"),
    )


def _dropped(cell_id: str, refused: Refusal) -> Dropped:
    return Dropped(id=cell_id, rule=refused.rule, reason=refused.reason, source=refused.source)


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> tuple[Cell, ...]:
    """The cells whose id matches any of `patterns`, in their own order; all without a pattern.

    Raises `NothingSelectedError` when some pattern matches no cell: one that was mistyped beside
    a good one would otherwise go unseen.
    """
    if not cells:
        raise NothingSelectedError("the matrix has no cells", mend="planyard cells --explain")
    if not patterns:
        return tuple(cells)
    matchers = [re.compile(fnmatch.translate(pattern)).match for pattern in patterns]
    missed = [
        pattern
        for pattern, matches in zip(patterns, matchers, strict=True)
        if not any(matches(cell.id) for cell in cells)
    ]
    if missed:
        raise NothingSelectedError(
            "; ".join(_missed(pattern, cells) for pattern in missed),
            mend="planyard cells lists every cell, planyard cells --explain the dropped ones too",
        )
    return tuple(cell for cell in cells if any(matches(cell.id) for matches in matchers))


def _missed(pattern: str, cells: Sequence[Cell]) -> str:
    import difflib  # noqa: PLC0415 - 8 ms at start, and only a mistake needs it

    ids = _alike(pattern, [cell.id for cell in cells])
    near = difflib.get_close_matches(pattern, ids, n=_NEAREST, cutoff=0.3)
    nearest = f"; the nearest: {', '.join(near)}" if near else ""
    return f"{pattern!r} matches none of {len(cells)} cells{nearest}"


def _alike(pattern: str, ids: Sequence[str]) -> list[str]:
    """The ids that agree with `pattern` in most axes: difflib is too slow for 10,000 of them."""
    axes = [re.compile(fnmatch.translate(axis)).match for axis in pattern.split("/")]
    scores = [
        sum(1 for agrees, axis in zip(axes, id_.split("/"), strict=False) if agrees(axis))
        for id_ in ids
    ]
    best = max(scores)
    alike = [id_ for id_, score in zip(ids, scores, strict=True) if score == best]
    return alike[:_COMPARED]


def plan_cells(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that need a plan."""
    return tuple(cell for cell in cells if cell.backend in PLAN_BACKENDS)


def compile_groups(cells: Sequence[Cell]) -> tuple[CompileGroup, ...]:
    """The cells that need a plan, one group for each container; order of first appearance."""
    groups: dict[tuple[str, str, Precision], list[Cell]] = {}
    for cell in plan_cells(cells):
        groups.setdefault((cell.image, cell.model, cell.precision), []).append(cell)
    return tuple(
        CompileGroup(
            image=image,
            model=model,
            precision=precision,
            backend=members[0].backend,
            cells=tuple(members),
        )
        for (image, model, precision), members in groups.items()
    )


def github_matrix(
    cells: Sequence[Cell], *, gpus: Mapping[str, Gpu], per_file: int = GITHUB_JOBS
) -> tuple[dict[str, list[dict[str, object]]], ...]:
    """GitHub `strategy.matrix` values, `{"include": [...]}`, of at most `per_file` jobs each.

    `gpus` is the matrix's, for the runner labels. Raises ValueError unless 1 <= per_file <= 256.
    """
    if not 1 <= per_file <= GITHUB_JOBS:
        raise ValueError(f"per_file is {per_file}: GitHub takes 1 to {GITHUB_JOBS} jobs a matrix")
    jobs = [_github_job(cell, gpus[cell.gpu]) for cell in cells]
    return tuple(
        {"include": jobs[start : start + per_file]} for start in range(0, len(jobs), per_file)
    )


def _github_job(cell: Cell, gpu: Gpu) -> dict[str, object]:
    return {
        "id": cell.id,
        "image": cell.image,
        "model": cell.model,
        "profile": cell.profile,
        "precision": cell.precision,
        "gpu": cell.gpu,
        "runs_on": list(gpu.runs_on or HOSTED_RUNNER),
    }
