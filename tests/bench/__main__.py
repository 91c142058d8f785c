"""`python -m tests.bench [--write] [--full]`: measure, print, and write docs/benchmarks.md.

Ends with 1 only when a run did not do what it was measured for. A missed target is in the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bench import loading, machine, nothing_changed, verbs
from tests.bench.measure import BenchError
from tests.bench.tables import Section, as_text, update_document

DOCUMENT = nothing_changed.REPOSITORY / "docs" / "benchmarks.md"


def main() -> int:
    """Returns the exit code."""
    asked = _arguments()
    try:
        with tempfile.TemporaryDirectory(prefix="planyard-bench-", dir=asked.scratch) as folder:
            sections = _measure(asked, Path(folder))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for section in sections:
        print(as_text(section))
        if asked.write:
            update_document(DOCUMENT, section)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--full", action="store_true", help="build everything, from nothing")
    parser.add_argument("--only-full", action="store_true", help="leave the short figures out")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each short command")
    parser.add_argument("--scratch", type=Path, help="a folder with room: --full needs 20 GB")
    parser.add_argument("--plans", type=Path, help="a folder with the three UNet plans: the store")
    parser.add_argument("--logs", action="store_true", help="also the log gate beside ripgrep")
    parser.add_argument("--audit", type=Path, help="a built workspace: the audit beside dive")
    parser.add_argument("--only-audit", action="store_true", help="leave all other figures out")
    parser.add_argument("--only-store", action="store_true", help="leave all other figures out")
    asked = parser.parse_args()
    asked.full = asked.full or asked.only_full
    return asked


def _measure(asked: argparse.Namespace, scratch: Path) -> list[Section]:
    sections = []
    if not (asked.only_full or asked.only_store or asked.only_audit):
        sections.append(_small(scratch / "small", rounds=max(asked.rounds, 3)))
    if asked.full:
        from tests.bench import full

        sections.append(full.measure(scratch / "full"))
    if asked.logs:
        from tests.bench import log_gate

        sections.append(log_gate.measure(scratch / "logs", rounds=3))
    if asked.audit:
        from tests.bench import image_audit

        sections.append(image_audit.measure(scratch / "audit", workspace=asked.audit, rounds=7))
    if asked.plans:
        from tests.bench import store

        plans = [asked.plans / name for name in store.PLANS]
        sections.append(store.measure(scratch / "store", plans=plans, rounds=5))
    return sections


def _small(scratch: Path, *, rounds: int) -> Section:
    described = machine.describe()
    figures, notes = nothing_changed.measure(scratch, rounds=rounds)
    loaded, more = loading.measure(scratch / "loading", rounds=max(rounds // 2, 3))
    started = verbs.measure(
        scratch / "thousand", empty=scratch / "empty", rounds=max(rounds // 2, 3)
    )
    return Section(
        key="small",
        title="Nothing changed, loading, start-up",
        machine=described,
        figures=[*figures, *loaded, *started],
        notes=[*notes, *more],
    )


if __name__ == "__main__":
    sys.exit(main())
