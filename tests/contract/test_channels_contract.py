"""Channels over every place that has compare-and-swap, and what the others say."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engines.channels.history import PROMOTIONS, history, read_head
from engines.channels.moves import Move, promote
from engines.channels.record import key_of_channel
from engines.store.store import ObjectStore
from planyard.core.errors import IntegrityError, StoreError
from tests.channel_sites import ANN, CHANNEL, Gathered, backwards, images, moved, small_image
from tests.object_places import ObjectPlace

WRITERS = 64
ROUNDS = 2


@pytest.fixture
def store(place: ObjectPlace) -> ObjectStore:
    if not place.has_compare_and_swap:
        pytest.skip("this place has no compare-and-swap, and says so: see below")
    return ObjectStore(place.objects)


def chain(store: ObjectStore) -> list[str]:
    head = read_head(store, CHANNEL)
    return [state.entry for state in history(store, head.state)] if head else []


def test_forth_and_back(store: ObjectStore, place: ObjectPlace) -> None:
    a, b, c = images(store, 3)
    made = [move.now.entry for move in moved(store, a, b, c) if move.now]
    again = ObjectStore(place.again())
    assert backwards(again).now.image == b  # type: ignore[union-attr]
    assert backwards(store).now.image == a  # type: ignore[union-attr]
    assert backwards(again, to=c).now.version == 6  # type: ignore[union-attr]
    assert chain(store)[3:] == made[::-1]
    assert list(again.objects.pointers()) == [CHANNEL]


def test_a_place_without_compare_and_swap_says_so(place: ObjectPlace) -> None:
    if place.has_compare_and_swap:
        pytest.skip("this place has it")
    store = ObjectStore(place.objects)
    image, _ = small_image(store, "rtx", plan=b"a plan")
    with pytest.raises(StoreError) as raised:
        promote(store, CHANNEL, image.digest, mover=ANN)
    assert raised.value.mend
    assert CHANNEL in raised.value.message
    assert read_head(store, CHANNEL) is None


def test_of_64_promotions_at_once_one_wins_and_nothing_is_lost(
    store: ObjectStore, place: ObjectPlace
) -> None:
    """All have read the pointer before any moves it, each round anew; every other round back."""
    targets = images(store, 2)
    opened = [store.objects, place.again()]
    won: list[str] = []
    for number in range(ROUNDS):
        barrier = threading.Barrier(WRITERS)

        def attempt(
            writer: int, target: str = targets[number % 2], meeting: threading.Barrier = barrier
        ) -> Move | None:
            own = ObjectStore(Gathered(opened[writer % 2], meeting))  # type: ignore[arg-type]
            with contextlib.suppress(StoreError):
                return promote(own, CHANNEL, target, mover=ANN)
            return None

        with ThreadPoolExecutor(WRITERS) as pool:
            moves = [move for move in pool.map(attempt, range(WRITERS)) if move]
        assert [move.moved for move in moves] == [True]
        won += [move.now.entry for move in moves if move.now]
    assert chain(ObjectStore(place.again())) == won[::-1]
    assert len(list(store.entries(PROMOTIONS, key_of_channel(CHANNEL)))) == WRITERS * ROUNDS


def test_writers_who_look_again_all_get_their_turn(store: ObjectStore) -> None:
    """No round of their own: whoever loses looks and tries again, as the error says."""
    targets = images(store, 8)
    won: list[str] = []

    def work(writer: int) -> None:
        for number in range(2):
            while True:
                with contextlib.suppress(StoreError):
                    move = promote(store, CHANNEL, targets[(writer + number) % 8], mover=ANN)
                    if move.moved and move.now:
                        won.append(move.now.entry)
                    break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(won) >= 8
    assert sorted(chain(store)) == sorted(won)
    head = read_head(store, CHANNEL)
    assert head is not None
    assert head.state.version == len(won)


def test_a_damaged_record_is_never_believed(store: ObjectStore, place: ObjectPlace) -> None:
    moved(store, *images(store, 2))
    entry = chain(store)[0]
    name = f"index/{PROMOTIONS}/{key_of_channel(CHANNEL)[7:]}/{entry[7:]}"
    data = b"".join(store.objects.read(name))
    place.damage(name, data.replace(b"ann@desk", b"bob@desk"))
    with pytest.raises(IntegrityError):
        read_head(ObjectStore(place.again()), CHANNEL)
