"""What every place for objects has to keep, run against all of `tests/object_places.py`."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.store import objects as names
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, StoreError
from tests.object_places import ObjectPlace

MIB = 1 << 20
PIECE_LIMIT_BYTES = 9 * MIB
BIG = random.Random(4).randbytes(17 * MIB + 3)
KEY = digest_of_bytes(b"a key")
HEX = "0123456789abcdef" * 4


@pytest.fixture
def objects(place: ObjectPlace) -> names.Objects:
    return place.objects


@pytest.fixture
def swapping(place: ObjectPlace) -> names.Objects:
    """The objects of a place that has channels."""
    if not place.has_compare_and_swap:
        pytest.skip("this place has no compare-and-swap, and says so: see below")
    return place.objects


def named(data: bytes) -> str:
    return names.blob_name(digest_of_bytes(data))


def read(objects: names.Objects, name: str, **span: int) -> bytes:
    return b"".join(objects.read(name, **span))


def forms_of(data: bytes, folder: Path) -> dict[str, object]:
    """The same bytes in every form that `write` takes."""
    path = folder / "given"
    path.write_bytes(data)
    cuts = range(0, len(data), 300_000)
    return {
        "bytes": data,
        "iterator": (data[at : at + 300_000] for at in cuts),
        "tuple": tuple(data[at : at + 300_000] for at in cuts),
        "one piece": iter([data]),
        "path": path,
    }


# Writing and reading


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB, 17 * MIB])
@pytest.mark.parametrize("form", ["bytes", "iterator", "tuple", "one piece", "path"])
def test_what_is_written_is_read(
    objects: names.Objects, tmp_path: Path, size: int, form: str
) -> None:
    data = BIG[:size]
    objects.write(named(data), forms_of(data, tmp_path)[form])  # type: ignore[arg-type]
    assert objects.size(named(data)) == size
    pieces = list(objects.read(named(data)))
    assert b"".join(pieces) == data
    assert max(map(len, pieces), default=0) <= PIECE_LIMIT_BYTES


def test_every_kind_of_object(place: ObjectPlace) -> None:
    data, digest = b"something", digest_of_bytes(b"something")
    for name in (
        names.blob_name(digest),
        names.pack_name(KEY, digest),
        names.map_name(KEY, digest),
        names.entry_name("plans", KEY, digest),
    ):
        place.objects.write(name, data)
        assert read(place.again(), name) == data


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, None),
        (0, 1),
        (0, 100),
        (1, None),
        (5, 3),
        (MIB - 1, 2),
        (MIB, MIB + 7),
        (3 * MIB - 1, None),
        (3 * MIB - 1, 100),
        (3 * MIB, None),
        (3 * MIB, 5),
        (3 * MIB + 9, None),
        (9 * MIB, 9),
        (7, 0),
        (9 * MIB, 0),
        (0, 99 * MIB),
    ],
)
def test_ranges(place: ObjectPlace, start: int, length: int | None) -> None:
    data = BIG[: 3 * MIB]
    place.objects.write(named(data), data)
    end = None if length is None else start + length
    assert b"".join(place.objects.read(named(data), start=start, length=length)) == data[start:end]


def test_ranges_of_an_empty_object(objects: names.Objects) -> None:
    objects.write(named(b""), b"")
    assert [read(objects, named(b"")), read(objects, named(b""), start=3)] == [b"", b""]
    assert read(objects, named(b""), start=0, length=0) == b""


def test_what_is_missing_is_missing_at_once(objects: names.Objects) -> None:
    name = named(b"never written")
    assert objects.size(name) is None
    for span in ({}, {"start": 5}, {"length": 0}, {"length": 9}):
        with pytest.raises(FileNotFoundError):
            objects.read(name, **span)  # type: ignore[arg-type]


def test_proved_bytes_are_kept_without_another_look(objects: names.Objects) -> None:
    data = BIG[: MIB + 1]
    objects.write(named(data), (data[:9], data[9:]), proved=True)
    assert read(objects, named(data)) == data


# Refusing


@pytest.mark.parametrize("size", [1, 5 * MIB, 17 * MIB])
@pytest.mark.parametrize("form", ["bytes", "iterator", "tuple", "one piece", "path"])
def test_wrong_bytes_are_refused_and_never_visible(
    objects: names.Objects, tmp_path: Path, size: int, form: str
) -> None:
    data = BIG[:size]
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(IntegrityError):
        objects.write(named(data), forms_of(wrong, tmp_path)[form])  # type: ignore[arg-type]
    assert objects.size(named(data)) is None
    assert list(objects.listing(names.BLOBS)) == []


@pytest.mark.parametrize("size", [10, 17 * MIB])
def test_a_source_that_fails_leaves_nothing(objects: names.Objects, size: int) -> None:
    def failing() -> Iterator[bytes]:
        yield BIG[:size]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        objects.write(named(BIG), failing())
    assert objects.size(named(BIG)) is None
    assert list(objects.listing(names.BLOBS)) == []


def test_a_file_that_is_not_there(objects: names.Objects, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        objects.write(named(b"x"), tmp_path / "none")
    assert objects.size(named(b"x")) is None


HOSTILE = [
    "",
    "/",
    "..",
    "../" + HEX,
    "blobs/sha256/",
    "blobs/sha256/../../etc/passwd",
    "blobs/sha256/" + HEX[:-1],
    "blobs/sha256/" + HEX + "0",
    "blobs/sha256/" + HEX.upper(),
    "blobs/sha256/" + HEX + "\n",
    "blobs/sha256/" + HEX + "/..",
    "/blobs/sha256/" + HEX,
    "blobs/sha512/" + HEX,
    "blobs//sha256/" + HEX,
    "packs/" + HEX,
    f"packs/../{HEX}",
    f"packs/{HEX}/{HEX}/{HEX}",
    f"index/../{HEX}/{HEX}",
    f"index/UP/{HEX}/{HEX}",
    f"index/plans/{HEX}/{HEX[:-2]}%2",
    "channels/prod",
    "blobs/sha256/" + "0" * 63 + "\u0660",
    "blobs/sha256/" + "0" * 63 + "\0",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(objects: names.Objects, tmp_path: Path, name: str) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"x")
    for call in (
        lambda: objects.size(name),
        lambda: list(objects.read(name)),
        lambda: objects.write(name, b"x"),
        lambda: objects.write(name, [b"x"], proved=True),
        lambda: objects.adopt(name, given),
        lambda: objects.remove(name),
    ):
        with pytest.raises(InputError):
            call()
    assert given.read_bytes() == b"x"


@pytest.mark.parametrize(
    "prefix",
    ["", "/", "..", "blobs", "blobs/", "blobs/sha256", "channels/", "packs/..", "index/a/../", "i"],
)
def test_hostile_prefixes(objects: names.Objects, prefix: str) -> None:
    with pytest.raises(InputError):
        list(objects.listing(prefix))


# Listing, removing, mending


def test_a_listing_is_sorted_and_exact(objects: names.Objects) -> None:
    sizes = {}
    for number in range(30):
        data = bytes([number]) * number
        digest = digest_of_bytes(data)
        kind = ("plans", "plans-old", "plan")[number % 3]
        for name in (names.entry_name(kind, KEY, digest), names.pack_name(digest, digest)):
            objects.write(name, data)
            sizes[name] = number
    for prefix in (
        "index/",
        "index/plan/",
        "index/plans/",
        f"index/plans/{KEY[7:]}/",
        f"index/plans/{HEX}/",
        "packs/",
        f"packs/{digest_of_bytes(b'')[7:]}/",
        "maps/",
        names.BLOBS,
    ):
        found = list(objects.listing(prefix))
        wanted = sorted(name for name in sizes if name.startswith(prefix))
        assert [one.name for one in found] == wanted, prefix
        assert all(one.size_bytes == sizes[one.name] for one in found)
        assert all(one.modified is None or one.modified > 1_600_000_000 for one in found)


def test_removing(objects: names.Objects) -> None:
    objects.write(named(b"a"), b"a")
    objects.write(named(b"b"), b"b")
    for _ in range(2):
        objects.remove(named(b"a"))
        assert objects.size(named(b"a")) is None
        assert [one.name for one in objects.listing(names.BLOBS)] == [named(b"b")]
    with pytest.raises(FileNotFoundError):
        objects.read(named(b"a"))


@pytest.mark.parametrize("form", ["bytes", "iterator", "path"])
@pytest.mark.parametrize("damaged", [b"", b"damag", b"damaged longer than it was before"])
def test_writing_again_mends(place: ObjectPlace, tmp_path: Path, form: str, damaged: bytes) -> None:
    data = b"right"
    place.objects.write(named(data), data)
    place.damage(named(data), damaged)
    if place.hides_damage:
        assert place.objects.size(named(data)) is None
    else:
        assert read(place.objects, named(data)) == damaged  # a place does not verify: stores do
    if not place.mends_by_rewriting:
        return
    place.objects.write(named(data), forms_of(data, tmp_path)[form])  # type: ignore[arg-type]
    assert read(place.again(), named(data)) == data


def test_adopting_moves_or_does_nothing(objects: names.Objects, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(BIG)
    if objects.adopt(named(BIG), given):
        assert read(objects, named(BIG)) == BIG
    else:
        assert given.read_bytes() == BIG
        assert objects.size(named(BIG)) is None


def test_adopting_wrong_bytes(objects: names.Objects, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(b"wrong")
    with contextlib.suppress(IntegrityError):
        assert not objects.adopt(named(b"right"), given)
    assert given.read_bytes() == b"wrong"
    assert objects.size(named(b"right")) is None


def test_another_opening_sees_the_same(place: ObjectPlace) -> None:
    place.objects.write(named(b"x"), b"x")
    again = place.again()
    assert again.url == place.objects.url
    assert again.is_near == place.objects.is_near
    assert again.size(named(b"x")) == 1
    assert [one.name for one in again.listing(names.BLOBS)] == [named(b"x")]


# Many at once


def at_once(count: int, call) -> list:
    """What `count` calls give that begin together."""
    gate = threading.Barrier(count)

    def one(number: int):
        gate.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_sixteen_write_the_same_object(place: ObjectPlace, tmp_path: Path) -> None:
    data = BIG[:MIB]
    at_once(16, lambda number: place.objects.write(named(data), iter([data[:99], data[99:]])))
    assert read(place.again(), named(data)) == data
    assert len(list(place.objects.listing(names.BLOBS))) == 1


def test_four_write_the_same_large_file(place: ObjectPlace, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_bytes(BIG)
    opened = [place.objects, place.again()] * 2
    at_once(4, lambda number: opened[number].write(named(BIG), given))
    assert read(place.again(), named(BIG)) == BIG


def test_reading_while_it_is_written_again(place: ObjectPlace) -> None:
    data = BIG[: 2 * MIB]
    place.objects.write(named(data), data)

    def work(number: int) -> bool:
        if number % 2:
            place.objects.write(named(data), data)
            return True
        return read(place.objects, named(data)) == data

    assert all(at_once(8, work))


# Pointers


def test_a_pointer_is_made_and_moved(place: ObjectPlace, swapping: names.Objects) -> None:
    assert swapping.pointer("prod") is None
    assert list(swapping.pointers()) == []
    assert swapping.move_pointer("prod", b"one", expected=None)
    first = swapping.pointer("prod")
    assert first
    assert first.data == b"one"
    assert not swapping.move_pointer("prod", b"other", expected=None)
    assert swapping.move_pointer("prod", b"two", expected=first.token)
    assert not swapping.move_pointer("prod", b"three", expected=first.token)
    second = place.again().pointer("prod")
    assert second
    assert (second.data, second.token != first.token) == (b"two", True)
    assert place.again().move_pointer("prod", b"", expected=second.token)
    assert swapping.pointer("prod").data == b""  # type: ignore[union-attr]


@pytest.mark.parametrize("token", ["", "x", '"x"', "a\r\nb: c", '""', "\0", "é"])
def test_a_token_that_never_was(swapping: names.Objects, token: str) -> None:
    assert not swapping.move_pointer("prod", b"x", expected=token)
    assert swapping.pointer("prod") is None
    assert swapping.move_pointer("prod", b"one", expected=None)
    assert not swapping.move_pointer("prod", b"two", expected=token)
    assert swapping.pointer("prod").data == b"one"  # type: ignore[union-attr]


def test_pointers_are_listed_and_are_no_objects(swapping: names.Objects) -> None:
    wanted = ["0", "a", "a-b", "a.b", "a_b", "prod", "z" * 63]
    for name in reversed(wanted):
        assert swapping.move_pointer(name, name.encode(), expected=None)
    swapping.write(named(b"x"), b"x")
    assert list(swapping.pointers()) == sorted(wanted)
    listed = [one.name for area in names.AREAS for one in swapping.listing(area)]
    assert listed == [named(b"x")]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "A", "-a", ".a", "a/b", "../a", "a b", "a\n", "é", "x" * 64, "a\0"]
)
def test_hostile_names_of_pointers(objects: names.Objects, name: str) -> None:
    with pytest.raises(InputError):
        objects.pointer(name)
    with pytest.raises(InputError):
        objects.move_pointer(name, b"x", expected=None)


def test_the_size_of_a_pointer(swapping: names.Objects) -> None:
    largest = bytes(names.POINTER_LIMIT_BYTES)
    with pytest.raises(StoreError):
        swapping.move_pointer("prod", largest + b"x", expected=None)
    assert swapping.pointer("prod") is None
    assert swapping.move_pointer("prod", largest, expected=None)
    assert swapping.pointer("prod").data == largest  # type: ignore[union-attr]


def test_of_sixty_four_exactly_one_wins_each_round(
    place: ObjectPlace, swapping: names.Objects
) -> None:
    opened = [swapping, place.again()]
    token = None
    for turn in range(3):
        bids = [f"{turn}: {number}".encode() for number in range(64)]
        won = at_once(
            64,
            lambda n: opened[n % 2].move_pointer("prod", bids[n], expected=token),  # noqa: B023
        )
        assert won.count(True) == 1, f"{won.count(True)} won round {turn}"
        now = place.again().pointer("prod")
        assert now
        assert now.data == bids[won.index(True)]
        token = now.token


def test_no_move_is_lost(swapping: names.Objects) -> None:
    """Eight count together, each as often as it wins: the number at the end is that of wins."""
    assert swapping.move_pointer("count", b"0", expected=None)

    def count(number: int) -> int:
        won = 0
        for _ in range(12):
            now = swapping.pointer("count")
            assert now
            following = str(int(now.data) + 1).encode()
            won += swapping.move_pointer("count", following, expected=now.token)
        return won

    wins = sum(at_once(8, count))
    assert swapping.pointer("count").data == str(wins).encode()  # type: ignore[union-attr]
    assert wins >= 12


def test_a_place_without_compare_and_swap_says_so(place: ObjectPlace) -> None:
    if place.has_compare_and_swap:
        pytest.skip("this place has it")
    with pytest.raises(StoreError) as refused:
        place.objects.move_pointer("prod", b"x", expected=None)
    assert refused.value.mend
    assert place.objects.pointer("prod") is None
    assert list(place.objects.pointers()) == []
