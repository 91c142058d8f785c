"""Damage to any byte of a store: what belongs to it is refused when it is read, never served.

One part of a store is not read with a plan: the header of a pack, which only tells writers what
the pack holds. Damage there costs room, because chunks are stored again; it never changes a byte
that is served, and the pack's own digest shows it to `store fsck`.

A usual run flips a bit in every third byte of an object and at its ends, `--full-sweep` in each.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyfastcdc import FastCDC

from engines import index
from engines.store import chunking, packs
from engines.store import objects as names
from engines.store.claims import CLAIMS
from engines.store.local_store import LocalStore
from engines.store.mending import is_damaged
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, PlanyardError
from tests import sampling
from tests.store_states import FAMILY, record_of

_RANDOM = random.Random(4)
PLAN = _RANDOM.randbytes(1800)
OTHER_PLAN = PLAN[:1100] + _RANDOM.randbytes(700)
LOG = b"what a smoke run said\n" * 12


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """Two plans that share chunks, cut so fine that each has several packs, and a whole blob."""
    cutter = FastCDC(256, min_size=64, max_size=1024, normalized_chunking=1)
    monkeypatch.setattr(chunking, "_FASTCDC", cutter)
    monkeypatch.setattr(packs, "PACK_BYTES", 600)
    made = LocalStore(tmp_path / "store")
    for number, plan in enumerate((PLAN, OTHER_PLAN)):
        made.put_blob(digest_of_bytes(plan), [plan], family=FAMILY)
        index.put_plan(made, record_of(plan, cell=f"cell {number}"))
    made.put_blob(digest_of_bytes(LOG), [LOG])
    made.put_entry("logs", digest_of_bytes(b"a key"), digest_of_bytes(LOG).encode())
    assert len(objects_of(made)) >= 10
    return made


def objects_of(store: LocalStore) -> list[str]:
    """All but claims, which only a collection reads."""
    listed = [each.name for area in names.AREAS for each in store.objects.listing(area)]
    return [name for name in listed if not name.startswith(f"{names.INDEX}{CLAIMS}/")]


def read_all(store: LocalStore) -> None:
    """What a reader does: every plan, log and entry. Wrong bytes are an AssertionError."""
    for data in (PLAN, OTHER_PLAN, LOG):
        assert b"".join(store.open_blob(digest_of_bytes(data))) == data
    numbered = enumerate((PLAN, OTHER_PLAN))
    recipes = {record_of(plan, cell=f"cell {number}").recipe for number, plan in numbered}
    assert set(store.keys(index.PLANS)) == recipes
    for recipe in recipes:
        assert len(index.plans_of_recipe(store, recipe)) == 1
    assert list(store.entries("logs", digest_of_bytes(b"a key"))) == [digest_of_bytes(LOG).encode()]


def is_refused(store: LocalStore) -> bool:
    """Whether a reader is told; wrong bytes would end the test."""
    try:
        read_all(store)
    except IntegrityError:
        return True
    return False


def header_end(data: bytes) -> int:
    return packs.header_bytes(data, where="a pack")


@pytest.fixture
def changed(store: LocalStore) -> Callable[[str, bytes], bool]:
    """Whether readers are told when an object holds other bytes; the right ones come back."""

    def change(name: str, data: bytes) -> bool:
        path = store.root / name
        right = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(data)
        try:
            assert is_damaged(store.objects, name)
            return is_refused(store)
        finally:
            path.write_bytes(right)

    return change


def flips_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each byte with one bit flipped, another bit each time."""
    for at in range(len(data)):
        yield at, data[:at] + bytes([data[at] ^ 1 << (at * 5 + 3) % 8]) + data[at + 1 :]


def flips_tried(data: bytes, *, header_bytes: int = 0) -> list[tuple[int, bytes]]:
    """Of a header, and of what follows it, the first byte, the last and some between."""
    return sampling.tried(flips_of(data), one_in=3, kind=lambda flip: flip[0] < header_bytes)


