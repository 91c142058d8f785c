"""The placement gate: every node ran on the provider that was asked for first.

In a GPU cell only the operator types that the matrix allows (shape arithmetic, which ONNX Runtime
places on the CPU by design) may be elsewhere. No node on the wanted provider fails in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planyard.core.findings import Finding
from planyard.core.results import SmokeRun

GATE = "placement"


def check_placement(run: SmokeRun, *, cpu_operators: Sequence[str]) -> tuple[Finding, ...]:
    """Findings when nodes are placed where they should not be, or nothing says where they are."""
    report = run.report
    if report is None or not report.placement or not report.providers_asked:
        return (_finding(run, "no-evidence", "the run did not report where its nodes were placed"),)
    wanted = report.providers_asked[0]
    on_wanted = sum(each.count for each in report.placement if each.provider == wanted)
    total = sum(each.count for each in report.placement)
    if on_wanted == 0:
        return (_finding(run, "none", f"none of {total} nodes was placed on {wanted}"),)
    elsewhere: Counter[str] = Counter()
    for each in report.placement:
        if each.provider != wanted and each.operator not in cpu_operators:
            elsewhere[f"{each.operator} on {each.provider}"] += each.count
    if not elsewhere:
        return ()
    named = ", ".join(f"{count} {what}" for what, count in elsewhere.most_common(5))
    count = elsewhere.total()
    return (_finding(run, "elsewhere", f"{count} of {total} nodes are not on {wanted}: {named}"),)


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
