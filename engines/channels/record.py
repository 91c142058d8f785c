"""What a channel is made of, and what must hold of it. Pure.

- Each state of a channel is an immutable record that names the record before it; versions count
  1, 2, 3 … without a gap, so that a chain of records has an end and no circle.
- The pointer names the newest record, and repeats its image and version.
- What this machine has seen of a channel stays in its past: an older or another history is refused.

Records and pointers are not signed: who can write into a store can move its channels forward.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engines.snapshot import UtcTime
from engines.store.objects import checked_pointer_name
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, IntegrityError
from planyard.core.matrix_fields import Digest

CHANNEL_SCHEMA = 1
RECORD_LIMIT_BYTES = 1 << 20
TEXT_LIMIT = 1_000
"""Characters of a reason or a name."""
VERSION_LIMIT = 2**53 - 1

_LIKE_A_DIGEST = re.compile(r"[0-9a-f]{12,}")

Text = Annotated[str, Meta(max_length=TEXT_LIMIT, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
"""One line that a terminal can be given: no control characters."""
Name = Annotated[str, Meta(max_length=63)]
Version = Annotated[int, Meta(ge=1, le=VERSION_LIMIT)]
DigestOrNone = Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Action = Literal["promote", "rollback"]


class Waived(msgspec.Struct, frozen=True, kw_only=True):
    """Objections of one gate that somebody took the responsibility for; `where` names them."""

    gate: Text
    because: Text
    where: tuple[Text, ...] = ()


class ChannelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One state of a channel, as it lies in the index under `promotions`; never changed.

    `from` is the image before, empty for the first; `previous` the digest of the record before.
    `snapshots` are the digests of those that were judged, `gpus` the GPUs asked for (none: all).
    A rollback `restores` the version of the promotion it goes back to. `id` is random, so that
    two equal moves are two records. `evidence` is the index entry that was verified, if any was.
    """

    schema: Annotated[int, Meta(ge=CHANNEL_SCHEMA, le=CHANNEL_SCHEMA)] = CHANNEL_SCHEMA
    channel: Name
    version: Version
    action: Action
    image: Digest
    image_name: Text = ""
    from_image: DigestOrNone = msgspec.field(default="", name="from")
    previous: DigestOrNone = ""
    moved_at: UtcTime
    by: Text
    because: Text = ""
    waived: tuple[Waived, ...] = ()
    snapshots: tuple[Digest, ...] = ()
    gpus: tuple[Text, ...] = ()
    gates_off: tuple[Text, ...] = ()
    evidence: DigestOrNone = ""
    restores: Annotated[int, Meta(ge=0, le=VERSION_LIMIT)] = 0
    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]


class ChannelState(ChannelRecord, frozen=True, kw_only=True):
    """A record with `entry`, the digest it lies under."""

    entry: Digest


class ChannelPointer(msgspec.Struct, frozen=True, kw_only=True):
    """What the pointer of a channel holds."""

    schema: Annotated[int, Meta(ge=CHANNEL_SCHEMA, le=CHANNEL_SCHEMA)] = CHANNEL_SCHEMA
    channel: Name
    record: Digest
    image: Digest
    version: Version


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The newest state of a channel that this machine has seen."""

    version: Version
    entry: Digest


# Made here, once: msgspec 0.22 crashes when several threads are the first to use a type.
_RECORD = msgspec.json.Decoder(ChannelRecord)
_POINTER = msgspec.json.Decoder(ChannelPointer)


def checked_channel(name: str) -> str:
    """`name` itself; raises InputError for one no channel can have, or that reads as a digest."""
    if _LIKE_A_DIGEST.fullmatch(name):
        raise InputError([f"{name[:80]!r} is not the name of a channel: it reads as a digest"])
    return checked_pointer_name(name)


def key_of_channel(name: str) -> str:
    """The key of a channel's records in the index."""
    return digest_of_bytes(name.encode())


def one_line(text: str) -> str:
    """`text` on one line, without control characters, no longer than a record takes."""
    plain = "".join(" " if unicodedata.category(each)[0] in "CZ" else each for each in text)
    return " ".join(plain.split())[:TEXT_LIMIT]


