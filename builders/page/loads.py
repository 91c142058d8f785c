"""What load runs measured of a cell: the newest of each workload drawn, earlier ones listed. Pure.

A run of an older image is said to be one, and never stands for the newest image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from builders.page.cells import Cell, natural
from builders.page.load_charts import LoadChart, items_chart, latency_chart
from planyard.core.loads import LoadRecord, LoadSeries

MOST_OTHERS = 10
"""Other runs of a workload that are listed."""
MOST_ROWS = 200
"""Lines of their table."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run at one batch size and concurrency.

    `change` is the P50 of the run that is drawn against this one's, in percent; None where they
    cannot be compared: another GPU, other steps or contexts, or not measured.
    """

    record: LoadRecord
    series: LoadSeries
    shown: bool
    change: float | None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One batch size and concurrency in every run that is listed, the one that is drawn first."""

    batch: int
    concurrency: int
    rows: tuple[RunRow, ...]


@dataclass(frozen=True, kw_only=True)
class LoadPart:
    """A workload on a cell. `of_now` says whether its newest run is of the cell's newest image."""

    anchor: str
    record: LoadRecord
    of_now: bool
    on_cpu: bool
    latency: LoadChart | None
    items: LoadChart | None
    drift: tuple[Drift, ...]
    drift_left_out: int
    """Batch sizes and concurrencies that are not in `drift`."""
    others: int
    """The other runs that are in `drift`."""
    others_left_out: int

    @cached_property
    def lines(self) -> dict[int, int]:
        """The concurrencies that are drawn, each with its colour."""
        drawn = [*(self.latency.lines if self.latency else ())]
        drawn += self.items.lines if self.items else ()
        return {line.concurrency: line.shade for line in drawn}

    @property
    def with_gpu(self) -> bool:
        """Whether any figure of the GPU was measured."""
        return any(map(_has_gpu, self.record.series))

    @cached_property
    def series(self) -> tuple[LoadSeries, ...]:
        """The figures, by batch size and concurrency."""
        return tuple(each for _, each in sorted(_by_place(self.record).items()))


def by_cell(records: Iterable[LoadRecord]) -> dict[str, tuple[LoadRecord, ...]]:
    """The records of each cell, the newest first."""
    found: dict[str, list[LoadRecord]] = {}
    for record in sorted(records, key=_age, reverse=True):
        found.setdefault(record.cell, []).append(record)
    return {cell: tuple(of_cell) for cell, of_cell in found.items()}


def _age(record: LoadRecord) -> tuple[str, str, str, str]:
    return record.created, record.image, record.workload, record.gpu


def load_parts(cell: Cell, records: Sequence[LoadRecord]) -> tuple[LoadPart, ...]:
    """A part for each workload, by name; `records` are the cell's, the newest first.

    What is drawn is the newest run of the newest image; where it has none, the newest of all.
    """
    now = cell.step.image if cell.step else ""
    by_workload: dict[str, list[LoadRecord]] = {}
    for record in records:
        by_workload.setdefault(record.workload, []).append(record)
    return tuple(
        _part(cell, runs, anchor=f"load-{number}", now=now)
        for number, (_, runs) in enumerate(
            sorted(by_workload.items(), key=lambda item: natural(item[0])), start=1
        )
    )


def _part(cell: Cell, runs: Sequence[LoadRecord], *, anchor: str, now: str) -> LoadPart:
    shown = next((run for run in runs if run.image == now), runs[0])
    others = [run for run in runs if run is not shown]
    listed = others[:MOST_OTHERS]
    drift = drift_of(shown, listed)
    fits = _fitting(drift)
    return LoadPart(
        anchor=anchor,
        record=shown,
        of_now=shown.image == now,
        on_cpu=is_on_cpu(cell, shown),
        latency=latency_chart(shown.series, name=shown.workload),
        items=items_chart(shown.series, name=shown.workload),
        drift=drift[:fits],
        drift_left_out=len(drift) - fits,
        others=len(listed),
        others_left_out=len(others) - len(listed),
    )


def _fitting(drift: Sequence[Drift]) -> int:
    """How many fit into the lines that a table may have; the first always does."""
    lines = accumulate(len(each.rows) for each in drift)
    return sum(number == 0 or count <= MOST_ROWS for number, count in enumerate(lines))


def is_on_cpu(cell: Cell, record: LoadRecord) -> bool:
    """Whether a run was on a CPU: a cell with no SM, and nothing that only a GPU has."""
    return cell.sm is None and not record.driver and not any(map(_has_gpu, record.series))


def _has_gpu(series: LoadSeries) -> bool:
    gpu = (series.gpu_percent, series.gpu_memory_bytes, series.power_watts)
    return any(each is not None for each in gpu)


def drift_of(shown: LoadRecord, others: Sequence[LoadRecord]) -> tuple[Drift, ...]:
    """Every run at each batch size and concurrency, `shown` first; empty without others."""
    if not others:
        return ()
    known = [(run, _by_place(run)) for run in (shown, *others)]
    places = sorted({place for _, of_run in known for place in of_run})
    return tuple(_drift(place, shown, known) for place in places)


def _drift(
    place: tuple[int, int],
    shown: LoadRecord,
    known: Sequence[tuple[LoadRecord, Mapping[tuple[int, int], LoadSeries]]],
) -> Drift:
    mine = known[0][1].get(place)
    rows = tuple(
        RunRow(
            record=run,
            series=of_run[place],
            shown=run is shown,
            change=_change(run, of_run[place], shown, mine),
        )
        for run, of_run in known
        if place in of_run
    )
    return Drift(batch=place[0], concurrency=place[1], rows=rows)


def _change(
    run: LoadRecord, then: LoadSeries, shown: LoadRecord, mine: LoadSeries | None
) -> float | None:
    alike = (run.gpu, run.steps, run.contexts) == (shown.gpu, shown.steps, shown.contexts)
    if run is shown or mine is None or not alike or then.p50_ms <= 0:
        return None
    return 100 * (mine.p50_ms / then.p50_ms - 1)


def _by_place(record: LoadRecord) -> dict[tuple[int, int], LoadSeries]:
    """The series by batch size and concurrency; of two that are alike the first."""
    return {(each.batch, each.concurrency): each for each in reversed(record.series)}
