"""Which gates judge a cell, and by which limits: the defaults, then the changes in order."""

from __future__ import annotations

import fnmatch

import msgspec

from planyard.core.matrix_smoke import Gates

GATE_NAMES = (
    "logs",
    "providers",
    "placement",
    "attention",
    "outputs",
    "latency",
    "utilization",
    "versions",
)
"""The gates that can be turned off, in the order they judge. `exit` cannot."""
_NOT_SETTINGS = frozenset({"cells", "reason"})


def gates_of_cell(gates: Gates, cell: str) -> Gates:
    """The gates of the cell with this id; the result holds no changes."""
    settings: dict[str, object] = {}
    for change in gates.cells:
        if fnmatch.fnmatchcase(cell, change.cells):
            settings |= {
                name: value
                for name in change.__struct_fields__
                if name not in _NOT_SETTINGS and (value := getattr(change, name)) is not None
            }
    return msgspec.structs.replace(gates, cells=(), **settings)


def gates_off(gates: Gates, cells: tuple[str, ...]) -> tuple[str, ...]:
    """The gates that are off for any of these cells, each with where and why.

    `latency` alone is off everywhere; `latency for rtx/*: reason` is off by a change.
    """
    if not cells:
        return tuple(name for name in GATE_NAMES if not getattr(gates, name))
    found = (_why_off(gates, name, cell) for name in GATE_NAMES for cell in cells)
    return tuple(dict.fromkeys(filter(None, found)))


def _why_off(gates: Gates, name: str, cell: str) -> str:
    """What turned a gate off for a cell: the last change that speaks of it, else the default."""
    for change in reversed(gates.cells):
        said = getattr(change, name)
        if said is not None and fnmatch.fnmatchcase(cell, change.cells):
            return "" if said else f"{name} for {change.cells}: {change.reason}"
    return "" if getattr(gates, name) else name