def record_to_bytes(record: ChannelRecord) -> bytes:
    """A record's one encoding. Raises InputError for one that could not be read again."""
    document = canonical_json(msgspec.to_builtins(record))
    try:
        if len(document) > RECORD_LIMIT_BYTES:
            raise InputError([f"a record of {len(document)} bytes: {RECORD_LIMIT_BYTES} at most"])
        _RECORD.decode(document)
    except msgspec.DecodeError as error:
        raise InputError([f"this move cannot be recorded: {error}"]) from error
    return document


def state_from_bytes(document: bytes, *, channel: str, entry: str) -> ChannelState:
    """Read the record `entry` of a channel; raises IntegrityError when these bytes are not it."""
    of = f"the record {entry} of channel {channel}"
    if digest_of_bytes(document) != entry:
        raise IntegrityError(f"{of} is damaged", mend="fetch it from another store")
    try:
        record = _RECORD.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(
            f"{of} cannot be read: {error}", mend="a newer planyard may have written it"
        ) from error
    if record.channel != channel:
        raise IntegrityError(f"{of} is one of channel {record.channel}")
    first = (record.previous, record.from_image) == ("", "") and record.action == "promote"
    if first != (record.version == 1) or (record.version > 1 and not record.previous):
        raise IntegrityError(f"{of} has version {record.version} and does not fit into a chain")
    if record.restores >= record.version or (record.action == "rollback") != (record.restores > 0):
        raise IntegrityError(f"{of} is a {record.action} that restores version {record.restores}")
    return ChannelState(entry=entry, **_fields(record))


def pointer_of(state: ChannelState) -> bytes:
    """What the pointer holds when `state` is the newest."""
    pointer = ChannelPointer(
        channel=state.channel, record=state.entry, image=state.image, version=state.version
    )
    return canonical_json(msgspec.to_builtins(pointer))


def pointer_from_bytes(data: bytes, *, channel: str) -> ChannelPointer:
    """Read the pointer of a channel; raises IntegrityError when it is none, or another's."""
    try:
        pointer = _POINTER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"the pointer of channel {channel} cannot be read: {error}") from error
    if pointer.channel != channel:
        raise IntegrityError(f"the pointer of channel {channel} is one of {pointer.channel}")
    return pointer


def check_head(pointer: ChannelPointer, head: ChannelState) -> None:
    """That the pointer says what the record it names says."""
    if (pointer.image, pointer.version) != (head.image, head.version):
        raise IntegrityError(
            f"the pointer of channel {head.channel} says version {pointer.version} and "
            f"{pointer.image}; its record says version {head.version} and {head.image}"
        )


def check_link(newer: ChannelState, older: ChannelState) -> None:
    """That `older` is the state that `newer` left."""
    if older.version != newer.version - 1 or older.image != newer.from_image:
        raise IntegrityError(
            f"the history of channel {newer.channel} is broken: version {newer.version} left "
            f"{newer.from_image}, the record before it is version {older.version} of {older.image}"
        )


def check_newest(head: ChannelState | None, *, channel: str, seen: Seen | None) -> None:
    """That a channel is not older than what this machine has seen, and not another history."""
    if seen is None or (head is not None and head.version > seen.version):
        return
    if head is None:
        raise _replayed(channel, found="no state of it", seen=seen)
    if head.version < seen.version:
        raise _replayed(channel, found=f"version {head.version}", seen=seen)
    check_same(head, seen=seen)


def check_same(state: ChannelState, *, seen: Seen) -> None:
    """That the version this machine has seen is still the same record."""
    if state.version == seen.version and state.entry != seen.entry:
        raise _replayed(state.channel, found=f"another version {state.version}", seen=seen)


def _replayed(channel: str, *, found: str, seen: Seen) -> IntegrityError:
    return IntegrityError(
        f"channel {channel}: the store shows {found}, this machine has seen version "
        f"{seen.version} ({seen.entry})",
        mend="find out who put an old state back. If the store was begun anew on purpose, remove "
        ".planyard/state/channels.json",
    )


def _fields(record: ChannelRecord) -> dict[str, Any]:
    return {field: getattr(record, field) for field in ChannelRecord.__struct_fields__}
