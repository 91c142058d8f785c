"""The Docker command line: which client here can build with BuildKit, and where engines answer.

A client of 23 and later needs the buildx plugin; one before has BuildKit built in. Several may be
on the PATH, and the first need not be the one that works.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from planyard.core.errors import ImageBuildError
from planyard.edge import proc

DEFAULT_SOCKET = Path("/var/run/docker.sock")


def find_build_client(folders: Sequence[str] | None = None) -> tuple[str, ...]:
    """The first client that can build with BuildKit, as the start of a command.

    Looks in `folders`: those of the PATH and /usr/bin unless others are given. Raises
    ImageBuildError, naming each client it tried.
    """
    tried = []
    for program in _clients(_usual_folders() if folders is None else folders):
        if _succeeds([program, "buildx", "version"]):
            # The builder of the engine itself: another would not see images imported into it.
            return (program, "buildx", "build", "--builder", "default", "--load")
        version = _client_version(program)
        if version and int(version.split(".")[0]) < 23:
            return (program, "build")
        tried.append(f"{program} ({version or 'no version'}, without buildx)")
    raise ImageBuildError(
        "no Docker client with BuildKit was found: "
        + (", ".join(tried) or "no docker on the PATH"),
        mend="planyard setup",
    )


def _usual_folders() -> list[str]:
    return [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]


def _clients(folders: Sequence[str]) -> Iterator[str]:
    seen = set()
    for folder in folders:
        path = shutil.which("docker", path=folder)
        if path and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            yield path


def _succeeds(args: Sequence[str]) -> bool:
    try:
        return proc.run_unchecked(args, timeout_seconds=20).exit_code == 0
    except proc.ProcessError:
        return False


def _client_version(program: str) -> str:
    try:
        output = proc.run(
            ["env", "-u", "DOCKER_HOST", program, "--version"], timeout_seconds=20
        ).output
    except proc.ProcessError:
        return ""
    # Podman installs a `docker` of its own, which has another numbering and no BuildKit.
    found = re.match(r"Docker version ([0-9]+\.[^\s,]*)", output)
    return found[1] if found else ""


def tells_something(line: str) -> bool:
    """Whether a line of BuildKit's plain progress says something to a person."""
    _, _, text = line.partition(" ")
    return line.startswith("#") and not text.startswith(("sha256:", "DONE", "CACHED", "..."))


def engine_addresses() -> tuple[str, ...]:
    """Where an engine may answer: `DOCKER_HOST` alone if it is set, else the usual sockets."""
    named = os.environ.get("DOCKER_HOST")
    if named:
        return (named,)
    sockets = [DEFAULT_SOCKET]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        sockets.append(Path(runtime) / "docker.sock")
    return tuple(f"unix://{path}" for path in sockets if path.exists())
