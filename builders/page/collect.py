"""What a store knows, in the order of time: each image's history, channels, logs. Only reads.

The history of an image's name is its steps: a step is one digest, from its first snapshot to the
first of another digest, so that an image that came back is there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from builders.image_names import trusted_head
from engines.channels.history import history
from engines.channels.record import ChannelState
from engines.diffing.views import View, view_of
from engines.index import SNAPSHOTS, snapshots_of_image
from engines.loads import LOADS, loads_of_image
from engines.snapshot import Snapshot
from planyard.core.errors import IntegrityError, LookupMissError, StoreError
from planyard.core.loads import LoadRecord

if TYPE_CHECKING:
    from engines.store.store import ObjectStore

STEPS = 40
"""Steps of an image that are shown; older ones are counted."""
MOVES = 20
"""Moves of a channel that are shown."""
_LOG_LIMIT_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Step:
    """One digest in the history of an image's name; `view` is all that was known by its end."""

    image: str
    name: str
    created: str
    view: View
    channels: tuple[str, ...] = ()
    """The channels that are at this image now."""

    @property
    def newest(self) -> Snapshot:
        """The snapshot that was written last."""
        return self.view.newest


@dataclass(frozen=True, kw_only=True)
class History:
    """An image's name in time: steps from the oldest shown to the newest."""

    name: str
    steps: tuple[Step, ...]
    older: int

    @property
    def now(self) -> Step:
        """The newest step."""
        return self.steps[-1]


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A channel: its states from the newest on; `older` ones are not shown."""

    name: str
    states: tuple[ChannelState, ...]
    older: int

    @property
    def now(self) -> ChannelState:
        """Where it is."""
        return self.states[0]


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Everything that was read; histories by the image's name, sorted."""

    url: str
    histories: dict[str, History]
    channels: tuple[Channel, ...] = ()
    loads: tuple[LoadRecord, ...] = ()
    """Every load run of every image."""


class Log(msgspec.Struct, frozen=True):
    """What a run printed, or why that cannot be shown."""

    stdout: str = ""
    stderr: str = ""
    problem: str = ""
    damaged: bool = False


@dataclass(kw_only=True)
class LogReader:
    """Reads logs, each verified; remembers what was damaged."""

    store: ObjectStore
    damaged: list[str] = field(default_factory=list)

    def read(self, digest: str) -> Log:
        """The log under a digest. One that is gone, or is not what its digest says, is told so."""
        try:
            data = self.store.read_blob(digest, limit_bytes=_LOG_LIMIT_BYTES)
            return msgspec.json.decode(data, type=Log)
        except LookupMissError:
            return Log(problem=f"the log {digest} is not in the store any more")
        except IntegrityError as error:
            self.damaged.append(error.message)
            return Log(problem=error.message, damaged=True)
        except (StoreError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Log(problem=f"the log {digest} cannot be read: {error}")


def read_store(store: ObjectStore, *, root: Path, steps: int = STEPS) -> Knowledge:
    """Everything but the logs. Raises what the store raises: nothing damaged is passed over.

    `root` is the workspace that remembers how far channels have been seen.
    """
    channels = read_channels(store, root=root)
    at: dict[str, list[str]] = {}
    for channel in channels:
        at.setdefault(channel.now.image, []).append(channel.name)
    by_name: dict[str, list[Snapshot]] = {}
    for image in store.keys(SNAPSHOTS):
        for snapshot in snapshots_of_image(store, image):
            by_name.setdefault(snapshot.image_name, []).append(snapshot)
    histories = {
        name: history_of(name, snapshots, channels=at, steps=steps)
        for name, snapshots in sorted(by_name.items())
    }
    loads = tuple(record for image in store.keys(LOADS) for record in loads_of_image(store, image))
    return Knowledge(url=store.url, histories=histories, channels=channels, loads=loads)


def read_channels(store: ObjectStore, *, root: Path) -> tuple[Channel, ...]:
    """Every channel with its last moves, in the order of their names."""
    found = []
    for name in store.objects.pointers():
        head = trusted_head(store, name, root=root)
        if head is not None:
            states = tuple(islice(history(store, head.state), MOVES))
            older = head.state.version - len(states)
            found.append(Channel(name=name, states=states, older=older))
    return tuple(found)


def history_of(
    name: str,
    snapshots: Sequence[Snapshot],
    *,
    channels: dict[str, list[str]],
    steps: int = STEPS,
) -> History:
    """The steps of one name, the last `steps` of them; `channels` by the digest they are at.

    An image that a channel is at is kept, however old.
    """
    in_time = sorted(snapshots, key=lambda each: (each.created, each.image, each.gpu))
    runs = [tuple(run) for _, run in groupby(in_time, key=lambda each: each.image)]
    shown = {len(runs) - 1 - back for back in range(min(steps, len(runs)))}
    last = {run[0].image: number for number, run in enumerate(runs)}
    shown |= {number for image, number in last.items() if image in channels}
    known: dict[str, list[Snapshot]] = {}
    found = []
    for number, run in enumerate(runs):
        image = run[0].image
        known.setdefault(image, []).extend(run)
        if number in shown:
            step = Step(
                image=image,
                name=name,
                created=run[0].created,
                view=view_of(known[image], side=name),
                channels=tuple(channels.get(image, ())) if last[image] == number else (),
            )
            found.append(step)
    return History(name=name, steps=tuple(found), older=len(runs) - len(found))
