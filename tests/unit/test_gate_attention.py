"""The attention gate: unfused blocks fail, so does missing evidence; each rule has its fixture."""

from __future__ import annotations

import pytest

from planyard.core.results import AttentionFigures, AttentionFound
from smoke.gates.attention import attention_figures, check_attention
from tests.smoke_runs import report_of, run_of

HOW = "engine inspector"


def found(fused: int, **kinds: int) -> AttentionFound:
    return AttentionFound(fused=fused, kinds=kinds, how=HOW)


def rules(attention: AttentionFound | None, *, blocks: int | None, unfused: int = 0) -> list[str]:
    run = run_of(report_of(attention=attention))
    return [finding.rule for finding in check_attention(run, blocks=blocks, unfused=unfused)]


@pytest.mark.parametrize(
    ("fused", "blocks", "unfused", "expected"),
    [
        (32, 32, 0, []),
        (31, 32, 0, ["attention.unfused"]),
        (31, 32, 1, []),
        (30, 32, 1, ["attention.unfused"]),
        (0, 1, 0, ["attention.unfused"]),
        (0, 1, 1, []),
        (40, 32, 0, []),
        (-5, 2, 3, []),  # a count below nothing is nothing, not more blocks
        (-5, 2, 1, ["attention.unfused"]),
        (0, 0, 0, []),
    ],
)
def test_blocks_less_fused_is_within_the_budget(
    fused: int, blocks: int, unfused: int, expected: list[str]
) -> None:
    assert rules(found(fused), blocks=blocks, unfused=unfused) == expected


def test_no_evidence_fails_where_there_are_blocks() -> None:
    assert rules(None, blocks=1, unfused=100) == ["attention.no-evidence"]
    assert rules(None, blocks=0) == []
    (finding,) = check_attention(run_of(None), blocks=3, unfused=9)
    assert finding.rule == "attention.no-evidence"
    assert "3 attention blocks" in finding.message


def test_a_graph_that_cannot_be_read_fails() -> None:
    assert rules(found(32), blocks=None, unfused=100) == ["attention.not-counted"]
    assert rules(None, blocks=None) == ["attention.not-counted"]


def test_what_a_log_says_is_no_evidence() -> None:
    said = "Total fused Attention node count: 32\n_gemm_mha_v2_myl0_5"
    run = run_of(report_of(attention=None), stdout=said, stderr=said)
    assert [each.rule for each in check_attention(run, blocks=32, unfused=0)] == [
        "attention.no-evidence"
    ]


def test_the_finding_names_counts_kinds_and_how() -> None:
    run = run_of(report_of(attention=found(3, MultiHeadAttention=2, Attention=1)))
    (finding,) = check_attention(run, blocks=12, unfused=4)
    assert finding.message == (
        "9 of 12 attention blocks did not run fused, 4 may be: "
        "3 fused kernels (1 Attention, 2 MultiHeadAttention) by engine inspector"
    )
    assert (finding.gate, finding.where, finding.severity) == ("attention", run.cell, "fail")
    (finding,) = check_attention(
        run_of(report_of(attention=AttentionFound(fused=1))), blocks=2, unfused=0
    )
    assert finding.message.endswith("none may be: 1 fused kernel by the run")


def test_figures_for_the_snapshot() -> None:
    run = run_of(report_of(attention=found(3)))
    assert attention_figures(run, blocks=4) == AttentionFigures(blocks=4, fused=3, how=HOW)
    assert attention_figures(run, blocks=None) is None
    silent = run_of(report_of(attention=None))
    assert attention_figures(silent, blocks=4) == AttentionFigures(blocks=4, fused=None)
    assert attention_figures(run_of(None), blocks=0) == AttentionFigures(blocks=0, fused=None)
