"""`store fsck`: every kind of damage is found, named with what it breaks, and mended."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.channels import moves as channels
from engines.channels.moves import Mover
from engines.keeping.checking import FsckReport, Problem, check_store
from engines.keeping.repair import remove_damaged_objects, repair
from engines.store import objects as names
from engines.store import packs
from engines.store.chunk_map import map_to_bytes, pack_records
from engines.store.fsck import Slice
from engines.store.local_store import LocalStore
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from tests.kept_store import (
    FAMILY,
    all_names,
    everything_visible_is_whole,
    overwrite,
    plan_bytes,
    put,
    put_release,
    swap,
)
from tests.object_places import MemoryStore

ALL = Slice()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "store")
    put_release(made, 0)
    put_release(made, 1)
    return made


@pytest.fixture
def backup(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "backup")
    put_release(made, 0)
    put_release(made, 1)
    return made


def damage_of(store: ObjectStore) -> list[Problem]:
    return [each for each in check_store(store, part=ALL).problems if each.severity == "damage"]


def objects_of(store: ObjectStore) -> list[str]:
    return [each for each in all_names(store.objects) if "/claims/" not in each]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flip,
    "first bit": lambda data: bytes([data[0] ^ 128]) + data[1:],
    "truncated": lambda data: data[:-1],
    "empty": lambda _: b"",
    "too long": lambda data: data + b"\0",
}


def test_a_sound_store_is_sound(store):
    channels.promote(store, "stable", _image(store), mover=Mover(by="x", now=_now()))
    report = check_store(store, part=ALL)
    assert report.problems == ()
    assert report.is_sound
    assert report.objects == len(objects_of(store))
    sizes = sum((store.root / name).stat().st_size for name in objects_of(store))
    assert report.read_bytes == sizes


def _image(store: ObjectStore) -> str:
    return "sha256:" + next(iter(store.keys("snapshots")))[7:]


def _now() -> str:
    return "2026-11-21T00:00:00Z"


@pytest.mark.parametrize("change", CHANGES)
def test_every_object_that_was_changed_is_found(store, change):
    for name in objects_of(store):
        path = store.root / name
        before = path.read_bytes()
        overwrite(path, CHANGES[change](before))
        found = damage_of(store)
        assert name in [each.object for each in found]
        assert next(each for each in found if each.object == name).breaks or "goldens" in name
        overwrite(path, before)
    assert damage_of(store) == []


def test_every_single_bit_of_a_small_object_counts():
    store = MemoryStore()
    digest = put(store, b"four")
    name = names.blob_name(digest)
    for bit in range(32):
        data = bytearray(b"four")
        data[bit // 8] ^= 1 << bit % 8
        store.objects.held[name] = bytes(data)
        assert [each.object for each in damage_of(store)] == [name]


def test_two_valid_objects_that_were_swapped_are_found(store):
    blobs = [name for name in objects_of(store) if name.startswith("blobs/")]
    swap(store.root, blobs[0], blobs[1])
    assert {each.object for each in damage_of(store)} == set(blobs[:2])


def test_a_damaged_pack_says_how_and_which_plans_it_breaks(store):
    shared = _shared_pack(store)
    path = store.root / shared
    overwrite(path, path.read_bytes()[:-100])
    (found,) = damage_of(store)
    assert found.object == shared
    assert "truncated" in found.problem
    assert found.breaks == (
        "plan rtx/unet/0/fp16/sm89",
        "plan rtx/unet/1/fp16/sm89",
        *(each for each in found.breaks if each.startswith("snapshot of rtx")),
    )
    assert len(found.breaks) == 4
    assert found.blobs == tuple(sorted(digest_of_bytes(plan_bytes(each)) for each in (0, 1)))


def _shared_pack(store: ObjectStore) -> str:
    first, second = (
        set(store.objects_of_blob(digest_of_bytes(plan_bytes(each)))) for each in (0, 1)
    )
    (shared,) = first & second
    return shared


def test_a_missing_pack_is_found_through_its_maps(store):
    shared = _shared_pack(store)
    (store.root / shared).unlink()
    (found,) = damage_of(store)
    assert (found.object, found.missing) == (shared, True)
    assert "plan rtx/unet/0/fp16/sm89" in found.breaks


def test_a_map_that_says_something_else_than_its_pack_is_found(store):
    made = next(store.maps_of(digest_of_bytes(plan_bytes(0))))
    rows = [tuple(chunk) for chunk in made]
    rows[0] = (rows[1][0], *rows[0][1:])  # another chunk's digest, the same place
    wrong = type(made)(**{**vars(made), "records": pack_records(rows)})
    data = map_to_bytes(wrong, cut="")
    (store.root / made.name).unlink()
    name = names.map_name(made.blob, digest_of_bytes(data))
    store.objects.write(name, data)
    (found,) = damage_of(store)
    assert found.object == name
    assert "chunk 0 is not at byte" in found.problem
    assert "plan rtx/unet/0/fp16/sm89" in found.breaks


def test_a_blob_with_one_good_map_of_two_is_not_broken(store):
    digest = digest_of_bytes(plan_bytes(0))
    made = next(store.maps_of(digest))
    data = map_to_bytes(made, cut="another writer")
    name = names.map_name(digest, digest_of_bytes(data))
    store.objects.write(name, data)
    overwrite(store.root / name, flip(data))
    (found,) = damage_of(store)
    assert (found.object, found.breaks) == (name, ())


def test_an_entry_under_another_key_is_found(store):
    name = next(each for each in objects_of(store) if each.startswith("index/plans/"))
    data = (store.root / name).read_bytes()
    elsewhere = store.put_entry("plans", digest_of_bytes(b"another key"), data)
    (found,) = damage_of(store)
    assert found.object.endswith(elsewhere[7:])
    assert "under another key" in found.problem


@pytest.mark.parametrize("what", ["log", "layer", "config", "manifest", "map"])
def test_an_entry_that_names_what_is_not_there_is_found(store, what):
    release = put_release(store, 2)
    wanted = {
        "log": names.blob_name(release.log),
        "layer": names.blob_name(release.image.layers[0].digest),
        "config": names.blob_name(digest_of_bytes(b"config image 2")),
        "manifest": names.blob_name(release.image.digest),
        "map": next(store.maps_of(release.plan.digest)).name,
    }[what]
    (store.root / wanted).unlink()
    (found,) = damage_of(store)
    lost = release.plan.digest if what == "map" else f"sha256:{wanted[-64:]}"
    assert (found.object, found.missing) == (names.blob_name(lost), True)
    assert found.blobs == (lost,)
    assert any("rtx" in each for each in found.breaks)


def test_a_channel_whose_record_or_image_is_gone_is_found(store):
    release = put_release(store, 2)
    channels.promote(store, "stable", release.image.digest, mover=Mover(by="x", now=_now()))
    record = next(each for each in objects_of(store) if "/promotions/" in each)
    before = (store.root / record).read_bytes()
    (store.root / record).unlink()
    (found,) = damage_of(store)
    assert (found.object, found.breaks) == ("channels/stable", ("channel stable",))
    store.objects.write(record, before)
    (store.root / names.blob_name(release.image.layers[0].digest)).unlink()
    (found,) = damage_of(store)
    assert any(each.startswith("channel stable at") for each in found.breaks)


def test_links_files_of_others_and_temporary_files(store, tmp_path):
    name = names.blob_name(_image(store))
    data = (store.root / name).read_bytes()
    (tmp_path / "outside").write_bytes(data)
    (store.root / name).unlink()
    (store.root / name).symlink_to(tmp_path / "outside")  # the right bytes, and still no object
    (store.root / "blobs/sha256/readme").write_text("hello")
    (store.root / "elsewhere").symlink_to(tmp_path)
    (store.root / "blobs/sha256" / f".{'0' * 12}.abcdefgh").write_bytes(b"half")
    report = check_store(store, part=ALL)
    damaged = [each for each in report.problems if each.severity == "damage"]
    assert [each.object for each in damaged] == [name]
    assert "not a regular file" in damaged[0].problem
    notes = {each.object for each in report.problems if each.severity == "note"}
    assert notes == {"blobs/sha256/readme", "elsewhere"}
    assert report.temporary_files == 1
    store.objects.remove(name)
    store.put_blob(names.digest_of_name(name), [data])
    again = check_store(store, part=ALL)
    assert again.is_sound  # notes are no damage
    assert len(again.problems) == 2


def test_a_folder_that_is_a_link_is_found(store, tmp_path):
    (store.root / "packs").rename(tmp_path / "moved")
    (store.root / "packs").symlink_to(tmp_path / "moved")
    assert "packs/" in [each.object for each in damage_of(store)]


def test_parts_together_read_every_object_once(store):
    parts = 5
    reports = [check_store(store, part=Slice(number=each, of=parts)) for each in range(parts)]
    assert all(each.is_sound for each in reports)
    whole = check_store(store, part=ALL)
    small = [name for name in objects_of(store) if name.startswith(("index/", "maps/"))]
    assert sum(each.objects - len(small) for each in reports) == whole.objects - len(small)
    for name in objects_of(store):
        if name.startswith("blobs/"):
            path, before = store.root / name, (store.root / name).read_bytes()
            overwrite(path, flip(before))
            found = [
                not check_store(store, part=Slice(number=each, of=parts)).is_sound
                for each in range(parts)
            ]
            overwrite(path, before)
            assert sum(found) == 1 or b"config" in before[:12], name
            break


# Mending


def mended(store: ObjectStore, source: ObjectStore) -> FsckReport:
    return repair(store, check_store(store, part=ALL), source=source)


def test_every_object_is_mended_from_a_copy(store, backup):
    for name in objects_of(store):
        if name.startswith("blobs/") or "/snapshots/" in name:
            overwrite(store.root / name, b"damaged")
    for name in objects_of(store):
        if name.startswith(("packs/", "maps/", "index/plans/")):
            (store.root / name).unlink()
    before = check_store(store, part=ALL)
    assert not before.is_sound
    report = repair(store, before, source=backup)
    again = check_store(store, part=ALL)
    while again.problems:  # what names what is known only once entries can be read
        report = repair(store, again, source=backup)
        assert report.is_sound
        again = check_store(store, part=ALL)
    assert everything_visible_is_whole(store) == 10


@pytest.mark.parametrize("area", ["packs/", "maps/"])
def test_what_the_copy_has_in_other_packs_is_copied_as_a_blob(store, tmp_path, area):
    source = LocalStore(tmp_path / "other order")
    put_release(source, 1)
    put_release(source, 0)
    wanted = digest_of_bytes(plan_bytes(0))
    name = next(each for each in store.objects_of_blob(wanted) if each.startswith(area))
    assert source.objects.size(name) is None
    overwrite(store.root / name, b"damaged")
    assert mended(store, source).is_sound
    assert damage_of(store) == []
    assert everything_visible_is_whole(store) == 10


def test_what_nobody_has_is_said_and_stays_as_it_is(store, tmp_path):
    source = LocalStore(tmp_path / "empty")
    name = _shared_pack(store)
    overwrite(store.root / name, b"damaged")
    report = mended(store, source)
    (found,) = report.problems
    assert (found.repair, report.is_sound) == ("not repaired", False)
    assert "neither" in found.why_not
    assert (store.root / name).read_bytes() == b"damaged"


def test_damage_in_the_copy_is_never_taken(store, backup):
    name = names.blob_name(_image(store))
    overwrite(store.root / name, b"damaged")
    overwrite(backup.root / name, b"damaged as well")
    (found,) = mended(store, backup).problems
    assert found.repair == "not repaired"
    assert "damaged in" in found.why_not
    assert (store.root / name).read_bytes() == b"damaged"


def test_what_is_damaged_can_be_removed_for_a_build_to_make_it_anew(store):
    shared = _shared_pack(store)
    overwrite(store.root / shared, b"damaged")
    report = remove_damaged_objects(store, check_store(store, part=ALL))
    assert [each.repair for each in report.problems] == ["removed"]
    assert not (store.root / shared).exists()
    put_release(store, 0)
    put_release(store, 1)
    assert everything_visible_is_whole(store) == 10


def test_memory_does_not_grow_with_the_blobs():
    store = MemoryStore()
    chunk = packs.chunk_digest(b"x" * 1000)
    data = packs.pack_header([(chunk, 1000)]) + b"x" * 1000
    for number in range(50):
        put(store, bytes([number]) * 1_000_000)
    store.objects.write(names.pack_name(FAMILY, digest_of_bytes(data)), data)
    tracemalloc.start()
    try:
        check_store(store, part=ALL)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20_000_000
