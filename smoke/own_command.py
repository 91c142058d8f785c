"""What an image's own smoke command reports: JSON lines among the rest of its stdout.

A line is ours when it holds `"planyard":`, and counts when it is one whole object of own_lines.py.
Anything else that claims to be ours is a problem, and a problem fails the run: half a line is never
taken for no line. Nothing may be said twice but an error. docs/smoke-command.md is for people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from planyard.core.results import (
    AttentionFound,
    LatencySeries,
    LoadedLibrary,
    NodePlacement,
    SmokeReport,
    TensorEvidence,
)
from smoke.own_lines import (
    Attention,
    Error,
    Loaded,
    Output,
    Placement,
    Providers,
    Requests,
    Series,
    SmokeLine,
)

LINE_LIMIT_BYTES = 4 << 20
MAX_LINES = 10_000
_MAX_PROBLEMS = 20
_SHOWN_BYTES = 120
_CLAIM = re.compile(rb'"planyard"[ \t\r]*:')
_WHOLE = "print each object whole, in one line of its own, and flush it"
_TYPES = "see docs/smoke-command.md for what each event says"

Kind = TypeVar("Kind", bound=SmokeLine)
_DECODER: msgspec.json.Decoder[SmokeLine] = msgspec.json.Decoder(SmokeLine)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A line that claims to be ours and cannot be read: its 1-based number in stdout."""

    line: int
    what: str
    mend: str

    def __str__(self) -> str:
        return f"stdout line {self.line}: {self.what}; to mend it, {self.mend}"


class OwnReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a command reported, and what it printed besides.

    `log` is stdout with an empty line for each line that was read, so that line numbers stay;
    `report` is None when no line could be read.
    """

    report: SmokeReport | None
    log: bytes
    problems: tuple[Problem, ...]


def read_lines(stdout: bytes) -> OwnReport:
    """Read the protocol's lines out of everything that a command wrote to its stdout."""
    collected, problems = _Collected(), list[Problem]()
    log, kept_from = [], 0
    for count, (number, start, stop) in enumerate(_claims(stdout)):
        if count == MAX_LINES or len(problems) == _MAX_PROBLEMS:
            what = f"{count} lines of the protocol were read, and this is one more"
            if count < MAX_LINES:
                what = f"there are {_MAX_PROBLEMS} problems before this line"
            problems.append(Problem(line=number, what=f"{what}: the rest is not read", mend=_TYPES))
            break
        line = stdout[start:stop]
        try:
            collected.add(_read_line(line))
        except _BadLineError as error:
            what = f"{error.args[0]}, in {_shown(line)}"
            problems.append(Problem(line=number, what=what, mend=error.args[1]))
        else:
            log.append(stdout[kept_from:start])
            kept_from = stop
    log.append(stdout[kept_from:])
    return OwnReport(report=collected.report(), log=b"".join(log), problems=tuple(problems))


class _BadLineError(ValueError):
    """A line that claims to be ours and is none: what is wrong, and how to mend it."""


