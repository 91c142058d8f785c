"""The verbs people type most, on the workspace of 1,000 cells; for information."""

from __future__ import annotations

import re
from pathlib import Path

from tests.bench.measure import BenchError, Command, in_turns, run_once
from tests.bench.nothing_changed import NOTHING, bare_environment, planyard_program
from tests.bench.tables import Figure


def measure(workspace: Path, *, empty: Path, rounds: int) -> list[Figure]:
    """Figures of a workspace that is built; none of these verbs needs more than that."""
    env = bare_environment(empty)
    program = planyard_program()
    built = run_once(Command(args=[program, "build"], cwd=workspace, env=env, must_say=NOTHING))
    found = re.search(r"planyard lookup (sha256:[0-9a-f]{64})", built.output)
    if not found:
        raise BenchError("the seeded build names no image to look up")
    verbs = {
        "planyard --help": (["--help"], "build"),
        "planyard cells, 1,000 of them": (["cells"], "1000 cells"),
        "planyard lookup, 200 plans": (["lookup", found[1]], "rtx/"),
        "planyard smoke, 1,000 cells, nothing can run": (["smoke"], "1000 not run"),
    }
    commands = {
        what: Command(args=[program, *args], cwd=workspace, env=env, must_say=says)
        for what, (args, says) in verbs.items()
    }
    series = in_turns(commands, rounds=rounds, warm_ups=1)
    return [Figure(what=what, measured=each.text) for what, each in series.items()]
