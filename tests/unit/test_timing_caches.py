"""Timing caches in a store: nothing is lost by builds at one moment, and gc knows what is of use.

Plans come with what the inspector says of them and the cache they were built with: kept, copied,
checked and pulled with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from engines import index
from engines.keeping.checking import check_store
from engines.keeping.copying import copy_images
from engines.keeping.gc import collect
from engines.keeping.marking import Policy
from engines.lookup import lookup, pull
from engines.store.fsck import Slice
from engines.store.local_store import LocalStore
from engines.store.mirrored import MirroredStore
from engines.store.store import ObjectStore
from engines.timing_caches import (
    COMBINED_AT_ONCE,
    TIMINGS,
    TimingKey,
    find_timings,
    key_of_timings,
    put_timings,
)
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.core.results import PlanRecord
from tests.kept_store import (
    DAY_SECONDS,
    Release,
    age,
    put,
    put_image,
    put_release,
    record_of_plan,
)
from tests.object_places import MemoryStore

KEY = TimingKey(gpu="NVIDIA H200", driver="580.95.05", version="11.2.1.2")
KEEP_ONE = Policy(snapshots=1, channel_records=1)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def keep(store: ObjectStore, folder: Path, data: bytes, *combines: bytes) -> str:
    """A build that measured, and says which caches it started from."""
    path = folder / "timing.cache"
    path.write_bytes(data)
    digest = digest_of_bytes(data)
    put_timings(store, KEY, path, digest=digest, combines=map(digest_of_bytes, combines))
    return digest


def live(store: ObjectStore) -> set[str]:
    return {record.digest for record in find_timings(store, KEY)}


def test_nothing_is_found_where_nothing_was_kept(store: MemoryStore, tmp_path: Path) -> None:
    keep(store, tmp_path, b"a")
    for other in ({"gpu": "NVIDIA L4"}, {"driver": "580.1"}, {"version": "11.2.1.3"}):
        assert find_timings(store, msgspec.structs.replace(KEY, **other)) == ()


def test_two_builds_at_one_moment_lose_nothing(store: MemoryStore, tmp_path: Path) -> None:
    first = keep(store, tmp_path, b"first")
    assert live(store) == {first}
    one = keep(store, tmp_path, b"first and one", b"first")
    two = keep(store, tmp_path, b"first and two", b"first")
    assert live(store) == {one, two}
    whole = keep(store, tmp_path, b"all", b"first and one", b"first and two")
    assert live(store) == {whole}


def test_a_cache_that_gave_nothing_new_is_the_one_it_came_from(
    store: MemoryStore, tmp_path: Path
) -> None:
    """And no two caches are ever in each other: then neither would be found."""
    first = keep(store, tmp_path, b"first")
    assert keep(store, tmp_path, b"first", b"first") == first
    second = keep(store, tmp_path, b"second", b"first")
    keep(store, tmp_path, b"first", b"second")
    assert live(store) == {second}
    assert len(list(store.entries(TIMINGS, key_of_timings(KEY)))) == 2


def test_a_cache_whose_successor_is_gone_is_found_again(store: MemoryStore, tmp_path: Path) -> None:
    first = keep(store, tmp_path, b"first")
    second = keep(store, tmp_path, b"second", b"first")
    for name in store.objects_of_blob(second):
        store.objects.remove(name)
    assert live(store) == {first}


def test_one_build_is_given_no_more_than_it_can_combine(store: MemoryStore, tmp_path: Path) -> None:
    kept = [keep(store, tmp_path, b"%d" % number) for number in range(COMBINED_AT_ONCE + 3)]
    given = [record.digest for record in find_timings(store, KEY)]
    assert given == sorted(kept)[:COMBINED_AT_ONCE]
    keep(store, tmp_path, b"all", *[b"%d" % each for each in range(COMBINED_AT_ONCE + 3)])
    assert len(live(store)) == 1


def test_a_build_elsewhere_starts_from_what_this_one_shared(tmp_path: Path) -> None:
    far = MemoryStore()
    here, there = (MirroredStore(near=LocalStore(tmp_path / each), far=far) for each in "ab")
    (tmp_path / "timing.cache").write_bytes(b"measured here")
    digest = digest_of_bytes(b"measured here")
    put_timings(here, KEY, tmp_path / "timing.cache", digest=digest, combines=())
    [record] = find_timings(there, KEY)
    there.fetch_blob(record.digest, tmp_path / "brought")
    assert (tmp_path / "brought").read_bytes() == b"measured here"
    assert record.size_bytes == len(b"measured here")


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b"not json",
        canonical_json({"made_for": msgspec.to_builtins(KEY), "digest": "x", "size_bytes": 1}),
    ],
)
def test_an_entry_that_is_none_is_damage(store: MemoryStore, document: bytes) -> None:
    store.put_entry(TIMINGS, key_of_timings(KEY), document)
    with pytest.raises(IntegrityError, match="in the index of timings"):
        find_timings(store, KEY)


def test_a_cache_under_another_key_is_damage(store: MemoryStore, tmp_path: Path) -> None:
    keep(store, tmp_path, b"a")
    [document] = store.entries(TIMINGS, key_of_timings(KEY))
    other = msgspec.structs.replace(KEY, driver="570.1")
    store.put_entry(TIMINGS, key_of_timings(other), document)
    with pytest.raises(IntegrityError, match="not under its own"):
        find_timings(store, other)
    problems = check_store(store, part=Slice()).problems
    assert any("lies under another key" in each.problem for each in problems)


def classic_release(store: ObjectStore, folder: Path, number: int) -> Release:
    """A release whose plan has an inspector's text and a timing cache."""
    release = put_release(store, number)
    inspector = put(store, json.dumps({"Layers": [f"layer {number}"]}).encode())
    cache = keep(store, folder, b"cache %d" % number, b"cache %d" % (number - 1))
    plan = msgspec.structs.replace(release.plan, inspector=inspector, timing_cache=cache)
    index.put_plan(store, plan)
    snapshot = msgspec.structs.replace(
        release.snapshot, plans=(plan,), created=release.snapshot.created.replace("11-21", "11-22")
    )
    index.put_snapshot(store, snapshot)
    return Release(release.image, plan, release.log, snapshot)


