"""`store gc` beside writers: every interleaving of one with the other, and real processes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import index
from engines.keeping.gc import collect
from engines.keeping.marking import Policy
from engines.store import claims
from engines.store import objects as names
from engines.store.local_store import LocalStore
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import LookupMissError, StoreError
from planyard.edge import proc
from tests.interleaved import Interleaved, garbage_and_one_release
from tests.kept_store import (
    DAY_SECONDS,
    FAMILY,
    age,
    everything_visible_is_whole,
    plan_bytes,
    put_release,
    record_of_plan,
    snapshot_of,
)

REPOSITORY = Path(__file__).resolve().parents[2]
KEEP_ONE = Policy(snapshots=1, channel_records=1)
KEY = digest_of_bytes(b"key")
VERDICT = canonical_json({"cell": "c", "verdict": "passed"})
KIN = plan_bytes(1) + b"kin" * 30_000
"""A plan that shares the end of plan 1, whose pack nobody else needs any more."""


def a_store() -> tuple[Interleaved, ObjectStore]:
    """Releases 0 and 1 are old garbage, 2 is kept; so is an old verdict without a log."""
    objects, store = garbage_and_one_release()
    store.put_entry("verdicts", KEY, VERDICT)
    verdict = names.entry_name("verdicts", KEY, digest_of_bytes(VERDICT))
    age(objects, 30 * DAY_SECONDS, only=[verdict])
    return objects, store


# What a writer may do with garbage, each with what must hold afterwards.


def build_again(store: ObjectStore) -> None:
    put_release(store, 1)


def built_again(store: ObjectStore) -> bool:
    return sum(1 for _ in index.all_plans(store)) == 2


def put_kin(store: ObjectStore) -> None:
    store.put_blob(digest_of_bytes(KIN), [KIN], family=FAMILY)
    index.put_plan(store, record_of_plan(9, KIN))


def has_kin(store: ObjectStore) -> bool:
    return b"".join(store.open_blob(digest_of_bytes(KIN))) == KIN


def put_verdict(store: ObjectStore) -> None:
    store.put_entry("verdicts", KEY, VERDICT)


def has_verdict(store: ObjectStore) -> bool:
    return list(store.entries("verdicts", KEY)) == [VERDICT]


def enter_what_is_there(store: ObjectStore) -> None:
    """A build that found plan 1, and enters it again; it may be told that it is gone."""
    try:
        index.put_plan(store, record_of_plan(1))
        index.put_snapshot(store, snapshot_of(store, 1))
    except (StoreError, LookupMissError):
        return


def anything(_: ObjectStore) -> bool:
    return True


WRITERS: dict[str, tuple[Callable[[ObjectStore], None], Callable[[ObjectStore], bool]]] = {
    "build": (build_again, built_again),
    "kin": (put_kin, has_kin),
    "verdict": (put_verdict, has_verdict),
    "found": (enter_what_is_there, anything),
}


def a_collection(store: ObjectStore) -> None:
    collect(store, KEEP_ONE)


def operations_of(action: Callable[[ObjectStore], None]) -> int:
    objects, store = a_store()
    objects.operations.clear()
    action(store)
    return len(objects.operations)


class Writer(threading.Thread):
    """A writer that says when it has ended, or waits for a collection."""

    def __init__(
        self,
        store: ObjectStore,
        write: Callable[[ObjectStore], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        super().__init__()
        self._store, self._write = store, write
        self._stopped, self._go_on = threading.Event(), threading.Event()
        self.waited = False
        self.failed: Exception | None = None
        monkeypatch.setattr(claims, "_pause", self._pause)

    def run(self) -> None:
        try:
            self._write(self._store)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failed = error
        finally:
            self._stopped.set()

    def _pause(self, _: float) -> None:
        self.waited = True
        self._stopped.set()
        assert self._go_on.wait(60)

    def run_as_far_as_it_can(self) -> None:
        self.start()
        assert self._stopped.wait(60)

    def end(self) -> None:
        self._go_on.set()
        self.join(60)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_collection_at_any_moment_of_a_writer(writer: str) -> None:
    write, holds = WRITERS[writer]
    moments = operations_of(write)
    for moment in range(moments):
        objects, store = a_store()
        objects.at(moment, functools.partial(a_collection, store))
        write(store)
        everything_visible_is_whole(store)
        collect(store, Policy(snapshots=3))
        everything_visible_is_whole(store)
        assert holds(store), moment
    assert moments > 1
    print(f"{writer}: {moments} moments")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_at_any_moment_of_a_collection(
    writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, holds = WRITERS[writer]
    moments, waited = operations_of(a_collection), 0
    for moment in range(moments):
        objects, store = a_store()
        thread = Writer(store, write, monkeypatch)
        objects.at(moment, thread.run_as_far_as_it_can)
        a_collection(store)
        thread.end()
        assert thread.failed is None, moment
        waited += thread.waited
        everything_visible_is_whole(store)
        collect(store, Policy(snapshots=3))
        everything_visible_is_whole(store)
        assert holds(store), moment
    assert 0 < waited < moments
    print(f"{writer}: {moments} moments, waited in {waited}")


def test_a_writer_that_began_before_a_collection_and_ends_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writer as far as one moment, the collection as far as another, then both to the end."""
    cases = 0
    for begun in range(operations_of(put_kin)):
        for moment in range(1, operations_of(a_collection), 4):
            objects, store = a_store()
            collection = Collection(store, objects, moment)
            monkeypatch.setattr(claims, "_pause", lambda _, each=collection: each.end())
            objects.at(begun, collection.run_as_far_as_its_moment)
            put_kin(store)
            collection.end()
            assert collection.failed is None, (begun, moment)
            everything_visible_is_whole(store)
            assert has_kin(store), (begun, moment)
            cases += 1
    print(f"{cases} interleavings")
    assert cases > 300


