"""Lines over time, as geometry for SVG: places in percent of the plot, nothing drawn yet. Pure.

Steps are as far apart as they are many, not as their times: an afternoon of builds would be one
dot beside a quiet month. The scale begins at zero, so that heights can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TOP, BOTTOM = 18.0, 97.0
"""Where the plot begins and ends, in percent of the height; flags stand above."""
_LEFT, _RIGHT = 1.5, 98.5
_TICKS = 3
_WORDS = 14.0
"""How high words are, in percent of the height."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value at a step; `text` says all of it."""

    x: float
    y: float
    text: str
    bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Level:
    """A line across: a tick of the scale, or a limit with its words."""

    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What stands above a step; `anchor` is SVG's, `low` puts it on the second line."""

    x: float
    text: str
    anchor: str
    low: bool


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart to draw. Paths are for a view box of 1000 by 1000."""

    label: str
    ticks: tuple[Level, ...]
    dots: tuple[Dot, ...]
    line: str
    shadow: str = ""
    steps: str = ""
    limit: str = ""
    limit_label: Level | None = None
    limit_below: bool = False
    """Whether the words of the limit stand under it, because the line is right above."""
    flags: tuple[Flag, ...] = ()
    first: str = ""
    last: str = ""


Values = Sequence[float | None]


def chart(
    *,
    label: str,
    values: Values,
    texts: Sequence[str],
    unit: Callable[[float], str],
    shadow: Values = (),
    steps: Values = (),
    limit: Values = (),
    limit_text: str = "",
    flags: Sequence[str] = (),
    bad: Sequence[bool] = (),
    ends: tuple[str, str] = ("", ""),
) -> Chart:
    """A line of `values`, a fainter one, and two that are held against it: all one value a step.

    `texts` say each value in words, `flags` what stands above it, `bad` which are marked.
    """
    top = scale_end([*values, *shadow, *steps, *limit])
    count = len(values)
    dots = tuple(
        Dot(
            x=place(number, count),
            y=height(value, top),
            text=texts[number],
            bad=bool(bad) and bad[number],
        )
        for number, value in enumerate(values)
        if value is not None
    )
    last = next((each for each in reversed(limit) if each is not None), None)
    mark = None if last is None else Level(y=height(last, top), text=limit_text)
    return Chart(
        label=label,
        ticks=tuple(Level(y=height(each, top), text=unit(each)) for each in ticks(top)),
        dots=dots,
        line=path(values, top),
        shadow=path(shadow, top),
        steps=stairs(steps, top),
        limit=stairs(limit, top),
        limit_label=mark,
        limit_below=bool(mark and dots and mark.y - _WORDS < dots[-1].y <= mark.y),
        flags=tuple(_flags(flags, count)),
        first=ends[0],
        last=ends[1] if count > 1 else "",
    )


def _flags(texts: Sequence[str], count: int) -> list[Flag]:
    found: list[Flag] = []
    for number, text in enumerate(texts):
        if text:
            x = place(number, count)
            anchor = "start" if x < 20 else "end" if x > 80 else "middle"
            found.append(Flag(x=x, text=text, anchor=anchor, low=bool(found) and not found[-1].low))
    return found


def place(number: int, count: int) -> float:
    """How far to the right a step stands; a single one stands in the middle."""
    if count == 1:
        return 50.0
    return round(_LEFT + (_RIGHT - _LEFT) * number / (count - 1), 2)


def height(value: float, top: float) -> float:
    """How far down a value stands on a scale from zero to `top`."""
    share = min(max(value / top, 0.0), 1.0) if top else 0.0
    return round(BOTTOM - (BOTTOM - TOP) * share, 2)


def scale_end(values: Values) -> float:
    """The end of the scale: a little above the largest value; 1 of none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return max(known, default=0.0) * 1.06 or 1.0


def ticks(top: float) -> list[float]:
    """Round numbers up to `top`, three or four of them, without zero."""
    rough = top / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.8)
    return [step * number for number in range(1, 6) if step * number <= top]


def path(values: Values, top: float) -> str:
    """The `d` of a line through the values; where one is missing it is broken."""
    parts, pen = [], "M"
    for number, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        parts.append(f"{pen}{_ten(place(number, len(values)))} {_ten(height(value, top))}")
        pen = "L"
    return "".join(parts)


def stairs(values: Values, top: float) -> str:
    """The `d` of a line that keeps each value half a step to both sides."""
    half = (_RIGHT - _LEFT) / max(len(values) - 1, 1) / 2
    parts, pen = [], "M"
    for number, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        x = place(number, len(values))
        at, y = max(x - half, 0.0), _ten(height(value, top))
        parts.append(f"{pen}{_ten(at)} {y}L{_ten(min(x + half, 100.0))} {y}")
        pen = "L"
    return "".join(parts)


def _ten(percent: float) -> str:
    """Percent as the view box counts, without a needless digit."""
    return f"{percent * 10:.0f}"


def spark(values: Values, *, width: int = 44, tall: int = 16) -> str:
    """The `d` of a line of a word's size; empty when there are not two values."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    top = scale_end(known)
    across = (width - 4) / (len(values) - 1)
    parts, pen = [], "M"
    for number, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        y = tall - 2 - (tall - 4) * min(max(value / top, 0.0), 1.0)
        parts.append(f"{pen}{2 + across * number:.0f} {y:.1f}")
        pen = "L"
    return "".join(parts)