def beside(plan: PlanRecord) -> tuple[str, str]:
    return plan.inspector, plan.timing_cache


def test_a_plan_is_entered_after_all_that_belongs_to_it(store: MemoryStore) -> None:
    release = put_release(store, 1)
    for lacking in ({"inspector": "sha256:" + "0" * 64}, {"timing_cache": "sha256:" + "0" * 64}):
        plan = msgspec.structs.replace(release.plan, **lacking)
        with pytest.raises(StoreError, match="was not entered"):
            index.put_plan(store, plan)


def test_a_plan_without_its_own_is_no_hit_and_its_loss_is_damage(
    store: MemoryStore, tmp_path: Path
) -> None:
    release = put_release(store, 1)
    inspector = put(store, b"text")
    plan = msgspec.structs.replace(
        record_of_plan(1), inspector=inspector, recipe=release.plan.recipe
    )
    index.put_plan(store, plan)
    assert plan in index.plans_of_recipe(store, plan.recipe)
    for name in store.objects_of_blob(inspector):
        store.objects.remove(name)
    assert plan not in index.plans_of_recipe(store, plan.recipe)
    problems = check_store(store, part=Slice()).problems
    assert any(inspector in each.blobs for each in problems)


def test_gc_keeps_what_belongs_to_kept_plans_and_the_entry_of_their_cache(
    store: MemoryStore, tmp_path: Path
) -> None:
    old, new = (classic_release(store, tmp_path, number) for number in (1, 2))
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert [store.has_blob(each) for each in (new.plan.digest, *beside(new.plan))] == [True] * 3
    assert [store.has_blob(each) for each in (old.plan.digest, *beside(old.plan))] == [False] * 3
    assert live(store) == {new.plan.timing_cache}
    assert len(list(store.entries(TIMINGS, key_of_timings(KEY)))) == 1
    assert check_store(store, part=Slice()).is_sound


def test_gc_leaves_young_caches_and_removes_old_ones_of_no_plan(
    store: MemoryStore, tmp_path: Path
) -> None:
    put_image(store, "image")
    keep(store, tmp_path, b"cache")
    collect(store, KEEP_ONE)
    assert len(live(store)) == 1
    age(store.objects, 30 * DAY_SECONDS)
    collect(store, KEEP_ONE)
    assert live(store) == set()
    assert list(store.entries(TIMINGS, key_of_timings(KEY))) == []


def test_a_copy_brings_what_belongs_to_a_plan(store: MemoryStore, tmp_path: Path) -> None:
    release = classic_release(store, tmp_path, 1)
    target = MemoryStore()
    assert copy_images(store, target).left_out == ()
    assert all(target.has_blob(each) for each in beside(release.plan))
    assert check_store(target, part=Slice()).is_sound
    [plan] = [
        each
        for each in index.plans_of_recipe(target, release.plan.recipe)
        if each.inspector == release.plan.inspector
    ]
    assert plan.timing_cache == release.plan.timing_cache


def test_a_pull_writes_the_inspectors_words_beside_the_plan(
    store: MemoryStore, tmp_path: Path
) -> None:
    release = classic_release(store, tmp_path, 1)
    folder = tmp_path / "pulled"
    result = lookup(store, release.image.digest)
    names = {path.name for path in pull(store, result, folder)}
    assert names == {
        "unet-1-fp16-sm89.plan",
        "unet-1-fp16-sm89.inspector.json",
        "snapshot.json",
    }
    text = (folder / "unet-1-fp16-sm89.inspector.json").read_bytes()
    assert digest_of_bytes(text) == release.plan.inspector
    (folder / "unet-1-fp16-sm89.inspector.json").write_bytes(b"changed")
    pull(store, result, folder)
    assert (folder / "unet-1-fp16-sm89.inspector.json").read_bytes() == text


def test_a_plan_is_pulled_without_words_that_are_gone(store: MemoryStore, tmp_path: Path) -> None:
    release = classic_release(store, tmp_path, 1)
    for name in store.objects_of_blob(release.plan.inspector):
        store.objects.remove(name)
    names = {path.name for path in pull(store, lookup(store, release.image.digest), tmp_path / "p")}
    assert names == {"unet-1-fp16-sm89.plan", "snapshot.json"}
