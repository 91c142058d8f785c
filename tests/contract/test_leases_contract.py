"""Leases over every place that has compare-and-swap, and what the others say."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from engines.keeping.checking import check_store
from engines.keeping.gc import collect
from engines.keeping.marking import Policy
from engines.store.fsck import Slice
from engines.store.leases import Leases
from engines.store.objects import NoCompareAndSwapError, Objects
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from tests.object_places import ObjectPlace

RECIPES = [digest_of_bytes(b"recipe %d" % number) for number in range(4)]
RUNS = 16


@pytest.fixture
def leasing(place: ObjectPlace) -> Objects:
    if not place.has_compare_and_swap:
        pytest.skip("this place has no compare-and-swap, and says so: see below")
    return place.objects


def rows(objects: Objects, recipe: str) -> dict[str, object]:
    pointer = objects.pointer(f"leases/{recipe[7:9]}")
    found: dict[str, object] = msgspec.json.decode(pointer.data)["leases"] if pointer else {}
    return found


def test_between_two_who_opened_the_place(leasing: Objects, place: ObjectPlace) -> None:
    a, b = Leases(leasing, by="run 1"), Leases(place.again(), by="run 2")
    recipe = RECIPES[0]
    assert b.holder(recipe) is None
    assert a.take(recipe, what="image x") is None
    found = b.take(recipe, what="image x")
    assert found is not None
    assert found.by == "run 1"
    assert b.take(RECIPES[1], what="image y") is None
    a.renew()
    assert b.take(recipe, what="image x") is not None
    a.release([recipe])
    assert b.take(recipe, what="image x") is None
    b.release(RECIPES)
    assert rows(leasing, recipe) == rows(leasing, RECIPES[1]) == {}


def test_a_holder_that_is_silent_is_followed(leasing: Objects, place: ObjectPlace) -> None:
    now = 0.0
    dead = Leases(leasing, by="dead")
    b = Leases(place.again(), by="b", clock=lambda: now)
    assert dead.take(RECIPES[0], what="image x") is None
    assert b.take(RECIPES[0], what="image x") is not None
    now += 120
    assert b.take(RECIPES[0], what="image x") is None
    dead.renew()
    assert dead.held == frozenset()
    b.release(RECIPES)


def test_of_many_at_once_one_has_it(leasing: Objects, place: ObjectPlace) -> None:
    opened = [leasing, place.again()]
    runs = [Leases(opened[number % 2], by=f"run {number}") for number in range(RUNS)]
    for recipe in RECIPES:
        gate = threading.Barrier(RUNS)

        def attempt(run: Leases, recipe: str = recipe, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return run.take(recipe, what="image x") is None

        with ThreadPoolExecutor(RUNS) as pool:
            assert sum(pool.map(attempt, runs)) == 1
        assert len(rows(leasing, recipe)) >= 1
    for run in runs:
        run.release(RECIPES)
    assert [rows(leasing, recipe) for recipe in RECIPES] == [{}] * len(RECIPES)


def test_nobody_takes_them_for_channels_or_objects(leasing: Objects, place: ObjectPlace) -> None:
    run, store = Leases(leasing, by="run 1"), ObjectStore(place.again())
    assert run.take(RECIPES[0], what="image x") is None
    assert list(store.objects.pointers()) == []
    areas = ("index/", "maps/", "packs/", "blobs/sha256/")
    assert [each for area in areas for each in store.objects.listing(area)] == []
    report = check_store(store, part=Slice())
    assert report.problems == ()
    assert collect(store, Policy()).freed_bytes == 0
    assert set(rows(leasing, RECIPES[0])) == {RECIPES[0]}
    run.release(RECIPES)


def test_a_place_without_compare_and_swap_says_so(place: ObjectPlace) -> None:
    if place.has_compare_and_swap:
        pytest.skip("this place has it")
    run = Leases(place.objects, by="run 1")
    with pytest.raises(NoCompareAndSwapError):
        run.take(RECIPES[0], what="image x")
    assert run.held == frozenset()
    with pytest.raises(NoCompareAndSwapError):
        place.objects.move_pointer("leases/00", b"x", expected=None)
    assert list(place.objects.pointers()) == []
