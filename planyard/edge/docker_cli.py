"""The Docker command line: which of the clients on this machine can build with BuildKit.

A client of 23 and later needs the buildx plugin; one before has BuildKit built in. Several may be
on the PATH, and the first need not be the one that works.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence

from planyard.core.errors import ImageBuildError
from planyard.edge import proc


def find_build_client() -> tuple[str, ...]:
    """The first client on the PATH that can build with BuildKit, as the start of a command."""
    tried = []
    for program in _clients():
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


def _clients() -> Iterator[str]:
    seen = set()
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]:
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
    # "Docker version 20.10.24+dfsg1, build 297e128"
    words = output.split()
    return words[2].strip(",") if len(words) > 2 and words[2][:1].isdigit() else ""
