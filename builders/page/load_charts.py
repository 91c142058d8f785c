"""A load run as lines over the batch size, one for each concurrency: geometry for SVG. Pure.

What the picture shows is in its words too: they are all that some readers have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from builders.page.charts import BOTTOM, Dot, Level
from builders.page.drawing import format_ms
from builders.page.load_scale import (
    Mark,
    Scale,
    format_rate,
    marks_of,
    places_of,
    scale_of,
    tick_ms,
    tick_rate,
    ticks_of,
)
from planyard.core.loads import LoadSeries

MOST_LINES = 8
"""Concurrencies that are drawn; the table has all."""
_APART = 9.0
"""Percent of the height that the words at the ends of two lines need."""
_LARGEST = 1e12
"""Values above this are no measurement, and are not drawn."""


@dataclass(frozen=True, kw_only=True)
class LoadLine:
    """One concurrency; `shade` from 1 to 8 is its colour, `upper` the dashed line over it.

    Paths are for a view box of 1000 by 1000; the words stand at `end_x` and `end_y`, in percent.
    """

    concurrency: int
    shade: int
    path: str
    upper: str
    dots: tuple[Dot, ...]
    end_x: float
    end_y: float


@dataclass(frozen=True, kw_only=True)
class LoadChart:
    """A chart to draw: `title` and `said` are its words for who does not see it."""

    title: str
    said: str
    ticks: tuple[Level, ...]
    marks: tuple[Mark, ...]
    lines: tuple[LoadLine, ...]
    logarithmic: bool


Value = Callable[[LoadSeries], float]


def latency_chart(series: Sequence[LoadSeries], *, name: str) -> LoadChart | None:
    """P50, with P95 above it, over the batch size; None where nothing can be drawn."""
    return _chart(
        series,
        title=f"{name}: P50 and P95 of a request by batch size",
        value=lambda each: each.p50_ms,
        upper=lambda each: each.p95_ms,
        said=lambda each: f"P50 {format_ms(each.p50_ms)}, P95 {format_ms(each.p95_ms)}",
        unit=tick_ms,
    )


def items_chart(series: Sequence[LoadSeries], *, name: str) -> LoadChart | None:
    """Items per second over the batch size; None where nothing can be drawn."""
    return _chart(
        series,
        title=f"{name}: items per second by batch size",
        value=lambda each: each.items_per_second,
        upper=None,
        said=lambda each: f"{format_rate(each.items_per_second)} items/s",
        unit=tick_rate,
    )


def _chart(
    series: Sequence[LoadSeries],
    *,
    title: str,
    value: Value,
    upper: Value | None,
    said: Callable[[LoadSeries], str],
    unit: Callable[[float], str],
) -> LoadChart | None:
    reads = [value] if upper is None else [value, upper]
    sound = [each for each in series if all(_is_sound(read(each)) for read in reads)]
    by_line = by_concurrency(sound)
    drawn = dict(list(by_line.items())[:MOST_LINES])
    shown = [each for line in drawn.values() for each in line]
    if not shown:
        return None
    scale = scale_of([read(each) for each in shown for read in reads])
    batches = sorted({each.batch for each in shown})
    places = dict(zip(batches, places_of(batches), strict=True))
    shades = shades_of(len(drawn))
    lines = [
        _line(line, value=value, upper=upper, said=said, scale=scale, places=places, shade=shade)
        for shade, line in zip(shades, drawn.values(), strict=True)
    ]
    return LoadChart(
        title=title,
        said=" ".join([*_sentences(drawn, said), *_notes(scale, len(by_line) - len(drawn))]),
        ticks=tuple(Level(y=scale.height(each), text=unit(each)) for each in ticks_of(scale)),
        marks=marks_of(places),
        lines=tuple(spread_ends(lines)),
        logarithmic=scale.logarithmic,
    )


def _line(
    series: Sequence[LoadSeries],
    *,
    value: Value,
    upper: Value | None,
    said: Callable[[LoadSeries], str],
    scale: Scale,
    places: dict[int, float],
    shade: int,
) -> LoadLine:
    dots = tuple(
        Dot(
            x=places[each.batch],
            y=scale.height(value(each)),
            text=f"batch {each.batch}, concurrency {each.concurrency}: {said(each)}",
        )
        for each in series
    )
    above = [(places[each.batch], scale.height(upper(each))) for each in series] if upper else []
    return LoadLine(
        concurrency=series[0].concurrency,
        shade=shade,
        path=path_of((dot.x, dot.y) for dot in dots),
        upper=path_of(above),
        dots=dots,
        end_x=round(dots[-1].x + 1.8, 2),
        end_y=dots[-1].y,
    )


def _sentences(
    lines: dict[int, list[LoadSeries]], said: Callable[[LoadSeries], str]
) -> Iterable[str]:
    """What each line shows, in words: its two ends."""
    for concurrency, line in lines.items():
        ends = [line[0]] if len(line) == 1 else [line[0], line[-1]]
        words = "; ".join(f"{said(each)} at batch {each.batch}" for each in ends)
        yield f"Concurrency {concurrency}: {words}."


def _notes(scale: Scale, left_out: int) -> Iterable[str]:
    if scale.logarithmic:
        yield "The scale is logarithmic."
    if left_out:
        yield f"{left_out} more concurrencies are in the table only."


def by_concurrency(series: Iterable[LoadSeries]) -> dict[int, list[LoadSeries]]:
    """The series of each concurrency, both in order; of two that are alike the first."""
    found: dict[tuple[int, int], LoadSeries] = {}
    for each in series:
        found.setdefault((each.concurrency, each.batch), each)
    lines: dict[int, list[LoadSeries]] = {}
    for (concurrency, _), each in sorted(found.items(), key=lambda item: item[0]):
        lines.setdefault(concurrency, []).append(each)
    return lines


def _is_sound(value: float) -> bool:
    """Whether a value can be a measurement."""
    return math.isfinite(value) and 0 <= value <= _LARGEST


def shades_of(count: int) -> list[int]:
    """Colours from 1 to 8 for so many lines, as unlike each other as they can be."""
    if count == 1:
        return [2]
    return [1 + round(number * 7 / (count - 1)) for number in range(count)]


def spread_ends(lines: Sequence[LoadLine]) -> list[LoadLine]:
    """The same lines, the words at their ends pushed apart so that each can be read."""
    order = sorted(range(len(lines)), key=lambda number: (lines[number].end_y, -number))
    heights = [lines[number].end_y for number in order]
    for at in range(1, len(heights)):
        heights[at] = max(heights[at], heights[at - 1] + _APART)
    lowest = BOTTOM
    for at in reversed(range(len(heights))):
        heights[at] = min(heights[at], lowest)
        lowest = heights[at] - _APART
    moved = dict(zip(order, heights, strict=True))
    return [replace(line, end_y=round(moved[number], 2)) for number, line in enumerate(lines)]


def path_of(points: Iterable[tuple[float, float]]) -> str:
    """The `d` of a line through points in percent; empty of none."""
    parts = [f"{10 * x:.0f} {10 * y:.0f}" for x, y in points]
    return "M" + "L".join(parts) if parts else ""
