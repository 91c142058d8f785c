"""`planyard build` with nothing to do on 1,000 cells, and what it asked of the machine.

The runs find no program, no Docker and nothing to compile with: PATH is an empty folder and
DOCKER_HOST names a socket that is not there. Runs apart from the timed ones have no network at
all, and are traced, file by file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from builders.memo import memo_path, state_of
from tests.bench import matrices
from tests.bench.measure import BenchError, Command, Series, in_turns, run_once
from tests.bench.tables import Figure

TARGET_MS = 150
NOTHING = "nothing to do"
NO_ENGINE = "unix:///nonexistent/docker.sock"
REPOSITORY = Path(__file__).parents[2]
_KEPT = ("HOME", "LANG", "LC_ALL", "PYTHONPATH")
_OF_FILES = re.compile(r"^\d+ +(?:openat|open)\(.*?\"([^\"]*)\"")
_OF_PROGRAMS = re.compile(r"^\d+ +execve\(")
_ENDINGS = re.compile(r"^\d+ +(?:\+\+\+|---)")


def planyard_program() -> str:
    """The installed command of the interpreter that runs this."""
    program = Path(sys.executable).with_name("planyard")
    if not program.exists():
        raise BenchError(f"{program.name} is not installed beside this Python: pip install -e .")
    return str(program)


def bare_environment(empty: Path) -> dict[str, str]:
    """An environment in which nothing can be found; what Python itself needs stays."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PATH": str(empty), "DOCKER_HOST": NO_ENGINE, "NO_COLOR": "1"}


def seed(folder: Path, size: matrices.Size, *, env: Mapping[str, str]) -> Path:
    """A workspace with everything built, in a process of its own: this one must stay small."""
    matrix = matrices.write_workspace(folder, size)
    args = [sys.executable, "-m", "tests.bench.seeding", str(matrix)]
    run_once(Command(args=args, cwd=REPOSITORY, env=env, must_say=str(size.cells)))
    return matrix


def measure(scratch: Path, *, rounds: int) -> tuple[list[Figure], list[str]]:
    """Figures and notes."""
    env = bare_environment(_folder(scratch / "empty"))
    matrix = seed(scratch / "thousand", matrices.THOUSAND, env=env)
    build = Command(
        args=[planyard_program(), "build"], cwd=matrix.parent, env=env, must_say=NOTHING
    )
    commands = {
        "planyard": build,
        "python": Command(args=[sys.executable, "-c", "pass"], cwd=scratch, env=env),
    }
    ninja = shutil.which("ninja")
    if ninja:
        commands["ninja"] = ninja_command(scratch / "ninja", matrices.THOUSAND, program=ninja)
    series = in_turns(commands, rounds=rounds)
    notes = [_what_was_asked(matrix, series), *prove(build, scratch=scratch), *_doubts(series)]
    return [_figure(series)], notes


def _figure(series: Mapping[str, Series]) -> Figure:
    ours = series["planyard"]
    beside = f"ninja: {series['ninja'].text}" if "ninja" in series else "ninja is not here"
    return Figure(
        what="nothing changed, 1,000 cells: planyard build",
        measured=ours.text,
        target=f"at most {TARGET_MS} ms",
        reached=ours.wall_ms <= TARGET_MS,
        peer=f"{beside}; python -c pass: {series['python'].text}",
    )


def _what_was_asked(matrix: Path, series: Mapping[str, Series]) -> str:
    """The work behind the figure, counted from the memo itself."""
    memo = json.loads(memo_path(state_of(matrix)).read_bytes())
    return (
        f"Nothing changed: {len(series['planyard'].runs)} runs each, in turns. Planyard reads the "
        f"matrix and looks for {len(memo['stored'])} paths in the store and all files of "
        f"{len(memo['inputs'])} inputs, its own packages among them. The graph of ninja has 1,000 "
        "edges with three inputs each."
    )


def _doubts(series: Mapping[str, Series]) -> Iterator[str]:
    ours = series["planyard"]
    if ours.wall_ms > 1.3 * ours.cpu_ms:
        yield "Nothing changed: the clock is far above the CPU time, so this machine was busy."


def ninja_command(folder: Path, size: matrices.Size, *, program: str) -> Command:
    """A graph of one edge for each cell, built once; the command then has nothing to do."""
    matrices.write_workspace(folder, size)
    lines = ["rule compile", "  command = echo $out > $out"]
    for model in matrices.model_names(size):
        lines += [
            f"build out/{model}-{number}.plan: compile models/{model}.onnx matrix.yaml "
            "image/Dockerfile"
            for number in range(size.cells // size.models)
        ]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    command = Command(args=[program], cwd=folder, env=dict(os.environ))
    run_once(command)
    made = len(list((folder / "out").iterdir()))
    if made != size.cells:
        raise BenchError(f"ninja made {made} of {size.cells} files")
    return Command(args=[program], cwd=folder, env=command.env, must_say="no work to do")


def prove(build: Command, *, scratch: Path) -> Iterator[str]:
    """Run the build without a network and traced; yields what that showed, or raises."""
    unshare, strace = shutil.which("unshare"), shutil.which("strace")
    if unshare and _works([unshare, "--net", "true"]):
        run_once(_before(build, [unshare, "--net"]))
        yield "Nothing changed: it also runs in a network namespace without any interface."
    else:
        yield "Nothing changed: not tried without a network, unshare --net does not work here."
    log = scratch / "trace"
    trace = [strace or "", "-f", "-qq", "-e", "trace=%network,openat,open,execve", "-o", str(log)]
    if strace and _works([*trace, "true"]):
        run_once(_before(build, trace))
        opened = read_trace(log.read_text(), workspace=build.cwd)
        yield (
            "Nothing changed: traced by strace, it makes no network call and starts no program; "
            f"of the workspace it opens {', '.join(f'`{name}`' for name in opened)}."
        )
    else:
        yield "Nothing changed: not traced, strace does not work here."


def read_trace(text: str, *, workspace: Path) -> tuple[str, ...]:
    """The workspace's files that a trace opens; BenchError for the network, a model, a program."""
    opened: dict[str, None] = {}
    programs = 0
    for line in text.splitlines():
        if _OF_PROGRAMS.match(line):
            programs += 1
        elif file := _OF_FILES.match(line):
            path = (workspace / file[1]).resolve()
            if path.is_relative_to(workspace.resolve()):
                opened[str(path.relative_to(workspace.resolve()))] = None
        elif not _ENDINGS.match(line):
            raise BenchError(f"a build with nothing to do asked the network: {line}")
    if programs != 1:
        raise BenchError(f"a build with nothing to do started {programs - 1} programs")
    models = [name for name in opened if name.startswith("models")]
    if models or not opened:
        raise BenchError(f"a build with nothing to do opened {models or 'no file at all'}")
    return tuple(opened)


def _before(command: Command, words: Sequence[str]) -> Command:
    return Command(
        args=[*words, *command.args], cwd=command.cwd, env=command.env, must_say=command.must_say
    )


def _works(args: Sequence[str]) -> bool:
    return subprocess.run(args, capture_output=True, check=False).returncode == 0


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
