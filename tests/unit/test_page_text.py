"""What the report makes of text that others wrote: log excerpts, escaping, the policy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from builders.page import logs, rendering
from builders.page.making import write_report
from engines.store.memory import MemoryObjects
from engines.store.store import ObjectStore
from planyard.core.findings import Finding
from tests.page_stores import HOSTILE, MARKUP, hostile


def loss(
    line: int, *, stream: str = "stderr", severity: str = "fail", gate: str = "logs"
) -> Finding:
    message = f"{stream} line {line}: why"
    return Finding(gate=gate, rule="r", message=message, line=line, severity=severity)  # type: ignore[arg-type]


def text_of(lines: int) -> str:
    return "".join(f"line {number}\n" for number in range(1, lines + 1))


def shown(text: str, *findings: Finding) -> logs.Excerpt:
    return logs.excerpt(text, stream="stderr", findings=findings)


# Excerpts


def test_a_short_log_is_shown_whole():
    found = shown(text_of(50))
    assert [line.number for run in found.runs for line in run] == list(range(1, 51))
    assert found.left_out == (0,)


def test_a_long_log_has_its_ends_and_the_lines_around_findings():
    found = shown(text_of(100_000), loss(5_000), loss(5_003))
    numbers = [(run[0].number, run[-1].number) for run in found.runs]
    assert numbers == [(1, 10), (4_996, 5_007), (99_961, 100_000)]
    assert found.left_out == (0, 4_985, 94_953)
    assert sum(found.left_out) + sum(map(len, found.runs)) == found.lines == 100_000
    marked = {line.number for run in found.runs for line in run if line.mark}
    assert marked == {5_000, 5_003}


def test_lines_are_counted_as_the_gate_counts_them():
    found = shown("one\r\ntwo\x0bstill two\x85and\u2028still\nthree", loss(2))
    assert [line.number for line in found.runs[0]] == [1, 2, 3]
    assert found.runs[0][0].text == "one"
    assert found.runs[0][1].mark == "fail"


def test_only_findings_of_this_stream_that_are_there_mark_a_line():
    others = [loss(2, stream="stdout"), loss(2, gate="exit"), loss(9), loss(0)]
    assert not any(line.mark for run in shown(text_of(3), *others).runs for line in run)


def test_the_worst_finding_marks_its_line():
    line = shown(text_of(3), loss(2, severity="warn"), loss(2)).runs[0][1]
    assert (line.mark, line.rules) == ("fail", ("r",))
    assert shown(text_of(3), loss(2, severity="warn")).runs[0][1].mark == "warn"


def test_a_flood_of_findings_and_an_endless_line_stay_small():
    found = shown("x" * 5_000_000 + "\n" + text_of(50_000), *map(loss, range(1, 50_000, 10)))
    assert sum(map(len, found.runs)) < 1_100
    assert len(found.runs[0][0].text) < 700
    assert "(5000000 characters)" in found.runs[0][0].text


def test_an_empty_log_has_no_lines():
    assert shown("").runs == ()
    assert shown("").lines == 0


# Text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain ÄÖ 漢字 → ok", "plain ÄÖ 漢字 → ok"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("a\u202eb\u2066c\u200bd", "a\\u202eb\\u2066c\\u200bd"),
        ("bell\x07 nul\x00 csi\x9b31m", "bell\\x07 nul\\x00 csi\\x9b31m"),
        ("tab\there", "tab\there"),
        ("\x1b", "\\x1b"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out_or_written_out(text, seen):
    assert logs.visible(text) == seen


def test_embedded_json_cannot_end_its_element_and_reads_back_as_shown():
    text = str(rendering.embedded({"a": HOSTILE, "b": ["<!--", "]]>", "&amp;"], "n": 1}))
    assert not re.search("[<>&\u2028\u2029\u202e]", text)
    back = json.loads(text)
    assert back["b"] == ["<!--", "]]>", "&amp;"]
    assert back["a"].startswith(MARKUP)
    assert "\\u202e" in back["a"]


def test_a_page_escapes_everything_and_allows_only_its_own_script(tmp_path: Path):
    store = ObjectStore(MemoryObjects())
    hostile(store)
    written = write_report(
        store, tmp_path / "r", root=tmp_path, made="2026-11-22T10:00:00Z", title=MARKUP
    )
    pages = [Path(written.index), *(tmp_path / "r").glob("evidence-*/cells/*.html")]
    assert len(pages) == 2
    for page in pages:
        text = page.read_text()
        assert "<img" not in text
        assert "<b>640" not in text
        assert "\u202e" not in text
        assert "\x1b" not in text
        assert len(re.findall(r"<script\b", text)) == len(re.findall(r"</script>", text))
        assert " style=" not in text
        assert not re.search(
            r"<[^>]+\son[a-z]+=",
            re.sub(r'"[^"]*"', '""', text.split("</style>")[1].split("<script")[0]),
        )
        assert not re.search(r'(?:src|href)="(?:https?:|//|javascript:|data:)', text)
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
        assert policy is not None
        said = policy[1].replace("&#39;", "'")
        assert "default-src 'none'" in said
        assert "unsafe" not in said
        style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
        script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
        assert style is not None
        assert script is not None
        assert rendering.policy(style=style[1], script=script[1]) == said
