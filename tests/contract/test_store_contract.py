"""What every store has to keep, over every backend of tests/object_places.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.store import objects as names
from engines.store.protocol import ENTRY_LIMIT_BYTES, Store
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError
from planyard.edge.files import CHUNK_BYTES
from tests.object_places import ObjectPlace

KEY = digest_of_bytes(b"a key")
OTHER_KEY = digest_of_bytes(b"another key")
BIG = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"a tail"


FAMILY = digest_of_bytes(b"a model")


@pytest.fixture
def store(place: ObjectPlace) -> ObjectStore:
    return ObjectStore(place.objects)


def damage_blob(place: ObjectPlace, digest: str, data: bytes) -> None:
    place.damage(names.blob_name(digest), data)


def put(store: Store, data: bytes) -> str:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    return digest


def read_by_open(store: Store, digest: str, _: Path) -> bytes:
    return b"".join(store.open_blob(digest))


def read_by_read(store: Store, digest: str, _: Path) -> bytes:
    return store.read_blob(digest, limit_bytes=1 << 30)


def read_by_fetch(store: Store, digest: str, folder: Path) -> bytes:
    store.fetch_blob(digest, folder / "out" / "fetched")
    return (folder / "out" / "fetched").read_bytes()


READ_PATHS = [read_by_open, read_by_read, read_by_fetch]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "first bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "truncated": lambda data: data[:-1],
    "truncated at a piece": lambda data: data[:CHUNK_BYTES],
    "grown": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "another blob": lambda data: b"whole and valid, but another",
}


@pytest.mark.parametrize("read", READ_PATHS)
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(BIG)])
def test_what_is_put_is_read(store: Store, tmp_path: Path, size: int, read) -> None:
    data = BIG[:size]
    digest = put(store, data)
    assert store.has_blob(digest)
    assert read(store, digest, tmp_path) == data


def test_a_file_is_put_and_stays(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "plan"
    source.write_bytes(BIG)
    store.put_blob(digest_of_bytes(BIG), source)
    assert source.read_bytes() == BIG
    assert store.read_blob(digest_of_bytes(BIG), limit_bytes=len(BIG)) == BIG


@pytest.mark.parametrize("already", [False, True], ids=["new", "already there"])
@pytest.mark.parametrize("made", ["file", "link", "hard link"])
def test_a_taken_file_is_gone(store: Store, tmp_path: Path, made: str, already: bool) -> None:
    kept, source = tmp_path / "kept", tmp_path / "source"
    kept.write_bytes(BIG)
    if made == "link":
        source.symlink_to(kept)
    elif made == "hard link":
        source.hardlink_to(kept)
    else:
        source.write_bytes(BIG)
    if already:
        put(store, BIG)
    store.put_blob(digest_of_bytes(BIG), source, take=True)
    assert not source.exists()
    assert kept.read_bytes() == BIG
    kept.write_bytes(b"changed later through its other name")
    assert store.read_blob(digest_of_bytes(BIG), limit_bytes=len(BIG)) == BIG


@pytest.mark.parametrize("take", [False, True])
def test_a_file_with_other_bytes_is_refused_and_stays(
    store: Store, tmp_path: Path, take: bool
) -> None:
    source = tmp_path / "plan"
    source.write_bytes(b"not these")
    with pytest.raises(IntegrityError):
        store.put_blob(KEY, source, take=take)
    assert source.read_bytes() == b"not these"
    assert not store.has_blob(KEY)


def test_a_file_that_is_not_there_is_a_store_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        store.put_blob(KEY, tmp_path / "nothing")


def test_other_bytes_are_refused_and_nothing_is_stored(store: Store) -> None:
    with pytest.raises(IntegrityError) as raised:
        store.put_blob(KEY, [b"not these"])
    assert raised.value.exit_code == 10
    assert not store.has_blob(KEY)


def test_other_bytes_are_refused_when_the_right_ones_are_there(store: Store) -> None:
    digest = put(store, b"right")
    with pytest.raises(IntegrityError):
        store.put_blob(digest, [b"wrong"])
    assert store.read_blob(digest, limit_bytes=5) == b"right"


def test_a_source_that_breaks_stores_nothing(store: Store) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("the sender went away")

    with pytest.raises(RuntimeError):
        store.put_blob(digest_of_bytes(b"half and half"), breaking())
    assert not store.has_blob(digest_of_bytes(b"half and half"))
    assert not store.has_blob(digest_of_bytes(b"half"))


@pytest.mark.parametrize("read", READ_PATHS)
def test_a_missing_blob_is_a_miss(store: Store, tmp_path: Path, read) -> None:
    put(store, b"something else")
    with pytest.raises(LookupMissError) as raised:
        read(store, KEY, tmp_path)
    assert raised.value.exit_code == 9
    assert not (tmp_path / "out").exists()


def test_opening_a_missing_blob_fails_before_the_first_piece(store: Store) -> None:
    with pytest.raises(LookupMissError):
        store.open_blob(KEY)


@pytest.mark.parametrize("read", READ_PATHS)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_blob_is_never_served(place: ObjectPlace, tmp_path: Path, how: str, read) -> None:
    digest = put(ObjectStore(place.objects), BIG)
    damage_blob(place, digest, DAMAGES[how](BIG))
    with pytest.raises(place.refusals) as raised:
        read(ObjectStore(place.objects), digest, tmp_path)
    assert place.hides_damage or raised.value.exit_code == 10
    assert not list(tmp_path.glob("out/*"))


def test_a_damaged_blob_is_not_handed_out_whole_by_its_pieces(place: ObjectPlace) -> None:
    digest = put(ObjectStore(place.objects), BIG)
    damaged = bytes([BIG[0] ^ 1]) + BIG[1:]
    damage_blob(place, digest, damaged)
    seen: list[bytes] = []
    with pytest.raises(place.refusals):
        seen.extend(ObjectStore(place.objects).open_blob(digest))
    assert len(b"".join(seen)) < len(damaged)


def test_a_damaged_blob_leaves_the_older_fetched_file(place: ObjectPlace, tmp_path: Path) -> None:
    digest = put(ObjectStore(place.objects), BIG)
    damage_blob(place, digest, BIG[:-1])
    target = tmp_path / "plan"
    target.write_bytes(b"the older one")
    with pytest.raises(place.refusals):
        ObjectStore(place.objects).fetch_blob(digest, target)
    assert target.read_bytes() == b"the older one"


@pytest.mark.parametrize("how", DAMAGES)
def test_putting_the_right_bytes_mends_a_damaged_blob(place: ObjectPlace, how: str) -> None:
    if not place.mends_by_rewriting:
        pytest.skip("this place keeps what it has under a digest")
    digest = put(ObjectStore(place.objects), BIG)
    damage_blob(place, digest, DAMAGES[how](BIG))
    put(ObjectStore(place.objects), BIG)
    assert ObjectStore(place.objects).read_blob(digest, limit_bytes=len(BIG)) == BIG


def test_a_blob_over_the_limit_is_refused(store: Store) -> None:
    digest = put(store, b"12345")
    assert store.read_blob(digest, limit_bytes=5) == b"12345"
    with pytest.raises(StoreError):
        store.read_blob(digest, limit_bytes=4)


def test_fetching_replaces_the_file(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "plan"
    target.write_bytes(b"the older one")
    store.fetch_blob(put(store, b"the new one"), target)
    assert target.read_bytes() == b"the new one"


def test_fetching_onto_a_folder_is_a_store_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    with pytest.raises(StoreError):
        store.fetch_blob(put(store, b"bytes"), tmp_path / "plan")


def test_an_entry_is_named_by_its_digest_and_read_back(store: Store) -> None:
    assert store.put_entry("plans", KEY, b'{"a":1}') == digest_of_bytes(b'{"a":1}')
    assert list(store.entries("plans", KEY)) == [b'{"a":1}']


def test_equal_entries_are_one(store: Store) -> None:
    for _ in range(3):
        store.put_entry("plans", KEY, b"{}")
    assert list(store.entries("plans", KEY)) == [b"{}"]


def test_entries_come_in_the_order_of_their_digests(store: Store) -> None:
    documents = [b"%d" % number for number in range(20)]
    for document in documents:
        store.put_entry("plans", KEY, document)
    assert list(store.entries("plans", KEY)) == sorted(documents, key=digest_of_bytes)


def test_kinds_and_keys_are_apart(store: Store) -> None:
    store.put_entry("plans", KEY, b"1")
    store.put_entry("images", KEY, b"2")
    store.put_entry("plans", OTHER_KEY, b"3")
    assert list(store.entries("plans", KEY)) == [b"1"]
    assert list(store.entries("images", OTHER_KEY)) == []
    assert list(store.keys("plans")) == sorted([KEY, OTHER_KEY])
    assert list(store.keys("images")) == [KEY]
    assert list(store.keys("snapshots")) == []


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert not store.has_blob(KEY)
    assert list(store.entries("plans", KEY)) == []
    assert list(store.keys("plans")) == []


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "truncated at a piece"])
def test_a_damaged_entry_is_never_served(place: ObjectPlace, how: str) -> None:
    entry = ObjectStore(place.objects).put_entry("plans", KEY, b'{"a":1}')
    place.damage(names.entry_name("plans", KEY, entry), DAMAGES[how](b'{"a":1}'))
    try:
        found = list(ObjectStore(place.objects).entries("plans", KEY))
    except place.refusals:
        found = []
    # Where a listing says how long an object was written, garbage behind its end is not read.
    assert found == ([b'{"a":1}'] if how == "grown" and found else [])
    if not place.mends_by_rewriting:
        return
    ObjectStore(place.objects).put_entry("plans", KEY, b'{"a":1}')
    assert list(ObjectStore(place.objects).entries("plans", KEY)) == [b'{"a":1}']


def test_an_entry_over_the_limit_is_refused(store: Store) -> None:
    with pytest.raises(StoreError):
        store.put_entry("plans", KEY, bytes(ENTRY_LIMIT_BYTES + 1))
    assert list(store.entries("plans", KEY)) == []


HOSTILE_DIGESTS = [
    "",
    "sha256:",
    "../../../../etc/passwd",
    "sha256:../../../../../../etc/passwd",
    "sha256:" + "../" * 21 + "a",
    "/etc/passwd",
    KEY[7:],
    KEY.upper(),
    KEY[:-1],
    KEY + "\n",
    KEY + "0",
    KEY[:-1] + "\0",
    KEY[:-1] + "/",
    "sha512:" + KEY[7:],
    "sha256:" + "٣" * 64,
]
CALLS: dict[str, Callable[[Store, str, Path], object]] = {
    "has": lambda store, digest, folder: store.has_blob(digest),
    "put": lambda store, digest, folder: store.put_blob(digest, [b"bytes"]),
    "open": lambda store, digest, folder: store.open_blob(digest),
    "read": lambda store, digest, folder: store.read_blob(digest, limit_bytes=1),
    "fetch": lambda store, digest, folder: store.fetch_blob(digest, folder / "out"),
    "put entry": lambda store, digest, folder: store.put_entry("plans", digest, b"{}"),
    "entries": lambda store, digest, folder: store.entries("plans", digest),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("digest", HOSTILE_DIGESTS)
def test_what_is_no_digest_is_refused(store: Store, tmp_path: Path, digest: str, call: str) -> None:
    with pytest.raises(InputError):
        CALLS[call](store, digest, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["", "..", "../plans", "a/b", "Plans", "plans\n", "p" * 33, "ä"])
def test_what_is_no_kind_is_refused(store: Store, tmp_path: Path, kind: str) -> None:
    for call in (
        lambda: store.put_entry(kind, KEY, b"{}"),
        lambda: store.entries(kind, KEY),
        lambda: store.keys(kind),
    ):
        with pytest.raises(InputError):
            call()
    assert not list(tmp_path.iterdir())
