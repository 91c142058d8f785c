"""Properties of the log scan: any bytes, any pieces, and a first pass that overlooks nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from smoke.gates.logs import LogScanner, scan_text
from smoke.log_text import clean_block, join_wrapped
from smoke.rules import Rule, load_rules

RULES = load_rules()
LOSS = b"Failed to create CUDAExecutionProvider"
WORDS = st.sampled_from(
    [b"cuda", b"not", b"failed", b"to", b"fall", b"back", b"cpu", b"using", b"GPU", b"available.",
     b"slow", b"\n", b"\r", b"\r\n", b"\x1b[31m", b"{", b'"msg":"', b'"}', b"\\n", b"\xff", b"\0",
     b"\xe2\x80\x8b", b"\xc2\xa0", b";", b"instead", b"attention", b"error:", b"  "]
)  # fmt: skip
LOGS = st.lists(WORDS, max_size=60).map(b" ".join) | st.binary(max_size=300)


@pytest.mark.parametrize("rule", RULES.rules, ids=lambda rule: rule.id)
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking such patterns takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_a_rule_finds_the_first_pass_finds(rule: Rule, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(rule.patterns))
    python = re.compile(pattern.replace(r"\z", r"\Z").encode(), re.IGNORECASE)
    # Joined lines apart: a rule may reach over more of them than the three that are judged.
    match = data.draw(st.from_regex(python, fullmatch=True)).replace(b"\x1d", b" ")
    assert RULES.suspect(match, 0) is not None


@given(log=LOGS)
def test_cleaning_keeps_the_number_of_lines(log: bytes) -> None:
    clean = clean_block(log)
    assert clean.count(b"\n") == log.count(b"\n")
    assert len(join_wrapped(clean)) == len(clean)
    clean.decode("utf-8")


@settings(deadline=None)
@given(log=LOGS)
def test_any_bytes_are_judged(log: bytes) -> None:
    lines = log.count(b"\n") + 1
    assert all(1 <= hit.line <= lines for hit in scan_text(log, RULES))


@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=80).map(lambda line: line.replace(b"\n", b"")), max_size=8)
)
def test_a_loss_between_any_lines_is_found(lines: list[bytes]) -> None:
    before = b"".join(line + b".\n" for line in [b"plain text", *lines])
    hits = scan_text(before + LOSS + b".\nend\n", RULES)
    assert len(lines) + 2 in {hit.line for hit in hits}


@settings(deadline=None)
@given(data=st.data(), log=LOGS)
def test_pieces_of_any_size_give_the_same_hits_when_lines_are_whole(
    data: st.DataObject, log: bytes
) -> None:
    text = b"plain text\n" + log
    whole = scan_text(text, RULES)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    scanner = LogScanner(RULES)
    hits = []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        hits += scanner.feed(text[start:stop])
    hits += scanner.close()
    # A piece is judged before the lines after it are known, so it may report more, never less.
    assert {hit.line for hit in whole} <= {hit.line for hit in hits}
