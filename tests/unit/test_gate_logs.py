"""The log gate on everything a log can look like."""

from __future__ import annotations

import json
import textwrap
import tracemalloc
from collections.abc import Iterator

import pytest

from planyard.core.findings import failures
from planyard.core.results import SmokeRun
from smoke.gates.logs import (
    BLOCK_BYTES,
    MAX_PER_RULE,
    LogScanner,
    check_logs,
    scan_lines,
    scan_text,
)
from smoke.rules import load_rules

LOSS = "Failed to create CUDAExecutionProvider because its libraries are missing"
LONG_LOSS = (
    "The compute type inferred from the saved model is float16, but the target device does not "
    "support efficient float16 computation"
)
QUIET = [b"2026-01-01 00:00:00 INFO weights loaded in 3.1 s", b"Server ready on port 8000"]


def found_lines(data: bytes) -> list[int]:
    return [hit.line for hit in scan_text(data, load_rules())]


def run_of(*, stdout: str = "", stderr: str = "") -> SmokeRun:
    return SmokeRun(
        cell="ort-gpu/ocr/640/fp16/sm86",
        image="sha256:" + "0" * 64,
        exit_code=0,
        timed_out=False,
        seconds=1.0,
        stdout=stdout,
        stderr=stderr,
    )


def disguises(text: str) -> Iterator[tuple[str, bytes]]:
    plain = text.encode()
    yield "plain", plain
    yield "upper case", plain.upper()
    yield "colours", b"\x1b[0;93m" + plain.replace(b" ", b"\x1b[0m \x1b[1;38;5;196m") + b"\x1b[m"
    yield "title sequence", b"\x1b]0;a title\x07" + plain
    yield "unterminated title sequence", b"\x1b]0;" + plain
    yield "hyperlink", b"\x1b]8;;https://example.org\x1b\\" + plain + b"\x1b]8;;\x1b\\"
    yield "progress bar", b" 10%|#  |\r 20%|## |\r" + plain + b"\r 30%|###|"
    yield "Windows line end", plain + b"\r"
    yield "tabs and blanks", plain.replace(b" ", b" \t ")
    yield "no-break spaces", text.replace(" ", "\u00a0").encode()
    yield "Latin-1 no-break spaces", text.replace(" ", "\u00a0").encode("latin-1")
    yield "zero-width spaces", text.replace("a", "a\u200b").encode()
    yield "invalid UTF-8", plain.replace(b"e", b"e\xc3").replace(b"o", b"\xff\xfeo")
    yield "zero bytes", plain.replace(b"e", b"\0e")
    yield "a UTF-16 line among others", text.encode("utf-16-le")
    yield "JSON", json.dumps({"ts": "2026", "level": "info", "msg": text}).encode()
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in text)
    yield "JSON, escaped and nested", f'{{"a":[{{"message":"{escaped}"}}]}}'.encode()
    yield (
        "JSON behind a prefix",
        b"2026-01-01T00:00:00Z stderr F " + json.dumps({"m": text}).encode(),
    )
    yield "truncated JSON", json.dumps({"m": text + "\n"}).encode()[:-1]
    yield "Kubernetes line", b"2026-01-01T00:00:00.000000000Z stderr F " + plain
    yield "syslog line", b"<27>1 2026-01-01T00:00:00Z host app 7 - - " + plain
    yield "old syslog line", b"Jan  1 00:00:00 host app[7]: " + plain
    yield "message under another key", json.dumps({"text": text, "level": 30}).encode()
    yield "JSON in JSON", json.dumps({"log": json.dumps({"message": text}), "s": 1}).encode()
    yield "traceback", b'  File "a.py", line 3, in f\nRuntimeError: ' + plain
    record = {"log": f"\x1b[31m{text}\n", "stream": "stderr", "time": "2026"}
    yield "Docker record", json.dumps(record).encode()
    for width in (40, 60, 80):
        wrapped = textwrap.wrap(text, width, break_on_hyphens=False)
        yield f"wrapped at {width}", "\n".join(wrapped).encode()
        yield f"wrapped at {width} and indented", "\n      ".join(wrapped).encode()


DISGUISES = [
    pytest.param(data, id=f"{length}: {name}")
    for length, text in (("short", LOSS), ("long", LONG_LOSS))
    for name, data in disguises(text)
]


@pytest.mark.parametrize("data", DISGUISES)
def test_a_loss_is_found_in_any_disguise_at_its_line(data: bytes) -> None:
    lines = found_lines(b"\n".join([*QUIET, data, *QUIET, b""]))
    assert lines
    assert set(lines) <= {3, 4, 5}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_a_whole_log_in_another_encoding(encoding: str) -> None:
    text = f"serveur prêt\n{LOSS}\nterminé \u010a \u0a0a\n"
    assert found_lines(text.encode(encoding)) == [2]


