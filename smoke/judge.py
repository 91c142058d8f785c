"""From evidence to a verdict: the gates that are on, each asked once, none trusted over another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from planyard.core.findings import Finding, failures
from planyard.core.matrix import GPU_BACKENDS, Backend, Tolerance
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.matrix_smoke import Gates
from planyard.core.results import SmokeRun, SmokeVerdict, Verdict
from smoke.baseline import AcceptedRun
from smoke.exits import wrong_endings
from smoke.gates.attention import attention_figures, check_attention
from smoke.gates.latency import Setting, check_latency, latency_figures
from smoke.gates.logs import check_logs
from smoke.gates.outputs import check_outputs
from smoke.gates.placement import check_placement
from smoke.gates.providers import check_providers
from smoke.gates.session import check_session
from smoke.gates.utilization import check_utilization, utilization_figures
from smoke.gates.versions import check_versions
from smoke.rules import RuleSet
from smoke.session import TENSORRT, providers_of, session_document

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.generic]]

Check = Callable[[], tuple[Finding, ...]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the gates may look at.

    `golden` is None for the run that makes the golden. `pins` and `needed` are those of
    `pins_to_check`, `asked` the batch sizes and concurrencies of the job's series, `window` the
    accepted runs of the cell, oldest first. `attention_blocks` is None where the model's graph
    could not be read. `again` is a second run, made because the first was too slow. `session` is
    what the matrix says of the image's sessions.
    """

    run: SmokeRun
    backend: Backend
    outputs: Arrays
    golden: Arrays | None
    tolerance: Tolerance | None
    golden_missing: bool = False
    pins: Mapping[str, str]
    needed: Collection[str]
    attention_blocks: int | None
    asked: Sequence[Setting]
    window: Sequence[AcceptedRun] = ()
    again: SmokeRun | None = None
    session: SessionSpec = field(default_factory=SessionSpec)


def judge(evidence: Evidence, *, gates: Gates, rules: RuleSet) -> SmokeVerdict:
    """Ask every gate that is on; the run passes when none of them found a failure.

    A run that ended with another code than 0, or by its time limit, fails whatever gates are off.
    `gates` are those of the run's cell.
    """
    run, runs = evidence.run, _runs(evidence)
    found = _each(runs, check_exit)
    verdicts: dict[str, Verdict | Literal["off"]] = {"exit": "failed" if found else "passed"}
    findings = list(found)
    for name, check in _checks(evidence, gates, rules).items():
        if not getattr(gates, name):
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
        latency=latency_figures(
            evidence.again or run, window=evidence.window, limits=gates.latency_limits
        ),
        placement=report.placement if report else (),
        memcpy_nodes=report.memcpy_nodes if report else None,
        attention=attention_figures(run, blocks=evidence.attention_blocks),
        utilization=utilization_figures(run),
        loaded=report.loaded if report else {},
    )


def _checks(evidence: Evidence, gates: Gates, rules: RuleSet) -> dict[str, Check]:
    """The gates that apply to a run, by name. NVML has nothing to say of a run on the CPU."""
    run, backend = evidence.run, evidence.backend
    runs, wanted = _runs(evidence), providers_of(evidence.session, backend)
    checks: dict[str, Check] = {
        "logs": lambda: _each(runs, lambda each: check_logs(each, rules=rules)),
        "providers": lambda: _each(runs, lambda each: _check_providers(each, evidence)),
        "placement": lambda: _each(
            runs,
            lambda each: check_placement(
                each,
                cpu_operators=gates.cpu_operators,
                memcpy_nodes=gates.memcpy_nodes,
                wanted=wanted,
            ),
        ),
        "attention": lambda: check_attention(
            run, blocks=evidence.attention_blocks, unfused=gates.unfused_attention
        ),
        "outputs": lambda: _check_outputs(evidence),
        "latency": lambda: check_latency(
            run,
            asked=evidence.asked,
            window=evidence.window,
            limits=gates.latency_limits,
            again=evidence.again,
        ),
        "versions": lambda: check_versions(
            run,
            pins=evidence.pins,
            needed={*evidence.needed, *(("tensorrt",) if TENSORRT in wanted else ())},
        ),
    }
    if backend in GPU_BACKENDS:
        floor = gates.utilization_floor
        checks["utilization"] = lambda: check_utilization(run, floor=floor)
    return checks


def _runs(evidence: Evidence) -> tuple[SmokeRun, ...]:
    """The run, and the second one where there is one: that may have fallen back as well."""
    return (evidence.run, evidence.again) if evidence.again else (evidence.run,)


def _each(
    runs: Sequence[SmokeRun], check: Callable[[SmokeRun], tuple[Finding, ...]]
) -> tuple[Finding, ...]:
    """What is found in any of the runs, said once."""
    return tuple(dict.fromkeys(finding for run in runs for finding in check(run)))


def check_exit(run: SmokeRun) -> tuple[Finding, ...]:
    """A finding for everything that is wrong with how the run ended, or with what it reported."""
    return tuple(
        Finding(gate="exit", rule=ending.rule, where=run.cell, message=ending.message)
        for ending in wrong_endings(run)
    )


def _check_providers(run: SmokeRun, evidence: Evidence) -> tuple[Finding, ...]:
    """The providers of a session, and how else the matrix wants it made."""
    spec, backend = evidence.session, evidence.backend
    return (
        *check_providers(run, wanted=providers_of(spec, backend)),
        *check_session(
            run, document=session_document(spec, backend), set_by_matrix=spec != SessionSpec()
        ),
    )


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
