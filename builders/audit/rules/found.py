"""What a rule found, before `accept` entries took places away and a finding was made of it."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import NamedTuple

from builders.audit.rules.catalogue import RULE
from planyard.core.findings import Finding, Severity
from planyard.core.matrix import Accepted
from planyard.core.units import format_bytes

_EVIDENCE = 5


class Place(NamedTuple):
    """Where something was found: a path in the image, or `Env NAME` and the like."""

    path: str
    size_bytes: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One finding in the making.

    In `message`, `{files}` and `{size}` stand for the places that are left. `least_bytes` is the
    weight below which it is not worth saying.
    """

    rule: str
    places: tuple[Place, ...]
    message: str
    severity: Severity | None = None
    least_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """What all places weigh."""
        return sum(place.size_bytes for place in self.places)

    def without(self, entry: Accepted) -> Found:
        """This without the places that an accept entry means."""
        if entry.rule != self.rule:
            return self
        left = (place for place in self.places if not _is_meant(place.path, entry.path))
        return replace(self, places=tuple(left))

    def finding(self, *, image: str) -> Finding | None:
        """The finding, or None where too little is left for one."""
        if not self.places or self.size_bytes < self.least_bytes:
            return None
        rule = RULE[self.rule]
        count = len(self.places)
        text = self.message.replace("{files}", "1 file" if count == 1 else f"{count:,} files")
        text = text.replace("{size}", format_bytes(self.size_bytes))
        return Finding(
            gate="image",
            rule=f"image.{self.rule}",
            where=image,
            severity=self.severity or rule.severity,
            message=f"{text}: {rule.mend}",
            evidence=self._evidence(),
        )

    def _evidence(self) -> tuple[str, ...]:
        places = sorted(self.places, key=lambda place: (-place.size_bytes, place.path))
        lines = [_line(place) for place in places[:_EVIDENCE]]
        if len(places) > _EVIDENCE:
            rest = sum(place.size_bytes for place in places[_EVIDENCE:])
            size = f", {format_bytes(rest)}" if rest else ""
            lines.append(f"and {len(places) - _EVIDENCE:,} more{size}")
        return tuple(lines)


def printable(text: str) -> str:
    """A name from a layer, with what a terminal would act on escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _line(place: Place) -> str:
    size = f" {format_bytes(place.size_bytes)}" if place.size_bytes else ""
    note = f" ({place.note})" if place.note else ""
    return printable(f"{place.path}{size}{note}")


def _is_meant(path: str, pattern: str) -> bool:
    """Whether a pattern means a path; it may leave out the first `/`."""
    return any(fnmatch.fnmatchcase(each, pattern) for each in (path, path.removeprefix("/")))
