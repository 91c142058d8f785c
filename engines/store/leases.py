"""Leases: who makes what just now, so that two builds on one store do not make the same twice.

A lease is a row under a recipe in one of 256 small tables (`leases/00` to `leases/ff`), which move
by compare-and-swap. Its holder renews it while it works. Who watches a row that did not change for
the lease's time, by a clock of its own, may take it over: its holder was killed. No two clocks have
to agree. Rows go when they are released, so a store never has more than 256 tables, most of them
empty.

A lease saves work and guards nothing: results are named by their bytes, and a holder that was held
up, and lost its lease without knowing, at worst makes what another makes too.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from engines.store.objects import LEASES, Objects
from engines.store.protocol import hex_of_digest
from planyard.core.digest import canonical_json
from planyard.core.errors import PlanyardError, StoreError
from planyard.edge.clock import utc_now

LEASE_SECONDS = 120.0
"""How long a lease lasts that nobody renews."""

LONGEST_SECONDS = 3600.0
"""What a row says is believed up to this."""

_BEATS = 6
"""How often a lease is renewed in its time."""

_SCHEMA = 1
_TRIES = 32
_PAUSE_SECONDS = 0.05
_TEXT_LIMIT = 80
_DEAD_AFTER = timedelta(days=1)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as its table has it. Times are the holder's, and only shown; `beat` counts renewals.

    `word` is new with every lease: a row that was seen before and is the same was not renewed.
    """

    word: str
    beat: int
    by: str
    what: str
    since: str
    renewed: str
    seconds: float


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    leases: dict[str, Row]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Somebody else who has a lease: `by` whom, `since` when (RFC 3339), and how long it lasts.

    `left_seconds` are from now on, if it is not renewed.
    """

    by: str
    since: str
    left_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """A row as it was first seen, and when, by our own clock."""

    mark: tuple[str, int]
    since: float


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A table as it was read: asked for and seen at these moments of our own clock."""

    name: str
    rows: Mapping[str, Row]
    token: str | None
    asked: float
    seen: float


