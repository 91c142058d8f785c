"""Programs in Go that tests and lint need, and that no package index has: act and actionlint.

Each is built once, pinned, into the user's cache beside cosign, in the same way: Go verifies every
module against the checksum database, and the program's own is compared with the sum written here.

    python -m tests.go_programs actionlint      # builds it if need be, and prints where it is
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from builders import cosign_setup as go_setup
from planyard.edge import files, proc
from planyard.edge.console import Console


@dataclass(frozen=True, kw_only=True)
class GoProgram:
    """A program: its name, module, package in it, version, and the sum of the module."""

    name: str
    module: str
    package: str
    version: str
    sum: str

    @property
    def cached(self) -> Path:
        """Where it lies when it was built."""
        return files.user_cache() / "tools" / f"{self.name}-{self.version}"


ACT = GoProgram(
    name="act",
    module="github.com/nektos/act",
    package="",
    version="v0.2.89",
    sum="h1:d9oFeJ6jUkaVExuG+XzAaMPDqoDrNHaGeiRb8IU+N5w=",
)
ACTIONLINT = GoProgram(
    name="actionlint",
    module="github.com/rhysd/actionlint",
    package="/cmd/actionlint",
    version="v1.7.12",
    sum="h1:vQ4GeJN86C0QH+gTUQcs8McmK62OLT3kmakPMtEWYnY=",
)
PROGRAMS = {program.name: program for program in (ACT, ACTIONLINT)}


def why_not_here(program: GoProgram) -> str:
    """Why a program cannot be had without a download of Go; empty when it can."""
    if program.cached.is_file() or shutil.which("go"):
        return ""
    return f"{program.name} is not built, and there is no Go to build it with"


def ensure(program: GoProgram) -> str:
    """Where the program is, built now when it is not in the cache (act: about 4 minutes)."""
    tools = program.cached.parent
    with files.exclusive_lock(tools / f"{program.name}.lock", on_wait=lambda: None):
        if not program.cached.is_file():
            _build(program, tools)
    return str(program.cached)


def _build(program: GoProgram, tools: Path) -> None:
    modules = tools / f"{program.name}-go"
    with files.scratch_folder(tools, prefix=f".{program.name}-build-") as scratch:
        go = go_setup._go_on_path() or go_setup._go_from_index(scratch / "go", console=Console())
        environment = go_setup._environment(go, bin_folder=scratch / "bin", modules=modules)
        wanted = f"{program.module}{program.package}@{program.version}"
        proc.run([go, "install", wanted], timeout_seconds=1800, cwd=scratch, env=environment)
        built = scratch / "bin" / program.name
        args = [go, "version", "-m", str(built)]
        said = proc.run(args, timeout_seconds=60, env={**os.environ, **environment}).output
        expected = ["mod", program.module, program.version, program.sum]
        if expected not in [line.split() for line in said.splitlines()]:
            raise RuntimeError(f"what was built is not {wanted} with the sum {program.sum}")
        built.replace(program.cached)
    shutil.rmtree(modules, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.write(ensure(PROGRAMS[sys.argv[1]]) + "\n")
