"""The lines an image's own smoke command prints: what is taken, what is refused, what stays."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest

from builders.schemas import all_schemas
from planyard.core.results import (
    AttentionFound,
    LatencySeries,
    LoadedLibrary,
    NodePlacement,
    SmokeReport,
    SmokeRun,
    TensorEvidence,
)
from smoke import own_command
from smoke.exits import say_signal, wrong_endings
from smoke.own_command import LINE_LIMIT_BYTES, OwnReport, read_lines
from tests.smoke_runs import report_of, run_of

EVENTS: dict[str, dict[str, Any]] = {
    "providers": {"asked": ["CUDA", "CPU"], "active": ["CUDA", "CPU"]},
    "placement": {"nodes": [{"provider": "CUDA", "operator": "Conv", "count": 60}]},
    "attention": {"fused": 32, "kinds": {"Attention": 32}, "how": "the engine inspector"},
    "output": {"name": "y", "dtype": "float16", "shape": [1, 3, 8], "file": "y.bin"},
    "series": {"batch": 1, "concurrency": 2, "latencies_ms": [1.5, 2], "reference_ms": [0.5]},
    "loaded": {"library": "tensorrt", "version": "11.2.1", "path": "/usr/lib/libnvinfer.so.11"},
    "requests": {"began_seconds": 1_700_000_000.5, "ended_seconds": 1_700_000_009},
    "error": {"message": "no GPU"},
}


def line(event: str, /, **changes: Any) -> dict[str, Any]:
    """The object of a line; a change to `...` takes a key away."""
    whole = {"planyard": 1, "event": event, **EVENTS.get(event, {}), **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def printed(*lines: bytes | dict[str, Any]) -> bytes:
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )


def read(*lines: bytes | dict[str, Any]) -> OwnReport:
    return read_lines(printed(*lines))


def report(*lines: bytes | dict[str, Any]) -> SmokeReport:
    """The report of lines without a problem."""
    own = read(*lines)
    assert own.problems == ()
    assert own.report is not None
    return own.report


def problem(*lines: bytes | dict[str, Any]) -> str:
    """The one problem of these lines, which are all still in the log."""
    own = read(*lines)
    [found] = own.problems
    return str(found)


# What is taken


def test_every_event_fills_its_part_of_the_report() -> None:
    assert report(*(line(event) for event in EVENTS)) == SmokeReport(
        providers_asked=("CUDA", "CPU"),
        providers_active=("CUDA", "CPU"),
        placement=(NodePlacement(provider="CUDA", operator="Conv", count=60),),
        memcpy_nodes=None,
        attention=AttentionFound(fused=32, kinds={"Attention": 32}, how="the engine inspector"),
        outputs=(TensorEvidence(name="y", dtype="float16", shape=(1, 3, 8), file="y.bin"),),
        series=(
            LatencySeries(batch=1, concurrency=2, latencies_ms=(1.5, 2.0), reference_ms=(0.5,)),
        ),
        latencies_ms=(1.5, 2.0),
        loaded={"tensorrt": LoadedLibrary(version="11.2.1", path="/usr/lib/libnvinfer.so.11")},
        requests_began_seconds=1_700_000_000.5,
        requests_ended_seconds=1_700_000_009,
        error="no GPU",
    )


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_says_nothing_of_the_others(event: str) -> None:
    rest = msgspec.structs.asdict(SmokeReport())
    said = msgspec.structs.asdict(report(line(event)))
    changed = {name for name in rest if rest[name] != said[name]}
    assert (
        changed
        == {
            "providers": {"providers_asked", "providers_active"},
            "placement": {"placement"},
            "attention": {"attention"},
            "output": {"outputs"},
            "series": {"series", "latencies_ms"},
            "loaded": {"loaded"},
            "requests": {"requests_began_seconds", "requests_ended_seconds"},
            "error": {"error"},
        }[event]
    )


def test_outputs_series_libraries_and_errors_may_be_several() -> None:
    found = report(
        line("output"),
        line("output", name="z", file="z.bin", shape=[]),
        line("series", latencies_ms=[3]),
        line("series", concurrency=4),
        line("series", batch=2),
        line("loaded"),
        line("loaded", library="cuda"),
        line("error"),
        line("error", message="and no CPU"),
        line("placement", memcpy_nodes=2),
    )
    assert [each.name for each in found.outputs] == ["y", "z"]
    assert [(each.batch, each.concurrency) for each in found.series] == [(1, 2), (1, 4), (2, 2)]
    assert found.latencies_ms == (3.0,)
    assert list(found.loaded) == ["tensorrt", "cuda"]
    assert found.error == "no GPU; and no CPU"
    assert found.memcpy_nodes == 2


@pytest.mark.parametrize(
    "text",
    [
        b'  {"planyard": 1, "event": "error", "message": "x"}  ',
        b'{"planyard": 1, "event": "error", "message": "x"}\r',
        b'{"event":"error","message":"x","planyard" : 1}',
        b'{"event":"error","message":"x","planyard"\t:1}',
        b'{"planyard": 1, "event": "error", "message": "\\u0078"}',
    ],
)
def test_json_may_be_written_in_any_way(text: bytes) -> None:
    assert report(text).error == "x"


def test_a_last_line_may_lack_its_newline() -> None:
    own = read_lines(printed(b"ready", line("error"))[:-1])
    assert (own.log, own.problems) == (b"ready\n", ())
    assert own.report is not None


# What stays


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"ready",
        b'{"event": "providers", "asked": ["CUDA"], "active": ["CUDA"]}',
        b'loaded {"name": "planyard", "version": 1}',
        b'{"msg": "they print {\\"planyard\\": 1}"}',
        b"planyard: 1",
        b"'planyard': 1",
        b"\xff\xfe{\0",
    ],
)
def test_other_lines_are_no_business_of_ours(text: bytes) -> None:
    assert read(text) == OwnReport(report=None, log=text + b"\n", problems=())


def test_lines_that_are_read_leave_an_empty_line_so_that_numbers_stay() -> None:
    own = read(b"one", line("providers"), b"three", line("loaded"), line("output"), b"six")
    assert own.log == b"one\n\nthree\n\n\nsix\n"


def test_a_log_of_nothing_but_lines_of_ours_is_an_empty_log() -> None:
    assert read(*(line(event) for event in EVENTS)).log.strip() == b""


# What is refused

HALF = json.dumps(line("output")).encode()[:40]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HALF, "not one whole JSON object"),
        (HALF + json.dumps(line("error")).encode(), "not one whole JSON object"),
        (json.dumps(line("error")).encode() * 2, "not one whole JSON object"),
        (json.dumps(line("error")).encode() + b" and more", "not one whole JSON object"),
        (b"50%\r" + json.dumps(line("error")).encode(), "something stands before the object"),
        (b"\xef\xbb\xbf" + json.dumps(line("error")).encode(), "something stands before"),
        (b"\x1b[32m" + json.dumps(line("error")).encode(), "something stands before"),
        (b'[{"planyard": 1}]', "something stands before"),
        (b'{"planyard": 1, "event": "error", "message": "\xff"}', "not one whole JSON object"),
        (b'{"planyard": 1, "event": "error", "message": "\\ud800"}', "not one whole"),
        (b"{'planyard': 1, \"planyard\": 1}", "not one whole JSON object"),
        (b'{"planyard":' * 100_000, "not one whole JSON object"),
        (b'{"planyard": 1, "x": ' + b"[" * 200_000, "not one whole JSON object"),
        (b'{"planyard": ' + b"1" * 10_000 + b"}", "not one whole JSON object"),
        (b'{"planyard": 1, "event": "series", "latencies_ms": [NaN]}', "not one whole"),
        (b'{"planyard": 1, "planyard": 1, "event": "error", "message": "x"}', "a key stands"),
        (b'{"planyard": 1, "event": "error", "message": "x", "message": "y"}', "a key stands"),
    ],
)
def test_half_a_line_is_never_no_line(text: bytes, what: str) -> None:
    own = read(b"ready", text, b"bye")
    assert own.report is None
    assert own.log == printed(b"ready", text, b"bye")
    [found] = own.problems
    assert what in found.what
    assert found.line == 2
    assert found.mend
    assert str(found).isascii() or "…" in str(found)
    assert str(found).startswith("stdout line 2: ")


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("error", {"planyard": 2}, "$.planyard"),
    ("error", {"planyard": "1"}, "$.planyard"),
    ("error", {"planyard": True}, "$.planyard"),
    ("provider", {}, "$.event"),
    ("error", {"event": ...}, "event"),
    ("error", {"event": 1}, "event"),
    ("error", {"message": ...}, "message"),
    ("error", {"message": ""}, "$.message"),
    ("error", {"message": None}, "$.message"),
    ("error", {"level": 3}, "level"),
    ("providers", {"active": ...}, "active"),
    ("providers", {"asked": []}, "$.asked"),
    ("providers", {"asked": "CUDA"}, "$.asked"),
    ("providers", {"asked": [1]}, "$.asked"),
    ("providers", {"asked": [""]}, "$.asked"),
    ("placement", {"nodes": []}, "$.nodes"),
    ("placement", {"nodes": [{"provider": "CUDA", "operator": "Conv"}]}, "count"),
    ("placement", {"nodes": [{"provider": "C", "operator": "C", "count": -1}]}, "count"),
    ("placement", {"nodes": [{"provider": "C", "operator": "C", "count": 1.5}]}, "count"),
    ("placement", {"nodes": [{"provider": "C", "operator": "C", "count": 1, "x": 1}]}, "x"),
    ("placement", {"memcpy_nodes": -1}, "$.memcpy_nodes"),
    ("placement", {"memcpy": 1}, "memcpy"),
    ("attention", {"fused": -1}, "$.fused"),
    ("attention", {"fused": "32"}, "$.fused"),
    ("attention", {"kinds": {"Attention": -1}}, "$.kinds"),
    ("attention", {"how": ...}, "how"),
    ("output", {"dtype": "float8"}, "$.dtype"),
    ("output", {"dtype": "object"}, "$.dtype"),
    ("output", {"shape": [-1, 3]}, "$.shape"),
    ("output", {"shape": 3}, "$.shape"),
    ("output", {"shape": [1] * 17}, "$.shape"),
    ("output", {"file": "../y.bin"}, "$.file"),
    ("output", {"file": "/out/y.bin"}, "$.file"),
    ("output", {"file": "a/b"}, "$.file"),
    ("output", {"file": ".."}, "$.file"),
    ("output", {"file": "."}, "$.file"),
    ("output", {"file": ""}, "$.file"),
    ("output", {"file": "a\0b"}, "$.file"),
    ("series", {"batch": 0}, "$.batch"),
    ("series", {"concurrency": ...}, "concurrency"),
    ("series", {"latencies_ms": []}, "$.latencies_ms"),
    ("series", {"latencies_ms": [0]}, "$.latencies_ms"),
    ("series", {"latencies_ms": [-1.5]}, "$.latencies_ms"),
    ("series", {"latencies_ms": ["1.5"]}, "$.latencies_ms"),
    ("series", {"latencies_ms": [1e300]}, "$.latencies_ms"),
    ("series", {"latencies_ms": None}, "$.latencies_ms"),
    ("series", {"reference_ms": [0]}, "$.reference_ms"),
    ("loaded", {"version": 11}, "$.version"),
    ("loaded", {"path": ...}, "path"),
    ("requests", {"began_seconds": -1}, "$.began_seconds"),
    ("requests", {"ended_seconds": ...}, "ended_seconds"),
    ("requests", {"ended_seconds": 1e300}, "$.ended_seconds"),
]


@pytest.mark.parametrize(("event", "changes", "where"), MISTAKES)
def test_a_line_of_another_form_is_refused_with_the_place(
    event: str, changes: dict[str, Any], where: str
) -> None:
    wrong = line(event, **changes)
    own = read(wrong)
    assert own.report is None
    assert own.log == printed(wrong)
    [found] = own.problems
    assert where in found.what.partition(", in ")[0]


def test_numbers_out_of_range_are_refused() -> None:
    text = b'{"planyard":1,"event":"series","batch":1,"concurrency":1,"latencies_ms":[1e999]}'
    assert "out of range" in problem(text)


SCHEMA = jsonschema.Draft202012Validator(all_schemas()["smoke-line"])


@pytest.mark.parametrize("event", EVENTS)
def test_the_published_schema_takes_each_event(event: str) -> None:
    assert list(SCHEMA.iter_errors(line(event))) == []


@pytest.mark.parametrize(("event", "changes", "where"), MISTAKES)
def test_the_published_schema_refuses_the_same(
    event: str, changes: dict[str, Any], where: str
) -> None:
    assert list(SCHEMA.iter_errors(line(event, **changes)))


@pytest.mark.parametrize("event", [event for event in EVENTS if event != "error"])
def test_nothing_is_reported_twice_not_even_the_same(event: str) -> None:
    own = read(line(event), line(event))
    [found] = own.problems
    assert (found.line, found.mend) == (2, "print it once")
    assert "was reported before" in found.what
    assert own.log == b"\n" + printed(line(event))
    assert own.report == report(line(event))  # the first one stands


def test_two_outputs_cannot_be_one_file() -> None:
    words = problem(line("output"), line("output", name="z"))
    assert "the file y.bin is another output's" in words


def test_requests_end_after_they_began() -> None:
    assert "ended before they began" in problem(line("requests", ended_seconds=1))


def test_one_bad_line_does_not_hide_the_good_ones() -> None:
    own = read(HALF, line("providers"), b'{"planyard": 1}', line("output"))
    assert [each.line for each in own.problems] == [1, 3]
    assert own.report == report(line("providers"), line("output"))


def test_a_line_has_a_limit() -> None:
    long = line("error", message="x" * LINE_LIMIT_BYTES)
    assert "more than a line may have" in problem(long)
    assert len(problem(long)) < 500


def test_lines_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_command, "MAX_LINES", 3)
    assert report(line("error"), line("error"), b"x", line("error")).error.count("no GPU") == 3
    own = read(*[line("error")] * 5)
    [found] = own.problems
    assert found.line == 4
    assert own.log == b"\n\n\n" + printed(line("error"), line("error"))


def test_problems_have_a_limit() -> None:
    own = read(*[HALF] * 1000, line("error"))
    assert len(own.problems) == 21
    assert "there are 20 problems before this line" in own.problems[-1].what
    assert own.report is None


def test_what_a_bad_line_says_is_shown_as_plain_text() -> None:
    words = problem(b'{"planyard": \x1b[2J\xff "\xe2\x80\xae')
    assert "\x1b" not in words
    assert "\u202e" not in words


# How a run ended, in words


def ended(**changes: Any) -> list[tuple[str, str]]:
    run: SmokeRun = run_of(report_of(), **changes)
    return [tuple(ending) for ending in wrong_endings(run)]


def test_a_run_that_ended_well_has_nothing_to_say() -> None:
    assert ended() == []


@pytest.mark.parametrize(
    ("changes", "rule", "words"),
    [
        ({"exit_code": 1}, "not-zero", "the run ended with exit code 1: planyard: request 1"),
        ({"exit_code": None}, "not-zero", "exit code None"),
        ({"exit_code": 128}, "not-zero", "the run ended with exit code 128"),
        ({"exit_code": 255}, "not-zero", "the run ended with exit code 255"),
        ({"exit_code": 139}, "not-zero", "killed by SIGSEGV (it used memory that is not its own)"),
        ({"exit_code": 134}, "not-zero", "killed by SIGABRT"),
        ({"exit_code": 132}, "not-zero", "an instruction that this CPU does not have"),
        ({"exit_code": 129}, "not-zero", "killed by SIGHUP: exit code 129"),
        ({"timed_out": True, "exit_code": None}, "not-zero", "time limit (2 s)"),
        ({"flooded": "stderr", "exit_code": None}, "flooded", "wrote more to stderr"),
        (
            {"exit_code": 137, "out_of_memory": True, "memory_limit_bytes": 4 << 30},
            "out-of-memory",
            "killed by SIGKILL (out of memory: the limit is 4 GiB)",
        ),
        (
            {"exit_code": 137, "out_of_memory": True, "memory_limit_bytes": 10**9},
            "out-of-memory",
            "the limit is 1.0 GB",
        ),
        ({"exit_code": 137, "out_of_memory": True}, "out-of-memory", "(out of memory)"),
        ({"exit_code": 0, "out_of_memory": True}, "out-of-memory", "the rest ended with 0"),
        ({"problems": ("stdout line 3: x",)}, "report", "stdout line 3: x"),
    ],
)
def test_a_run_that_did_not_end_well_says_why(
    changes: dict[str, Any], rule: str, words: str
) -> None:
    [(found, message)] = ended(**changes)
    assert found == f"exit.{rule}"
    assert words in message


def test_an_error_that_was_reported_fails_a_run_that_ended_with_0() -> None:
    [(rule, message)] = [tuple(each) for each in wrong_endings(run_of(report_of(error="no GPU")))]
    assert rule == "exit.error"
    assert message == "the run ended with 0 and reported an error: no GPU"


def test_every_problem_is_a_finding_of_its_own() -> None:
    assert [rule for rule, _ in ended(exit_code=1, problems=("a", "b"))] == [
        "exit.not-zero",
        "exit.report",
        "exit.report",
    ]


@pytest.mark.parametrize("code", [None, 0, 1, 127, 128, 128 + 65, 255, 256, -9])
def test_no_signal_is_made_up(code: int | None) -> None:
    assert say_signal(code) == ""
