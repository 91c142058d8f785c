"""Which workloads are asked for, on which cells, and whether the profiles take their batch sizes.

All of it is known before anything is built. Options lie over what the matrix says of a workload;
`adhoc` is one that the matrix need not have: options alone say what it is.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from planyard.core.cells import Cell, select
from planyard.core.errors import InputError, NothingSelectedError
from planyard.core.matrix import Matrix
from planyard.core.matrix_runtime import Workload
from smoke.inputs import shapes_at_batch

ADHOC = "adhoc"


@dataclass(frozen=True, kw_only=True)
class LoadOrder:
    """A workload, and the cells it is to be run on."""

    name: str
    workload: Workload
    cells: tuple[Cell, ...]


def order_loads(
    matrix: Matrix,
    cells: Sequence[Cell],
    *,
    names: Sequence[str] = (),
    patterns: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> tuple[LoadOrder, ...]:
    """The named workloads, all of the matrix when none is named, on the cells that are selected.

    `cells` are all of the matrix, `changes` fields of `Workload` to use instead of the matrix's.
    Raises InputError for an unknown name and for batch sizes that a profile does not take,
    NothingSelectedError when a named workload, or all of them, are for none of the cells.
    """
    workloads = _workloads(matrix, names, changes or {})
    selected = select(cells, patterns)
    orders = [
        LoadOrder(
            name=name,
            workload=workload,
            cells=tuple(cell for cell in selected if fnmatch.fnmatchcase(cell.id, workload.cells)),
        )
        for name, workload in workloads.items()
    ]
    empty = [order for order in orders if not order.cells]
    if empty and (names or len(empty) == len(orders)):
        raise _nothing(empty, patterns)
    orders = [order for order in orders if order.cells]
    if problems := [problem for order in orders for problem in _batch_problems(order, matrix)]:
        raise InputError(
            list(dict.fromkeys(problems)),
            mend="write other batches in the workload (or --batch), or other min and max in the "
            "profile's first dimensions; a workload is for the cells its pattern matches",
        )
    return tuple(orders)


def _workloads(
    matrix: Matrix, names: Sequence[str], changes: Mapping[str, Any]
) -> dict[str, Workload]:
    known = dict(matrix.loads)
    chosen = tuple(dict.fromkeys(names)) or tuple(known) or (ADHOC,)
    known.setdefault(ADHOC, Workload(cells="*"))
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(
            [_unknown(name, known) for name in unknown],
            mend="write it under `loads` of the matrix (docs/load.md), or measure by options "
            f"alone: planyard load {ADHOC} --cell ID --batch 1",
        )
    return {name: msgspec.structs.replace(known[name], **changes) for name in chosen}


def _unknown(name: str, known: Mapping[str, Workload]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    has = ", ".join(each for each in known if each != ADHOC) or "none"
    return f"{name[:80]!r} is no workload; the matrix has {has}" + (
        f"; did you mean {near[0]}?" if near else ""
    )


def _nothing(empty: Sequence[LoadOrder], patterns: Sequence[str]) -> NothingSelectedError:
    among = f" among those that match {', '.join(patterns)}" if patterns else ""
    said = "; ".join(
        f"the workload {order.name} is for {order.workload.cells}, and there is no such cell{among}"
        for order in empty
    )
    return NothingSelectedError(said, mend="planyard cells lists every cell")


def _batch_problems(order: LoadOrder, matrix: Matrix) -> Iterator[str]:
    """Batch sizes that the profile of a cell does not take: which profile, and what it takes."""
    for batch in order.workload.batches:
        for cell in order.cells:
            model = matrix.models[cell.model]
            try:
                shapes_at_batch(model, name=cell.model, profile=cell.profile, batch=batch)
            except InputError as error:
                yield from (f"workload {order.name}: {problem}" for problem in error.problems)
