"""Each thing made once, also by several builds on one store: leases, waiting, taking over.

Where the store is the workspace's own nobody else makes anything there, and no lease is taken. What
is made is in the shared store before its lease is let go, so who waited finds it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from builders.workspace import BuildStore, Workspace
from engines import index
from engines.store.copying import copy_blob
from engines.store.leases import LEASE_SECONDS, LONGEST_SECONDS, Holder, Leases
from engines.store.local_store import LocalStore
from engines.store.mirrored import MirroredStore
from engines.store.objects import NoCompareAndSwapError
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json
from planyard.core.errors import InputError
from planyard.core.results import ImageRecord, PlanRecord
from planyard.core.units import format_seconds
from planyard.edge.clock import Stopwatch
from planyard.edge.console import Console, Step

LEASE_VARIABLE = "PLANYARD_LEASE_SECONDS"

_POLL_SECONDS = 2.0
_POLLS = 10
"""How often somebody who waits looks in the time of a lease, at least."""

_Order = TypeVar("_Order")


@dataclass(frozen=True, kw_only=True)
class Wanted(Generic[_Order]):
    """A thing to have made: by its recipe's digest. Those of one `group` are made together."""

    recipe: str
    what: str
    group: str
    order: _Order


class Sharing:
    """How a build gets on with others on its store; `leases` is None where there are no others.

    `outside` counts the time spent waiting.
    """

    def __init__(
        self,
        leases: Leases | None,
        *,
        console: Console,
        place: ObjectStore | None = None,
        outside: Stopwatch | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._leases, self._console, self._pause = leases, console, pause
        self._place, self._outside = place, outside or Stopwatch()

    @classmethod
    def of(cls, workspace: Workspace, environment: Mapping[str, str] | None = None) -> Sharing:
        """Leases in the store that others write too; none in the workspace's own."""
        given = os.environ if environment is None else environment
        place = _shared_place(workspace)
        console = workspace.console
        if place is None:
            return cls(None, console=console)
        leases = Leases(
            place.objects, by=run_word(given), seconds=lease_seconds(given), tell=console.warn
        )
        return cls(leases, console=console, place=place, outside=workspace.outside)

    @property
    def place(self) -> ObjectStore | None:
        """The store that is shared, where leases are kept; None when nothing is shared."""
        return self._place if self._leases else None

    def each_once(
        self,
        wanted: Sequence[Wanted[_Order]],
        *,
        find: Callable[[_Order], bool],
        make: Callable[[Sequence[_Order]], None],
        step: Step | None = None,
    ) -> None:
        """Have each thing found or made, here or by another build; what is free goes first.

        `find` looks in the shared store and takes note of what it finds; `make` makes, of one
        group, what this build has the leases of, and puts it in the shared store. It waits for
        nothing that is wanted here, so nobody waits for anybody in a circle. What `make` could not
        make is not asked for again. A wait is shown in `step` when there is one.
        """
        left = [each for each in wanted if not find(each.order)]
        while left:
            batch = self._take(left)
            try:
                if batch and self._leases:
                    lost = [each for each in batch if not find(each.order)]
                else:
                    lost = batch
                if lost:
                    make([each.order for each in lost])
            finally:
                self._release(batch)
            if batch:
                recipes = {each.recipe for each in batch}
                left = [each for each in left if each not in batch]
                left = [each for each in left if each.recipe not in recipes or not find(each.order)]
            else:
                self._wait(left, step)
                left = [each for each in left if not find(each.order)]

    def _take(self, left: Sequence[Wanted[_Order]]) -> list[Wanted[_Order]]:
        """Those of the first group of which any is free; none when others have all of them."""
        for group in dict.fromkeys(each.group for each in left):
            once: dict[str, Wanted[_Order]] = {}
            for each in left:
                if each.group == group:
                    once.setdefault(each.recipe, each)
            mine = list(once.values())
            try:
                taken = [each for each in mine if self._is_ours(each)]
            except BaseException:
                self._release(mine)
                raise
            if taken:
                return taken
        return []

    def _is_ours(self, wanted: Wanted[_Order]) -> bool:
        if self._leases is None:
            return True
        try:
            return self._leases.take(wanted.recipe, what=wanted.what) is None
        except NoCompareAndSwapError as error:
            self._console.detail(f"{error.message}: builds at one moment may make the same twice")
            self._leases = None
            return True

    def _release(self, wanted: Sequence[Wanted[_Order]]) -> None:
        if self._leases:
            self._leases.release(each.recipe for each in wanted)

    def _wait(self, left: Sequence[Wanted[_Order]], step: Step | None) -> None:
        """Until the first of these is free: made, given up, or its holder is dead."""
        leases = self._leases
        first = leases.holder(left[0].recipe) if leases else None
        if leases is None or first is None:
            return
        said = _waiting(left, first)
        with ExitStack() as stack:
            stack.enter_context(self._outside.running())
            if step is None:
                step = stack.enter_context(self._console.step(said))
            else:
                self._show(said, step)
            self._show(_until(first), step)
            self._watch(leases, left, step)

    def _show(self, text: str, step: Step) -> None:
        """Beside the step, or in a line of its own where a step has no place for it."""
        if self._console.live:
            step.update(text)
        else:
            self._console.detail(f"  {text}")

    def _watch(self, leases: Leases, left: Sequence[Wanted[_Order]], step: Step) -> None:
        while True:
            self._pause(min(_POLL_SECONDS, leases.seconds / _POLLS))
            for each in left:
                holder = leases.holder(each.recipe)
                if holder is None:
                    return
                step.update(_until(holder))


def run_word(environment: Mapping[str, str]) -> str:
    """What others see of this run: GitHub's run and job, or a word of its own; no host's name."""
    run = environment.get("GITHUB_RUN_ID", "")
    if environment.get("GITHUB_ACTIONS") == "true" and run:
        return f"run {run}/{environment.get('GITHUB_JOB', '')}".rstrip("/")
    return f"run {secrets.token_hex(4)}"


def lease_seconds(environment: Mapping[str, str]) -> float:
    """PLANYARD_LEASE_SECONDS, or what suits most builds; raises InputError for no such number."""
    text = environment.get(LEASE_VARIABLE, "")
    try:
        seconds = float(text) if text else LEASE_SECONDS
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= LONGEST_SECONDS:
        raise InputError([f"{LEASE_VARIABLE}={text[:40]!r}: write seconds, 1 to 3600"])
    return seconds


def is_sent(store: BuildStore, kind: str, record: ImageRecord | PlanRecord) -> bool:
    """Whether others see a record that was found just now: not when only the near store has it."""
    document = canonical_json(msgspec.to_builtins(record))
    return not isinstance(store, MirroredStore) or store.far_has(kind, record.recipe, document)


def send_image(store: BuildStore, image: ImageRecord) -> None:
    """Have an image of the near store in the far one: layers, manifest, and then its entry."""
    if isinstance(store, MirroredStore):
        for digest in (*index.read_manifest(store.near, image.digest).digests, image.digest):
            copy_blob(digest, source=store.near, target=store.far)
        index.put_image(store.far, image)


def send_plan(store: BuildStore, plan: PlanRecord) -> None:
    """Have a plan of the near store in the far one, and then its entry."""
    if isinstance(store, MirroredStore):
        for digest in index.blobs_of_plan(plan):
            copy_blob(digest, source=store.near, target=store.far)
        index.put_plan(store.far, plan)


def _shared_place(workspace: Workspace) -> ObjectStore | None:
    store = workspace.store
    if isinstance(store, MirroredStore):
        return store.far
    own = LocalStore(workspace.state / "store")
    return None if store.root.resolve() == own.root.resolve() else store


def _waiting(left: Sequence[Wanted[_Order]], holder: Holder) -> str:
    others = len({each.recipe for each in left}) - 1
    more = f" and {others} more" if others else ""
    return f"wait for {left[0].what}{more}: {holder.by} has had it since {holder.since}"


def _until(holder: Holder) -> str:
    left = format_seconds(holder.left_seconds)
    return f"{holder.by} has it for {left} more, and longer if it renews its lease"
