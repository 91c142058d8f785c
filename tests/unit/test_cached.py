"""The cache in front of a far store: fetched once, verified always, never over its limit."""

from __future__ import annotations

import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.store import cached, opening
from engines.store.cache_files import CacheFiles
from engines.store.cached import CachedObjects
from engines.store.counted import CountedObjects, Traffic
from engines.store.objects import blob_name, entry_name, pack_name
from engines.store.opening import cache_place, open_reader
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, StoreError
from tests.far_stores import MIB, Family, FarObjects
from tests.object_places import MemoryStore

KEY = digest_of_bytes(b"a key")
PACK = random.Random(7).randbytes(5 * MIB)
PACK_NAME = pack_name(KEY, digest_of_bytes(PACK))
SMALL = b"small" * 100
SMALL_NAME = blob_name(digest_of_bytes(SMALL))


@pytest.fixture
def far() -> FarObjects:
    found = FarObjects()
    found.write(PACK_NAME, PACK)
    found.write(SMALL_NAME, SMALL)
    found.forget()
    return found


def in_front(
    far: FarObjects, folder: Path, *, limit_bytes: int = 100 * MIB, traffic: Traffic | None = None
) -> CachedObjects:
    return CachedObjects(far, CacheFiles(folder, limit_bytes=limit_bytes), traffic=traffic)


def read(objects: CachedObjects, name: str, start: int = 0, end: int | None = None) -> bytes:
    length = None if end is None else end - start
    return b"".join(objects.read(name, start=start, length=length))


def kept_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


# Small objects


def test_a_small_object_is_fetched_once(far: FarObjects, tmp_path: Path) -> None:
    traffic = Traffic()
    for _ in range(3):
        assert read(in_front(far, tmp_path, traffic=traffic), SMALL_NAME) == SMALL
    assert far.bytes_of() == len(SMALL)
    assert traffic.reused_bytes == 2 * len(SMALL)
    assert read(in_front(far, tmp_path), SMALL_NAME, 3, 9) == SMALL[3:9]


def test_wrong_bytes_are_neither_served_nor_kept(far: FarObjects, tmp_path: Path) -> None:
    far.inner.held[SMALL_NAME] = SMALL[:-1] + b"!"
    with pytest.raises(IntegrityError):
        read(in_front(far, tmp_path), SMALL_NAME)
    assert kept_files(tmp_path) == []
    far.inner.held[SMALL_NAME] = SMALL
    assert read(in_front(far, tmp_path), SMALL_NAME) == SMALL


