"""How a run ended, in words for people: its exit code, the signal or limit behind it, its reports.

A container that ends by signal n has the exit code 128 + n, and so has a shell whose program did.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import NamedTuple

from planyard.core.results import SmokeRun
from planyard.core.units import format_bytes

_SIGNALS = {
    "SIGKILL": "killed from outside, or by the kernel for want of memory",
    "SIGSEGV": "it used memory that is not its own",
    "SIGBUS": "it used memory that is not there, like a file cut short or a full /dev/shm",
    "SIGABRT": "it gave up itself: an assertion, or a C++ exception that nobody caught",
    "SIGILL": "an instruction that this CPU does not have",
    "SIGFPE": "a division by zero, or an overflow",
    "SIGSYS": "a system call that the container may not make",
    "SIGTERM": "it was asked to end from outside",
    "SIGINT": "it was interrupted from outside",
    "SIGPIPE": "nobody read what it wrote",
}
_SHOWN = 500
_KILLED = 128 + 9


class Ending(NamedTuple):
    """What is wrong with the end of a run: the rule of the finding, and its message."""

    rule: str
    message: str


def wrong_endings(run: SmokeRun) -> tuple[Ending, ...]:
    """Everything that is wrong with the end of a run; nothing for one that may be judged further.

    A run ends well when it ends by itself with 0, inside its limits, with no error reported, and
    when all that it reported can be read.
    """
    return (*_stops(run), *(Ending("exit.report", problem) for problem in run.problems))


def _stops(run: SmokeRun) -> Iterator[Ending]:
    if run.flooded:
        message = f"the run was stopped: it wrote more to {run.flooded} than a run may"
        yield Ending("exit.flooded", f"{message}, and only the beginning is kept")
    elif run.timed_out:
        message = f"the run did not end within its time limit ({run.seconds:.0f} s)"
        yield Ending("exit.not-zero", message)
    elif run.out_of_memory:
        yield Ending("exit.out-of-memory", _say_memory(run))
    elif run.exit_code != 0:
        how = say_signal(run.exit_code)
        how = f"the run was {how}:" if how else "the run ended with"
        message = f"{how} exit code {run.exit_code}: {_last_words(run)}"
        yield Ending("exit.not-zero", message)
    elif run.report and run.report.error:
        message = f"the run ended with 0 and reported an error: {_last_words(run)}"
        yield Ending("exit.error", message)


def _say_memory(run: SmokeRun) -> str:
    limit = run.memory_limit_bytes
    why = f"out of memory: the limit is {format_binary(limit)}" if limit else "out of memory"
    if run.exit_code == _KILLED:
        return f"the run was killed by SIGKILL ({why}): exit code {run.exit_code}"
    return f"a part of the run was killed by SIGKILL ({why}), the rest ended with {run.exit_code}"


def say_signal(exit_code: int | None) -> str:
    """`killed by SIGSEGV (…)` for 139; empty for an exit code that is no signal's."""
    if exit_code is None or exit_code <= 128:
        return ""
    try:
        name = signal.Signals(exit_code - 128).name
    except ValueError:
        return ""
    return f"killed by {name} ({_SIGNALS[name]})" if name in _SIGNALS else f"killed by {name}"


def format_binary(size_bytes: int) -> str:
    """`4 GiB`: a limit as the matrix writes it, where it is a whole number of such units."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return format_bytes(size_bytes)


def _last_words(run: SmokeRun) -> str:
    """The error it reported, else the last line that it printed."""
    if run.report and run.report.error:
        return run.report.error[:_SHOWN]
    lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
    return lines[-1][:200] if lines else "it said nothing"
