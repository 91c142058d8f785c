"""A change between two sides, what follows from it, and the words for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import msgspec

from planyard.core.digest import is_digest, short

ChangeSeverity = Literal["none", "attention", "breaks"]
SEVERITIES: tuple[ChangeSeverity, ...] = ("none", "attention", "breaks")

ChangeKind = Literal[
    "compatibility",
    "pin",
    "recipe",
    "plans",
    "cells",
    "gate",
    "verdict",
    "finding",
    "latency",
    "placement",
    "attention",
    "utilization",
    "version",
    "device",
    "budget",
    "image",
]
"""What a change is about, in the order they are shown."""
KINDS: tuple[str, ...] = ChangeKind.__args__  # type: ignore[attr-defined]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference and its consequence. Cells are ids; `seconds` is compile time.

    `breaks`: something that held before does not hold, or is no longer proved. `attention`: work
    to do, or worth a look. `rebuild` and `validate` are cells whose plan has to be compiled, or
    that have to be run, again because of this change alone; what is rebuilt is validated too, and
    is not in `validate`.
    """

    kind: ChangeKind
    subject: str
    before: str
    after: str
    consequence: str
    severity: ChangeSeverity
    gpus: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    rebuild: tuple[str, ...] = ()
    validate: tuple[str, ...] = ()
    seconds: float | None = None
    """Time to compile `rebuild`, by the last build's times; None where nothing is known."""
    why: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.subject} {self.before} → {self.after}: {self.consequence}"


def merged(changes: Iterable[Change]) -> list[Change]:
    """Changes that say the same of several GPUs or cells, as one; in the order of their first."""
    found: dict[tuple[str, ...], Change] = {}
    for change in changes:
        key = (change.kind, change.subject, change.before, change.after, change.consequence)
        known = found.get(key)
        found[key] = _joined(known, change) if known else change
    return list(found.values())


def _joined(one: Change, other: Change) -> Change:
    return msgspec.structs.replace(
        one,
        severity=worst((one.severity, other.severity)),
        gpus=union(one.gpus, other.gpus),
        cells=union(one.cells, other.cells),
        rebuild=union(one.rebuild, other.rebuild),
        validate=union(one.validate, other.validate),
    )


def worst(severities: Iterable[ChangeSeverity]) -> ChangeSeverity:
    """The worst of several; `none` of none."""
    return max(severities, key=SEVERITIES.index, default="none")


def union(*groups: Collection[str]) -> tuple[str, ...]:
    """All of several groups, sorted, each once."""
    return tuple(sorted({each for group in groups for each in group}))


# Words


def count(number: int, noun: str) -> str:
    """`1 plan`, `2 plans`, `no plans`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number or 'no'} {noun}s"


def work(
    *,
    rebuild: Collection[str],
    validate: Collection[str],
    plans: Collection[str],
    seconds: float | None,
) -> str:
    """What has to be done again, in words; `plans` are the cells that have a plan."""
    checked = [cell for cell in validate if cell in plans]
    run = [cell for cell in validate if cell not in plans]
    parts = []
    if rebuild:
        parts.append(f"{count(len(rebuild), 'plan')} to rebuild{_about(seconds)}")
    if checked:
        parts.append(f"{count(len(checked), 'plan')} to validate again")
        parts += [] if rebuild else ["none to rebuild"]
    if run:
        parts.append(f"{count(len(run), 'cell')} to run again")
    return ", ".join(parts) or "nothing to rebuild or validate"


def _about(seconds: float | None) -> str:
    return "" if seconds is None else f", {about(seconds)} by the last build's times"


def about(seconds: float) -> str:
    """A rounded time: `about 40 seconds`, `about 6 minutes`, `about 2.5 hours`."""
    if seconds < 1.5:
        return "about a second"
    if seconds < 90:
        return f"about {seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"about {count(round(seconds / 60), 'minute')}"
    return f"about {round(seconds / 1800) / 2:g} hours"


def seconds_of(cells: Iterable[str], times: Mapping[str, float]) -> float | None:
    """The compile time of these cells; None when no time of any is known."""
    known = [times[cell] for cell in cells if cell in times]
    return round(sum(known), 3) if known else None


def as_text(value: object) -> str:
    """A value of a recipe for people: digests by their start, the rest as JSON."""
    if isinstance(value, str):
        return short(value) if is_digest(value) else value
    return msgspec.json.encode(value).decode()
