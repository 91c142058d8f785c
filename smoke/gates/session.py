"""Part of the provider gate: the session is the one that the matrix says, and the image has it.

The matrix says how a session is made, the image carries it for its service, and the session itself
says what it took. The three have to agree. What a session does not say back is no evidence. An
image's own command has no line for its session in its protocol, and is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from planyard.core.findings import Finding
from planyard.core.results import SessionFound, SmokeRun

GATE = "providers"
SESSION_OPTIONS = "session_options"
"""Beside the providers' names in `SessionFound.options`: what `SessionOptions` says of itself."""
_BAKED_AT = "/etc/planyard/session.json"
_SHOWN = 200


def check_session(
    run: SmokeRun, *, document: Mapping[str, Any] | None, set_by_matrix: bool
) -> tuple[Finding, ...]:
    """Findings where the session, the image and the matrix do not agree.

    `document` is that of the matrix (smoke.session.session_document), None for plans. Where the
    matrix sets nothing (`set_by_matrix` is false) an image may do without the file.
    """
    if document is None or run.own_command:
        return ()
    found = run.report.session if run.report else None
    if found is None:
        message = "the run did not report how its session was made"
        return (_finding(run, "session-no-evidence", message),)
    return (
        *_check_baked(run, found, document, needed=set_by_matrix),
        *_check_options(run, found, document),
        *_check_requests(run, found, document),
    )


def _check_baked(
    run: SmokeRun, found: SessionFound, document: Mapping[str, Any], *, needed: bool
) -> Iterator[Finding]:
    """The service makes its session from the file: another one would not be what was smoked."""
    if found.baked is None:
        if needed:
            message = f"the matrix says how sessions are made, and the image has no {_BAKED_AT}"
            yield _finding(run, "session-not-baked", f"{message}: its service cannot know")
        return
    for key in sorted({*found.baked, *document}):
        if found.baked.get(key) != document.get(key):
            message = (
                f"{_BAKED_AT} of the image says {key} {_shown(found.baked.get(key))}, "
                f"the matrix {_shown(document.get(key))}"
            )
            yield _finding(run, "session-differs", message)


def _check_options(
    run: SmokeRun, found: SessionFound, document: Mapping[str, Any]
) -> Iterator[Finding]:
    """What the matrix sets is what the session says; all else is ONNX Runtime's own choice."""
    asked = [(name, options) for name, options in document["providers"]]
    asked.append((SESSION_OPTIONS, document.get(SESSION_OPTIONS, {})))
    for name, options in asked:
        said = found.options.get(name, {})
        for key, value in options.items():
            if key not in said:
                message = f"{key} {value} was asked of {name}, and nothing says whether it is so"
                yield _finding(run, "session-unsaid", message)
            elif said[key] != str(value):
                message = f"{key} of {name} is {_shown(said[key])}, {value} was asked for"
                yield _finding(run, "session-option", message)


def _check_requests(
    run: SmokeRun, found: SessionFound, document: Mapping[str, Any]
) -> Iterator[Finding]:
    """How requests were made: with tensors on the device, by page-locked memory, or neither."""
    for key in ("io_binding", "pinned_memory"):
        was, asked = getattr(found, key), document[key]
        if was != asked:
            message = f"{key} is {str(asked).lower()} in the matrix, requests were made otherwise"
            yield _finding(run, "session-requests", message)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
