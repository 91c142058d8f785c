"""The provider gate: what was asked for is what is active, in the order it was asked for.

ONNX Runtime lists a provider as available, prints a line and runs on the CPU all the same. So the
evidence is what the session says it uses. That work is placed there, the placement gate says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from planyard.core.findings import Finding
from planyard.core.results import SmokeReport, SmokeRun

GATE = "providers"
CPU = "CPUExecutionProvider"
"""ONNX Runtime appends it to every session that did not ask for it."""


def check_providers(run: SmokeRun, *, wanted: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Findings when a provider that was asked for is not active, or nothing says what is.

    `wanted` is what the cell is to run on, in order (smoke.session.providers_of): planyard's script
    asks for nothing else. An image's own command may, but not for the CPU first in a GPU cell.
    """
    report = run.report
    if report is None or not report.providers_asked or not report.providers_active:
        return (_finding(run, "no-evidence", "the run did not report its providers"),)
    for names in (report.providers_asked, report.providers_active):
        bad = [name for name, count in Counter(names).items() if count > 1 or not name.strip()]
        if bad:
            message = f"an empty or repeated provider: {', '.join(map(repr, bad))}"
            return (_finding(run, "malformed", message),)
    return (*_check_asked(run, report, wanted=tuple(wanted)), *_check_active(run, report))


def _check_asked(
    run: SmokeRun, report: SmokeReport, *, wanted: tuple[str, ...]
) -> Iterator[Finding]:
    asked = report.providers_asked
    if not wanted:
        return
    if asked[0] == CPU != wanted[0] if run.own_command else asked != wanted:
        named = ", then ".join(wanted)
        message = f"{', '.join(asked)} was asked for, this cell is to run on {named}"
        yield _finding(run, "not-asked", message)


def _check_active(run: SmokeRun, report: SmokeReport) -> Iterator[Finding]:
    asked, active = report.providers_asked, report.providers_active
    missing = [each for each in asked if each not in active]
    if missing:
        message = (
            f"{', '.join(missing)} was asked for and is not active: "
            f"the run was on {', '.join(active)}"
        )
        yield _finding(run, "not-active", message)
        return
    if active[: len(asked)] != asked:
        message = f"{', '.join(asked)} was asked for in this order, {', '.join(active)} is active"
        yield _finding(run, "order", message)
    unknown = [each for each in active if each not in asked and each != CPU]
    if unknown:
        yield _finding(run, "unasked", f"{', '.join(unknown)} is active and nobody asked for it")


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
