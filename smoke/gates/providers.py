"""The provider gate: what was asked for is what is active, and work is really placed there.

ONNX Runtime lists a provider as available, prints a line and runs on the CPU all the same. So the
evidence is what the session says it uses, and the nodes that it says it placed.
"""

from __future__ import annotations

from planyard.core.findings import Finding
from planyard.core.results import SmokeRun

GATE = "providers"
CPU = "CPUExecutionProvider"


def check_providers(run: SmokeRun) -> tuple[Finding, ...]:
    """Findings when a provider that was asked for is not active, or nothing says what is."""
    report = run.report
    if report is None or not report.providers_asked or not report.providers_active:
        return (_finding(run, "no-evidence", "the run did not report its providers"),)
    missing = [each for each in report.providers_asked if each not in report.providers_active]
    if missing:
        active = ", ".join(report.providers_active)
        return (
            _finding(
                run,
                "not-active",
                f"{', '.join(missing)} was asked for and is not active: the run was on {active}",
            ),
        )
    if report.providers_active[0] != report.providers_asked[0]:
        return (
            _finding(
                run,
                "order",
                f"{report.providers_asked[0]} was asked for first, "
                f"{report.providers_active[0]} comes first",
            ),
        )
    return ()


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
