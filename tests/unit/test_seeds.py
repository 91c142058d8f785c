"""Fetching from a far store what this disk does not have: seeds, and what a killed fetch left."""

from __future__ import annotations

import fcntl
import functools
import os
import random
from pathlib import Path

import pytest

from engines.store import seeds as seeding
from engines.store.chunk_reader import GAP_BYTES
from engines.store.counted import Traffic
from engines.store.fetching import fetch_blob, remove_partials
from engines.store.packs import MAX_CHUNK_BYTES
from engines.store.seeds import Seeds
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, LookupMissError, StoreError
from tests.far_stores import MIB, Family, FarObjects
from tests.object_places import MemoryStore

FAMILY = digest_of_bytes(b"a model")
SIZE_BYTES = 3 * MIB


@functools.cache
def _stored_family() -> tuple[dict[str, bytes], tuple[bytes, ...]]:
    """Four plans, and the objects of a store that has them."""
    family, store = Family(SIZE_BYTES), MemoryStore()
    plans = tuple(family.member(number) for number in range(4))
    for data in plans:
        store.put_blob(digest_of_bytes(data), [data], family=FAMILY)
    return store.objects.held, plans


class Site:
    """A far store with a family of plans, and a folder to fetch them into."""

    def __init__(self, folder: Path) -> None:
        held, plans = _stored_family()
        self.folder, self.plans, self.far = folder, list(plans), FarObjects()
        self.far.inner.held.update(held)
        self.store = ObjectStore(self.far)

    def seed(self, name: str, number: int, data: bytes | None = None) -> Path:
        path = self.folder / name
        path.write_bytes(self.plans[number] if data is None else data)
        return path

    def fetch(self, number: int, seeds: Seeds, name: str = "plan") -> bytes:
        path = self.folder / "out" / name
        digest = digest_of_bytes(self.plans[number])
        fetch_blob(self.store, digest, path, seeds=seeds, group="sd15")
        assert path.read_bytes() == self.plans[number]
        assert path.stat().st_mode & 0o777 == 0o644
        return path.read_bytes()

    def missing_bytes(self, number: int, *have: int) -> tuple[int, int]:
        """Bytes of the chunks that none of the plans `have` has, and how many chunks they are."""
        digests = {chunk.digest for each in have for chunk in self._chunks(each)}
        missing = {
            chunk.digest: chunk.length
            for chunk in self._chunks(number)
            if chunk.digest not in digests
        }
        return sum(missing.values()), len(missing)

    def _chunks(self, number: int):
        return next(ObjectStore(self.far.inner).maps_of(digest_of_bytes(self.plans[number])))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_only_missing_chunks_are_fetched(site: Site) -> None:
    traffic = Traffic()
    with Seeds(site.store, traffic=traffic) as seeds:
        seeds.add(site.seed("old", 0), digest_of_bytes(site.plans[0]), group="sd15")
        site.fetch(1, seeds)
    wanted, count = site.missing_bytes(1, 0)
    assert 0 < wanted <= 6 * MAX_CHUNK_BYTES
    assert wanted <= site.far.bytes_of("packs/") <= wanted + (count - 1) * GAP_BYTES
    assert traffic.reused_bytes == SIZE_BYTES - wanted


def test_what_was_fetched_is_a_seed_for_the_next(site: Site) -> None:
    with Seeds(site.store) as seeds:
        site.fetch(0, seeds, "a")
        first = site.far.bytes_of("packs/")
        assert first >= SIZE_BYTES
        site.fetch(1, seeds, "b")
        wanted, count = site.missing_bytes(1, 0)
        assert site.far.bytes_of("packs/") - first <= wanted + (count - 1) * GAP_BYTES
        site.far.forget()
        site.fetch(1, seeds, "c")
        assert site.far.bytes_of("packs/") == 0


def test_several_seeds_add_up(site: Site) -> None:
    mixed = bytearray(site.plans[1])
    half = SIZE_BYTES // 2
    mixed[half:] = site.plans[2][half:]
    data = bytes(mixed)
    site.plans.append(data)
    site.store.put_blob(digest_of_bytes(data), [data], family=FAMILY)
    site.far.forget()
    with Seeds(site.store) as seeds:
        for number in (1, 2):
            seeds.add(
                site.seed(str(number), number), digest_of_bytes(site.plans[number]), group="sd15"
            )
        site.fetch(4, seeds)
    wanted, count = site.missing_bytes(4, 1, 2)
    assert count <= 2
    assert wanted <= site.far.bytes_of("packs/") <= wanted + GAP_BYTES


