"""The attention gate: as many attention blocks ran fused as the model has, but for a budget.

The blocks are counted in the model's own graph, the fused kernels in what was run: the plan, or
the nodes ONNX Runtime executed. Nothing here reads a log: an attention that drops to separate
kernels prints nothing. Fused kernels beyond the blocks are no credit for anything.
"""

from __future__ import annotations

from planyard.core.findings import Finding
from planyard.core.results import AttentionFigures, AttentionFound, SmokeRun

GATE = "attention"


def check_attention(run: SmokeRun, *, blocks: int | None, unfused: int) -> tuple[Finding, ...]:
    """Findings when more than `unfused` of the model's `blocks` did not run fused.

    `blocks` is None when the model's graph could not be read. A model without attention passes.
    """
    if blocks is None:
        message = "the model's attention blocks could not be counted: its graph could not be read"
        return (_finding(run, "not-counted", message),)
    if blocks == 0:
        return ()
    found = run.report.attention if run.report else None
    if found is None:
        message = f"the run did not report which of the model's {blocks} attention blocks are fused"
        return (_finding(run, "no-evidence", message),)
    left = blocks - max(found.fused, 0)
    if left <= unfused:
        return ()
    allowed = f"{unfused} may be" if unfused else "none may be"
    return (
        _finding(
            run,
            "unfused",
            f"{left} of {blocks} attention blocks did not run fused, {allowed}: {_seen(found)}",
        ),
    )


def attention_figures(run: SmokeRun, *, blocks: int | None) -> AttentionFigures | None:
    """Blocks and fused kernels for the snapshot; None when the blocks could not be counted."""
    if blocks is None:
        return None
    found = run.report.attention if run.report else None
    if found is None:
        return AttentionFigures(blocks=blocks, fused=None)
    return AttentionFigures(blocks=blocks, fused=found.fused, how=found.how)


def _seen(found: AttentionFound) -> str:
    """`12 fused kernels (12 Attention) by executed nodes of a profiled request`."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.kinds.items()))
    kernels = "kernel" if found.fused == 1 else "kernels"
    named = f" ({kinds})" if kinds else ""
    return f"{found.fused} fused {kernels}{named} by {found.how or 'the run'}"


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
