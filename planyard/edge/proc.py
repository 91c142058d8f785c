"""The one place that starts a subprocess: argument list, never a shell, a time limit, output kept.

A failure carries the tail of the log. On Ctrl-C the child's whole process group ends first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TAIL_LINES = 40
GRACE_SECONDS = 5.0
"""Between asking a process to end and killing it."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(program: str) -> str | None:
    """Where a program is; system folders count even when the PATH leaves them out."""
    return shutil.which(program) or shutil.which(program, path=SYSTEM_PATH)


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A process that ended: its exit code and everything it said, both streams in order."""

    args: tuple[str, ...]
    exit_code: int
    output: str

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of the output."""
        return tuple(self.output.splitlines()[-TAIL_LINES:])


class ProcessError(Exception):
    """A process could not be started, ran out of time, or ended with another code than 0."""

    def __init__(self, message: str, *, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.tail = tuple(tail)


def run(
    args: Sequence[str],
    *,
    timeout_seconds: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    on_line: Callable[[str], None] | None = None,
    output_limit_bytes: int | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Completed:
    """Run `args` to its end and return what it said; raise `ProcessError` unless it exits 0.

    `on_line` sees each line as it comes. `env` replaces the whole environment when given. A process
    that says more than `output_limit_bytes` is ended as one that runs out of time is: asked first,
    killed `grace_seconds` later.
    """
    completed = run_unchecked(
        args,
        timeout_seconds=timeout_seconds,
        cwd=cwd,
        env=env,
        stdin=stdin,
        on_line=on_line,
        output_limit_bytes=output_limit_bytes,
        grace_seconds=grace_seconds,
    )
    if completed.exit_code != 0:
        message = f"{Path(args[0]).name} exited with {completed.exit_code}"
        raise ProcessError(message, tail=completed.tail)
    return completed


def run_unchecked(
    args: Sequence[str],
    *,
    timeout_seconds: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    on_line: Callable[[str], None] | None = None,
    output_limit_bytes: int | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Completed:
    """Like `run`, but any exit code is an answer."""
    process = start(args, cwd=cwd, env=env, stdin=subprocess.PIPE if stdin else subprocess.DEVNULL)
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        end_group(process, grace_seconds=grace_seconds)

    timer = threading.Timer(timeout_seconds, expire)
    timer.daemon = True
    timer.start()
    lines: list[str] = []
    try:
        if stdin and process.stdin:
            # Beside the reading below: a process that answers as it reads would wait for ever.
            threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
        for raw in _lines(process, output_limit_bytes):
            line = raw.decode(errors="replace")
            lines.append(line)
            if on_line:
                on_line(line.rstrip("\r\n"))
        exit_code = process.wait()
    except BaseException:
        end_group(process, grace_seconds=grace_seconds)
        raise
    finally:
        timer.cancel()
        if process.stdout:
            process.stdout.close()
    if timed_out.is_set():
        message = f"{Path(args[0]).name} did not end within {timeout_seconds:g} s"
        raise ProcessError(message, tail=deque("".join(lines).splitlines(), TAIL_LINES))
    return Completed(args=tuple(args), exit_code=exit_code, output="".join(lines))


def _lines(process: subprocess.Popen[bytes], limit_bytes: int | None) -> Iterator[bytes]:
    """What a process says, line by line; raises when it is more than `limit_bytes` in all."""
    pipe = process.stdout
    if pipe is None:
        return
    if limit_bytes is None:
        yield from pipe
        return
    left = limit_bytes
    # A line is read no further than the limit: it may never end.
    while line := pipe.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise ProcessError(f"more than {limit_bytes} bytes of output: the program was ended")
        yield line


def _feed(pipe: IO[bytes], data: bytes) -> None:
    """Write `data` and close the pipe; a process that does not read it to the end may."""
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(data)


def start(
    args: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    log: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `args` in its own session; both streams go to `log`, or to one pipe."""
    sink = log.open("ab") if log else None
    try:
        return subprocess.Popen(
            list(args),
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=stdin,
            stdout=sink or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessError(f"{args[0]} could not be started: {error.strerror}") from error
    finally:
        if sink:
            sink.close()


def end_group(process: subprocess.Popen[bytes], *, grace_seconds: float = GRACE_SECONDS) -> None:
    """End a process and its children: ask first, insist after the grace."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        try:
            process.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            continue
        return
