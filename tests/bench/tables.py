"""Figures as a table on a terminal and as Markdown in docs/benchmarks.md.

The document is made of sections between markers. A run replaces the sections that it measured and
leaves the others, so a short run keeps the figures of the last full build.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planyard.edge import files

HEADER = ("what", "measured", "target", "verdict", "beside it, in the same run")
_TITLE = """\
# Benchmarks

Written by `nox -s bench -- --write`; add `--full` for the whole build. Times are medians of whole
processes unless a line says otherwise, with the fastest run and the CPU time (user and system)
beside them: where the clock is far above the CPU time, the machine was busy with something else.
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line: what was measured, against which target, beside which peer."""

    what: str
    measured: str
    target: str = ""
    reached: bool | None = None
    """None where there is no target: the line is for information."""
    peer: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of a table."""
        verdict = {True: "reached", False: "missed", None: "-"}[self.reached]
        return (self.what, self.measured, self.target or "-", verdict, self.peer or "-")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the document: figures of one run on one machine, and what to know about them."""

    key: Literal["small", "full", "store", "logs", "audit"]
    title: str
    machine: str
    figures: Sequence[Figure]
    notes: Sequence[str] = ()


def as_text(section: Section) -> str:
    """The section for a terminal."""
    rows = [HEADER, *(figure.row for figure in section.figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([section.title, section.machine, "", *lines, "", *section.notes, ""])


def as_markdown(section: Section) -> str:
    """The section for the document."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(figure.row for figure in section.figures)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    notes = [f"- {note}" for note in section.notes]
    return "\n".join(
        [f"## {section.title}", "", section.machine, "", *table, "", *notes, *([""] * bool(notes))]
    )


def update_document(path: Path, section: Section) -> None:
    """Put a section into the document at `path`; the rest of it stays, also what stands behind."""
    text = path.read_text() if path.exists() else ""
    kept = {key: _between(text, key) for key in ("small", "store", "logs", "audit", "full")}
    kept[section.key] = as_markdown(section)
    parts = [_TITLE]
    for key, body in kept.items():
        if body:
            parts.append(f"<!-- {key}: begin -->\n{body.strip()}\n<!-- {key}: end -->\n")
    if said := _after_sections(text):
        parts.append(said + "\n")
    files.write_bytes(path, "\n".join(parts).encode())


def _after_sections(text: str) -> str:
    """What people wrote behind the last section: why a target was missed."""
    *_, after = re.split(r"<!-- \w+: end -->\n", text)
    return after.strip() if "<!--" in text else ""


def _between(text: str, key: str) -> str:
    found = re.search(rf"<!-- {key}: begin -->\n(.*?)\n<!-- {key}: end -->", text, re.DOTALL)
    return found[1] if found else ""
