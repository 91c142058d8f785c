"""The states of a channel as a store holds them: the newest, and the chain of those before it.

Everything is verified on the way: the pointer against the record it names, each record against its
digest and against the one after it, and the whole against what this machine has seen before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from engines.channels.record import (
    CHANNEL_SCHEMA,
    RECORD_LIMIT_BYTES,
    ChannelState,
    Seen,
    check_head,
    check_link,
    check_newest,
    check_same,
    key_of_channel,
    pointer_from_bytes,
    state_from_bytes,
)
from engines.store import objects as names
from engines.store.store import ObjectStore
from planyard.core.errors import IntegrityError, LookupMissError

PROMOTIONS = "promotions"
"""The kind of a channel's records in the index."""
HISTORY_LIMIT = 4_096
"""No history is followed further back."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The newest state of a channel, and the token that its pointer had."""

    token: str
    state: ChannelState


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard channels --json`: the newest state of every channel."""

    schema: int = CHANNEL_SCHEMA
    channels: tuple[ChannelState, ...]


class ChannelHistory(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard channels NAME --json`: newest first; `older` states are not shown."""

    schema: int = CHANNEL_SCHEMA
    channel: str
    history: tuple[ChannelState, ...]
    older: int


def read_head(store: ObjectStore, channel: str, *, seen: Seen | None = None) -> Head | None:
    """The newest state of a channel; None when there is no such channel.

    Raises IntegrityError for a pointer that its record does not bear out, and for a state that is
    older than what was `seen`, or does not continue it.
    """
    pointer = store.objects.pointer(channel)
    if pointer is None:
        check_newest(None, channel=channel, seen=seen)
        return None
    held = pointer_from_bytes(pointer.data, channel=channel)
    state = read_state(store, channel, held.record)
    check_head(held, state)
    check_newest(state, channel=channel, seen=seen)
    if seen:
        for older in history(store, state):
            check_same(older, seen=seen)
            if older.version <= seen.version:
                break
    return Head(token=pointer.token, state=state)


def read_state(store: ObjectStore, channel: str, entry: str) -> ChannelState:
    """One record of a channel, verified; raises IntegrityError when it is missing or damaged."""
    name = names.entry_name(PROMOTIONS, key_of_channel(channel), entry)
    try:
        document = b"".join(store.objects.read(name, length=RECORD_LIMIT_BYTES + 1))
    except FileNotFoundError:
        raise IntegrityError(
            f"{store.url} lacks the record {entry} that channel {channel} leads to",
            mend="fetch it from another store",
        ) from None
    return state_from_bytes(document, channel=channel, entry=entry)


def history(store: ObjectStore, head: ChannelState) -> Iterator[ChannelState]:
    """A state and those before it, newest first, each read when it is asked for.

    Ends at the first state, or after HISTORY_LIMIT. Raises IntegrityError for a broken chain.
    """
    yield head
    state = head
    for _ in range(HISTORY_LIMIT - 1):
        if not state.previous:
            return
        older = read_state(store, state.channel, state.previous)
        check_link(state, older)
        yield older
        state = older


def all_channels(store: ObjectStore) -> tuple[ChannelState, ...]:
    """The newest state of every channel, in the order of their names."""
    heads = (read_head(store, name) for name in store.objects.pointers())
    return tuple(head.state for head in heads if head)


def resolve_channel(store: ObjectStore, channel: str, *, seen: Seen | None = None) -> str:
    """The digest of the image a channel is at; raises LookupMissError for an unknown channel."""
    return existing_head(store, channel, seen=seen).state.image


def existing_head(store: ObjectStore, channel: str, *, seen: Seen | None = None) -> Head:
    """As `read_head`; raises LookupMissError for an unknown channel."""
    head = read_head(store, channel, seen=seen)
    if head is None:
        known = ", ".join(store.objects.pointers())
        said = f"its channels are {known}" if known else "it has none"
        raise LookupMissError(
            f"{store.url} has no channel {channel}; {said}",
            mend=f"planyard promote {channel} IMAGE_DIGEST makes it",
        )
    return head
