"""Looking for anchors first loses nothing: the fast scan and the scan of everything agree."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smoke.gates.logs import LogHit, LogScanner
from smoke.prefilter import Prefilter, _re2
from smoke.rules import RuleSet, load_rules

RULES = load_rules()
RE2_ENDS = _re2(RULES.prefilter.patterns)
CORPUS = Path(__file__).parents[1] / "data" / "fallback_lines.jsonl"
LINES = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
FILLER = [
    'INFO:     10.0.0.1:4711 - "GET /healthz HTTP/1.1" 200 OK',
    "[I] [TRT] Init CUDA: CPU +7, GPU +0",
    "\x1b[32mINFO\x1b[0m ready",
    " 3%|##   | 3/90\r 4%|##   | 4/90",
    '{"msg":"done","ms":3}',
    *("", "plain words and", "   CUDAExecutionProvider", "of the GPU", "because it is faster"),
    *("on", "cpu"),
]
INSERTS = [
    *(b"\x1b[31m", b"\x1b[0m", b"\x1b[K", b"\x1b]0;t\x07", b"\x1b", b"\0", b"\x08", b"\x7f"),
    *(b"\r", b"\t", b"\n", b"\n  ", b"  ", b"\x1d", b"\x1e", b"\xff", b"\xc3", b"\xc2\xa0"),
    *(b"\xe2\x80\x8b", b"\xc2\xad", b"\xef\xbb\xbf", b"\xe2\x80\x90"),
    *(b"\\u200b", b"\\u001b[1m", b"\\b", b"\\n"),
]


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """Lines of loss between others, as JSON, in UTF-16 or with odd bytes in the middle of words."""
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        text = draw(st.sampled_from(LINES) | st.sampled_from(FILLER))
        data = bytearray(text.encode())
        for _ in range(draw(st.integers(0, 4))):
            place = draw(st.integers(0, len(data)))
            data[place:place] = draw(st.sampled_from(INSERTS))
        kind = draw(st.sampled_from(["plain", "plain", "json", "escaped", "docker", "utf-16"]))
        parts.append(dressed(bytes(data), kind))
    return b"\n".join(parts) + draw(st.sampled_from([b"", b"\n"]))


def dressed(data: bytes, kind: str) -> bytes:
    text = data.decode("utf-8", "ignore")
    if kind == "json":
        return json.dumps({"level": "info", "msg": text}).encode()
    if kind == "escaped":
        return b'{"msg":"' + "".join(f"\\u{ord(each):04x}" for each in text).encode() + b'"}'
    if kind == "docker":
        return json.dumps({"log": text + "\n", "stream": "stderr"}, ensure_ascii=False).encode()
    return text.encode("utf-16-le") if kind == "utf-16" else data


def hits_of(log: bytes, *, exact: bool) -> list[LogHit]:
    scanner = LogScanner(RULES, exact=exact)
    return [*scanner.feed(log), *scanner.close()]


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@example(b"fai\x1b[0mled to create CUDAExecutionProvider\n")
@example(b"Failed\xff to create CUDAExecutionProvi\xffder\n")
@example(b"moved the model to\n   cpu\n")
@given(log=logs())
def test_the_fast_scan_finds_what_the_scan_of_everything_finds(log: bytes) -> None:
    assert hits_of(log, exact=False) == hits_of(log, exact=True)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(log=logs())
def test_without_hyperscan_the_same_is_found(log: bytes) -> None:
    prefilter = Prefilter(RULES.prefilter.anchors)
    prefilter.__dict__["ends"] = RE2_ENDS
    slow = RuleSet(RULES.rules, RULES.allow, first_pass=RULES.first_pass, prefilter=prefilter)
    scanner = LogScanner(slow)
    assert [*scanner.feed(log), *scanner.close()] == hits_of(log, exact=True)
