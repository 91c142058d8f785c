"""Where something stands in a YAML file: key path, line and column, and what is wrong there.

Positions are those of an entry's key, or of a list's item, 1-based, in characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple, TypeAlias

MAX_PROBLEMS = 500
"""More than anyone reads; what comes after them is not looked for."""

KeyPath: TypeAlias = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_QUOTE_CHARACTERS = 60
_SUGGESTION_CHARACTERS = 64


class Problem(NamedTuple):
    """One thing wrong with a file; `message` says what to write instead."""

    path: KeyPath
    line: int
    column: int
    message: str

    def text(self, name: str) -> str:
        """`matrix.yaml:42:7 images.rtx.budget.pull: …`, always on one line."""
        return f"{name}:{self.line}:{self.column} {path_text(self.path)}: {self.message}"


class Part(NamedTuple):
    """A struct that was read at `path`; `value` is None when it could not be read."""

    path: KeyPath
    kind: type
    value: object | None


def path_text(path: KeyPath) -> str:
    """`models."sd-1.5".inputs`, `drop[2].cells`; the whole file is `(top level)`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += "." if text else ""
            text += step if _PLAIN_KEY.fullmatch(step) else quoted(step)
    return text or "(top level)"


def quoted(text: str) -> str:
    """`text` in double quotes as YAML and JSON write it: one printable line, long ones cut."""
    if len(text) > _QUOTE_CHARACTERS:
        text = text[: _QUOTE_CHARACTERS - 1] + "…"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems in the order of the file, cut with a last word when there are too many."""
    ordered = sorted(problems, key=lambda problem: (problem.line, problem.column))
    if len(ordered) <= MAX_PROBLEMS:
        return tuple(ordered)
    line, column = ordered[MAX_PROBLEMS][1:3]
    message = f"there are more than {MAX_PROBLEMS} problems: mend the ones before this first"
    return (*ordered[:MAX_PROBLEMS], Problem((), line, column, message))


def did_you_mean(text: str, known: Collection[str]) -> str:
    """`did you mean "pull"?`, or nothing when no known word is close."""
    close = closest(text, known)
    return f"did you mean {quoted(close)}?" if close is not None else ""


def closest(text: str, known: Collection[str]) -> str | None:
    """The known word that `text` was probably meant to be."""
    if len(text) > _SUGGESTION_CHARACTERS:
        return None
    import difflib  # noqa: PLC0415  # only a wrong file needs it: start-up time

    return next(iter(difflib.get_close_matches(text, known, n=1)), None)
