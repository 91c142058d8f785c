"""The commands of a page, found and run one after another, and their output held to what is shown.

In a block without a language, or of `console`, lines after `$ ` are commands and what follows is
their output. A block without any `$ ` whose first line is a command has one command a line; what
stands behind four blanks or more is an explanation. `# ends with 4` says an exit code other than 0.
Output is compared loosely: each shown line has to come, in this order, with other numbers, times,
digests and names of people. A digest that was shown stands for the real one from then on.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = frozenset(
    {"planyard", "pip", "nox", "docker", "export", "jq", "cosign", "python3", ".ci/run", "sed"}
    | {"echo", "mkdir", "cat", "kubectl", "git", "cp", "pytest", "cd", "ls", "rm"}
)
_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_ENDS = re.compile(r"#.*\bends with (\d+)")
_EXPLANATION = re.compile(r" {4,}\S.*$")
_ASSIGNED = re.compile(r"([A-Z_]+=\S* )+")
_HEX = r"(?:sha256:)?[0-9a-f]{12,64}"
_LOOSE = re.compile(
    rf"(?P<hex>\b{_HEX}\b)|(?P<time>\d{{4}}-\d\d-\d\dT[\d:]+Z)"
    r"|(?P<took>(?:\d+ m )?\d+(?:\.\d+)? s\b)"
    r"|(?P<number>\d+(?:[.,]\d+)*)|(?P<who>\b[\w-]+@[\w.-]+)|(?P<any>…)|(?P<blank>\s+)"
)
_STANDS_FOR = {
    "hex": f"({_HEX})",
    "time": r"\d{4}-\d\d-\d\dT[\d:]+Z",
    "took": r"(?:\d+ m )?\d+(?:\.\d+)? s",
    "number": r"\d+(?:[.,]\d+)*",
    "who": r"\S+@\S+",
    "any": r".*",
    "blank": r"\s+",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a page: its text, the 1-based line it is on, what is shown of its output."""

    text: str
    line: int
    shown: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the page says it ends with."""
        found = _ENDS.search(self.text)
        return int(found[1]) if found else 0


def commands_of(page: str) -> list[Command]:
    """The commands of a page, in their order."""
    found: list[Command] = []
    for start, language, lines in blocks_of(page):
        if language not in {"", "console"}:
            continue
        if any(line.startswith("$ ") for line in lines):
            found += _with_output(lines, start)
        elif any(is_command(line) for line in lines):
            found += _plain(lines, start)
    return found


def blocks_of(page: str) -> list[tuple[int, str, list[str]]]:
    """Fenced blocks: the 1-based line of their first line, their language, their lines."""
    found: list[tuple[int, str, list[str]]] = []
    fence = ""
    for number, line in enumerate(page.splitlines(), 1):
        match = _FENCE.match(line)
        if fence and match and match[2].startswith(fence) and not match[3].strip():
            fence = ""
        elif fence:
            found[-1][2].append(line)
        elif match:
            fence = match[2]
            found.append((number + 1, match[3].strip(), []))
    return found


def is_command(line: str) -> bool:
    """Whether a line begins with a program that pages run."""
    words = _ASSIGNED.sub("", line).split()
    return bool(words) and words[0] in PROGRAMS


def _with_output(lines: Sequence[str], start: int) -> list[Command]:
    found: list[Command] = []
    is_open = False
    for number, line in enumerate(lines, start):
        if line.startswith("$ "):
            found.append(Command(text=line[2:], line=number))
        elif is_open:
            found[-1] = Command(text=f"{found[-1].text}\n{line}", line=found[-1].line)
        elif found and line.strip():
            last = found[-1]
            found[-1] = Command(text=last.text, line=last.line, shown=(*last.shown, line))
        is_open = bool(found) and not found[-1].shown and line.endswith("\\")
    return found


def _plain(lines: Sequence[str], start: int) -> list[Command]:
    found: list[Command] = []
    is_open = False
    for number, line in enumerate(lines, start):
        if is_open:
            found[-1] = Command(text=f"{found[-1].text}\n{line}", line=found[-1].line)
        elif line.strip() and not line.startswith("#"):
            found.append(Command(text=_EXPLANATION.sub("", line), line=number))
        is_open = line.endswith("\\")
    return found


@dataclass(kw_only=True)
class Shell:
    """A folder in which the commands of a page run; `cd` and `export` hold for those after.

    `means` replaces texts of commands before they run, in its order; `names` are a test's own.
    """

    folder: Path
    environment: dict[str, str]
    means: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    learned: dict[str, str] = field(default_factory=dict)
    said: str = ""

    def run(self, text: str, *, timeout_seconds: float = 600) -> int:
        """Run a command line of the page; what it said on both streams is in `said`."""
        return self.run_as_is(self.meant(text), timeout_seconds=timeout_seconds)

    def run_as_is(self, text: str, *, timeout_seconds: float = 600) -> int:
        """Run a command line with real names, which a page's own could be a part of."""
        state = self.folder / ".docs-state"
        state.mkdir(exist_ok=True)
        trap = f"trap 'code=$?; env -0 >{state}/env; pwd >{state}/cwd; exit $code' EXIT"
        place = (state / "cwd").read_text().strip() if (state / "cwd").exists() else self.folder
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail\n{trap}\n{text}\n"],
            cwd=place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
        self.said = done.stdout.decode(errors="replace")
        pairs = (state / "env").read_bytes().decode().split("\0")
        self.environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return done.returncode

    def meant(self, text: str) -> str:
        """A command with what the page means by its names."""
        for shown, real in self.means.items():
            text = text.replace(shown, real)
        return re.sub(rf"\b{_HEX}\b", lambda found: self._real(found[0]), text)

    def _real(self, shown: str) -> str:
        bare = shown.removeprefix("sha256:")
        for known, real in sorted(self.learned.items(), key=lambda each: -len(each[0])):
            if known.startswith(bare) or bare.startswith(known):
                return shown[: len(shown) - len(bare)] + real[: len(bare)]
        return shown

    def missing(self, shown: Sequence[str]) -> str:
        """The first shown line that did not come, empty when all did; digests are learned."""
        lines = iter(self.said.splitlines())
        for wanted in shown:
            pattern = re.compile(pattern_of(wanted))
            match = next(
                (found for line in lines if (found := pattern.fullmatch(line.strip()))), None
            )
            if match is None:
                return wanted
            names = [each["hex"] for each in _LOOSE.finditer(wanted.strip()) if each["hex"]]
            for name, real in zip(names, match.groups(), strict=True):
                bare, found = name.removeprefix("sha256:"), real.removeprefix("sha256:")
                if len(found) >= len(self.learned.get(bare, "")):
                    self.learned[bare] = found
        return ""


def pattern_of(shown: str) -> str:
    """A pattern for a shown line; what differs from run to run may differ."""
    parts, at, text = [], 0, shown.strip()
    for found in _LOOSE.finditer(text):
        parts += [re.escape(text[at : found.start()]), _STANDS_FOR[str(found.lastgroup)]]
        at = found.end()
    return "".join([*parts, re.escape(text[at:])])


def path_with(folder: Path, programs: Mapping[str, str]) -> str:
    """A PATH on which these shell scripts, written into `folder`, come first."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, script in programs.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
