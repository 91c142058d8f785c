"""One reader for each kind of single value: text, number, choice, size.

A reader gives the value, or `BAD` after it has reported what is wrong and what to write instead.
`wants` says in words what it reads; every message ends with it. Unquoted text that a YAML loader
would take for a number, a boolean, null or a date is refused with the quoted form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from planyard.core.located import MAX_PROBLEMS, KeyPath, Part, Problem, did_you_mean, quoted
from planyard.core.yaml_nodes import DamagedNode, MappingNode, Node, ScalarNode, SequenceNode
from planyard.core.yaml_scalars import reads_as

BAD: Any = object()
"""Stands for a value that could not be read; what is wrong has been reported."""

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_REAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,4})?")


class TooManyProblemsError(Exception):
    """More problems than anyone reads; the first ones have been kept."""


class Spot(msgspec.Struct, gc=False):
    """A step on the way from the top of the file: its key or index, and the node it stands at."""

    parent: Spot | None
    step: str | int
    at: Node

    def path(self) -> KeyPath:
        """The whole key path, from the top."""
        steps: list[str | int] = []
        spot: Spot | None = self
        while spot is not None and spot.parent is not None:
            steps.append(spot.step)
            spot = spot.parent
        return tuple(reversed(steps))


class Report:
    """What reading a tree found: problems, and the structs whose rules are checked afterwards."""

    __slots__ = ("parts", "problems")

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.parts: list[Part] = []

    def bad(self, spot: Spot, message: str) -> Any:
        """Keep a problem at `spot` and return `BAD`."""
        if len(self.problems) > MAX_PROBLEMS:
            raise TooManyProblemsError
        self.problems.append(Problem(spot.path(), spot.at.line, spot.at.column, message))
        return BAD

    def wrong_kind(self, node: Node, spot: Spot, wants: str) -> Any:
        """Report a list or mapping in place of a scalar, and so on."""
        if isinstance(node, DamagedNode):
            return BAD
        if isinstance(node, MappingNode):
            seen = "a mapping stands here"
        elif isinstance(node, SequenceNode):
            seen = "a list stands here"
        elif not node.text and not node.quoted:
            seen = "nothing stands here"
        else:
            seen = f"{quoted(node.text)} stands here"
        return self.bad(spot, f"{seen}: write {wants}")


class Reader(Protocol):
    """Reads one node into a value."""

    @property
    def wants(self) -> str:
        """What it reads, in words that follow "write"."""

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The value, or `BAD`."""


class TextReader(msgspec.Struct, frozen=True, kw_only=True):
    """Text; `pattern` must match the whole of it."""

    wants: str
    pattern: re.Pattern[str] | None = None
    min_length: int | None = None
    max_length: int | None = None

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The text as it was written, or `BAD`."""
        if type(node) is not ScalarNode:
            return report.wrong_kind(node, spot, self.wants)
        text = node.text
        trap = None if node.quoted else reads_as(text)
        if trap is not None and not text:
            return report.wrong_kind(node, spot, self.wants)
        wrong = self._wrong(text)
        if wrong is None and trap is not None:
            wrong = f"write {quoted(text)}: unquoted, YAML reads it as {trap}"
        return text if wrong is None else report.bad(spot, wrong)

    def _wrong(self, text: str) -> str | None:
        """Why the text would not do even in quotes."""
        if self.pattern is not None and not self.pattern.fullmatch(text):
            return f"{quoted(text)} does not fit: write {self.wants}"
        if self.min_length and len(text) < self.min_length:
            least = f"at least {self.min_length} characters" if self.min_length > 1 else "text"
            return f"{quoted(text)} is too short: write {least} ({self.wants})"
        if self.max_length is not None and len(text) > self.max_length:
            most = f"at most {self.max_length} characters"
            return f"{quoted(text)} is too long: write {most} ({self.wants})"
        return None


class WholeReader(msgspec.Struct, frozen=True, kw_only=True):
    """A whole number in plain decimal digits."""

    wants: str
    fits: Callable[[float], bool]

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The number, or `BAD`."""
        if type(node) is not ScalarNode:
            return report.wrong_kind(node, spot, self.wants)
        text = node.text
        if node.quoted or not text:
            without = ", without quotes" if text else ""
            return report.wrong_kind(node, spot, self.wants + without)
        if not _WHOLE.fullmatch(text):
            return report.bad(
                spot, f"{quoted(text)} is not a whole number in plain digits: write {self.wants}"
            )
        value = int(text)
        if not self.fits(value):
            return report.bad(spot, f"{text} is out of range: write {self.wants}")
        return value


class RealReader(msgspec.Struct, frozen=True, kw_only=True):
    """A finite number, written as JSON writes it."""

    wants: str
    fits: Callable[[float], bool]

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The number, or `BAD`."""
        if type(node) is not ScalarNode:
            return report.wrong_kind(node, spot, self.wants)
        text = node.text
        if node.quoted or not text:
            without = ", without quotes" if text else ""
            return report.wrong_kind(node, spot, self.wants + without)
        if not _REAL.fullmatch(text):
            return report.bad(spot, f"{quoted(text)} is not a number: write {self.wants}")
        value = float(text)
        if not math.isfinite(value) or not self.fits(value):
            return report.bad(spot, f"{quoted(text)} is out of range: write {self.wants}")
        return value


class FlagReader(msgspec.Struct, frozen=True, kw_only=True):
    """`true` or `false`, and none of the other words that YAML 1.1 takes for them."""

    wants: str = "true or false, without quotes"

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The boolean, or `BAD`."""
        if type(node) is ScalarNode and not node.quoted and node.text in ("true", "false"):
            return node.text == "true"
        return report.wrong_kind(node, spot, self.wants)


class ChoiceReader(msgspec.Struct, frozen=True, kw_only=True):
    """One of a few words or numbers."""

    wants: str
    values: dict[str, str | int | None]
    """How each value is written."""

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The value chosen, or `BAD`."""
        if type(node) is not ScalarNode or not (node.text or node.quoted):
            return report.wrong_kind(node, spot, self.wants)
        value = self.values.get(node.text, BAD)
        if value is BAD:
            near = did_you_mean(node.text, self.values)
            message = f"{quoted(node.text)} is not known here: write {self.wants}"
            return report.bad(spot, f"{message}; {near}" if near else message)
        if node.quoted and not isinstance(value, str):
            return report.wrong_kind(node, spot, f"{self.wants}, without quotes")
        return value


class ParsedReader(msgspec.Struct, frozen=True, kw_only=True):
    """A type that reads itself from text: `parse` raises ValueError with what to write instead."""

    wants: str
    parse: Callable[[str], Any]

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The parsed value, or `BAD`."""
        if type(node) is not ScalarNode or not node.text:
            return report.wrong_kind(node, spot, self.wants)
        text = node.text
        if text != text.strip():
            return report.bad(spot, f"{quoted(text)} has blanks around it: write {self.wants}")
        try:
            return self.parse(text)
        except ValueError as error:
            return report.bad(spot, str(error).replace(repr(text), quoted(text), 1))
        except OverflowError:
            return report.bad(spot, f"{quoted(text)} is out of range: write {self.wants}")
