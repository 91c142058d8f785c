"""What `index.html` shows: every image with its grid, charts and consequences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from builders.page import cells as page_cells
from builders.page.cells import Cell, Grid, State
from builders.page.charts import Chart, spark
from builders.page.collect import Channel, History, Knowledge, Step
from builders.page.comparing import Follows
from builders.page.drawing import Meter, Series, all_series, meters, size_charts
from planyard.core.cells import Dropped, Expansion
from planyard.core.contents import ImageAudit
from planyard.core.matrix import Matrix

MOST_TROUBLES = 60
MOST_DROPPED = 200


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A cell's latencies in the grid of small charts."""

    cell: Cell
    series: Series


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """One image's name: what it is now, and how it came there. `anchor` is its place on the page.

    `history` is None for an image of the matrix that the store has nothing of.
    """

    name: str
    anchor: str
    history: History | None
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]
    panels: tuple[Panel, ...]
    follows: Follows | None
    audit: ImageAudit | None
    wanted: bool
    loaded: frozenset[str] = frozenset()
    """The cells that a load run of the newest image measured."""

    @property
    def now(self) -> Step | None:
        """The newest image."""
        return self.history.now if self.history else None

    @property
    def before(self) -> Step | None:
        """The image before it, which `follows` compares it with."""
        steps = self.history.steps if self.history else ()
        return next((each for each in reversed(steps) if each.image != steps[-1].image), None)

    @cached_property
    def grid(self) -> Grid:
        """The cells in their places."""
        return page_cells.grid_of(self.cells, self.dropped)

    @cached_property
    def counts(self) -> dict[State, int]:
        """How many cells are in each state."""
        return page_cells.tally(self.cells)

    @cached_property
    def meters(self) -> tuple[Meter, ...]:
        """Its sizes against its budgets."""
        return meters(self.now) if self.now else ()

    @cached_property
    def charts(self) -> tuple[tuple[str, Chart], ...]:
        """Its sizes over time."""
        return size_charts(self.history) if self.history else ()


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Cells of one image and state that share their reason."""

    state: State
    image: str
    reason: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class DropRule:
    """A rule and what it dropped; `more` ids are not listed."""

    rule: str
    reason: str
    source: str
    ids: tuple[str, ...]
    count: int


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The whole of the first page."""

    title: str
    store: str
    made: str
    with_matrix: bool
    images: tuple[ImagePart, ...]
    channels: tuple[Channel, ...]
    rules: tuple[DropRule, ...]
    loads_elsewhere: int = 0
    """Load runs of cells that are not on any page."""

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, image by image."""
        return tuple(cell for image in self.images for cell in image.cells)

    @cached_property
    def counts(self) -> dict[State, int]:
        """How many cells are in each state."""
        return page_cells.tally(self.cells)

    @property
    def dropped(self) -> int:
        """How many points rules dropped."""
        return sum(rule.count for rule in self.rules)

    @cached_property
    def over(self) -> tuple[tuple[ImagePart, Meter], ...]:
        """Sizes over their budgets."""
        return tuple((image, each) for image in self.images for each in image.meters if each.over)

    @cached_property
    def troubles(self) -> tuple[Reasons, ...]:
        """What is not proved, the worst first, cells with one reason together."""
        found: dict[tuple[State, str, str], list[Cell]] = {}
        for state in page_cells.STATES[:-1]:
            for cell in self.cells:
                if cell.state == state:
                    key = (state, cell.image, why(cell))
                    found.setdefault(key, []).append(cell)
        return tuple(
            Reasons(state=state, image=image, reason=reason, cells=tuple(cells))
            for (state, image, reason), cells in found.items()
        )


def why(cell: Cell) -> str:
    """Why a cell is in its state, in a line."""
    if cell.verdict is None:
        if cell.step is None:
            return "the store has no snapshot of this image"
        return "the newest image has no snapshot that names it"
    if cell.state != "failed":
        return cell.verdict.reason
    first = next((each for each in cell.verdict.findings if each.severity == "fail"), None)
    gates = ", ".join(cell.failed_gates)
    said = first.message if first else cell.verdict.reason
    return f"{gates}: {said}" if gates else said


def overview(
    known: Knowledge,
    *,
    matrix: Matrix | None,
    expansion: Expansion | None,
    follows: Mapping[tuple[str, str], Follows],
    audits: Mapping[str, ImageAudit],
    title: str,
    store: str,
    made: str,
) -> Overview:
    """Put everything in its place; images in the order of the matrix, then of their names."""
    names = dict.fromkeys(matrix.images if matrix else ()) | dict.fromkeys(known.histories)
    parts = []
    for number, name in enumerate(names):
        history = known.histories.get(name)
        cells = page_cells.cells_of(history, name=name, expansion=expansion)
        part = ImagePart(
            name=name,
            anchor=f"image-{number + 1}",
            history=history,
            cells=tuple(cells),
            dropped=_dropped_of(expansion, name),
            panels=panels_of(cells, matrix),
            follows=None,
            audit=audits.get(history.now.image) if history else None,
            wanted=matrix is None or name in matrix.images,
            loaded=_loaded(history, known),
        )
        parts.append(_with_follows(part, follows))
    shown = {cell.id for part in parts for cell in part.cells}
    return Overview(
        title=title,
        store=store,
        made=made,
        with_matrix=matrix is not None,
        images=tuple(parts),
        channels=known.channels,
        rules=rules_of(expansion.dropped if expansion else ()),
        loads_elsewhere=sum(each.cell not in shown for each in known.loads),
    )


def _loaded(history: History | None, known: Knowledge) -> frozenset[str]:
    now = history.now.image if history else ""
    return frozenset(each.cell for each in known.loads if each.image == now)


def _with_follows(part: ImagePart, known: Mapping[tuple[str, str], Follows]) -> ImagePart:
    if not part.now or not part.before:
        return part
    return replace(part, follows=known.get((part.before.image, part.now.image)))


def _dropped_of(expansion: Expansion | None, name: str) -> tuple[Dropped, ...]:
    start = f"{name}/"
    return (
        tuple(each for each in expansion.dropped if each.id.startswith(start)) if expansion else ()
    )


def panels_of(cells: Sequence[Cell], matrix: Matrix | None) -> tuple[Panel, ...]:
    """A small chart for each cell that was ever timed: of its first series."""
    found = []
    for cell in cells:
        series = all_series(cell, matrix)
        if series and series[0].chart:
            found.append(Panel(cell=cell, series=series[0]))
    return tuple(found)


def rules_of(dropped: Sequence[Dropped]) -> tuple[DropRule, ...]:
    """The rules that dropped points, those that dropped most first."""
    rules = [
        DropRule(
            rule=rule, reason=reason, source=source, ids=tuple(ids[:MOST_DROPPED]), count=len(ids)
        )
        for (rule, reason, source), ids in page_cells.by_rule(dropped).items()
    ]
    return tuple(sorted(rules, key=lambda each: -each.count))


def sparkline(cell: Cell) -> str:
    """The P50 of a cell over its past, as the `d` of a small line."""
    return spark([past.figures.p50_ms if past.figures else None for past in cell.past])
