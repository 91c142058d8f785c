"""The session's part of the provider gate: matrix, image and session agree, or the run fails."""

from __future__ import annotations

from typing import Any

import pytest

from planyard.core.findings import failures
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.results import SessionFound, SmokeReport
from planyard.core.units import ByteSize
from smoke.gates.session import check_session
from smoke.session import CUDA, TENSORRT, session_document
from tests.smoke_runs import report_of, run_of

SPEC = SessionSpec(
    io_binding=True, gpu_memory=ByteSize(6 * 2**30), copy_stream="own", intra_threads=2
)
DOCUMENT: dict[str, Any] = session_document(SPEC, "onnxruntime-cuda") or {}
SAID = {
    CUDA: {"gpu_mem_limit": "6442450944", "do_copy_in_default_stream": "0", "device_id": "0"},
    "session_options": {"intra_op_num_threads": "2"},
}


def found_of(**changes: Any) -> SessionFound:
    """A session as the matrix wants it."""
    fields: dict[str, Any] = {"baked": DOCUMENT, "options": SAID, "io_binding": True}
    return SessionFound(**{**fields, **changes})


def rules_of(
    report: SmokeReport | None,
    *,
    document: dict[str, Any] | None = DOCUMENT,
    set_by_matrix: bool = True,
    own_command: bool = False,
) -> list[str]:
    run = run_of(report, own_command=own_command)
    found = check_session(run, document=document, set_by_matrix=set_by_matrix)
    assert found == failures(found)
    assert {each.gate for each in found} <= {"providers"}
    return [each.rule.removeprefix("providers.session-") for each in found]


def test_a_session_as_the_matrix_says_passes() -> None:
    assert rules_of(report_of(session=found_of())) == []


@pytest.mark.parametrize("report", [None, report_of(session=None)])
def test_nothing_said_of_the_session_fails(report: SmokeReport | None) -> None:
    assert rules_of(report) == ["no-evidence"]
    assert rules_of(report, set_by_matrix=False) == ["no-evidence"]


def test_an_image_whose_service_cannot_know_fails() -> None:
    assert rules_of(report_of(session=found_of(baked=None))) == ["not-baked"]


def test_where_the_matrix_says_nothing_an_image_may_do_without_the_file() -> None:
    plain: dict[str, Any] = session_document(SessionSpec(), "onnxruntime-cuda") or {}
    session = SessionFound(baked=None)
    report = report_of(session=session)
    assert rules_of(report, document=plain, set_by_matrix=False) == []
    other = report_of(session=SessionFound(baked={**plain, "io_binding": True}))
    assert rules_of(other, document=plain, set_by_matrix=False) == ["differs"]


@pytest.mark.parametrize(
    ("baked", "keys"),
    [
        ({**DOCUMENT, "providers": [[CUDA, {}]]}, ["providers"]),
        ({**DOCUMENT, "providers": [[CUDA, {}], ["CPUExecutionProvider", {}]]}, ["providers"]),
        ({**DOCUMENT, "schema": 2}, ["schema"]),
        ({**DOCUMENT, "more": 1}, ["more"]),
        ({key: DOCUMENT[key] for key in DOCUMENT if key != "session_options"}, ["session_options"]),
        ({}, sorted(DOCUMENT)),
    ],
)
def test_another_file_in_the_image_is_found_and_named(
    baked: dict[str, Any], keys: list[str]
) -> None:
    run = run_of(report_of(session=found_of(baked=baked)))
    found = check_session(run, document=DOCUMENT, set_by_matrix=True)
    assert {each.rule for each in found} == {"providers.session-differs"}
    named = [
        each.message.removeprefix("/etc/planyard/session.json of the image says ") for each in found
    ]
    assert [message.split()[0] for message in named] == keys


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({**SAID, CUDA: {**SAID[CUDA], "gpu_mem_limit": "18446744073709551615"}}, ["option"]),
        ({**SAID, CUDA: {**SAID[CUDA], "do_copy_in_default_stream": "1"}}, ["option"]),
        ({**SAID, "session_options": {"intra_op_num_threads": "0"}}, ["option"]),
        ({**SAID, CUDA: {"gpu_mem_limit": "6442450944"}}, ["unsaid"]),
        ({CUDA: SAID[CUDA]}, ["unsaid"]),
        ({"CPUExecutionProvider": SAID[CUDA], "session_options": {}}, ["unsaid"] * 3),
        ({}, ["unsaid"] * 3),
    ],
)
def test_options_that_are_not_so_fail(options: dict[str, dict[str, str]], rules: list[str]) -> None:
    assert rules_of(report_of(session=found_of(options=options))) == rules


def test_options_are_asked_of_the_provider_they_were_given_to() -> None:
    spec = SessionSpec(providers=(TENSORRT, CUDA), copy_stream="own")
    document: dict[str, Any] = session_document(spec, "onnxruntime-cuda") or {}
    options = {TENSORRT: {"do_copy_in_default_stream": "0"}, CUDA: {}}
    session = SessionFound(baked=document, options=options)
    assert rules_of(report_of(session=session), document=document) == ["unsaid"]


@pytest.mark.parametrize("changes", [{"io_binding": False}, {"pinned_memory": True}])
def test_requests_that_were_made_otherwise_fail(changes: dict[str, bool]) -> None:
    assert rules_of(report_of(session=found_of(**changes))) == ["requests"]


def test_plans_and_own_commands_have_no_session_to_ask() -> None:
    assert rules_of(report_of(session=None), document=None) == []
    assert rules_of(report_of(session=None), own_command=True) == []


def test_long_values_are_cut_and_printable() -> None:
    baked = {**DOCUMENT, "providers": ["\x1b[31m" + "x" * 10_000]}
    run = run_of(report_of(session=found_of(baked=baked)))
    [finding] = check_session(run, document=DOCUMENT, set_by_matrix=True)
    assert len(finding.message) < 800
    assert finding.message.isprintable()
