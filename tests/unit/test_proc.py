"""Subprocesses: no shell, a time limit, everything said is kept, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from planyard.edge import proc

FOREVER = 600.0


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_was_said_is_kept_in_order_and_told_line_by_line() -> None:
    code = "import os\nfor n in range(3):\n os.write(1, b'out\\n'); os.write(2, b'err\\n')"
    lines: list[str] = []
    done = proc.run(python(code), timeout_seconds=FOREVER, on_line=lines.append)
    assert done.output == "out\nerr\n" * 3
    assert lines == ["out", "err"] * 3
    assert (done.exit_code, done.tail) == (0, ("out", "err") * 3)


def test_nothing_is_ever_read_by_a_shell(tmp_path: Path) -> None:
    hostile = ["$(touch x)", "`touch x`", "; touch x", "&& touch x", "a b", "*", "-n", "\n", "'\""]
    done = proc.run(
        [*python("import sys; print(sys.argv[1:])"), *hostile],
        timeout_seconds=FOREVER,
        cwd=tmp_path,
    )
    assert done.output.strip() == repr(hostile)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_carries_the_tail_of_the_log() -> None:
    code = "print(*range(100), sep='\\n'); raise SystemExit(3)"
    with pytest.raises(proc.ProcessError, match="exited with 3") as caught:
        proc.run(python(code), timeout_seconds=FOREVER)
    assert caught.value.tail == tuple(str(number) for number in range(60, 100))
    assert proc.run_unchecked(python(code), timeout_seconds=FOREVER).exit_code == 3


def test_the_environment_is_replaced_when_given() -> None:
    code = "import os; print(os.environ.get('HOME'), os.environ['X'])"
    done = proc.run(python(code), timeout_seconds=FOREVER, env={"X": "1"})
    assert done.output == "None 1\n"


def test_bytes_that_are_no_text_are_still_told() -> None:
    done = proc.run(python(r"import os; os.write(1, b'\xff\xfe')"), timeout_seconds=FOREVER)
    assert done.output == "\ufffd\ufffd"


def test_without_input_there_is_none_to_wait_for() -> None:
    done = proc.run(python("import sys; print(len(sys.stdin.read()))"), timeout_seconds=FOREVER)
    assert done.output == "0\n"


@pytest.mark.parametrize("size", [1, 4 << 20])
def test_input_of_any_size_is_read_while_the_answer_is_written(size: int) -> None:
    """Both pipes hold 64 KiB: whoever writes all before reading waits for ever."""
    echo = "import sys\nwhile d := sys.stdin.buffer.read1(4096): sys.stdout.buffer.write(d)"
    done = proc.run(python(echo), timeout_seconds=120, stdin=b"x" * size)
    assert len(done.output) == size


def test_a_process_that_does_not_read_its_input_may_end() -> None:
    done = proc.run(python("print('done')"), timeout_seconds=120, stdin=b"x" * (1 << 20))
    assert done.output == "done\n"


@pytest.mark.parametrize("program", ["/nonexistent/program", "no-such-program-here", "/etc"])
def test_a_program_that_cannot_be_started_is_an_error(program: str) -> None:
    with pytest.raises(proc.ProcessError, match="could not be started"):
        proc.run([program], timeout_seconds=FOREVER)


def gone(pid: int) -> bool:
    """Whether a process ended; waits for it, as long as a slow machine may take."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_time_limit_ends_the_process_and_its_children() -> None:
    lines: list[str] = []
    sleeper = ["/bin/sh", "-c", "sleep 600 & echo $!; wait"]
    with pytest.raises(proc.ProcessError, match="did not end within 1 s") as caught:
        proc.run(sleeper, timeout_seconds=1, on_line=lines.append)
    assert caught.value.tail == tuple(lines)
    assert gone(int(lines[0]))


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 99, flush=True)",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
    ],
    ids=["lines", "one line without an end"],
)
def test_a_process_that_says_too_much_is_ended(code: str) -> None:
    """Without the limit both would fill the memory."""
    told = f"import os; print(os.getpid(), flush=True)\n{code}"
    lines: list[str] = []
    with pytest.raises(proc.ProcessError, match="more than 100000 bytes"):
        proc.run(
            python(told), timeout_seconds=FOREVER, on_line=lines.append, output_limit_bytes=100_000
        )
    assert sum(len(line) + 1 for line in lines) <= 100_000
    assert gone(int(lines[0]))


def test_as_much_as_the_limit_may_be_said() -> None:
    args = python("print('x' * 99)")
    done = proc.run(args, timeout_seconds=FOREVER, output_limit_bytes=100)
    assert len(done.output) == 100
    with pytest.raises(proc.ProcessError, match="more than 99 bytes"):
        proc.run(args, timeout_seconds=FOREVER, output_limit_bytes=99)


def test_the_grace_before_a_process_is_killed_is_given() -> None:
    stubborn = ["/bin/sh", "-c", "trap '' TERM; echo $$; while :; do sleep 600; done"]
    begun = time.monotonic()
    with pytest.raises(proc.ProcessError, match="did not end within"):
        proc.run(stubborn, timeout_seconds=0.3, grace_seconds=0.1)
    assert time.monotonic() - begun < proc.GRACE_SECONDS


def test_an_interrupt_ends_the_process() -> None:
    """Ctrl-C while the log is read: the child does not outlive us."""
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        proc.run(python(code), timeout_seconds=FOREVER, on_line=interrupt)
    assert gone(int(lines[0]))


def test_a_process_that_ignores_the_request_is_ended_all_the_same() -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    process = proc.start(python(code))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    proc.end_group(process, grace_seconds=0.2)
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_a_process_that_has_ended_can_be_ended() -> None:
    process = proc.start(python("pass"), log=Path(os.devnull))
    process.wait()
    proc.end_group(process)
    assert process.returncode == 0


def test_a_log_is_added_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    assert proc.start(python("print('after')"), log=log).wait() == 0
    assert log.read_text() == "before\nafter\n"


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    proc.run(python("pass"), timeout_seconds=FOREVER)
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_child_gets_its_own_session() -> None:
    process = proc.start(python("import os; print(os.getsid(0) == os.getpid())"))
    assert process.stdout is not None
    assert process.stdout.read() == b"True\n"
    assert process.stdin is None
    process.stdout.close()
    assert process.wait() == 0
    assert isinstance(process, subprocess.Popen)
