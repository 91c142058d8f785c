"""From evidence to a verdict: the gates that are on, each asked once, none trusted over another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from planyard.core.findings import Finding, failures
from planyard.core.matrix import Tolerance
from planyard.core.matrix_smoke import Gates
from planyard.core.results import SmokeRun, SmokeVerdict, Verdict
from smoke.gates.logs import check_logs
from smoke.gates.outputs import check_outputs
from smoke.gates.placement import check_placement
from smoke.gates.providers import check_providers
from smoke.rules import RuleSet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the gates may look at. `golden` is None for the run that makes the golden."""

    run: SmokeRun
    outputs: Arrays
    golden: Arrays | None
    tolerance: Tolerance | None
    golden_missing: bool = False


def judge(evidence: Evidence, *, gates: Gates, rules: RuleSet) -> SmokeVerdict:
    """Ask every gate that is on; the run passes when none of them found a failure.

    A run that ended with another code than 0, or by its time limit, fails whatever gates are off.
    """
    run = evidence.run
    checks: dict[str, tuple[bool, Callable[[], tuple[Finding, ...]]]] = {
        "logs": (gates.logs, lambda: check_logs(run, rules=rules)),
        "providers": (gates.providers, lambda: check_providers(run)),
        "placement": (
            gates.placement,
            lambda: check_placement(run, cpu_operators=gates.cpu_operators),
        ),
        "outputs": (gates.outputs, lambda: _check_outputs(evidence)),
    }
    found = check_exit(run)
    verdicts: dict[str, Verdict | Literal["off"]] = {"exit": "failed" if found else "passed"}
    findings = list(found)
    for name, (on, check) in checks.items():
        if not on:
            verdicts[name] = "off"
            continue
        gate_findings = check()
        verdicts[name] = "failed" if failures(gate_findings) else "passed"
        findings += gate_findings
    report = run.report
    return SmokeVerdict(
        cell=run.cell,
        verdict="failed" if failures(tuple(findings)) else "passed",
        gates=verdicts,
        findings=tuple(findings),
        seconds=round(run.seconds, 3),
        latencies_ms=report.latencies_ms if report else (),
        placement=report.placement if report else (),
    )


def check_exit(run: SmokeRun) -> tuple[Finding, ...]:
    """A finding unless the run ended by itself, with 0."""
    if run.timed_out:
        message = f"the run did not end within its time limit ({run.seconds:.0f} s)"
    elif run.exit_code != 0:
        said = run.report.error if run.report and run.report.error else _last_line(run)
        message = f"the run ended with exit code {run.exit_code}: {said}"
    else:
        return ()
    return (Finding(gate="exit", rule="exit.not-zero", where=run.cell, message=message),)


def _check_outputs(evidence: Evidence) -> tuple[Finding, ...]:
    if evidence.golden_missing:
        message = "there is no golden: no fp32 run of an onnxruntime-cpu image for this profile"
        where = evidence.run.cell
        return (Finding(gate="outputs", rule="outputs.no-golden", where=where, message=message),)
    return check_outputs(
        evidence.run,
        outputs=evidence.outputs,
        golden=evidence.golden,
        tolerance=evidence.tolerance,
    )


def _last_line(run: SmokeRun) -> str:
    lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
    return lines[-1][:200] if lines else "it said nothing"
