"""The one place that prints. Documents go to stdout; everything else goes to stderr.

On a terminal a step shows a spinner with its time and what it does now; elsewhere, and in CI, each
step is two plain lines. `NO_COLOR` is honoured. Rich is imported only when a terminal needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TextIO

from planyard.core.units import format_seconds

_RED, _YELLOW, _GREEN, _BOLD, _DIM = "31", "33", "32", "1", "2"


class Step(Protocol):
    """A running step: `update` says what it does at the moment."""

    def update(self, text: str) -> None:
        """Show `text` beside the step's title."""


class Console:
    """What a person sees. `quiet` keeps only warnings and errors.

    With `result`, lines are a verb's result and go to stdout; warnings and errors never do.
    """

    def __init__(self, *, quiet: bool = False, result: bool = False) -> None:
        self.quiet = quiet
        self._lines = sys.stdout if result else sys.stderr
        ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
        self.live = sys.stderr.isatty() and not ci and os.environ.get("TERM") != "dumb"
        self.github = os.environ.get("GITHUB_ACTIONS") == "true"
        forced = bool(os.environ.get("FORCE_COLOR"))
        self.colour = (forced or self._lines.isatty()) and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()

    def paint(self, text: str, *codes: str) -> str:
        """`text` in colour where colour is wanted."""
        return f"\033[{';'.join(codes)}m{text}\033[0m" if self.colour else text

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.quiet:
            self._write(text, self._lines)

    def good(self, text: str) -> None:
        """A line that says something went well."""
        self.say(self.paint(text, _GREEN))

    def title(self, text: str) -> None:
        """A heading."""
        self.say(self.paint(text, _BOLD))

    def detail(self, text: str) -> None:
        """A line that matters less."""
        self.say(self.paint(text, _DIM))

    def warn(self, text: str) -> None:
        """A warning: shown even when quiet."""
        self._write(self.paint("warning: ", _YELLOW, _BOLD) + text)

    def error(self, text: str) -> None:
        """An error: shown even when quiet."""
        self._write(self.paint("error: ", _RED, _BOLD) + text)

    def document(self, text: str) -> None:
        """The one document of a `--json` verb, or a verb's result, on stdout."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as their contents; the header is bold."""
        widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
        for number, row in enumerate((header, *rows)):
            cells = (str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
            line = "  ".join(cells).rstrip()
            self.say(self.paint(line, _BOLD) if number == 0 else line)

    def annotate(self, problem: str, *, level: Literal["error", "warning"] = "error") -> None:
        """An annotation on GitHub: `matrix.yaml:42:7 …` is shown beside that line."""
        match = re.match(r"([^\s:]+):(\d+):(\d+) ", problem)
        place = f" file={match[1]},line={match[2]},col={match[3]}" if match else ""
        text = problem.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        self._put(f"::{level}{place}::{text}", sys.stderr)

    def step_summary(self, markdown: str) -> None:
        """Add to the job summary on GitHub; nothing elsewhere."""
        path = os.environ.get("GITHUB_STEP_SUMMARY")
        if self.github and path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(markdown)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show that `title` runs, and at its end how long it took."""
        started = time.monotonic()
        step = _LiveStep(self, title) if self.live and not self.quiet else _PlainStep(self, title)
        try:
            yield step
        except BaseException:
            step.end()
            self.say(f"{self.paint('✗', _RED)} {title} {self._elapsed(started)}")
            raise
        step.end()
        self.say(f"{self.paint('✓', _GREEN)} {title} {self._elapsed(started)}")

    def _elapsed(self, started: float) -> str:
        return self.paint(f"({format_seconds(time.monotonic() - started)})", _DIM)

    def _write(self, text: str, stream: TextIO | None = None) -> None:
        self._put(_without_commands(text) if self.github else text, stream or sys.stderr)

    def _put(self, text: str, stream: TextIO) -> None:
        with self._lock:
            stream.write(text + "\n")
            stream.flush()


def _without_commands(text: str) -> str:
    """Text that a GitHub runner prints and does not obey: what a log says is no command of ours.

    A runner obeys a line that begins with `::`, blanks aside, and one that has `##[` anywhere.
    """
    lines = text.replace("##[", "## [").splitlines()
    return "\n".join(f"| {line}" if line.lstrip().startswith("::") else line for line in lines)


def forget_stdout() -> None:
    """After a broken pipe: nobody reads stdout, and Python's own flush at the end must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _PlainStep:
    """Off a terminal: one line at the start, one at the end; a sign of life every 30 seconds."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._last = time.monotonic()
        console.say(f"… {title}")

    def update(self, text: str) -> None:
        if time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            self._console.detail(f"  {self._title}: {text}")

    def end(self) -> None:
        return


class _LiveStep:
    """On a terminal: a spinner, the time, and what happens now, on one line."""

    def __init__(self, console: Console, title: str) -> None:
        import rich.console
        import rich.progress as parts

        self._progress = parts.Progress(
            parts.SpinnerColumn(),
            parts.TextColumn("{task.description}"),
            parts.TimeElapsedColumn(),
            parts.TextColumn("[dim]{task.fields[now]}", markup=True),
            console=rich.console.Console(stderr=True, no_color=not console.colour),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None, now="")
        self._progress.start()

    def update(self, text: str) -> None:
        from rich.markup import escape

        self._progress.update(self._task, now=escape(text[:100]))

    def end(self) -> None:
        self._progress.stop()


Report = Callable[[str], None]
