"""The newest state of each channel this machine has seen, so that an older one is refused.

One small JSON file. Losing it loses only the memory. Nothing here reads a store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from engines.channels.record import ChannelState, Seen
from planyard.core.digest import canonical_json, digest_of_value
from planyard.core.errors import InputError, StoreError
from planyard.edge import files

SEEN_SCHEMA = 1
FILE_LIMIT_BYTES = 16 << 20


class _SeenFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file: what was seen, by the digest of store and channel."""

    schema: Annotated[int, Meta(ge=SEEN_SCHEMA, le=SEEN_SCHEMA)] = SEEN_SCHEMA
    channels: dict[str, Seen] = {}


_FILE = msgspec.json.Decoder(_SeenFile)


def seen_file(root: Path) -> Path:
    """Where the memory of a workspace lies."""
    return root / ".planyard" / "state" / "channels.json"


def seen_state(path: Path, *, store: str, channel: str) -> Seen | None:
    """What was seen of a channel of the store at this URL; None when nothing was.

    Raises InputError for a damaged file: to go on as if nothing had been seen would let an old
    state through.
    """
    return _read(path).channels.get(_key(store, channel))


def record_state(path: Path, state: ChannelState, *, store: str) -> None:
    """Remember a state, unless a newer one is remembered already."""
    key, seen = _key(store, state.channel), Seen(version=state.version, entry=state.entry)
    try:
        if _is_older(_read(path), key, seen):
            with files.exclusive_lock(path.with_suffix(".lock"), on_wait=lambda: None):
                held = _read(path)
                if _is_older(held, key, seen):
                    held = _SeenFile(channels=held.channels | {key: seen})
                    files.write_bytes(path, canonical_json(msgspec.to_builtins(held)))
    except OSError as error:
        raise StoreError(f"{path} could not be written: {error.strerror}") from error


def _is_older(held: _SeenFile, key: str, seen: Seen) -> bool:
    known = held.channels.get(key)
    return known is None or known.version < seen.version


def _key(store: str, channel: str) -> str:
    return digest_of_value([store, channel])


def _read(path: Path) -> _SeenFile:
    mend = "look why it is damaged; without it, what a store shows next is taken as the newest"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
        if len(data) > FILE_LIMIT_BYTES:
            raise InputError([f"{path} is larger than {FILE_LIMIT_BYTES} bytes"], mend=mend)
        return _FILE.decode(data)
    except FileNotFoundError:
        return _SeenFile()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError([f"{path} cannot be read: {error}"], mend=mend) from error
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}") from error
