"""What a change of a pin or setting means for the plans and cells of a backend: data with sources.

The rows are in `consequences.toml` beside this file. What no row speaks of is validated again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from planyard.core.matrix import Backend

_DATA = Path(__file__).with_name("consequences.toml")
_UNKNOWN = (
    "planyard has no rule for it, so what was proved counts as proved with the other one only"
)

Effect = Literal["rebuild", "validate", "none"]


class Consequence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a change of `of` (a pin, or `workspace`) means for these backends, why, and a source."""

    of: str
    backends: tuple[Backend, ...]
    effect: Effect
    why: str
    source: str


class _Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    consequence: tuple[Consequence, ...]


@cache
def load_consequences() -> tuple[Consequence, ...]:
    """The shipped rows, read once."""
    import tomllib

    return msgspec.convert(tomllib.loads(_DATA.read_text(encoding="utf-8")), _Rules).consequence


def consequence_of(subject: str, backend: Backend | None) -> Consequence:
    """The row for a change; for an unknown subject or backend one that validates everything."""
    for row in load_consequences():
        if row.of == subject and backend in row.backends:
            return row
    return Consequence(of=subject, backends=(), effect="validate", why=_UNKNOWN, source="")