def test_a_flipped_bit_is_refused_wherever_it_is(
    store: LocalStore, changed: Callable[[str, bytes], bool]
) -> None:
    read_all(store)
    flipped = in_headers = 0
    for name in objects_of(store):
        data = (store.root / name).read_bytes()
        silent = header_end(data) if name.startswith(names.PACKS) else 0
        for at, wrong in flips_tried(data, header_bytes=silent):
            assert changed(name, wrong) == (at >= silent), f"bit of byte {at} of {name}"
            flipped += 1
            in_headers += at < silent
    read_all(store)
    print(f"{flipped} bits flipped, {in_headers} of them in headers of packs")


def test_a_flipped_bit_in_a_header_costs_room_and_nothing_else(store: LocalStore) -> None:
    """A third plan of the family is stored and read, whatever the header seems to say."""
    third = PLAN[:1300] + b"something else" * 40
    flipped = 0
    for name in [each for each in objects_of(store) if each.startswith(names.PACKS)][:2]:
        path = store.root / name
        right = path.read_bytes()
        path.chmod(0o644)
        for _, wrong in flips_tried(right[: header_end(right)]):
            path.write_bytes(wrong + right[len(wrong) :])
            store.put_blob(digest_of_bytes(third), [third], family=FAMILY)
            assert b"".join(store.open_blob(digest_of_bytes(third))) == third
            read_all(store)
            for each in set(store.objects_of_blob(digest_of_bytes(third))) - kept(store):
                store.objects.remove(each)
            flipped += 1
        path.write_bytes(right)
    assert flipped > 40


def kept(store: LocalStore) -> set[str]:
    return {
        each for plan in (PLAN, OTHER_PLAN) for each in store.objects_of_blob(digest_of_bytes(plan))
    }


def test_an_object_of_any_other_length_is_refused(
    store: LocalStore, changed: Callable[[str, bytes], bool]
) -> None:
    """A pack with more at its end is read like before: its chunks are where they were."""
    tried = 0
    for name in objects_of(store):
        data = (store.root / name).read_bytes()
        assert changed(name, data + b"\0") == (not name.startswith(names.PACKS))
        assert changed(name, data + data) == (not name.startswith(names.PACKS))
        for length in {*range(0, len(data), 7), len(data) - 1}:
            assert changed(name, data[:length]), f"{name} cut to {length} bytes"
            tried += 1
    print(f"{tried} lengths of {len(objects_of(store))} objects")


def test_any_two_objects_that_change_places_are_refused(store: LocalStore) -> None:
    tried = 0
    for one, other in itertools.combinations(objects_of(store), 2):
        swap(store.root / one, store.root / other)
        assert is_refused(store), f"{one} and {other} changed places"
        assert is_damaged(store.objects, one)
        assert is_damaged(store.objects, other)
        swap(store.root / one, store.root / other)
        tried += 1
    read_all(store)
    print(f"{tried} pairs of objects in each other's place")


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


PUT_THERE: dict[str, Callable[[Path, Path], object]] = {
    "a folder": lambda path, _: path.mkdir(),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a link to the right bytes": lambda path, right: path.symlink_to(right),
    "a link to nothing": lambda path, _: path.symlink_to("nothing"),
    "a link to itself": lambda path, _: path.symlink_to(path),
}


@pytest.mark.parametrize("what", PUT_THERE)
def test_what_is_no_file_is_never_read(store: LocalStore, what: str) -> None:
    """Refused, or not there: never followed, and never waited for."""
    for name in objects_of(store):
        path, aside = store.root / name, store.root.parent / "aside"
        path.rename(aside)
        PUT_THERE[what](path, aside)
        with pytest.raises((PlanyardError, AssertionError)) as raised:
            read_all(store)
        said = raised.value
        assert not isinstance(said, PlanyardError) or said.exit_code in (8, 9, 10)
        path.rmdir() if what == "a folder" else path.unlink()
        aside.rename(path)
    read_all(store)