def _elapsed_seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leases:
    """The leases of one run. `by` is a word for people; `tell` is given warnings for them.

    Every method may be called from several threads. Raises StoreError when the place cannot be
    reached, NoCompareAndSwapError where it cannot promise that one of two wins.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        by: str,
        seconds: float = LEASE_SECONDS,
        tell: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = _elapsed_seconds,
    ) -> None:
        self.seconds = seconds
        self.by = by
        self._objects, self._tell, self._clock = objects, tell, clock
        self._held: dict[str, Row] = {}
        self._sights: dict[str, _Sight] = {}
        self._lock = threading.RLock()
        self._end = threading.Event()

    @property
    def held(self) -> frozenset[str]:
        """The recipes whose lease this run has."""
        return frozenset(self._held)

    def take(self, recipe: str, *, what: str) -> Holder | None:
        """Have the lease of a recipe, and keep it renewed; or who has it, who must be waited for.

        Look whether the result is there after this, not before.
        """
        with self._lock:
            for _ in range(_TRIES):
                table = self._read(recipe)
                holder = self._holder(recipe, table)
                if holder is not None:
                    return holder
                if self._enter(recipe, table, what=what):
                    return None
                time.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 - no secret
        raise _too_busy(self._objects, recipe)

    def holder(self, recipe: str) -> Holder | None:
        """Who else has the lease; None when it is free, or expired. One request."""
        with self._lock:
            return self._holder(recipe, self._read(recipe))

    def release(self, recipes: Iterable[str]) -> None:
        """Let go of leases. What they were for is visible by now, or this run has failed at it.

        A lease that cannot be given back, or whose loss nobody noticed, ends by itself.
        """
        for recipe in recipes:
            with self._lock:
                mine = self._held.pop(recipe, None)
                if not self._held:
                    self._end.set()
                if mine is not None:
                    self._remove(recipe, mine)

    def renew(self) -> None:
        """Say of every lease that it is still meant; done by a thread while there are any."""
        for recipe in sorted(self._held):
            with self._lock:
                try:
                    self._renew(recipe)
                except PlanyardError:
                    continue  # the next beat may get through; a lease that is lost is only lost

    def _enter(self, recipe: str, table: _Read, *, what: str) -> bool:
        """Put a row of ours where there is none, or one that nobody renewed."""
        before, now = table.rows.get(recipe), utc_now()
        if before is not None and before.word == self._word_of(recipe):
            return True  # it is ours already
        mine = Row(
            word=secrets.token_hex(8),
            beat=0,
            by=_plain(self.by),
            what=_plain(what),
            since=now,
            renewed=now,
            seconds=self.seconds,
        )
        self._held[recipe] = mine  # at once: who is interrupted now releases it
        try:
            is_ours = self._write(table, {**table.rows, recipe: mine})
        except PlanyardError:
            del self._held[recipe]
            raise
        if not is_ours:
            del self._held[recipe]
            return False
        self._sights.pop(recipe, None)
        self._start()
        if before is not None:
            self._tell(
                f"{_plain(what)}: {_plain(before.by)} did not renew its lease for "
                f"{_limit(before):g} s: this run goes on in its place"
            )
        return True

    def _renew(self, recipe: str) -> None:
        for _ in range(_TRIES):
            mine = self._held.get(recipe)
            if mine is None:
                return
            table = self._read(recipe)
            there = table.rows.get(recipe)
            if there is not None and there.word != mine.word:
                del self._held[recipe]
                self._tell(
                    f"{mine.what}: this run was held up, and {_plain(there.by)} took its lease "
                    "over: it may be made twice, which costs time and nothing else"
                )
                return
            # A row that is gone was cleaned away: nobody else has it, so it is ours again.
            following = msgspec.structs.replace(mine, beat=mine.beat + 1, renewed=utc_now())
            if self._write(table, {**table.rows, recipe: following}):
                self._held[recipe] = following
                return

    def _remove(self, recipe: str, mine: Row) -> None:
        try:
            for _ in range(_TRIES):
                table = self._read(recipe)
                there = table.rows.get(recipe)
                if there is None or there.word != mine.word:
                    return
                rest = {key: row for key, row in table.rows.items() if key != recipe}
                if self._write(table, rest):
                    return
        except PlanyardError:
            return  # it expires

    def _holder(self, recipe: str, table: _Read) -> Holder | None:
        row = table.rows.get(recipe)
        if row is None or row.word == self._word_of(recipe):
            self._sights.pop(recipe, None)
            return None
        mark = (row.word, row.beat)
        sight = self._sights.get(recipe)
        if sight is None or sight.mark != mark:
            sight = self._sights[recipe] = _Sight(mark=mark, since=table.seen)
        # From the end of the first look to the beginning of the last: it was the same all along.
        left = _limit(row) - max(table.asked - sight.since, 0.0)
        if left <= 0:
            return None
        return Holder(by=_plain(row.by), since=_plain(row.since), left_seconds=left)

    def _word_of(self, recipe: str) -> str | None:
        mine = self._held.get(recipe)
        return mine.word if mine else None

    def _read(self, recipe: str) -> _Read:
        name = f"{LEASES}{hex_of_digest(recipe)[:2]}"
        asked = self._clock()
        pointer = self._objects.pointer(name)
        return _Read(
            name=name,
            rows=_rows(pointer.data) if pointer else {},
            token=pointer.token if pointer else None,
            asked=asked,
            seen=self._clock(),
        )

    def _write(self, table: _Read, rows: Mapping[str, Row]) -> bool:
        """Make the table hold these rows, less those of runs that were killed long ago."""
        oldest = (datetime.now(UTC) - _DEAD_AFTER).strftime("%Y-%m-%dT%H:%M:%SZ")
        kept = {recipe: row for recipe, row in rows.items() if row.renewed >= oldest}
        document = {"schema": _SCHEMA, "leases": msgspec.to_builtins(kept)}
        return self._objects.move_pointer(
            table.name, canonical_json(document), expected=table.token
        )

    def _start(self) -> None:
        """Renew in the background from now on, if that is not done already."""
        if len(self._held) > 1 and not self._end.is_set():
            return
        self._end.set()
        self._end = threading.Event()
        beat = threading.Thread(target=self._beat, args=(self._end,), daemon=True, name="leases")
        beat.start()

    def _beat(self, end: threading.Event) -> None:
        while not end.wait(self.seconds / _BEATS):
            self.renew()


def _rows(data: bytes) -> Mapping[str, Row]:
    """The rows of a table. One that cannot be read, or is of a later planyard, counts as empty."""
    try:
        table = msgspec.json.decode(data, type=_Table)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return table.leases if table.schema == _SCHEMA else {}


def _limit(row: Row) -> float:
    """After how many seconds without a renewal a row is nobody's."""
    return min(max(row.seconds, 0.0), LONGEST_SECONDS)


def _plain(text: str) -> str:
    """What somebody else wrote, fit to be shown."""
    shown = text[:_TEXT_LIMIT]
    return "".join(letter if letter.isprintable() else "?" for letter in shown)


def _too_busy(objects: Objects, recipe: str) -> StoreError:
    return StoreError(
        f"{objects.url}: the lease of {recipe} could not be taken: others moved its table "
        f"{_TRIES} times",
        mend="try again",
    )
