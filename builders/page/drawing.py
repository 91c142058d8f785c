"""Which charts the page has: an image's sizes against its budgets, a cell's latencies. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builders.page import charts
from builders.page.cells import Cell, Past
from builders.page.charts import Chart
from builders.page.collect import History, Step
from planyard.core.digest import short
from planyard.core.gates import gates_of_cell
from planyard.core.matrix import Matrix
from planyard.core.matrix_smoke import LatencyLimits
from planyard.core.results import LatencyFigures
from planyard.core.units import format_bytes

SIZES = {"pull": "Pull", "unpacked": "Unpacked", "largest_layer": "Largest layer, pulled"}
"""The sizes a budget may limit, as a snapshot names them, with their titles."""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """A size now, against its limit; `share` is in percent of the longer of the two."""

    name: str
    size_bytes: int
    limit_bytes: int | None
    share: float
    limit_share: float | None

    @property
    def over(self) -> bool:
        """Whether it is larger than allowed."""
        return self.limit_bytes is not None and self.size_bytes > self.limit_bytes


@dataclass(frozen=True, kw_only=True)
class Series:
    """A cell's latencies at one batch size and concurrency, by the cell's past."""

    batch: int
    concurrency: int
    figures: tuple[LatencyFigures | None, ...]
    chart: Chart | None

    @property
    def now(self) -> LatencyFigures | None:
        """The last figures there are."""
        return next((each for each in reversed(self.figures) if each), None)


def meters(step: Step) -> tuple[Meter, ...]:
    """The sizes of an image against its budgets."""
    found = []
    for name in SIZES:
        size, limit = _size(step, name)
        whole = max(size, limit or 0) or 1
        meter = Meter(
            name=name,
            size_bytes=size,
            limit_bytes=limit,
            share=round(100 * size / whole, 1),
            limit_share=None if limit is None else round(100 * limit / whole, 1),
        )
        found.append(meter)
    return tuple(found)


def size_charts(history: History) -> tuple[tuple[str, Chart], ...]:
    """The sizes over the steps, each with its title."""
    return tuple((title, _size_chart(history.steps, name)) for name, title in SIZES.items())


def _size_chart(steps: Sequence[Step], name: str) -> Chart:
    pairs = [_size(step, name) for step in steps]
    limit = pairs[-1][1]
    texts = [
        f"{format_bytes(size)}, {step.name} {short(step.image)}, {step.created[:10]}"
        + ("" if most is None else f", budget {format_bytes(most)}")
        for step, (size, most) in zip(steps, pairs, strict=True)
    ]
    first, last = pairs[0][0], pairs[-1][0]
    said = "no budget" if limit is None else f"budget {format_bytes(limit)}"
    return charts.chart(
        label=f"{SIZES[name]} size over {len(steps)} images, from {format_bytes(first)} to "
        f"{format_bytes(last)}; {said}",
        values=[size for size, _ in pairs],
        texts=texts,
        unit=_short_bytes,
        limit=[most for _, most in pairs],
        limit_text=said,
        flags=[" ".join(step.channels) for step in steps],
        bad=[most is not None and size > most for size, most in pairs],
        ends=(steps[0].created[:10], steps[-1].created[:10]),
    )


def _size(step: Step, name: str) -> tuple[int, int | None]:
    budget = step.newest.budget
    return getattr(budget, f"{name}_bytes"), getattr(budget, f"{name}_limit_bytes")


def all_series(cell: Cell, matrix: Matrix | None) -> tuple[Series, ...]:
    """Every series that the cell was ever timed in, the default first."""
    keys = dict.fromkeys(
        (figures.batch, figures.concurrency)
        for past in reversed(cell.past)
        for figures in past.verdict.latency
    )
    limits = gates_of_cell(matrix.gates, cell.id).latency_limits if matrix else None
    return tuple(_series(cell, batch, concurrency, limits) for batch, concurrency in keys)


def _series(cell: Cell, batch: int, concurrency: int, limits: LatencyLimits | None) -> Series:
    wanted = (batch, concurrency)
    found = tuple(
        next((f for f in past.verdict.latency if (f.batch, f.concurrency) == wanted), None)
        for past in cell.past
    )
    return Series(
        batch=batch,
        concurrency=concurrency,
        figures=found,
        chart=_latency_chart(cell.past, found, limits) if any(found) else None,
    )


def _latency_chart(
    past: Sequence[Past], figures: Sequence[LatencyFigures | None], limits: LatencyLimits | None
) -> Chart:
    p50 = [each.p50_ms if each else None for each in figures]
    base = [each.baseline_p50_ms if each else None for each in figures]
    known = [value for value in p50 if value is not None]
    return charts.chart(
        label=f"P50 latency over {len(known)} images, from {format_ms(known[0])} to "
        f"{format_ms(known[-1])}, with P95 and the baseline of accepted runs",
        values=p50,
        texts=[_latency_text(each, timed) for each, timed in zip(past, figures, strict=True)],
        unit=format_ms,
        shadow=[each.p95_ms if each else None for each in figures],
        steps=base,
        limit=[None if value is None else _limit(value, limits) for value in base],
        flags=[" ".join(each.step.channels) for each in past],
        bad=[each.verdict.gates.get("latency") == "failed" for each in past],
        ends=(past[0].step.created[:10], past[-1].step.created[:10]),
    )


def _limit(baseline_ms: float, limits: LatencyLimits | None) -> float | None:
    if limits is None:
        return None
    return baseline_ms + max(limits.relative * baseline_ms, limits.absolute_ms)


def _latency_text(past: Past, figures: LatencyFigures | None) -> str:
    where = f"{past.step.name} {short(past.step.image)}, {past.step.created[:10]}"
    if figures is None:
        return f"not timed, {where}"
    base = figures.baseline_p50_ms
    held = "no baseline" if base is None else f"baseline {format_ms(base)}"
    return f"P50 {format_ms(figures.p50_ms)}, P95 {format_ms(figures.p95_ms)}, {held}, {where}"


def format_ms(value: float) -> str:
    """`0.43 ms`, `12.5 ms`, `2641 ms`: three digits, or all before the point."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} ms"


def _short_bytes(value: float) -> str:
    return format_bytes(round(value)).replace(".0 ", " ")


def change_percent(figures: LatencyFigures | None) -> float | None:
    """How much slower than its baseline, in percent; None without one."""
    if figures is None or not figures.baseline_p50_ms:
        return None
    return 100 * (figures.p50_ms / figures.baseline_p50_ms - 1)