def _claims(stdout: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, start and end (before its newline) of each line that claims to be ours."""
    number, counted, position = 1, 0, 0
    while found := _CLAIM.search(stdout, position):
        start = stdout.rfind(b"\n", position, found.start()) + 1 or position
        stop = stdout.find(b"\n", found.end())
        stop = len(stdout) if stop < 0 else stop
        number += stdout.count(b"\n", counted, start)
        counted = start
        yield number, start, stop
        position = stop + 1


def _read_line(line: bytes) -> SmokeLine:
    """The event of a line; raises _BadLineError."""
    if len(line) > LINE_LIMIT_BYTES:
        raise _BadLineError(f"{len(line)} bytes are more than a line may have", _WHOLE)
    if not line.strip().startswith(b"{"):
        raise _BadLineError("something stands before the object", _WHOLE)
    try:
        json.loads(line.decode(), object_pairs_hook=_refuse_repeats)
        return _DECODER.decode(line)
    except _BadLineError:
        raise
    except msgspec.ValidationError as error:
        raise _BadLineError(str(error), _TYPES) from error
    except (ValueError, RecursionError) as error:  # of JSON, UTF-8, or a number of 5,000 digits
        raise _BadLineError("this is not one whole JSON object", _WHOLE) from error


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON readers keep the last of two equal keys and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _BadLineError("a key stands in it twice", "write each key once")
    return found


def _shown(line: bytes) -> str:
    """The beginning of a line, as it can be printed anywhere."""
    text = ascii(line[:_SHOWN_BYTES].decode(errors="replace"))
    return f"{text} …" if len(line) > _SHOWN_BYTES else text


class _Collected:
    """What the lines have said up to now."""

    def __init__(self) -> None:
        self._said: dict[tuple[object, ...], SmokeLine] = {}
        self._files: set[str] = set()
        self._errors: list[str] = []

    def add(self, event: SmokeLine) -> None:
        """Take one more event; raises _BadLineError for what was said before."""
        if isinstance(event, Error):
            self._errors.append(event.message)
            return
        key = _key_of(event)
        if key in self._said:
            raise _BadLineError(f"{' '.join(map(str, key))} was reported before", "print it once")
        if isinstance(event, Output):
            if event.file in self._files:
                what = f"the file {event.file} is another output's"
                raise _BadLineError(what, "write each output to a file of its own")
            self._files.add(event.file)
        if isinstance(event, Requests) and event.ended_seconds < event.began_seconds:
            raise _BadLineError("the requests ended before they began", _TYPES)
        self._said[key] = event

    def report(self) -> SmokeReport | None:
        """All of it as the report that the gates look at; None when nothing was said."""
        if not self._said and not self._errors:
            return None
        providers, placement = self._one(Providers), self._one(Placement)
        attention, requests = self._one(Attention), self._one(Requests)
        series = tuple(
            LatencySeries(
                batch=each.batch,
                concurrency=each.concurrency,
                latencies_ms=each.latencies_ms,
                reference_ms=each.reference_ms,
            )
            for each in self._all(Series)
        )
        return SmokeReport(
            providers_asked=providers.asked if providers else (),
            providers_active=providers.active if providers else (),
            placement=_placement_of(placement) if placement else (),
            memcpy_nodes=placement.memcpy_nodes if placement else None,
            attention=_attention_of(attention) if attention else None,
            outputs=tuple(
                TensorEvidence(name=each.name, dtype=each.dtype, shape=each.shape, file=each.file)
                for each in self._all(Output)
            ),
            series=series,
            latencies_ms=series[0].latencies_ms if series else (),
            loaded={
                each.library: LoadedLibrary(version=each.version, path=each.path)
                for each in self._all(Loaded)
            },
            requests_began_seconds=requests.began_seconds if requests else None,
            requests_ended_seconds=requests.ended_seconds if requests else None,
            error="; ".join(self._errors),
        )

    def _all(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self._said.values() if isinstance(event, kind)]

    def _one(self, kind: type[Kind]) -> Kind | None:
        return next(iter(self._all(kind)), None)


def _key_of(event: SmokeLine) -> tuple[object, ...]:
    """What may be reported once: an output of a name, a series, a library; each other event."""
    name = type(event).__name__.lower()
    if isinstance(event, Output):
        return (name, event.name)
    if isinstance(event, Series):
        return (name, "of batch", event.batch, "and concurrency", event.concurrency)
    return (name, event.library) if isinstance(event, Loaded) else (name,)


def _placement_of(event: Placement) -> tuple[NodePlacement, ...]:
    return tuple(
        NodePlacement(provider=each.provider, operator=each.operator, count=each.count)
        for each in event.nodes
    )


def _attention_of(event: Attention) -> AttentionFound:
    return AttentionFound(fused=event.fused, kinds=event.kinds, how=event.how)
