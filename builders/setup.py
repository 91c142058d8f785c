"""What a machine needs beside Python, and how a fresh Debian or Ubuntu gets it.

Each step is said before it is done. Where Docker answers, nothing of Docker is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planyard.core.errors import ImageBuildError, PlanyardError
from planyard.edge import proc
from planyard.edge.console import Console


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program from outside: what it is for, and the Debian packages that bring it."""

    program: str
    purpose: str
    packages: tuple[str, ...]


DOCKERD = Tool(
    program="dockerd",
    purpose="runs builds and containers when no Docker engine answers",
    packages=("docker.io", "iptables"),
)
SKOPEO = Tool(
    program="skopeo",
    purpose="moves images between the store, engines and registries",
    packages=("skopeo",),
)
MMDEBSTRAP = Tool(
    program="mmdebstrap",
    purpose="bootstraps Debian bases",
    packages=("mmdebstrap", "debian-archive-keyring"),
)


class SetupRefusedError(PlanyardError):
    """Something is missing, and installing it was not allowed or is not possible here."""

    exit_code = ImageBuildError.exit_code


def missing_tools(*, engine_answers: bool) -> tuple[Tool, ...]:
    """The tools this machine lacks."""
    wanted = [SKOPEO, MMDEBSTRAP] if engine_answers else [DOCKERD, SKOPEO, MMDEBSTRAP]
    return tuple(tool for tool in wanted if not proc.find_program(tool.program))


def install_command(tools: Iterable[Tool]) -> str:
    """The command a person would type for `tools`."""
    packages = " ".join(package for tool in tools for package in tool.packages)
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install --yes --no-install-recommends {packages}"


def install(tools: tuple[Tool, ...], *, console: Console, allowed: bool) -> None:
    """Install what is missing with apt, or refuse with the command that would."""
    if not tools:
        return
    for tool in tools:
        console.say(f"missing: {tool.program} ({tool.purpose})")
    command = install_command(tools)
    if not allowed:
        names = ", ".join(tool.program for tool in tools)
        raise SetupRefusedError(f"{names} missing, and --no-setup was given", mend=command)
    if not Path("/usr/bin/apt-get").exists():
        raise SetupRefusedError(
            "this machine is neither Debian nor Ubuntu: install the programs above by its own means"
        )
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    update = [*sudo, "apt-get", "update", "--quiet"]
    install = [*sudo, "apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]
    install += [package for tool in tools for package in tool.packages]
    for step in (update, install):
        with console.step(" ".join(step)) as now:
            try:
                proc.run(step, timeout_seconds=900, env=environment, on_line=now.update)
            except proc.ProcessError as error:
                raise SetupRefusedError(
                    f"{' '.join(step)}: {error}", mend=command, log_tail=error.tail
                ) from error