DAMAGES = {
    "a bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "the last bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "grown": lambda data: data + b"\0",
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(("name", "data"), [(SMALL_NAME, SMALL), (PACK_NAME, PACK[:MIB])])
def test_a_damaged_file_of_the_cache_is_fetched_again(
    far: FarObjects, tmp_path: Path, name: str, data: bytes, how: str
) -> None:
    end = None if name == SMALL_NAME else len(data)
    read(in_front(far, tmp_path), name, 0, end)
    (path,) = kept_files(tmp_path)
    good = path.read_bytes()
    path.write_bytes(DAMAGES[how](good))
    far.forget()
    assert read(in_front(far, tmp_path), name, 0, end) == data
    assert far.bytes_of() == len(data)
    assert kept_files(tmp_path) == [path]
    assert path.read_bytes() == good


def test_an_object_over_the_size_is_passed_through(
    far: FarObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "WHOLE_BYTES", 2 * MIB)
    layer = random.Random(8).randbytes(3 * MIB)
    far.write(blob_name(digest_of_bytes(layer)), layer)
    for _ in range(2):
        assert read(in_front(far, tmp_path), blob_name(digest_of_bytes(layer))) == layer
    assert far.bytes_of() == 2 * len(layer)
    assert kept_files(tmp_path) == []


def test_pieces_stay_small(far: FarObjects, tmp_path: Path) -> None:
    blob = blob_name(digest_of_bytes(PACK))
    far.write(blob, PACK)
    for _ in range(2):
        for name, length in ((blob, None), (PACK_NAME, len(PACK))):
            pieces = list(in_front(far, tmp_path).read(name, length=length))
            assert b"".join(pieces) == PACK
            assert max(map(len, pieces)) <= 4 * MIB


def test_a_missing_object_is_missing(far: FarObjects, tmp_path: Path) -> None:
    cache = in_front(far, tmp_path)
    for name in (blob_name(KEY), entry_name("plans", KEY, KEY)):
        with pytest.raises(FileNotFoundError):
            cache.read(name)
    for length in (0, 10, None):
        with pytest.raises(FileNotFoundError):
            list(cache.read(pack_name(KEY, KEY), start=0, length=length))


# Packs


def test_only_what_is_missing_of_a_pack_is_fetched(far: FarObjects, tmp_path: Path) -> None:
    """Ranges in any order, by cache objects of their own: every byte comes over the wire once."""
    chance, held = random.Random(1), bytearray(len(PACK))
    for _ in range(40):
        start = chance.randrange(len(PACK))
        end = min(start + chance.choice([1, 5_000, 70_000, MIB, 4 * MIB + 1]), len(PACK))
        far.forget()
        assert read(in_front(far, tmp_path), PACK_NAME, start, end) == PACK[start:end]
        assert far.bytes_of() == held[start:end].count(0)
        held[start:end] = b"\1" * (end - start)


def test_a_range_past_the_end_gives_what_there_is(far: FarObjects, tmp_path: Path) -> None:
    cache = in_front(far, tmp_path)
    for _ in range(2):
        assert read(cache, PACK_NAME, len(PACK) - 10, len(PACK) + 10) == PACK[-10:]
        assert read(cache, PACK_NAME, len(PACK) + 5, len(PACK) + 10) == b""


def test_a_whole_pack_comes_from_the_store(far: FarObjects, tmp_path: Path) -> None:
    read(in_front(far, tmp_path), PACK_NAME, 0, MIB)
    far.forget()
    assert read(in_front(far, tmp_path), PACK_NAME) == PACK
    assert far.bytes_of() == len(PACK)


def test_parts_that_changed_places_are_fetched_again(far: FarObjects, tmp_path: Path) -> None:
    read(in_front(far, tmp_path), PACK_NAME, 0, 1000)
    read(in_front(far, tmp_path), PACK_NAME, 2000, 3000)
    one, other = kept_files(tmp_path)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert read(in_front(far, tmp_path), PACK_NAME, 0, 3000) == PACK[:3000]


def test_chunks_that_were_wrong_on_the_way_are_asked_for_again(tmp_path: Path) -> None:
    """A store that was mended is believed again: the cache keeps nothing of a pack that failed."""
    far = FarObjects()
    data = Family(2 * MIB).base
    digest = digest_of_bytes(data)
    ObjectStore(far).put_blob(digest, [data], family=KEY)
    pack = next(name for name in far.inner.held if name.startswith("packs/"))
    good = far.inner.held[pack]
    far.inner.held[pack] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(IntegrityError):
        ObjectStore(in_front(far, tmp_path / "cache")).fetch_blob(digest, tmp_path / "plan")
    far.inner.held[pack] = good
    ObjectStore(in_front(far, tmp_path / "cache")).fetch_blob(digest, tmp_path / "plan")
    assert (tmp_path / "plan").read_bytes() == data


def test_a_second_plan_is_fetched_without_what_the_first_brought(tmp_path: Path) -> None:
    far, family = FarObjects(), Family(3 * MIB)
    one, other = family.member(1), family.member(2)
    for data in (one, other):
        ObjectStore(far).put_blob(digest_of_bytes(data), [data], family=KEY)
    packed = sorted(far.inner.size(name) or 0 for name in far.inner.held if "packs/" in name)
    for data in (one, other, one):
        far.forget()
        store = ObjectStore(in_front(far, tmp_path / "cache"))
        store.fetch_blob(digest_of_bytes(data), tmp_path / "plan")
        assert (tmp_path / "plan").read_bytes() == data
        if data == other:
            assert 0 < far.bytes_of("packs/") <= packed[0]
    assert far.bytes_of() == 0


# Never from the cache


def test_listings_pointers_and_sizes_are_never_cached(far: FarObjects, tmp_path: Path) -> None:
    cache = in_front(far, tmp_path)
    read(cache, SMALL_NAME)
    assert cache.move_pointer("stable", b"1", expected=None)
    assert cache.pointer("stable") == far.pointer("stable")
    far.inner.held.clear()
    far.inner.pointed["stable"] = b"2"
    assert list(cache.listing("blobs/sha256/")) == []
    assert cache.size(SMALL_NAME) is None
    assert (pointer := cache.pointer("stable")) is not None
    assert pointer.data == b"2"
    assert list(cache.pointers()) == ["stable"]


def test_what_is_removed_or_written_is_not_served_from_before(
    far: FarObjects, tmp_path: Path
) -> None:
    cache = in_front(far, tmp_path)
    read(cache, SMALL_NAME)
    read(cache, PACK_NAME, 0, 10)
    cache.remove(SMALL_NAME)
    cache.remove(PACK_NAME)
    assert kept_files(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        cache.read(SMALL_NAME)
    cache.write(SMALL_NAME, SMALL)
    assert kept_files(tmp_path) == []
    assert far.inner.held[SMALL_NAME] == SMALL


# The limit


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path, limit_bytes=1000)
    for number in range(9):
        assert files.put(f"whole/{number}", b"x" * 100)
        os.utime(tmp_path / f"whole/{number}", (number, number))
    assert files.get("whole/0") == b"x" * 100  # used just now
    again = CacheFiles(tmp_path, limit_bytes=1000)
    assert again.put("whole/9", b"x" * 200)
    left = {path.name for path in kept_files(tmp_path)}
    assert {"0", "9", "8"} <= left
    assert not {"1", "2"} & left


@pytest.mark.parametrize("writers", [1, 3])
def test_the_limit_holds(tmp_path: Path, writers: int) -> None:
    """Several programs may be an eighth each above it before they look again."""
    caches = [CacheFiles(tmp_path, limit_bytes=100_000) for _ in range(writers)]
    chance = random.Random(2)
    for number in range(150):
        assert caches[number % writers].put(f"whole/{number}", bytes(chance.randrange(1, 12_000)))
        held = sum(path.stat().st_size for path in kept_files(tmp_path))
        assert held <= 100_000 * (1 + (writers - 1) / 8)
    assert held > 50_000


def test_what_is_larger_than_the_limit_is_served_uncached(far: FarObjects, tmp_path: Path) -> None:
    for _ in range(2):
        cache = in_front(far, tmp_path, limit_bytes=100)
        assert read(cache, SMALL_NAME) == SMALL
        assert read(cache, PACK_NAME, 5, 5000) == PACK[5:5000]
    assert kept_files(tmp_path) == []
    assert far.bytes_of(SMALL_NAME) == 2 * len(SMALL)


def test_half_files_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path, limit_bytes=1000)
    files.put("whole/a", b"x")
    for name in (".old.12345678", ".new.12345678"):
        (tmp_path / "whole" / name).write_bytes(bytes(5000))
    os.utime(tmp_path / "whole/.old.12345678", (1, 1))
    CacheFiles(tmp_path, limit_bytes=1000).put("whole/b", b"x")
    assert {path.name for path in kept_files(tmp_path)} == {"a", "b", ".new.12345678"}


