"""How a user names an image of a store: its digest, the start of it, or a channel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from planyard.core.errors import InputError, StoreError
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.channels.history import Head
    from engines.channels.record import ChannelState
    from engines.store.store import ObjectStore

_DIGEST = re.compile(r".*[^a-z0-9._-].*|[0-9a-f]{12,}", re.DOTALL)
"""What is meant as a digest: no channel has such a name."""


def image_named(store: ObjectStore, asked: str, *, root: Path) -> str:
    """The whole digest of an image given by its digest, 12 or more hex digits of it, or a channel.

    Raises InputError for what is neither, LookupMissError for the start of an unknown digest, and
    IntegrityError for a channel older than this workspace (`root`) has seen it.
    """
    if _DIGEST.fullmatch(asked):
        from engines.lookup import resolve_image

        return resolve_image(store, asked)
    head = trusted_head(store, asked, root=root)
    if head is None:
        wanted = "write sha256: and 12 to 64 lower-case hex digits, or the name of a channel"
        raise InputError(
            [f"{asked[:80]!r} is not an image digest, nor a channel of {store.url}: {wanted}"],
            mend="`planyard channels` lists the channels",
        )
    return head.state.image


def trusted_head(store: ObjectStore, channel: str, *, root: Path) -> Head | None:
    """A channel as the store shows it, not older than this workspace has seen it; remembered."""
    from engines.channels.history import read_head
    from engines.channels.seen import seen_file, seen_state

    seen = seen_state(seen_file(root), store=store.url, channel=channel)
    head = read_head(store, channel, seen=seen)
    if head:
        try:
            remember(head.state, store=store, root=root)
        except StoreError as error:  # a workspace that cannot be written can still be read
            Console().warn(f"what this channel is now is not remembered: {error.message}")
    return head


def remember(state: ChannelState, *, store: ObjectStore, root: Path) -> None:
    """Keep in mind that a channel was in this state."""
    from engines.channels.seen import record_state, seen_file

    record_state(seen_file(root), state, store=store.url)