@pytest.mark.parametrize(
    "data", [disguise for _, disguise in disguises("Server ready, all layers on cuda:0")]
)
def test_harmless_words_stay_harmless_in_any_disguise(data: bytes) -> None:
    assert found_lines(b"\n".join([*QUIET, data, *QUIET, b""])) == []


def test_messages_that_stand_next_to_each_other_are_not_joined() -> None:
    log = (
        b"CUDA provider loaded.\nError budget left: 12\nINFO cuda:0\n[I] missing field pad_token\n"
    )
    assert found_lines(log) == []


def test_strings_of_one_json_object_are_not_joined() -> None:
    assert found_lines(b'{"device":"CUDA","status":"not available for another 3 s"}\n') == []


def test_a_wrapped_harmless_message_is_not_judged_by_its_first_line() -> None:
    text = "ORT optimization- Force fallback to CPU execution for node: /a/Concat_3 as it is faster"
    for width in (40, 50, 60):
        wrapped = "\n".join(["Server ready", *textwrap.wrap(text, width), "Bound to 8000"])
        assert found_lines(wrapped.encode()) == []


def test_line_numbers_are_those_of_the_file_across_blocks() -> None:
    filler = b"I0101 request done in 12 ms, next\n"
    count = 3 * BLOCK_BYTES // len(filler)
    log = bytearray(filler * count)
    expected = [7, count // 3, 2 * count // 3, count]
    lines = bytes(log).split(b"\n")
    for number in expected:
        lines[number - 1] = LOSS.encode()
    assert found_lines(b"\n".join(lines)) == expected


def test_a_message_over_the_border_of_two_blocks_is_found_once() -> None:
    first, second = b"Failed to create", b"CUDAExecutionProvider"
    for shift in (-len(first) - 2, -9, -1, 0, 1, 12, len(second) + 2):
        filler = (b"x" * 99 + b"\n") * (BLOCK_BYTES // 100 + 1)
        head = filler[: BLOCK_BYTES - len(first) + shift].rstrip(b"\n") + b".\n"
        log = head + first + b"\n" + second + b"\n" + filler
        assert found_lines(log) == [head.count(b"\n") + 1]


def test_a_line_of_ten_megabytes_is_judged_in_bounded_memory() -> None:
    line = b"x" * 5_000_000 + b" " + LOSS.encode() + b" " + b"y" * 5_000_000
    load_rules().match(b"warm")
    tracemalloc.start()
    hits = list(scan_lines([b"ok", line, LOSS.encode()], load_rules()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [hit.line for hit in hits] == [2, 3]
    assert all(len(hit.text) <= 400 for hit in hits)
    assert peak < 48 << 20


def test_a_loss_is_reported_as_soon_as_its_line_is_whole() -> None:
    scanner = LogScanner(load_rules())
    assert scanner.feed(b"starting\nFailed to create CUDAExec") == []
    assert [hit.line for hit in scanner.feed(b"utionProvider.\n")] == [2]
    assert scanner.feed(b"Failed to create\n") == []
    assert [hit.line for hit in scanner.feed(b"   TensorrtExecutionProvider\n")] == [3]
    assert scanner.feed(LOSS.encode()) == []
    assert [hit.line for hit in scanner.close()] == [5]


def test_lines_are_counted_with_and_without_newline() -> None:
    lines = [b"a\n", b"b", LOSS.encode(), b"c\n", LOSS.encode()]
    assert [hit.line for hit in scan_lines(lines, load_rules())] == [3, 5]


def test_the_gate_names_stream_line_and_cell() -> None:
    run = run_of(stdout=f"ready\n{LOSS}\n", stderr="Device set to use cpu\n")
    loss, device = check_logs(run, rules=load_rules())
    assert (loss.gate, loss.rule, loss.where) == ("logs", "provider-not-created", run.cell)
    assert (loss.line, loss.evidence, loss.severity) == (2, (LOSS,), "fail")
    assert loss.message.startswith("stdout line 2: ")
    assert (device.rule, device.line, device.severity) == ("device-is-cpu", 1, "warn")
    assert device.message.startswith("stderr line 1: ")


def test_a_loss_on_every_line_gives_few_findings_and_hides_no_other_rule() -> None:
    run = run_of(stderr=f"{LOSS}\n" * 1000 + "The NVIDIA driver on your system is too old\n")
    findings = check_logs(run, rules=load_rules())
    assert [finding.line for finding in findings] == [*range(1, MAX_PER_RULE + 1), 1001]


def test_a_clean_log_has_no_findings() -> None:
    assert check_logs(run_of(stdout="ready\n"), rules=load_rules()) == ()


@pytest.mark.parametrize("nothing", ["", "\n \n"])
def test_a_run_that_printed_nothing_fails(nothing: str) -> None:
    (finding,) = failures(check_logs(run_of(stdout=nothing, stderr=nothing), rules=load_rules()))
    assert (finding.gate, finding.rule) == ("logs", "logs.no-evidence")