def test_threads_and_programs_share_a_cache(far: FarObjects, tmp_path: Path) -> None:
    """Under a limit that makes them evict each other's files all the time."""
    spans = [(at, at + 300_000) for at in range(0, len(PACK) - 300_000, 100_000)]
    caches = [in_front(far, tmp_path, limit_bytes=2 * MIB) for _ in range(2)]

    def look(number: int) -> bool:
        start, end = spans[number % len(spans)]
        return read(caches[number % 2], PACK_NAME, start, end) == PACK[start:end]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(3 * len(spans))))


def test_a_folder_that_cannot_be_written_costs_only_speed(far: FarObjects, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/whole").write_bytes(b"in the way")
    cache = in_front(far, tmp_path / "cache")
    with pytest.raises(IntegrityError, match="not a folder"):
        read(cache, SMALL_NAME)
    (tmp_path / "cache/whole").unlink()
    (tmp_path / "file").write_bytes(b"")
    files = CacheFiles(tmp_path / "file" / "below", limit_bytes=1000)
    assert files.put("whole/a", b"x") is False


# Whose files


def plant(path: Path, how: str, elsewhere: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    elsewhere.write_bytes(data)
    if how == "link":
        path.symlink_to(elsewhere)
    elif how == "hard link":
        path.hardlink_to(elsewhere)
    elif how == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(data)
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize("how", ["link", "hard link", "fifo", "foreign"])
@pytest.mark.parametrize("name", [SMALL_NAME, PACK_NAME])
def test_files_that_are_not_ours_alone_are_refused(
    far: FarObjects, tmp_path: Path, name: str, how: str
) -> None:
    if how == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    end = None if name == SMALL_NAME else 1000
    read(in_front(far, tmp_path / "cache"), name, 0, end)
    (path,) = kept_files(tmp_path / "cache")
    plant(path, how, tmp_path / "elsewhere")
    with pytest.raises(IntegrityError) as raised:
        read(in_front(far, tmp_path / "cache"), name, 0, end)
    assert str(path) in raised.value.message


@pytest.mark.parametrize("where", ["", "whole"])
def test_folders_that_are_not_ours_alone_are_refused(
    far: FarObjects, tmp_path: Path, where: str
) -> None:
    root = tmp_path / "cache"
    read(in_front(far, root), SMALL_NAME)
    folder = root / where
    folder.chmod(0o777)
    with pytest.raises(IntegrityError, match="written by others") as raised:
        read(in_front(far, root), SMALL_NAME)
    assert "PLANYARD_STORE_CACHE" in raised.value.mend
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved").chmod(0o700)
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(IntegrityError, match="not a folder"):
        read(in_front(far, root), SMALL_NAME)


def test_the_folder_is_for_us_alone(far: FarObjects, tmp_path: Path) -> None:
    read(in_front(far, tmp_path / "new" / "cache"), SMALL_NAME)
    for path in (tmp_path / "new" / "cache", tmp_path / "new" / "cache" / "whole"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path,) = kept_files(tmp_path / "new" / "cache")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Opening


def test_a_reader_of_a_far_store_is_cached_counted_and_read_only(
    far: FarObjects, tmp_path: Path
) -> None:
    traffic = Traffic()
    place = cache_place(str(tmp_path), "1 MB")
    assert place is not None
    assert place.limit_bytes == 1_000_000
    for _ in range(2):
        store = open_reader(ObjectStore(far), cache=place, traffic=traffic)
        assert store.read_blob(digest_of_bytes(SMALL), limit_bytes=1000) == SMALL
    assert (traffic.fetched_bytes, traffic.reused_bytes) == (len(SMALL), len(SMALL))
    with pytest.raises(StoreError, match="read-only"):
        store.put_blob(KEY, [b""])


def test_a_reader_of_a_near_store_has_no_cache(tmp_path: Path) -> None:
    near = MemoryStore()
    near.put_blob(digest_of_bytes(SMALL), [SMALL])
    place = cache_place(str(tmp_path / "cache"))
    store = open_reader(near, cache=place, traffic=Traffic())
    assert store.read_blob(digest_of_bytes(SMALL), limit_bytes=1000) == SMALL
    assert not isinstance(store.objects, CachedObjects | CountedObjects)
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_named_by_options_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(opening.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv(opening.CACHE_LIMIT_VARIABLE, raising=False)
    assert cache_place() is None
    assert cache_place(None, "5 GB") is None
    monkeypatch.setenv(opening.CACHE_VARIABLE, str(tmp_path))
    assert (place := cache_place()) is not None
    assert (place.folder, place.limit_bytes) == (tmp_path, 20_000_000_000)
    monkeypatch.setenv(opening.CACHE_LIMIT_VARIABLE, "3 MiB")
    assert (place := cache_place()) is not None
    assert place.limit_bytes == 3 * MIB
    assert (place := cache_place("other", "4 MiB")) is not None
    assert (place.folder, place.limit_bytes) == (Path("other").absolute(), 4 * MIB)
    with pytest.raises(InputError, match="limit of the cache"):
        cache_place(None, "much")
