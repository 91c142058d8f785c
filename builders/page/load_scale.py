"""The scales of a load run's charts: batch sizes across, values up. Pure.

Batch sizes stand as far apart as their logarithms. Values stand on a scale from zero; where the
largest is more than twenty times the smallest the scale is logarithmic, and the words say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from builders.page import charts
from builders.page.charts import BOTTOM

_LEFT, _RIGHT = 4.0, 90.0
"""Where batches begin and end, in percent of the width; concurrencies are written at the right."""
_TOP = 5.0
"""Where the plot begins, in percent of the height: nothing stands above it."""
_WIDE = 20.0
"""From this ratio of the largest value to the smallest on, the scale is logarithmic."""
_WORD = 7.0
"""Percent of the width that a batch size needs under the floor."""
_SMALLEST = 1e-9
"""Where a logarithmic scale begins at the latest."""
_MOST_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from `low` to `high`; `low` is zero, but on a logarithmic scale."""

    low: float
    high: float
    logarithmic: bool

    def height(self, value: float) -> float:
        """How far down a value stands, in percent of the height."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return round(BOTTOM - (BOTTOM - _TOP) * min(max(share, 0.0), 1.0), 2)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A batch size under the floor."""

    x: float
    text: str


def scale_of(values: Sequence[float]) -> Scale:
    """From zero to a little above the largest; logarithmic where one scale cannot show both ends.

    `values` are finite and not negative, at least one.
    """
    low, high = max(min(values), _SMALLEST), max(values)
    if min(values) > 0 and high / low > _WIDE:
        return Scale(low=low / 1.25, high=high * 1.25, logarithmic=True)
    return Scale(low=0.0, high=charts.scale_end(values), logarithmic=False)


def ticks_of(scale: Scale) -> list[float]:
    """Round numbers on the scale, at most six, without zero."""
    if not scale.logarithmic:
        power = 10.0 ** math.floor(math.log10(scale.high / _MOST_TICKS))
        steps = (factor * power for factor in (1, 2, 2.5, 5, 10, 20))
        step = next(each for each in steps if scale.high / each < _MOST_TICKS)
        return [step * number for number in range(1, math.floor(scale.high / step) + 1)]
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for factors, every in (((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
        found = [
            factor * 10.0**power
            for power in powers
            if power % every == 0
            for factor in factors
            if scale.low <= factor * 10.0**power <= scale.high
        ]
        if len(found) <= _MOST_TICKS:
            break
    return found[:_MOST_TICKS]


def places_of(batches: Sequence[int]) -> list[float]:
    """How far to the right each batch stands, ascending; a single one stands in the middle."""
    logs = [math.log2(max(batch, 1)) for batch in batches]
    across = logs[-1] - logs[0]
    if not across:
        return [50.0] * len(batches)
    return [round(_LEFT + (_RIGHT - _LEFT) * (each - logs[0]) / across, 2) for each in logs]


def marks_of(places: dict[int, float]) -> tuple[Mark, ...]:
    """The batch sizes that have room under the floor: the last, and what does not touch another."""
    *before, last = places.items()
    found: list[Mark] = []
    for batch, x in before:
        free = not found or x - found[-1].x >= _WORD
        if free and last[1] - x >= _WORD:
            found.append(Mark(x=x, text=str(batch)))
    return (*found, Mark(x=last[1], text=str(last[0])))


def tick_ms(value: float) -> str:
    """`20 ms`, `2.5 s`: short enough to stand beside the scale."""
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def tick_rate(value: float) -> str:
    """`0.2`, `1.5`, `400`: a rate beside the scale."""
    return f"{value:g}" if value < 100 else f"{value:.0f}"


def format_rate(value: float) -> str:
    """`0.043`, `4.21`, `52.1`, `1480`: three digits, or all before the point."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = 0 if value >= 100 else min(2 - math.floor(math.log10(abs(value))), 9)
    return f"{value:.{digits}f}"
