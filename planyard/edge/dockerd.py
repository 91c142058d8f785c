"""A private Docker engine: started when none answers, stopped again at the end.

It has no bridge and touches no firewall rule: builds and runs have no network anyway. Its images
stay in the workspace for the next start; its build cache goes, since the store has the results.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from planyard.edge import proc
from planyard.edge.docker import Engine, EngineError

_START_SECONDS = 60
_RUN_PREFIX = "planyard-engine-"


@contextlib.contextmanager
def private_engine(folder: Path, *, report: Callable[[str], None]) -> Iterator[Engine]:
    """Run `dockerd` with its data below `folder` for the length of the block."""
    program = proc.find_program("dockerd")
    if not program:
        raise EngineError(
            "no Docker engine answers and dockerd is not installed", mend="planyard setup"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _end_leftover(folder / "dockerd.pid")
    # A socket's path may have 107 bytes at most: the workspace's may be longer.
    run = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX))
    log = folder / "dockerd.log"
    log.write_bytes(b"")
    process = proc.start(_command(program, folder, run), log=log)
    engine = Engine(f"unix://{run}/docker.sock")
    try:
        _wait_until_it_answers(engine, process, log, report)
        yield engine
        engine.prune_builds()
    finally:
        engine.close()
        proc.end_group(process, grace_seconds=30)
        _unmount_below(folder)
        _remove_run_folder(run)
        (folder / "dockerd.pid").unlink(missing_ok=True)


def _command(program: str, folder: Path, run: Path) -> list[str]:
    command = [program, f"--data-root={folder}/data", f"--exec-root={run}/exec"]
    command += [f"--host=unix://{run}/docker.sock", f"--pidfile={folder}/dockerd.pid"]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]
    if os.geteuid() == 0:
        return command
    # As another user the engine needs sudo, and the socket this user's group.
    return ["sudo", "--non-interactive", *command, f"--group={os.getegid()}"]


def _wait_until_it_answers(
    engine: Engine,
    process: subprocess.Popen[bytes],
    log: Path,
    report: Callable[[str], None],
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if engine.answers():
            report(f"engine {engine.version()} answers")
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace").splitlines()[-proc.TAIL_LINES :]
    raise EngineError(
        "the private Docker engine did not start", mend="planyard doctor", log_tail=tail
    )


def _end_leftover(pid_file: Path) -> None:
    """End an engine of this workspace that a killed run left behind, and only that."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return
    if f"--pidfile={pid_file}".encode() not in command:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for argument in command:
        if argument.startswith(b"--exec-root="):
            _remove_run_folder(Path(argument.decode().removeprefix("--exec-root=")).parent)


def _remove_run_folder(run: Path) -> None:
    """Take away the folder a private engine had its socket in, and mounts below it."""
    if run.name.startswith(_RUN_PREFIX) and not run.is_symlink():
        _unmount_below(run)
        shutil.rmtree(run, ignore_errors=True)


def _unmount_below(folder: Path) -> None:
    """Take away the mounts an engine leaves in its run folder."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = line.split()[1]
        if target.startswith(f"{folder}/"):
            with contextlib.suppress(proc.ProcessError):
                proc.run_unchecked(["umount", "--lazy", target], timeout_seconds=20)
