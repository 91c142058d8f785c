"""What of a log is shown: its beginning, its end, and the lines around findings. Pure.

A line is what ends with a newline, as the log gate counts. What a terminal would obey is taken out
or written visibly: a page must not show other words than the log has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planyard.core.findings import Finding

HEAD, TAIL, AROUND = 10, 40, 4
"""Lines that are shown of the beginning, of the end, and before and after a finding."""
MOST_MARKS = 100
LONGEST = 600
"""Characters of a line that are shown."""
WORST_FIRST = ("fail", "warn")

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_STREAM = re.compile(r"(stdout|stderr) line \d+")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a log, 1-based; `mark` is the severity of the worst finding on it, `rules` all."""

    number: int
    text: str
    mark: str = ""
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """What is shown of one stream: runs of lines, with lines left out between two runs."""

    stream: str
    lines: int
    size_bytes: int
    runs: tuple[tuple[Line, ...], ...]
    left_out: tuple[int, ...]
    """Lines left out before each run; none is ever left out after the last."""


def excerpt(text: str, *, stream: str, findings: Iterable[Finding]) -> Excerpt:
    """The parts of a stream that are shown; findings of the log gate name its lines."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    marks = marks_of(findings, stream=stream)
    shown = sorted(
        {
            *range(1, min(HEAD, len(lines)) + 1),
            *range(max(len(lines) - TAIL, 0) + 1, len(lines) + 1),
            *(
                number
                for mark in sorted(marks)[:MOST_MARKS]
                for number in range(max(mark - AROUND, 1), min(mark + AROUND, len(lines)) + 1)
            ),
        }
    )
    runs: list[list[Line]] = []
    left_out: list[int] = []
    before = 0
    for number in shown:
        if not runs or number != before + 1:
            runs.append([])
            left_out.append(number - before - 1)
        runs[-1].append(_line(number, lines[number - 1], marks.get(number, ())))
        before = number
    return Excerpt(
        stream=stream,
        lines=len(lines),
        size_bytes=len(text.encode("utf-8", "replace")),
        runs=tuple(map(tuple, runs)),
        left_out=tuple(left_out),
    )


def marks_of(findings: Iterable[Finding], *, stream: str) -> dict[int, tuple[Finding, ...]]:
    """The findings on each line of a stream."""
    found: dict[int, tuple[Finding, ...]] = {}
    for finding in findings:
        if stream_of(finding) == stream and finding.line:
            found[finding.line] = (*found.get(finding.line, ()), finding)
    return found


def stream_of(finding: Finding) -> str:
    """The stream that a finding of the log gate is about; empty for any other finding."""
    match = _STREAM.match(finding.message) if finding.gate == "logs" else None
    return match[1] if match else ""


def _line(number: int, text: str, findings: Sequence[Finding]) -> Line:
    severities = {finding.severity for finding in findings}
    mark = next((each for each in WORST_FIRST if each in severities), "")
    shown = visible(text[: 4 * LONGEST])
    if len(shown) > LONGEST or len(text) > 4 * LONGEST:
        shown = f"{shown[:LONGEST]} … ({len(text)} characters)"
    rules = tuple(dict.fromkeys(finding.rule for finding in findings))
    return Line(number=number, text=shown, mark=mark, rules=rules)


def visible(text: str) -> str:
    """`text` without colours, and with what cannot be seen, or turns text around, written out."""
    if text.isprintable():  # nearly all is, and this is ten times as fast
        return text
    return _UNSEEN.sub(_written_out, _ESCAPES.sub("", text).removesuffix("\r"))


def _written_out(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
