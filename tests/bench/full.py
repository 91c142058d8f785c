"""The default matrix from nothing: a full build, one profile changed, nothing changed, skopeo.

The workspace is a copy of the repository's matrix and of what it names, with caches of its own.
Where no Docker engine answers, planyard starts one there with no data: nothing of an earlier build
is met. An engine that answers is used as it is, and the notes say so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.loading import load
from builders.setup import missing_tools
from planyard.core.cells import expand, plan_cells
from planyard.core.compat import load_compat
from planyard.core.units import format_bytes, format_seconds
from planyard.edge.docker import find_engine
from tests.bench import machine
from tests.bench.measure import BenchError, Command, in_turns, run_once
from tests.bench.mounts import release_mounts
from tests.bench.nothing_changed import (
    NOTHING,
    REPOSITORY,
    bare_environment,
    planyard_program,
)
from tests.bench.sampled import OUTSIDE
from tests.bench.skopeo_peer import compare_with_skopeo
from tests.bench.tables import Figure, Section

COPIED = ("matrix.yaml", "images", "models")
FRESH_SECONDS = 360
OWN_SHARE = 0.05
PROFILE = "960"
_CHANGE = (f"max: [4, 3, {PROFILE}, {PROFILE}]", f"max: [2, 3, {PROFILE}, {PROFILE}]")
_SHOWN_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class Built:
    """One build: the clock around its process, its report, its steps, its own parts."""

    wall_seconds: float
    report: dict[str, Any]
    steps: list[tuple[str, float]]
    parts: dict[str, float]
    peak_bytes: int

    @property
    def own_seconds(self) -> float:
        """Outside neither Docker nor the compiler nor a download."""
        return float(self.report["seconds"] - self.report["outside_seconds"])


def measure(scratch: Path) -> Section:
    """All figures of the full build."""
    described = machine.describe()
    workspace = copy_workspace(scratch / "workspace")
    notes = [_tools_note(), _engine_note()]
    try:
        first = build(workspace, out=scratch / "first")
        figures = [*_fresh(first), *compare_with_skopeo(workspace, first.report, first.steps)]
        changed = change_profile(workspace / "matrix.yaml")
        second = build(workspace, out=scratch / "second")
        figures += [_one_profile(second, changed), _nothing(workspace, scratch=scratch)]
        notes += [*_steps_note(first), _parts_note(first)]
    finally:
        notes += release_mounts(workspace)
    return Section(
        key="full",
        title="A full build of the default matrix",
        machine=described,
        figures=figures,
        notes=notes,
    )


def copy_workspace(folder: Path) -> Path:
    """The default matrix and everything that it names, nothing else."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".planyard")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)
    return folder


def build(workspace: Path, *, out: Path) -> Built:
    """`planyard build` in a workspace, sampled; BenchError when it ends with anything but 0."""
    env = {name: value for name, value in os.environ.items() if name != "PLANYARD_CACHE"}
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    args = [sys.executable, "-m", "tests.bench.sampled", str(out), "build", "--json"]
    run = run_once(Command(args=args, cwd=workspace, env=env, show_errors=True))
    found = json.loads(out.read_bytes())
    return Built(
        wall_seconds=run.wall_seconds,
        report=json.loads(out.with_suffix(".report").read_bytes()),
        steps=[(title, seconds) for title, seconds in found["steps"]],
        parts=found["parts"],
        peak_bytes=found["peak_bytes"],
    )


def change_profile(matrix: Path) -> set[str]:
    """Make one profile smaller; returns the cells that have to be compiled again."""
    text = matrix.read_text()
    if text.count(_CHANGE[0]) != 1:
        raise BenchError(f"the default matrix has {_CHANGE[0]!r} not once; change tests/bench")
    matrix.write_text(text.replace(*_CHANGE))
    cells = plan_cells(expand(load(matrix).matrix, load_compat()).cells)
    return {cell.id for cell in cells if cell.profile == PROFILE}


def _fresh(first: Built) -> Iterator[Figure]:
    plans = len(first.report["compiled"])
    images = sum(image["built"] for image in first.report["images"])
    yield Figure(
        what=f"from nothing to a finished build: {images} images, {plans} plans",
        measured=f"{first.wall_seconds:.0f} s; planyard itself took at most "
        f"{format_bytes(first.peak_bytes)} of memory",
        target="under 6 minutes",
        reached=first.wall_seconds < FRESH_SECONDS,
    )
    share = first.own_seconds / first.report["seconds"]
    yield Figure(
        what="planyard's own time in it, outside Docker, compiler and downloads",
        measured=f"{first.own_seconds:.1f} s of {first.report['seconds']:.0f} s, {share:.1%}",
        target="under 5 %",
        reached=share < OWN_SHARE,
    )


def _one_profile(second: Built, changed: set[str]) -> Figure:
    compiled = set(second.report["compiled"])
    return Figure(
        what="one profile changed: plans compiled",
        measured=f"{len(compiled)} of {len(second.report['plans'])}, {second.wall_seconds:.0f} s",
        target=f"its {len(changed)} alone",
        reached=compiled == changed,
    )


def _nothing(workspace: Path, *, scratch: Path) -> Figure:
    empty = scratch / "empty"
    empty.mkdir()
    build_again = Command(
        args=[planyard_program(), "build"],
        cwd=workspace,
        env=bare_environment(empty),
        must_say=NOTHING,
    )
    # The builds before this were asked for with --json: other arguments, another memo.
    run_once(Command(args=build_again.args, cwd=workspace, env=dict(os.environ)))
    series = in_turns({"again": build_again}, rounds=10)["again"]
    return Figure(what="then nothing changed: planyard build", measured=series.text)


def _tools_note() -> str:
    missing = [tool.program for tool in missing_tools(engine_answers=False)]
    if missing:
        return f"Fresh: apt also had to install {', '.join(missing)}; that is in the time."
    return (
        "Fresh: all caches are empty. dockerd, skopeo and mmdebstrap were installed before; "
        "installing them, and planyard itself, is not in the time."
    )


def _engine_note() -> str:
    if find_engine() is None:
        return "Fresh: no Docker engine answered, so planyard started one of its own, without data."
    return "NOT fresh: a Docker engine answered and was used with what it holds."


def _steps_note(first: Built) -> Iterator[str]:
    """Steps of one kind together: `compile …` of all models, `smoke …` of all cells."""
    kinds: dict[str, list[float]] = {}
    for title, seconds in first.steps:
        kind = re.sub(r"^smoke .*", "smoke runs", title)
        kinds.setdefault(kind, []).append(seconds)
    lines = (
        f"{kind} {format_seconds(sum(each))}" + (f" ({len(each)} times)" if each[1:] else "")
        for kind, each in kinds.items()
    )
    yield f"Steps: {'; '.join(lines)}."


def _parts_note(first: Built) -> str:
    own: defaultdict[str, float] = defaultdict(float)
    for part, seconds in first.parts.items():
        if part != OUTSIDE:
            own["imports" if part.endswith("<module>") else part] += seconds
    largest = sorted(own.items(), key=lambda part: -part[1])[:_SHOWN_PARTS]
    shown = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in largest)
    return (
        "Own time, by the innermost function of planyard's that the main thread was in, with the "
        f"start of Python's modules and the stop of the engine: {shown}."
    )
