"""Time whole processes: wall and CPU side by side, so that a busy machine shows.

Commands that are compared run in turns, not one after the other: noise then meets all of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class BenchError(Exception):
    """A command did not do what it was measured for: its figure would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run, and words that its output has to hold for the run to count."""

    args: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    must_say: str = ""
    show_errors: bool = False
    """Let the other stream through: progress of something long."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: seconds on the clock, seconds of CPU (user and system), and all it said.

    `peak_bytes` is the largest resident set. What this process itself weighs is its least value.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


@dataclass(kw_only=True)
class Series:
    """Runs of one command."""

    runs: list[Run] = field(default_factory=list)

    @property
    def wall_ms(self) -> float:
        """The median, which decides."""
        return 1e3 * statistics.median(run.wall_seconds for run in self.runs)

    @property
    def least_wall_ms(self) -> float:
        """The fastest run: what the machine can do when nothing disturbs it."""
        return 1e3 * min(run.wall_seconds for run in self.runs)

    @property
    def cpu_ms(self) -> float:
        """The median of user and system time."""
        return 1e3 * statistics.median(run.cpu_seconds for run in self.runs)

    @property
    def text(self) -> str:
        """`84 ms (least 78, CPU 80)`."""
        least, cpu = _digits(self.least_wall_ms), _digits(self.cpu_ms)
        return f"{_digits(self.wall_ms)} ms (least {least}, CPU {cpu})"


def run_once(command: Command) -> Run:
    """Run a command to its end; raises BenchError when it fails or does not say what it has to."""
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command.args),
        cwd=command.cwd,
        env=dict(command.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if command.show_errors else subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    wall_seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    name = Path(command.args[0]).name
    if process.returncode != 0:
        tail = "\n".join(output.splitlines()[-20:])
        raise BenchError(f"{name} ended with {process.returncode}:\n{tail}")
    if command.must_say not in output:
        raise BenchError(f"{name} did not say {command.must_say!r}:\n{output[-2000:]}")
    return Run(
        wall_seconds=wall_seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        output=output,
    )


def in_turns(
    commands: Mapping[str, Command], *, rounds: int, warm_ups: int = 2
) -> dict[str, Series]:
    """Run each command `rounds` times, in turns, after `warm_ups` rounds that do not count."""
    series = {name: Series() for name in commands}
    for number in range(warm_ups + rounds):
        for name, command in commands.items():
            run = run_once(command)
            if number >= warm_ups:
                series[name].runs.append(run)
    return series


def _digits(value_ms: float) -> str:
    return f"{value_ms:.1f}" if value_ms < 10 else f"{value_ms:.0f}"
