"""Loading and expanding 10,000 cells, beside plain PyYAML that only makes dicts of them.

Each figure is one fresh process: nothing is cached from an earlier load. The clock inside starts
after the imports; the whole process is given as well.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench import matrices
from tests.bench.measure import Command, in_turns
from tests.bench.nothing_changed import REPOSITORY, bare_environment
from tests.bench.tables import Figure

TARGET_MS = 500


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One load in one process, timed after the imports."""

    wall_ms: float
    cpu_ms: float
    cells: int


def measure(scratch: Path, *, rounds: int) -> tuple[list[Figure], list[str]]:
    """Figures and notes."""
    scratch.mkdir(parents=True)
    (scratch / "empty").mkdir()
    figures = [
        _figures(scratch, "10,000 cells", size=matrices.TEN_THOUSAND, rounds=rounds, target=True),
        _figures(scratch, "10,000 cells, a longer file", size=matrices.LONG_FILE, rounds=rounds),
    ]
    notes = [
        "Loading: 10,000 cells are 1,000 profiles of 100 models, the longer file has 2,500 of 50. "
        "Planyard checks every value and keeps the line and column of every key; the peer is "
        "yaml.CSafeLoader and a loop that makes a dict of each cell, and checks nothing."
    ]
    return figures, notes


def _figures(
    scratch: Path, title: str, *, size: matrices.Size, rounds: int, target: bool = False
) -> Figure:
    matrix = matrices.write_workspace(scratch / f"{size.models}x{size.profiles}", size)
    env = bare_environment(scratch / "empty")
    series = in_turns(
        {
            kind: Command(
                args=[sys.executable, "-m", "tests.bench.loading", kind, str(matrix)],
                cwd=REPOSITORY,
                env=env,
                must_say=f'"cells": {size.cells}',
            )
            for kind in ("planyard", "yaml")
        },
        rounds=rounds,
        warm_ups=1,
    )
    inside = {
        kind: [Loaded(**json.loads(run.output)) for run in each.runs]
        for kind, each in series.items()
    }
    ours_ms = statistics.median(each.wall_ms for each in inside["planyard"])
    return Figure(
        what=f"load and expand {title}",
        measured=f"{_spread(inside['planyard'])}; whole process {series['planyard'].text}",
        target=f"under {TARGET_MS} ms" if target else "",
        reached=ours_ms < TARGET_MS if target else None,
        peer=f"yaml.CSafeLoader: {_spread(inside['yaml'])}; whole process {series['yaml'].text}",
    )


def _spread(loads: list[Loaded]) -> str:
    median_ms = statistics.median(each.wall_ms for each in loads)
    cpu_ms = statistics.median(each.cpu_ms for each in loads)
    least_ms = min(each.wall_ms for each in loads)
    return f"{median_ms:.0f} ms (least {least_ms:.0f}, CPU {cpu_ms:.0f})"


def with_planyard(path: Path) -> Loaded:
    """Load and expand as every verb does."""
    from builders.loading import load
    from planyard.core.cells import expand
    from planyard.core.compat import load_compat

    started, cpu_started = time.perf_counter(), time.process_time()
    cells = expand(load(path).matrix, load_compat()).cells
    return Loaded(
        wall_ms=1e3 * (time.perf_counter() - started),
        cpu_ms=1e3 * (time.process_time() - cpu_started),
        cells=len(cells),
    )


def with_yaml(path: Path) -> Loaded:
    """The same cells from PyYAML, as dicts."""
    import yaml

    started, cpu_started = time.perf_counter(), time.process_time()
    with path.open("rb") as file:
        matrix: dict[str, Any] = yaml.load(file, Loader=yaml.CSafeLoader)
    cells = [
        {
            "id": f"{image}/{model}/{profile}/{precision}/{gpu}",
            "image": image,
            "model": model,
            "profile": profile,
            "precision": precision,
            "gpu": gpu,
            "sm": runs["sm"],
            "backend": spec["backend"],
        }
        for image, spec in matrix["images"].items()
        for model, shapes in matrix["models"].items()
        for profile in shapes["profiles"]
        for precision in matrix["precisions"]
        for gpu, runs in matrix["gpus"].items()
        if spec["backend"] in runs["backends"]
    ]
    return Loaded(
        wall_ms=1e3 * (time.perf_counter() - started),
        cpu_ms=1e3 * (time.process_time() - cpu_started),
        cells=len(cells),
    )


if __name__ == "__main__":
    chosen = {"planyard": with_planyard, "yaml": with_yaml}[sys.argv[1]]
    print(json.dumps(asdict(chosen(Path(sys.argv[2])))))
