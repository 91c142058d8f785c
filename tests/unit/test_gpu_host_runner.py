"""The GPU lane's host runner: real programs on this machine, ended as a container would end."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from planyard.edge import docker_streams
from planyard.edge.docker import Container, Mount
from tests.gpu.host_runner import HostRunner, resident_bytes

RUN = HostRunner()
LONG = "import time; print('begun', flush=True); time.sleep(60)"
CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {LONG!r}])"


def container(*command: str, **changes: object) -> Container:
    plain = Container(
        image="", command=command or ("true",), memory_bytes=1 << 30, timeout_seconds=20
    )
    return replace(plain, **changes)


def python(text: str, **changes: object) -> Container:
    return container(sys.executable, "-c", text, **changes)


def test_both_streams_are_kept_apart():
    ended = RUN(python("import sys; print('out'); print('err', file=sys.stderr)"))
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, b"out\n", b"err\n")
    assert not ended.timed_out


def test_an_exit_code_is_an_answer():
    assert RUN(python("raise SystemExit(3)")).exit_code == 3


def test_a_signal_ends_as_it_does_in_a_container():
    ended = RUN(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert ended.exit_code == 139


def test_a_program_that_is_not_there():
    ended = RUN(container("no-such-program"))
    assert ended.exit_code == 127
    assert b"no-such-program could not be started" in ended.stderr


def test_the_time_limit_ends_the_whole_group():
    started = time.monotonic()
    both = f"{CHILD}\n{LONG}"
    ended = RUN(python(both, timeout_seconds=1.5))
    assert time.monotonic() - started < 15
    assert ended.timed_out
    assert ended.exit_code is None
    assert b"begun" in ended.stdout


def test_what_a_program_leaves_running_ends_with_it():
    """It holds the streams as well: without its end nobody would know that they are whole."""
    started = time.monotonic()
    ended = RUN(python(CHILD))
    assert ended.exit_code == 0
    assert time.monotonic() - started < 15


def test_the_memory_limit_ends_it():
    ended = RUN(
        python("import time; a = b'x' * (200 << 20); time.sleep(60)", memory_bytes=100 << 20)
    )
    assert ended.out_of_memory
    assert ended.exit_code == 137
    assert not ended.timed_out


def test_a_flood_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        docker_streams.BoundedStreams.__init__, "__kwdefaults__", {"limit_bytes": 4096}
    )
    ended = RUN(python("while True: print('x' * 100)"))
    assert ended.flooded == "stdout"
    assert ended.exit_code is None


def test_paths_below_a_mount_are_those_of_its_source(tmp_path: Path):
    script = tmp_path / "here.py"
    script.write_text("import sys; print(open(sys.argv[1]).read(), sys.argv[2], end='')")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text("the job")
    mounts = (
        Mount(source=script, target="/planyard/smoke.py"),
        Mount(source=tmp_path / "job", target="/job"),
    )
    command = (sys.executable, "/planyard/smoke.py", "/job/job.json", "/jobs/other")
    ended = RUN(container(*command, mounts=mounts))
    assert ended.stdout == b"the job /jobs/other"


def test_the_environment_is_what_was_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    names = ("A", "B", "LD_LIBRARY_PATH", "PYTHONPATH")
    text = f"import os; print({{name: os.environ.get(name) for name in {names}}})"
    runner = HostRunner(environment={"B": "the lane's"})
    ended = runner(python(text, environment={"A": "1", "B": "the container's"}))
    assert eval(ended.stdout) == {
        "A": "1",
        "B": "the lane's",
        "LD_LIBRARY_PATH": None,
        "PYTHONPATH": None,
    }


def test_memory_of_a_session_is_counted():
    import os

    assert resident_bytes(os.getsid(0)) > 1 << 20
    assert resident_bytes(2**22 + 1) == 0
