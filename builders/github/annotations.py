"""Where in matrix.yaml a finding, a failure or a gap belongs, and the note beside that line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from planyard.core.findings import Finding
from planyard.core.located import KeyPath
from planyard.core.reader import LoadedMatrix
from planyard.core.report import BuildReport, not_run
from planyard.edge.console import Console


def annotate(
    text: str,
    place: KeyPath,
    loaded: LoadedMatrix,
    console: Console,
    *,
    level: Literal["error", "warning"] = "error",
) -> None:
    """On GitHub, note `text` beside the line of the matrix that `place` is at."""
    if console.github:
        line, column = loaded.where(place)
        console.annotate(f"{loaded.name}:{line}:{column} {text}", level=level)


def place_of_finding(finding: Finding) -> KeyPath:
    """The key of the matrix that a finding is about; what is left out there is its parent's.

    A budget is a line of its own, and so is the tolerance of outputs; what a library is, or lacks,
    is a matter of the image; everything else that a run showed belongs to its model's profile.
    """
    image, *rest = finding.where.split("/")
    if finding.gate == "budget":
        return ("images", image, "budget", finding.rule.removeprefix("budget."))
    if not rest:
        return ("images", image)
    if finding.gate == "versions":
        return ("images", image, "lock")
    if finding.gate == "outputs" and len(rest) >= 3:
        return ("models", rest[0], "tolerance", rest[2])
    return place_of_cell(finding.where)


def place_of_cell(cell: str) -> KeyPath:
    """The profile of the model that a cell is about."""
    image, *rest = cell.split("/")
    return ("models", rest[0], "profiles", rest[1]) if len(rest) >= 2 else ("images", image)


def gpu_of(cell: str) -> str:
    """The GPU in the id of a cell."""
    return cell.rpartition("/")[2]


def gpus_missed(report: BuildReport) -> Iterator[tuple[str, str]]:
    """One cell of each GPU whose cells were not run, or wait for one, and why."""
    missed = [(each.cell, each.reason) for each in not_run(report)]
    missed += [(each.cell, each.reason) for each in report.waiting]
    yield from {gpu_of(cell): (cell, reason) for cell, reason in reversed(missed)}.values()
