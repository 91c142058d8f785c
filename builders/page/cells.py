"""The cells that the page shows, each with its state, and the grid they stand in.

The newest image of a name decides. What only an older image proved is `no evidence`: it is said,
and never shown as passed. Nothing is green but a verdict that says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from builders.page.collect import History, Step
from engines.diffing.views import key_of
from planyard.core.cells import Dropped, Expansion
from planyard.core.digest import digest_of_bytes
from planyard.core.results import LatencyFigures, PlanRecord, SmokeVerdict

State = Literal["failed", "not run", "no evidence", "passed"]
STATES: tuple[State, ...] = ("failed", "not run", "no evidence", "passed")
"""The worst first."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")
_NUMBERS = re.compile(r"(\d+)")


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a step of the history says of a cell."""

    step: Step
    verdict: SmokeVerdict

    @property
    def figures(self) -> LatencyFigures | None:
        """The first series that was timed."""
        return self.verdict.latency[0] if self.verdict.latency else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the newest image; `axes` are model, profile, precision and GPU.

    `past` is what each step says that names it, oldest first; `step` is the newest one of all.
    """

    image: str
    id: str
    axes: tuple[str, str, str, str]
    step: Step | None
    verdict: SmokeVerdict | None
    plan: PlanRecord | None
    past: tuple[Past, ...] = ()
    sm: int | None = None
    wanted: bool = True
    """Whether the matrix has it; True where no matrix was given."""

    @cached_property
    def state(self) -> State:
        """What is proved of it. A word that is not known is not green."""
        if self.verdict is None:
            return "no evidence"
        said = self.verdict.verdict
        return said if said in STATES else "no evidence"

    @cached_property
    def page(self) -> str:
        """The name of its page, the same in every report, whatever its id holds."""
        stem = _UNSAFE.sub("-", self.id).strip("-.")[:80]
        return f"{stem}-{digest_of_bytes(self.id.encode())[7:15]}"

    @property
    def older(self) -> Past | None:
        """The last word of an older image, where the newest image has none."""
        return self.past[-1] if self.past and self.verdict is None else None

    @cached_property
    def failed_gates(self) -> tuple[str, ...]:
        """The gates that say failed."""
        gates = self.verdict.gates if self.verdict else {}
        return tuple(name for name, said in gates.items() if said == "failed")

    @property
    def figures(self) -> LatencyFigures | None:
        """The first series that the newest image was timed in."""
        return self.verdict.latency[0] if self.verdict and self.verdict.latency else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the grid: profile and precision; one place for each GPU, None where is nothing."""

    profile: str
    precision: str
    places: tuple[Cell | Dropped | None, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of one image: GPUs across, and lines by model."""

    gpus: tuple[str, ...]
    models: dict[str, tuple[Row, ...]]


def cells_of(history: History | None, *, name: str, expansion: Expansion | None) -> list[Cell]:
    """The cells of one image's name, in the order of the matrix, then of their names.

    Without a matrix: what the newest image names, the one before it, and those in a channel.
    """
    wanted = {each.id: each for each in expansion.cells if each.image == name} if expansion else {}
    steps = history.steps if history else ()
    ids = dict.fromkeys(wanted)
    if steps:
        for step in steps[-1:] if expansion else _present(steps):
            found = sorted(step.view.cells, key=natural)
            ids |= dict.fromkeys(f"{name}/{key}" for key in found)
    now = steps[-1] if steps else None
    cells = []
    for id_ in ids:
        key = id_[len(name) + 1 :]
        spec = wanted.get(id_)
        axes = axes_of(key)
        gpu = now.view.gpus.get(axes[3]) if now else None
        cell = Cell(
            image=name,
            id=id_,
            axes=axes,
            step=now,
            verdict=now.view.verdicts.get(key) if now else None,
            plan=now.view.plans.get(key) if now else None,
            past=tuple(
                Past(step=step, verdict=step.view.verdicts[key])
                for step in steps
                if key in step.view.verdicts
            ),
            sm=spec.sm if spec else gpu.sm if gpu else None,
            wanted=not expansion or spec is not None,
        )
        cells.append(cell)
    return cells


def _present(steps: Sequence[Step]) -> Iterable[Step]:
    """The newest step, the one before it, and those a channel is at."""
    yield from reversed(steps[-2:])
    yield from (step for step in steps[:-2] if step.channels)


def grid_of(cells: Sequence[Cell], dropped: Iterable[Dropped] = ()) -> Grid:
    """The grid of one image's cells. A dropped point is in it only beside cells that are not."""
    models: dict[str, dict[tuple[str, str], dict[str, Cell | Dropped]]] = {}
    gpus: dict[str, None] = {}
    for cell in cells:
        model, profile, precision, gpu = cell.axes
        models.setdefault(model, {}).setdefault((profile, precision), {})[gpu] = cell
        gpus[gpu] = None
    for point in dropped:
        model, profile, precision, gpu = axes_of(key_of(point.id))
        row = models.get(model, {}).get((profile, precision))
        if row is not None and gpu in gpus:
            row.setdefault(gpu, point)
    columns = tuple(sorted(gpus, key=natural))
    return Grid(
        gpus=columns,
        models={
            model: tuple(
                Row(profile=axes[0], precision=axes[1], places=tuple(map(row.get, columns)))
                for axes, row in sorted(rows.items(), key=lambda item: natural(*item[0]))
            )
            for model, rows in models.items()
        },
    )


def tally(cells: Iterable[Cell]) -> dict[State, int]:
    """How many cells are in each state, the worst first."""
    counts: dict[State, int] = dict.fromkeys(STATES, 0)
    for cell in cells:
        counts[cell.state] += 1
    return counts


def axes_of(key: str) -> tuple[str, str, str, str]:
    """Model, profile, precision and GPU of a cell's id without its image."""
    model, profile, precision, gpu, *_ = (*key.split("/"), "", "", "", "")
    return model, profile, precision, gpu


def natural(*texts: str) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """A key to sort by in which `sm89` comes before `sm120`."""
    return tuple(
        tuple(
            (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
            for part in _NUMBERS.split(text[:200])
        )
        for text in texts
    )


def by_rule(dropped: Iterable[Dropped]) -> Mapping[tuple[str, str, str], list[str]]:
    """The ids that each rule dropped, with its reason and source."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in dropped:
        found.setdefault((each.rule, each.reason, each.source), []).append(each.id)
    return found
