"""The lines in which an image's own smoke command reports to planyard: one JSON object each.

`docs/schemas/smoke-line.schema.json` is generated from these types; docs/smoke-command.md is for
people. A key that is not here is refused, so that a mistyped one is never taken for one left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROTOCOL = 1

Text = Annotated[str, Meta(min_length=1, max_length=1024)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Milliseconds = Annotated[float, Meta(gt=0, le=86_400_000)]
EpochSeconds = Annotated[float, Meta(ge=0, le=100_000_000_000)]
FileName = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}$",
        description="the name of a file in /out, without a folder",
    ),
]
Signed = Literal["int8", "int16", "int32", "int64", "float16", "float32", "float64"]
NumberType = Signed | Literal["bool", "uint8", "uint16", "uint32", "uint64"]


class _Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every line has. `event` says which of them it is."""

    planyard: Literal[1]
    """The version of the protocol."""


class Providers(_Event, frozen=True, kw_only=True, tag_field="event", tag="providers"):
    """The execution providers a session was asked for, and those it uses, each in order."""

    asked: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=64)]
    active: Annotated[tuple[Text, ...], Meta(max_length=64)]


class PlacedNodes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many nodes of one operator type ran on one provider."""

    provider: Text
    operator: Text
    count: Count


class Placement(_Event, frozen=True, kw_only=True, tag_field="event", tag="placement"):
    """Where every node of the graph ran; `memcpy_nodes` copies between host and device."""

    nodes: Annotated[tuple[PlacedNodes, ...], Meta(min_length=1, max_length=100_000)]
    memcpy_nodes: Count | None = None


class Attention(_Event, frozen=True, kw_only=True, tag_field="event", tag="attention"):
    """Fused attention in what was run: how many, by operator or layer type; how that is known."""

    fused: Count
    kinds: dict[Text, Count] = {}
    how: Text


class Output(_Event, frozen=True, kw_only=True, tag_field="event", tag="output"):
    """An output, written to a file in /out as raw little-endian numbers in C order."""

    name: Text
    dtype: NumberType
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]
    file: FileName


class Series(_Event, frozen=True, kw_only=True, tag_field="event", tag="series"):
    """Timed requests of a series of the job; `reference_ms` times a fixed load beside them."""

    batch: Annotated[int, Meta(ge=1, le=1 << 20)]
    concurrency: Annotated[int, Meta(ge=1, le=1 << 20)]
    latencies_ms: Annotated[tuple[Milliseconds, ...], Meta(min_length=1, max_length=100_000)]
    reference_ms: Annotated[tuple[Milliseconds, ...], Meta(max_length=100_000)] = ()


class Loaded(_Event, frozen=True, kw_only=True, tag_field="event", tag="loaded"):
    """A library in the process's memory, by the name of its pin, and the version it says it is."""

    library: Text
    version: Text
    path: Text


class Requests(_Event, frozen=True, kw_only=True, tag_field="event", tag="requests"):
    """When the first timed request began and the last ended, in seconds of the epoch."""

    began_seconds: EpochSeconds
    ended_seconds: EpochSeconds


class Error(_Event, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """The run failed: fails it whatever its exit code is."""

    message: Annotated[str, Meta(min_length=1, max_length=100_000)]


SmokeLine = Providers | Placement | Attention | Output | Series | Loaded | Requests | Error
