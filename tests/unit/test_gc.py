"""`store gc`: what is kept and what goes, and that a writer loses nothing whenever it comes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.baselines import Window, read_window, record_run
from engines import index
from engines.channels import moves as channels
from engines.channels.moves import Mover
from engines.conversions import find_conversion, put_conversion
from engines.keeping.gc import GcReport, collect
from engines.keeping.marking import Policy
from engines.loads import loads_of_image, put_load
from engines.store import claims
from engines.store import objects as names
from engines.store.local_store import LocalStore
from engines.store.memory import MemoryObjects
from engines.store.objects import Listed
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.core.results import SmokeVerdict
from smoke.baseline import accepted_run
from tests.interleaved import garbage_and_one_release
from tests.kept_store import (
    DAY_SECONDS,
    FAMILY,
    Release,
    age,
    all_names,
    blobs_of,
    everything_visible_is_whole,
    old_releases,
    overwrite,
    plan_bytes,
    put,
    put_image,
    put_plan,
    put_release,
)
from tests.load_records import a_record
from tests.object_places import MemoryStore
from tests.smoke_runs import report_of, run_of

KEEP_ONE = Policy(snapshots=1, channel_records=1)
MOVER = Mover(by="tests", now="2026-11-21T00:00:00Z")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def is_there(store: ObjectStore, release: Release) -> list[bool]:
    return [store.has_blob(digest) for digest in blobs_of(release)]


# What is kept, and what goes


def test_the_newest_snapshots_are_kept_and_the_others_go(store):
    releases = old_releases(store, 4)
    report = collect(store, Policy(snapshots=2, channel_records=1))
    assert [all(is_there(store, each)) for each in releases] == [False, False, True, True]
    assert [any(is_there(store, each)) for each in releases] == [False, False, True, True]
    assert everything_visible_is_whole(store) == 10
    assert sum(1 for _ in store.keys(index.SNAPSHOTS)) == 2
    assert sum(1 for _ in index.all_plans(store)) == 2
    assert sum(1 for _ in index.all_images(store)) == 2
    assert report.freed["maps"].objects == 2
    assert report.freed["blobs"].objects == 2 * 4
    assert report.freed_bytes == sum(each.size_bytes for each in report.freed.values()) > 0


def test_each_image_name_and_gpu_has_its_own_newest(store):
    old_releases(store, 3)
    other = put_image(store, "other").digest
    age(store.objects, 30 * DAY_SECONDS, only=[names.blob_name(other)])
    collect(store, Policy(snapshots=3))
    assert sum(1 for _ in store.keys(index.SNAPSHOTS)) == 3


def test_packs_that_a_kept_plan_shares_stay(store):
    releases = old_releases(store, 3)
    shared = store.objects_of_blob(releases[0].plan.digest)[0]
    report = collect(store, KEEP_ONE)
    assert shared in set(all_names(store.objects))
    assert b"".join(store.open_blob(releases[2].plan.digest)) == plan_bytes(2)
    assert report.dead_bytes > 0  # the end of plan 0 lies in the pack that all share
    assert report.packs_with_dead_bytes == 1


def test_a_channel_keeps_its_image_plans_and_logs(store):
    releases = old_releases(store, 3)
    channels.promote(store, "stable", releases[0].image.digest, mover=MOVER)
    age(store.objects, 30 * DAY_SECONDS)
    report = collect(store, KEEP_ONE)
    assert [all(is_there(store, each)) for each in releases] == [True, False, True]
    assert report.kept["channel"].objects > 5
    assert everything_visible_is_whole(store) == 10


def test_images_behind_the_history_go_and_their_records_stay(store):
    releases = old_releases(store, 4)
    for release in releases[:3]:
        assert channels.promote(store, "stable", release.image.digest, mover=MOVER).moved
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, Policy(snapshots=1, channel_records=2))
    assert [all(is_there(store, each)) for each in releases] == [False, True, True, True]
    kept = [each for each in all_names(store.objects) if "/promotions/" in each]
    assert len(kept) == 3
    moved = channels.rollback(store, "stable", mover=MOVER)
    assert moved.now
    assert moved.now.image == releases[1].image.digest


def test_the_image_that_compiled_a_kept_plan_is_kept(store):
    builder = put_image(store, "compiler")
    put_release(store, 0, builder=builder.digest)
    put_image(store, "of no use")
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert {each.digest for each in index.all_images(store)} >= {builder.digest}
    assert sum(1 for _ in index.all_images(store)) == 2
    assert store.has_blob(builder.layers[0].digest)


def test_an_older_snapshot_that_decides_about_a_cell_is_kept(store):
    image = put_image(store, "image 0")
    put_release(store, 0, image=image)
    put_release(store, 1, image=image)  # another cell: a build with --select
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert len(index.snapshots_of_image(store, image.digest)) == 2


def test_of_equal_cells_only_the_newest_snapshots_are_kept(store):
    image = put_image(store, "image 7")
    first = put_release(store, 7, image=image)
    again = first.snapshot.__class__(
        **{f: getattr(first.snapshot, f) for f in first.snapshot.__struct_fields__}
        | {"created": "2026-11-21T09:00:00Z"}
    )
    index.put_snapshot(store, again)
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert index.snapshots_of_image(store, image.digest) == (again,)


def test_verdicts_stay_with_their_log_goldens_and_unknown_kinds_always(store):
    releases = old_releases(store, 2)
    key = digest_of_bytes(b"key")
    for release in releases:
        store.put_entry("verdicts", key, canonical_json({**_verdict(release)}))
    tensor, named = put(store, b"a tensor"), put(store, b"of a newer planyard")
    store.put_entry("goldens", key, canonical_json([{"name": "y", "digest": tensor}]))
    store.put_entry("newer", key, f"it names {named}".encode())
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert len(list(store.entries("verdicts", key))) == 1
    assert store.has_blob(tensor)
    assert store.has_blob(named)


def _verdict(release: Release) -> dict[str, str]:
    return {"cell": "c", "verdict": "passed", "log_digest": release.log}


def test_accepted_latencies_stay_and_hold_no_image(store):
    """The image of a baseline may go: what remains of it are times."""
    old, _ = old_releases(store, 2)
    window = Window(
        cell="a/b/c/d/e", machine="m", shapes={}, batches=(), concurrency=(1,), warmup=2
    )
    run = accepted_run(
        run_of(report_of()),
        created=MOVER.now,
        image=old.image.digest,
        served=digest_of_bytes(b"plan"),
    )
    passed = SmokeVerdict(cell=window.cell, verdict="passed", gates={"latency": "passed"})
    assert record_run(store, window, run, verdict=passed)
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert not any(is_there(store, old))
    assert read_window(store, window) == (run,)


def test_a_converted_model_stays_while_it_is_young(store, tmp_path: Path):
    """It can be made again, so nothing else keeps it."""
    (tmp_path / "model.onnx").write_bytes(b"converted")
    key = digest_of_bytes(b"what it was made from")
    put_conversion(store, key, tmp_path, family=FAMILY)
    collect(store, KEEP_ONE)
    assert find_conversion(store, key) is not None
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert find_conversion(store, key) is None


def test_what_is_young_stays_with_all_it_names(store):
    releases = old_releases(store, 3)
    young = [each for each in all_names(store.objects) if "/plans/" in each]
    age(store.objects, -29.9 * DAY_SECONDS, only=young)
    collect(store, KEEP_ONE)
    assert all(store.has_blob(each.plan.digest) for each in releases)
    assert not any(store.has_blob(each.log) for each in releases[:2])
    assert everything_visible_is_whole(store) > 5


def test_garbage_goes_once_it_is_older_than_the_grace_period(store):
    lone = put(store, b"nobody names this")
    policy = Policy(grace_seconds=100.0)
    age(store.objects, 99.0)
    collect(store, policy)
    assert store.has_blob(lone)
    age(store.objects, 2.0)
    collect(store, policy)
    assert not store.has_blob(lone)


def test_an_object_from_the_future_stays(store):
    lone = put(store, b"nobody names this")
    age(store.objects, -DAY_SECONDS)  # the clock was set back
    collect(store, Policy(grace_seconds=0.0))
    assert store.has_blob(lone)


def test_a_dry_run_says_what_a_run_frees_and_touches_nothing(store):
    old_releases(store, 3)
    before = dict(store.objects.held)
    said = collect(store, KEEP_ONE, dry_run=True)
    assert store.objects.held == before
    done = collect(store, KEEP_ONE)
    assert (said.freed, said.freed_bytes) == (done.freed, done.freed_bytes)
    assert sum(map(len, before.values())) - sum(map(len, store.objects.held.values())) == (
        done.freed_bytes
    )
    assert collect(store, KEEP_ONE).freed_bytes == 0


def test_a_store_without_times_is_refused():
    class Timeless(MemoryObjects):
        def listing(self, prefix: str) -> Iterator[Listed]:
            found = super().listing(prefix)
            return (Listed(name=each.name, size_bytes=each.size_bytes) for each in found)

    store = ObjectStore(Timeless())
    put(store, b"nobody names this")
    before = dict(store.objects.held)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="how old its objects are"):
        collect(store, Policy(grace_seconds=0.0))
    assert store.objects.held == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("area", ["index/snapshots/", "index/promotions/", "maps/", "blobs/"])
def test_with_a_damaged_root_nothing_is_collected(store, area):
    releases = old_releases(store, 2)
    channels.promote(store, "stable", releases[0].image.digest, mover=MOVER)
    wanted = releases[0].image.digest[7:] if area == "blobs/" else ""
    name = next(
        each for each in all_names(store.objects) if each.startswith(area) and wanted in each
    )
    store.objects.held[name] = b"{}" + store.objects.held[name][2:]
    before = dict(store.objects.held)
    with pytest.raises(IntegrityError):
        collect(store, KEEP_ONE)
    assert store.objects.held == before


def test_temporary_files_and_layouts_of_lost_images_go(tmp_path):
    store = LocalStore(tmp_path / "store")
    releases = old_releases(store, 2)
    folders = [store.publish_image_layout(each.image.digest) for each in releases]
    left = store.root / "blobs/sha256" / f".{'0' * 16}.abcdefgh"
    left.write_bytes(b"half")
    age(store.objects, 0)
    os.utime(left, (0, 0))
    report = collect(store, KEEP_ONE)
    assert (report.temporary_files, report.image_layouts) == (1, 1)
    assert [folder.is_dir() for folder in folders] == [False, True]
    assert (folders[1] / "blobs/sha256").is_dir()


# Interrupted


class KilledError(Exception):
    """The end of a collection that was killed."""


@pytest.mark.parametrize("after", range(0, 21, 2))
def test_a_killed_collection_leaves_a_whole_store_and_the_next_one_ends_it(after):
    class Dying(MemoryObjects):
        left = 1_000

        def remove(self, name: str) -> None:
            if not self.left:
                raise KilledError
            self.left -= 1
            super().remove(name)

    objects = Dying()
    store = ObjectStore(objects)
    old_releases(store, 3)
    objects.left = after
    try:
        collect(store, KEEP_ONE)
    except KilledError:
        pass
    else:
        pytest.fail("there was less to remove")
    objects.left = 1_000
    for name in [each for each in objects.held if f"/{claims.SWEEPS}/" in each]:
        objects.remove(name)  # its notice: who waits long enough does that
    everything_visible_is_whole(store)
    collect(store, KEEP_ONE)
    assert everything_visible_is_whole(store) == 5
    assert [each for each in objects.held if "/snapshots/" in each]
    assert collect(store, KEEP_ONE).freed_bytes == 0


# Beside a writer; every interleaving is in tests/integration/test_gc_processes.py


def a_collection(store: ObjectStore) -> GcReport:
    return collect(store, KEEP_ONE)


def test_a_put_that_began_before_a_collection_keeps_the_packs_it_found():
    """The classic race: packs are found, collected, and only then named by a map."""
    objects, store = garbage_and_one_release()
    shared = set(store.objects_of_blob(digest_of_bytes(plan_bytes(0))))
    objects.before(
        lambda _, operation, name: operation == "write" and name.startswith("maps/"),
        lambda: collect(store, Policy(snapshots=1, grace_seconds=60.0)),
    )
    put_plan(store, 9)
    assert shared & set(objects.held)
    assert b"".join(store.open_blob(digest_of_bytes(plan_bytes(9)))) == plan_bytes(9)


def test_a_claim_holds_a_grace_period_and_no_longer(store):
    old_releases(store, 2)
    plan = digest_of_bytes(plan_bytes(0))
    store.claim((plan, FAMILY))
    collect(store, KEEP_ONE)
    assert store.has_blob(plan)
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert not store.has_blob(plan)
    assert not [each for each in all_names(store.objects) if "/claims/" in each]


def test_the_notice_is_there_while_objects_go_and_gone_afterwards():
    objects, store = garbage_and_one_release()
    seen: list[bool] = []

    def look() -> None:
        seen.append(any(f"/{claims.SWEEPS}/" in name for name in objects.held))

    objects.before(lambda _, operation, __: operation == "remove", look)
    a_collection(store)
    assert seen == [True]
    assert not any(f"/{claims.SWEEPS}/" in name for name in objects.held)
    removed = [
        name.split("/")[0] for operation, name in objects.operations if operation == "remove"
    ]
    order = ["index", "maps", "blobs", "packs"]
    assert removed[:-1] == sorted(removed[:-1], key=order.index)


def test_who_waits_takes_down_the_notice_of_a_killed_collection(store, monkeypatch):
    claims.Notice(store.objects).renew()
    now = [0.0]
    monkeypatch.setattr(claims, "_elapsed_seconds", lambda: now[0])
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += 50.0

    monkeypatch.setattr(claims, "_pause", pause)
    assert claims.wait_for_sweeps(store.objects)
    assert len(pauses) >= claims.LEASE_SECONDS / 50.0
    assert not claims.wait_for_sweeps(store.objects)


def test_a_collection_that_was_held_up_removes_nothing_more(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(claims, "_elapsed_seconds", lambda: now[0])
    notice = claims.Notice(store.objects)
    notice.renew()
    first = list(store.objects.held)
    now[0] += claims.LEASE_SECONDS / 2 - 1
    notice.renew()
    assert len(store.objects.held) == 1  # renewed: who waits sees that it is meant
    assert list(store.objects.held) != first
    now[0] += claims.LEASE_SECONDS / 2 + 1
    with pytest.raises(StoreError, match="held up"):
        notice.renew()


def test_damage_in_a_map_of_garbage_stops_nothing_else(tmp_path: Path):
    """Maps that nothing leads to are not read."""
    store = LocalStore(tmp_path / "store")
    old_releases(store, 2)
    doomed = next(store.maps_of(digest_of_bytes(plan_bytes(0)))).name
    overwrite(store.root / doomed, b"not a map")
    age(store.objects, 30 * DAY_SECONDS, only=[doomed])
    collect(store, KEEP_ONE)
    assert doomed not in set(all_names(store.objects))


def test_load_records_go_with_their_image_and_keep_none(store: MemoryStore) -> None:
    old, new = (put_release(store, number) for number in (1, 2))
    for release in (old, new):
        put_load(store, a_record(image=release.image.digest))
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert (is_there(store, old), is_there(store, new)) == ([False] * 5, [True] * 5)
    assert loads_of_image(store, old.image.digest) == ()
    assert len(loads_of_image(store, new.image.digest)) == 1
