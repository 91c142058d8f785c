"""Properties of the smoke protocol: any bytes, lines cut anywhere, and nothing taken in silence."""

from __future__ import annotations

import json
import re

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke.own_command import read_lines
from smoke.own_lines import Providers, SmokeLine

CLAIM = re.compile(rb'"planyard"[ \t\r]*:')
NAMES = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable())
COUNTS = st.integers(min_value=0, max_value=1 << 40)
TIMES = st.floats(min_value=0.001, max_value=86_400_000)
EVENTS = st.one_of(
    st.fixed_dictionaries(
        {
            "event": st.just("providers"),
            "asked": st.lists(NAMES, min_size=1, max_size=4),
            "active": st.lists(NAMES, max_size=4),
        }
    ),
    st.fixed_dictionaries(
        {
            "event": st.just("output"),
            "name": NAMES,
            "dtype": st.sampled_from(["float32", "float16", "int64", "bool"]),
            "shape": st.lists(COUNTS, max_size=16),
            "file": st.from_regex(r"[a-z0-9_-][a-z0-9._-]{0,20}", fullmatch=True),
        }
    ),
    st.fixed_dictionaries(
        {
            "event": st.just("series"),
            "batch": st.integers(min_value=1, max_value=1 << 20),
            "concurrency": st.integers(min_value=1, max_value=256),
            "latencies_ms": st.lists(TIMES, min_size=1, max_size=20),
        },
        optional={"reference_ms": st.lists(TIMES, max_size=5)},
    ),
    st.fixed_dictionaries({"event": st.just("error"), "message": NAMES}),
).map(lambda event: {"planyard": 1, **event})
LINES = EVENTS.flatmap(
    lambda event: st.sampled_from([True, False]).map(
        lambda plain: json.dumps(event, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    )
)
PIECES = st.one_of(
    st.binary(max_size=40),
    LINES,
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b'"planyard"', b'"planyard":', b'{"planyard": 1', b" ", b"}", b"{"]
    ),
)
STREAMS = st.lists(PIECES, max_size=20).map(b"".join)


@settings(deadline=None)
@given(stdout=STREAMS)
def test_each_line_that_claims_to_be_ours_is_read_or_is_a_problem(stdout: bytes) -> None:
    own = read_lines(stdout)
    before, after = stdout.split(b"\n"), own.log.split(b"\n")
    assert len(before) == len(after)
    bad = {problem.line for problem in own.problems}
    assert len(bad) == len(own.problems)
    for number, (whole, left) in enumerate(zip(before, after, strict=True), 1):
        if not CLAIM.search(whole):
            assert left == whole
            assert number not in bad
        elif len(own.problems) <= 20:
            assert (left == b"") != (number in bad)
            assert left in (b"", whole)
    assert (own.report is None) == (before == after)


@settings(deadline=None)
@given(line=LINES, data=st.data())
def test_a_line_cut_anywhere_reports_nothing(line: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(min_value=0, max_value=len(line) - 1))
    for piece in (line[:cut], line[cut + 1 :]):
        own = read_lines(b"ready\n" + piece + b"\nbye\n")
        assert own.report is None
        assert own.log == b"ready\n" + piece + b"\nbye\n"
        assert bool(own.problems) == bool(CLAIM.search(piece))


@settings(deadline=None)
@given(line=LINES, before=st.binary(max_size=60), after=st.binary(max_size=60))
def test_a_whole_line_is_read_whatever_stands_around_it(
    line: bytes, before: bytes, after: bytes
) -> None:
    alone = read_lines(line)
    assert alone.problems == ()
    found = read_lines(before + b"\n" + line + b"\n" + after)
    if not CLAIM.search(before + b"\n" + after):
        assert found.report == alone.report
        assert found.log == before + b"\n\n" + after


@settings(deadline=None)
@given(events=st.lists(EVENTS, max_size=8))
def test_what_is_reported_is_what_was_said(events: list[dict[str, object]]) -> None:
    own = read_lines(b"".join(json.dumps(event).encode() + b"\n" for event in events))
    said = [msgspec.convert(event, SmokeLine) for event in events]
    providers = [each for each in said if isinstance(each, Providers)]
    assert (own.report is None) == (not said)
    if own.report and providers:
        assert own.report.providers_active == providers[0].active  # a second one is a problem
    if own.report and not own.problems:
        errors = [event["message"] for event in events if event["event"] == "error"]
        assert own.report.error == "; ".join(map(str, errors))
        assert len(own.report.outputs) == sum(event["event"] == "output" for event in events)
        assert len(own.report.series) == sum(event["event"] == "series" for event in events)