class Collection(threading.Thread):
    """A collection that stops before one of its operations, until `end`."""

    def __init__(self, store: ObjectStore, objects: Interleaved, moment: int) -> None:
        super().__init__()
        self._store, self._objects, self._moment = store, objects, moment
        self._stopped, self._go_on = threading.Event(), threading.Event()
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            a_collection(self._store)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failed = error
        finally:
            self._stopped.set()

    def _stop(self) -> None:
        if threading.current_thread() is not self:
            # A thread of the writer's came to this number; it must not wait for its own writer.
            self._objects.before(lambda *_: threading.current_thread() is self, self._stop)
            return
        self._stopped.set()
        assert self._go_on.wait(60)

    def run_as_far_as_its_moment(self) -> None:
        self._objects.at(self._moment, self._stop)
        self.start()
        assert self._stopped.wait(60)

    def end(self) -> None:
        self._go_on.set()
        self.join(60)


def test_a_claim_is_in_force_once_it_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose old copy a collection is removing just then."""
    plan = digest_of_bytes(plan_bytes(1))
    for moment in range(operations_of(a_collection)):
        objects, store = a_store()
        thread = Writer(store, lambda store: store.claim((plan, FAMILY)), monkeypatch)
        objects.at(moment, thread.run_as_far_as_it_can)
        a_collection(store)
        thread.end()
        before = store.has_blob(plan)
        a_collection(store)
        assert store.has_blob(plan) == before, moment
        assert any("/claims/" in name for name in objects.held), moment


# Processes

WRITER = """
import sys, time
from pathlib import Path
from engines.store.local_store import LocalStore
from tests.kept_store import put_release

store, writer, began = LocalStore(Path(sys.argv[1])), int(sys.argv[2]), time.monotonic()
rounds = 0
while (now := time.monotonic() - began) < 18:
    half = int(now + writer / 2) // 5 % 2  # the other half is left alone, and becomes garbage
    put_release(store, half * 7 + (rounds + writer) % 7)
    rounds += 1
    print(rounds, flush=True)
"""

COLLECTOR = """
import sys
from pathlib import Path
from engines.keeping.gc import collect
from engines.keeping.marking import Policy
from engines.store.local_store import LocalStore

store, freed = LocalStore(Path(sys.argv[1])), 0
while not Path(sys.argv[2]).exists():
    freed += collect(store, Policy(snapshots=2, grace_seconds=3.0)).freed_bytes
    print(freed, flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    args = [sys.executable, "-c", script, *map(str, arguments)]
    return proc.start(args, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def test_six_writers_beside_a_collector(tmp_path: Path) -> None:
    root, done = tmp_path / "store", tmp_path / "done"
    writers = [start(WRITER, root, number) for number in range(6)]
    collector = start(COLLECTOR, root, done)
    said = [writer.communicate(timeout=300)[0].decode() for writer in writers]
    done.touch()
    freed = collector.communicate(timeout=300)[0].decode().split()
    assert [writer.returncode for writer in writers] == [0] * 6, said
    assert collector.returncode == 0, freed
    store = LocalStore(root)
    blobs = everything_visible_is_whole(store)
    rounds = sum(len(each.split()) for each in said)
    print(f"{rounds} releases, {len(freed)} collections, {freed[-1]} bytes freed, {blobs} blobs")
    assert rounds > 12
    assert len(freed) > 2
    assert int(freed[-1]) > 1_000_000  # packs too: of what nobody names any more
    time.sleep(3.1)
    collect(store, Policy(snapshots=2, grace_seconds=3.0))
    assert everything_visible_is_whole(store) == 2 * 5
