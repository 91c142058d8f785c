"""The placement gate: every node ran on the providers that were asked for.

Where several were (TensorRT before CUDA), what the first does not take may be on the next; a first
one without any node fails. In a GPU cell only the operator types that the matrix allows (shape
arithmetic, which ONNX Runtime places on the CPU by design) may be there, copies between host and
device have a budget, and a second witness has to agree: a session of the same model that may not
fall back to the CPU. What the witness proves: docs/gpu-gates.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from planyard.core.findings import Finding, Severity
from planyard.core.results import NodePlacement, SmokeReport, SmokeRun

GATE = "placement"
CPU = "CPUExecutionProvider"
MAX_NODES = 10_000_000
"""More nodes of one type on one provider than any graph has."""
_ONNX_RUNTIME = "ExecutionProvider"  # how ONNX Runtime's names end; a plan's do not
_COPIES = ("MemcpyFromHost", "MemcpyToHost")


def check_placement(
    run: SmokeRun, *, cpu_operators: Collection[str], memcpy_nodes: int, wanted: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Findings when nodes are placed where they should not be, or nothing says where they are.

    `cpu_operators` may run on the CPU in a GPU cell; at most `memcpy_nodes` copies may be there.
    `wanted` is what the cell is to run on (smoke.session.providers_of): a command that asked for
    the CPU in its place is judged by it.
    """
    report = run.report
    if report is None or not report.placement or not report.providers_asked:
        return (_finding(run, "no-evidence", "the run did not report where its nodes were placed"),)
    asked = report.providers_asked
    if asked[0] == CPU and wanted:
        asked = tuple(wanted)
    first = asked[0]
    if bad := [each for each in report.placement if not _is_plausible(each)]:
        message = f"this cannot be a placement: {_named(bad[0])}"
        return (_finding(run, "malformed", message),)
    total = sum(each.count for each in report.placement)
    if not any(each.count for each in report.placement if each.provider == first):
        message = f"none of {total} nodes was placed on {first}"
        return (_finding(run, "none", message + _where_instead(report, asked[1:])),)
    # The CPU counts only where it comes first: beside a GPU it takes what cpu_operators lets it.
    meant = [name for name in asked if name == first or name != CPU]
    elsewhere = _elsewhere(report, meant=meant, cpu_operators=cpu_operators)
    found = []
    if elsewhere:
        named = ", ".join(f"{count} {what}" for what, count in elsewhere.most_common(5))
        message = f"{elsewhere.total()} of {total} nodes are not on {' or '.join(meant)}: {named}"
        found.append(_finding(run, "elsewhere", message))
    can_fall_back = first != CPU and first.endswith(_ONNX_RUNTIME)
    found += _check_copies(run, report, budget=memcpy_nodes, counted=can_fall_back)
    if can_fall_back:
        found += _check_witness(run, report)
    return tuple(found)


def _is_plausible(placed: NodePlacement) -> bool:
    named = placed.provider.strip() and placed.operator.strip()
    return bool(named) and 0 <= placed.count <= MAX_NODES


def _named(placed: NodePlacement) -> str:
    return f"{placed.count} nodes {placed.operator!r} on {placed.provider!r}"


def _where_instead(report: SmokeReport, others: Sequence[str]) -> str:
    """Which providers behind the first have the nodes, if any."""
    held = [name for name in others if any(p.provider == name for p in report.placement if p.count)]
    return f": it was asked for first, and {', '.join(held)} behind it has nodes" if held else ""


def _elsewhere(
    report: SmokeReport, *, meant: Sequence[str], cpu_operators: Collection[str]
) -> Counter[str]:
    """Nodes that are neither on a provider that is meant nor, where that is allowed, on the CPU."""
    found: Counter[str] = Counter()
    for each in report.placement:
        allowed = each.provider == CPU and each.operator in cpu_operators
        if each.count and each.provider not in meant and not allowed:
            found[f"{each.operator} on {each.provider}"] += each.count
    return found


def _check_copies(
    run: SmokeRun, report: SmokeReport, *, budget: int, counted: bool
) -> Iterator[Finding]:
    """Copies between host and device: what a node on the CPU amid a GPU's graph costs."""
    placed = sum(each.count for each in report.placement if each.operator in _COPIES)
    if report.memcpy_nodes is None:
        if counted:
            message = "the run did not report how many Memcpy nodes its graph has"
            yield _finding(run, "no-copy-count", message)
        return
    count = max(report.memcpy_nodes, placed)
    if report.memcpy_nodes < 0:
        yield _finding(run, "malformed", f"{report.memcpy_nodes} Memcpy nodes are none")
    elif count > budget:
        message = f"{count} Memcpy nodes copy between host and device, {budget} may be there"
        yield _finding(run, "copies", message)


def _check_witness(run: SmokeRun, report: SmokeReport) -> Iterator[Finding]:
    """What a session that may not fall back to the CPU says of the same graph.

    ONNX Runtime refuses it when a node of the main graph, shape arithmetic too, is on the CPU or
    nowhere after all optimizations (inference_session.cc, disable_cpu_ep_fallback); and whatever
    the placement is, when the CPU provider was asked for by name.
    """
    on_cpu = sum(each.count for each in report.placement if each.provider == CPU)
    refused = report.cpu_fallback_refused
    if refused is None:
        # An own command has no line for it in its protocol; planyard's script always asks.
        if not run.own_command:
            message = "no second witness: no session without CPU fallback was tried"
            yield _finding(run, "no-witness", message)
    elif CPU in report.providers_asked:
        return
    elif refused and not on_cpu:
        message = (
            "the placement has no node on the CPU, and yet ONNX Runtime refused a session "
            "that may not fall back to it: one of the two is wrong"
        )
        yield _finding(run, "contradiction", message)
    elif not refused and on_cpu:
        message = (
            f"{on_cpu} nodes were placed on the CPU, and yet a session without CPU fallback was "
            "made: they were optimized away later, or are inside If, Loop or Scan"
        )
        yield _finding(run, "witness-differs", message, severity="warn")


def _finding(run: SmokeRun, rule: str, message: str, *, severity: Severity = "fail") -> Finding:
    return Finding(
        gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message, severity=severity
    )