def test_another_group_is_not_looked_at(site: Site) -> None:
    with Seeds(site.store) as seeds:
        seeds.add(site.seed("old", 0), digest_of_bytes(site.plans[0]), group="another model")
        site.fetch(1, seeds)
    assert site.far.bytes_of("packs/") >= SIZE_BYTES


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [0, 1, SIZE_BYTES // 2, SIZE_BYTES - 1])
def test_a_damaged_seed_costs_bytes_and_nothing_else(site: Site, at: int) -> None:
    with Seeds(site.store) as seeds:
        damaged = flip(site.plans[0], at)
        seeds.add(site.seed("old", 0, damaged), digest_of_bytes(site.plans[0]), group="sd15")
        site.fetch(0, seeds)
    assert site.far.bytes_of("packs/") > 0


def test_of_two_seeds_the_right_one_takes_over(site: Site) -> None:
    with Seeds(site.store) as seeds:
        wrong = flip(site.plans[0], SIZE_BYTES // 2)
        seeds.add(site.seed("wrong", 0, wrong), digest_of_bytes(site.plans[0]), group="sd15")
        seeds.add(site.seed("right", 1), digest_of_bytes(site.plans[1]), group="sd15")
        site.fetch(1, seeds)
    assert site.far.bytes_of("packs/") == 0


@pytest.mark.parametrize("how", ["cut", "grown", "empty", "random"])
def test_a_file_that_is_something_else_is_no_seed(site: Site, how: str) -> None:
    data = {
        "cut": site.plans[0][:-1],
        "grown": site.plans[0] + b"\0",
        "empty": b"",
        "random": random.Random(3).randbytes(SIZE_BYTES),
    }[how]
    with Seeds(site.store) as seeds:
        seeds.add(site.seed("old", 0, data), digest_of_bytes(site.plans[0]), group="sd15")
        site.fetch(1, seeds)
    assert (site.far.bytes_of("packs/") >= SIZE_BYTES) == (how in ("empty", "random"))


def test_only_regular_files_are_seeds(site: Site, tmp_path: Path) -> None:
    digest = digest_of_bytes(site.plans[0])
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(site.seed("old", 0))
    with Seeds(site.store) as seeds:
        for name in ("fifo", "link", "nothing", "out"):
            (tmp_path / "out").mkdir(exist_ok=True)
            seeds.add(tmp_path / name, digest, group="sd15")
        site.fetch(0, seeds)
    assert site.far.bytes_of("packs/") >= SIZE_BYTES


def test_a_seed_that_is_replaced_or_removed_still_serves(site: Site) -> None:
    with Seeds(site.store) as seeds:
        for number in (0, 2):
            path = site.seed(str(number), number)
            seeds.add(path, digest_of_bytes(site.plans[number]), group="sd15")
            path.unlink()
        site.fetch(0, seeds)
    assert site.far.bytes_of("packs/") == 0


def test_a_seed_that_changes_while_it_is_read(site: Site, monkeypatch) -> None:
    """After its map was matched and the first stretch was taken."""
    path, reads = site.seed("old", 0), []
    real = seeding.read_held

    def read_held(file, offset, chunks):
        found = real(file, offset, chunks)
        if not reads:
            path.write_bytes(random.Random(4).randbytes(SIZE_BYTES))
        reads.append(offset)
        return found

    monkeypatch.setattr(seeding, "read_held", read_held)
    monkeypatch.setattr(seeding, "STRETCH_BYTES", MIB)
    with Seeds(site.store) as seeds:
        seeds.add(path, digest_of_bytes(site.plans[0]), group="sd15")
        site.fetch(0, seeds)
    assert len(reads) == 2


def test_a_seed_without_a_readable_map_is_none(site: Site, tmp_path: Path) -> None:
    digests = [digest_of_bytes(each) for each in site.plans]
    for name in list(site.far.inner.held):
        if name.startswith(f"maps/{digests[0][7:]}/"):
            site.far.inner.held[name] = b"damaged"
        if name.startswith(f"maps/{digests[2][7:]}/"):
            del site.far.inner.held[name]
    with Seeds(site.store) as seeds:
        for number in (0, 2):
            seeds.add(site.seed(str(number), number), digests[number], group="sd15")
        site.fetch(1, seeds)


def test_limits_hold(site: Site, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(seeding, "FILES_LIMIT", 1)
    with Seeds(site.store) as seeds:
        for number in (2, 0):
            path = site.seed(str(number), number)
            seeds.add(path, digest_of_bytes(site.plans[number]), group="sd15")
        site.fetch(0, seeds)
    assert site.far.bytes_of("packs/") > 0
    monkeypatch.setattr(seeding, "MAPS_LIMIT_BYTES", 10)
    site.far.forget()
    with Seeds(site.store) as seeds:
        seeds.add(site.seed("0", 0), digest_of_bytes(site.plans[0]), group="sd15")
        site.fetch(0, seeds, "other")
    assert site.far.bytes_of("packs/") >= SIZE_BYTES


# What a killed fetch left


def cut_after(site: Site, limit_bytes: int) -> Path:
    """A fetch of plan 0 that ends in the middle; returns what it left."""
    site.far.read_bytes_left = limit_bytes
    with Seeds(site.store) as seeds, pytest.raises(StoreError, match="cut"):
        site.fetch(0, seeds)
    site.far.read_bytes_left = None
    (left,) = (site.folder / "out").iterdir()
    assert left.name == f".{digest_of_bytes(site.plans[0])[7:]}.partial"
    return left


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.store import chunk_reader

    monkeypatch.setattr(chunk_reader, "_READ_BYTES", 256 << 10)
    monkeypatch.setattr(chunk_reader, "_FAR_READERS", 1)


def test_a_cut_fetch_goes_on_where_it_ended(site: Site, small_reads: None) -> None:
    left = cut_after(site, SIZE_BYTES // 2)
    kept = left.stat().st_size
    assert kept > SIZE_BYTES // 4
    site.far.forget()
    traffic = Traffic()
    with Seeds(site.store, traffic=traffic) as seeds:
        site.fetch(0, seeds)
    assert site.far.bytes_of("packs/") == SIZE_BYTES - traffic.reused_bytes
    assert traffic.reused_bytes > kept - MAX_CHUNK_BYTES
    assert [path.name for path in (site.folder / "out").iterdir()] == ["plan"]


@pytest.mark.parametrize("how", ["a bit", "garbage behind", "nothing", "all"])
def test_what_was_left_is_not_believed(site: Site, small_reads: None, how: str) -> None:
    left = cut_after(site, SIZE_BYTES // 2)
    data = left.read_bytes()
    left.write_bytes(
        {
            "a bit": flip(data, len(data) // 2),
            "garbage behind": data + random.Random(5).randbytes(2 * SIZE_BYTES),
            "nothing": b"",
            "all": site.plans[0],
        }[how]
    )
    with Seeds(site.store) as seeds:
        site.fetch(0, seeds)
    assert [path.name for path in (site.folder / "out").iterdir()] == ["plan"]


@pytest.mark.parametrize("how", ["link", "hard link", "fifo"])
def test_what_was_planted_is_not_written_through(site: Site, tmp_path: Path, how: str) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b"untouched")
    out.mkdir()
    place = out / f".{digest_of_bytes(site.plans[0])[7:]}.partial"
    {
        "link": lambda: place.symlink_to(victim),
        "hard link": lambda: place.hardlink_to(victim),
        "fifo": lambda: os.mkfifo(place),
    }[how]()
    with Seeds(site.store) as seeds:
        site.fetch(0, seeds)
    assert victim.read_bytes() == b"untouched"
    assert victim.stat().st_mode & 0o777 == 0o644
    assert not os.path.lexists(place)
    assert not (out / "plan").is_symlink()


def test_two_programs_fetch_into_one_folder(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / f".{digest_of_bytes(site.plans[0])[7:]}.partial"
    with place.open("wb") as other, Seeds(site.store) as seeds:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"at work")
        other.flush()
        site.fetch(0, seeds)
        remove_partials(tmp_path / "out")
        assert place.read_bytes() == b"at work"
    remove_partials(tmp_path / "out")
    assert not place.exists()


def test_a_damaged_store_is_told_and_nothing_is_left(site: Site, tmp_path: Path) -> None:
    for name in site.far.inner.held:
        if name.startswith("packs/"):
            site.far.inner.held[name] = flip(site.far.inner.held[name], -2)
    with Seeds(site.store) as seeds, pytest.raises(IntegrityError):
        site.fetch(0, seeds)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_map_of_other_chunks_is_found_out_at_the_end(site: Site, tmp_path: Path) -> None:
    """Every chunk is right, and the whole is another blob's: sha256 says so."""
    from dataclasses import replace

    digest = digest_of_bytes(site.plans[0])
    wrong = replace(next(site.store.maps_of(digest_of_bytes(site.plans[1]))), blob=digest)
    site.store.map_to_read = lambda _: wrong
    with Seeds(site.store) as seeds, pytest.raises(IntegrityError):
        site.fetch(0, seeds)
    assert list((tmp_path / "out").iterdir()) == []


def test_small_and_missing_blobs_and_near_stores(site: Site, tmp_path: Path) -> None:
    near = MemoryStore()
    for store in (site.store, near):
        store.put_blob(digest_of_bytes(b"small"), [b"small"])
        with Seeds(store) as seeds:
            target = tmp_path / "small"
            fetch_blob(store, digest_of_bytes(b"small"), target, seeds=seeds, group="")
            assert target.read_bytes() == b"small"
            with pytest.raises(LookupMissError):
                fetch_blob(store, FAMILY, target, seeds=seeds, group="")


def test_a_folder_that_cannot_be_written_is_a_store_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with Seeds(site.store) as seeds, pytest.raises(StoreError, match="could not be written"):
        site.fetch(0, seeds)
