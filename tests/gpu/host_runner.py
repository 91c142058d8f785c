"""Run a container's command on this machine as it is: no Docker, no image, the same ending.

For a machine that has a GPU and no engine. Arguments below a mount's target are taken from its
source; what a script is told in its job file are real paths already (`smoke.job.Places`). Kept of
a container: a session of its own that ends whole, the time and memory limit, bounded streams, and
an environment that holds what it was given and little else. Not kept: the image's file system, the
network, users and capabilities.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planyard.edge.docker import Container, Ended, Mount
from planyard.edge.docker_streams import BoundedStreams

PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Variables of this machine that a program may need to find its driver and to write at all."""
_POLL_SECONDS = 0.05
_MEMORY_EVERY = 5
_PIECE_BYTES = 1 << 16
_NOT_STARTED = 127
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, kw_only=True)
class HostRunner:
    """A `smoke.run.Runner`. `environment` is laid over what the container brings."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, container: Container) -> Ended:
        """Run the command to its end, or to one of its limits; nothing of it is left running."""
        command = [_on_host(each, container.mounts) for each in container.command]
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        started = time.monotonic()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**passed, **container.environment, **self.environment},
                start_new_session=True,
            )
        except OSError as error:
            said = f"{command[0]} could not be started: {error.strerror}".encode()
            return Ended(exit_code=_NOT_STARTED, seconds=0.0, stderr=said)
        return _ended(child, container, started=started)


def _ended(child: subprocess.Popen[bytes], container: Container, *, started: float) -> Ended:
    """Follow a child to its end, however that comes about."""
    watch, kept = _Watch(child, container), BoundedStreams()
    watch.thread.start()
    try:
        kept.drain(_pieces(child), stop=watch.kill)
        watch.thread.join()
        code = child.wait()
    except BaseException:
        watch.kill()
        child.wait()
        raise
    finally:
        for stream in filter(None, (child.stdout, child.stderr)):
            stream.close()
    cut_short = watch.timed_out or bool(kept.flooded)
    return Ended(
        exit_code=None if cut_short else _KILLED if watch.out_of_memory else _shell_code(code),
        seconds=time.monotonic() - started,
        timed_out=watch.timed_out,
        out_of_memory=watch.out_of_memory,
        flooded=kept.flooded,
        stdout=bytes(kept.stdout),
        stderr=bytes(kept.stderr),
    )


class _Watch:
    """Ends a child's session when its first process has, or when it passes a limit."""

    def __init__(self, child: subprocess.Popen[bytes], container: Container) -> None:
        self.timed_out = self.out_of_memory = False
        self.thread = threading.Thread(target=self._watch, name="limits", daemon=True)
        self._child, self._limit_bytes = child, container.memory_bytes
        self._deadline = time.monotonic() + container.timeout_seconds

    def kill(self) -> None:
        """End every process of the child's group, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _watch(self) -> None:
        turn = 0
        while not _has_ended(self._child.pid):
            turn += 1
            if time.monotonic() > self._deadline:
                self.timed_out = True
            elif turn % _MEMORY_EVERY == 0:
                self.out_of_memory = resident_bytes(self._child.pid) > self._limit_bytes
            if self.timed_out or self.out_of_memory:
                break
            time.sleep(_POLL_SECONDS)
        # Before anybody waits for it, so that its number is still its own. What it started and
        # left running ends with it, as in a container.
        self.kill()


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def resident_bytes(session: int) -> int:
    """Memory that the processes of a session hold; pages that they share count for each."""
    pages = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _pieces(child: subprocess.Popen[bytes]) -> Iterator[tuple[bytes | None, bytes | None]]:
    """What a child prints as it comes, (stdout, stderr), until both streams have ended."""
    with selectors.DefaultSelector() as waiting:
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                waiting.register(stream, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                stream = key.fileobj
                data = os.read(key.fd, _PIECE_BYTES)
                if not data:
                    waiting.unregister(stream)
                elif stream is child.stdout:
                    yield data, None
                else:
                    yield None, data


def _shell_code(code: int) -> int:
    """A signal as a container's engine and a shell give it: 128 and its number."""
    return 128 - code if code < 0 else code


def _on_host(argument: str, mounts: tuple[Mount, ...]) -> str:
    """An argument with a mount's source in place of its target; the longest target counts."""
    for mount in sorted(mounts, key=lambda each: -len(each.target)):
        if argument == mount.target or argument.startswith(f"{mount.target}/"):
            return str(mount.source) + argument.removeprefix(mount.target)
    return argument
