"""What only a store in a directory has: links, modes, temporary files, the OCI view of an image."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.store.local import DAY_SECONDS
from engines.store.local_store import LocalStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError

DATA = b"the bytes of a plan"
DIGEST = digest_of_bytes(DATA)
KEY = digest_of_bytes(b"a key")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def blob_path(store: LocalStore, digest: str) -> Path:
    return store.root / "blobs/sha256" / digest[7:]


def put(store: LocalStore, data: bytes) -> str:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    return digest


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # an address has at most 107 bytes: too few for the whole path


def link_to_the_right_bytes(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    elsewhere.write_bytes(DATA)
    path.symlink_to(elsewhere)


NOT_FILES: dict[str, Callable[[Path], object]] = {
    "a link to the right bytes": link_to_the_right_bytes,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a FIFO nobody writes": os.mkfifo,
    "a socket": make_socket,
    "a folder": lambda path: path.mkdir(),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("made", NOT_FILES)
def test_a_blob_replaced_by_something_else_is_never_served(
    store: LocalStore, tmp_path: Path, made: str
) -> None:
    put(store, DATA)
    blob_path(store, DIGEST).unlink()
    NOT_FILES[made](blob_path(store, DIGEST))
    assert not store.has_blob(DIGEST)
    for read in (
        lambda: store.open_blob(DIGEST),
        lambda: store.read_blob(DIGEST, limit_bytes=1 << 20),
        lambda: store.fetch_blob(DIGEST, tmp_path / "out"),
    ):
        with pytest.raises(IntegrityError):
            read()
    assert not (tmp_path / "out").exists()


def test_putting_a_blob_again_replaces_a_link_and_not_what_it_points_at(
    store: LocalStore, tmp_path: Path
) -> None:
    put(store, DATA)
    blob_path(store, DIGEST).unlink()
    (tmp_path / "victim").write_bytes(b"somebody's")
    blob_path(store, DIGEST).symlink_to(tmp_path / "victim")
    put(store, DATA)
    assert store.read_blob(DIGEST, limit_bytes=100) == DATA
    assert (tmp_path / "victim").read_bytes() == b"somebody's"


def test_a_link_in_place_of_an_entry_is_refused(store: LocalStore, tmp_path: Path) -> None:
    entry = store.put_entry("plans", KEY, b"{}")
    path = store.root / "index/plans" / KEY[7:] / f"{entry[7:]}"
    (tmp_path / "same").write_bytes(b"{}")
    path.unlink()
    path.symlink_to(tmp_path / "same")
    with pytest.raises(IntegrityError):
        list(store.entries("plans", KEY))


@pytest.mark.parametrize("part", ["blobs", "blobs/sha256", "index", "index/plans"])
def test_nothing_is_written_through_a_linked_folder(
    store: LocalStore, tmp_path: Path, part: str
) -> None:
    put(store, b"another")
    store.put_entry("plans", DIGEST, b"{}")
    (store.root / part).rename(tmp_path / "moved")
    (store.root / part).symlink_to(tmp_path / "moved")
    before = sorted(tmp_path.glob("moved/**/*"))
    with pytest.raises(IntegrityError):
        put(store, DATA) if part.startswith("blobs") else store.put_entry("plans", KEY, b"{}")
    assert sorted(tmp_path.glob("moved/**/*")) == before


def test_files_are_read_only_and_nothing_else_is_left(store: LocalStore, tmp_path: Path) -> None:
    put(store, DATA)
    source = tmp_path / "taken"
    source.write_bytes(b"taken")
    store.put_blob(digest_of_bytes(b"taken"), source, take=True)
    store.put_entry("plans", KEY, b"{}")
    kept = [path for path in store.root.glob("*/**/*") if path.is_file()]
    assert len(kept) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o444}


def test_a_taken_file_is_moved_and_not_copied(store: LocalStore, tmp_path: Path) -> None:
    source = tmp_path / "plan"
    source.write_bytes(DATA)
    inode = source.stat().st_ino
    store.put_blob(DIGEST, source, take=True)
    assert blob_path(store, DIGEST).stat().st_ino == inode


def test_a_file_of_another_file_system_can_be_taken(store: LocalStore) -> None:
    shared_memory = Path("/dev/shm")
    if not os.access(shared_memory, os.W_OK):
        pytest.skip("no second file system at /dev/shm")
    source = shared_memory / f"planyard-test-{os.getpid()}"
    source.write_bytes(DATA)
    try:
        store.put_blob(DIGEST, source, take=True)
        assert not source.exists()
    finally:
        source.unlink(missing_ok=True)
    assert store.read_blob(DIGEST, limit_bytes=100) == DATA


def test_temporary_files_are_not_read_and_are_swept_after_a_day(store: LocalStore) -> None:
    put(store, DATA)
    store.put_entry("plans", KEY, b"{}")
    blobs, key = store.root / "blobs/sha256", store.root / "index/plans" / KEY[7:]
    hidden = store.root / ".gitignore"
    old = [blobs / f".{DIGEST[7:47]}.abcd_123", key / f".{KEY[7:47]}.abcdefgh"]
    young = blobs / f".{DIGEST[7:47]}.zzzzzzzz"
    day_ago = time.time() - DAY_SECONDS - 60
    for path in (*old, young, hidden):
        path.write_bytes(b"half of")
    for path in (*old, hidden):
        os.utime(path, (day_ago, day_ago))
    assert list(store.entries("plans", KEY)) == [b"{}"]
    assert list(store.keys("plans")) == [KEY]
    assert store.sweep() == 2
    assert [path.exists() for path in (*old, young, hidden)] == [False, False, True, True]
    assert store.read_blob(DIGEST, limit_bytes=100) == DATA


def test_sweeping_what_is_not_there(store: LocalStore) -> None:
    assert store.sweep() == 0


def test_a_root_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    store = LocalStore(tmp_path / "store")
    for call in (
        lambda: store.has_blob(DIGEST),
        lambda: put(store, DATA),
        lambda: store.open_blob(DIGEST),
        lambda: store.entries("plans", KEY),
        lambda: store.keys("plans"),
        lambda: store.put_entry("plans", KEY, b"{}"),
    ):
        with pytest.raises(StoreError) as raised:
            call()
        assert raised.value.exit_code == 8


def test_a_full_disk_is_a_store_error_and_leaves_nothing(store: LocalStore) -> None:
    resource = pytest.importorskip("resource")
    import signal

    put(store, b"made before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the write fails half way, as ENOSPC
    try:
        with pytest.raises(StoreError):
            store.put_blob(digest_of_bytes(bytes(100_000)), [bytes(100_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    names = [path.name for path in (store.root / "blobs/sha256").iterdir()]
    assert names == [digest_of_bytes(b"made before")[7:]]


def an_image(store: LocalStore, **changed: object) -> str:
    config, layer = put(store, b'{"os":"linux"}'), put(store, b"a layer")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": 14,
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer,
                "size": 7,
            }
        ],
    }
    return put(store, canonical_json(manifest | changed))


def test_an_image_is_published_as_an_oci_layout(store: LocalStore) -> None:
    image = an_image(store)
    folder = store.publish_image_layout(image)
    assert folder == store.root / "images" / image[7:]
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((folder / "index.json").read_bytes())
    (named,) = index["manifests"]
    manifest = folder / "blobs" / named["digest"].replace(":", "/")
    assert named["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert digest_of_bytes(manifest.read_bytes()) == named["digest"] == image
    assert manifest.stat().st_size == named["size"]


def test_publishing_twice_changes_nothing(store: LocalStore) -> None:
    image = an_image(store)
    folder = store.publish_image_layout(image)
    before = {path: path.lstat().st_mtime_ns for path in folder.iterdir()}
    assert store.publish_image_layout(image) == folder
    assert {path: path.lstat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_image_is_not_published_unless_it_is_whole(store: LocalStore) -> None:
    image = an_image(store)
    blob_path(store, digest_of_bytes(b"a layer")).unlink()
    with pytest.raises(StoreError, match=digest_of_bytes(b"a layer")):
        store.publish_image_layout(image)
    assert not (store.root / "images").exists()


def test_what_is_no_image_is_not_published(store: LocalStore) -> None:
    with pytest.raises(LookupMissError):
        store.publish_image_layout(KEY)
    with pytest.raises(InputError):
        store.publish_image_layout(put(store, b'{"manifests":[]}'))
    hostile = an_image(store, config={"digest": "sha256:../../../../etc/passwd", "size": 1})
    with pytest.raises(InputError):
        store.publish_image_layout(hostile)
    damaged = an_image(store)
    blob_path(store, damaged).chmod(0o644)
    blob_path(store, damaged).write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        store.publish_image_layout(damaged)


def test_another_link_in_a_published_image_is_refused(store: LocalStore) -> None:
    image = an_image(store)
    folder = store.publish_image_layout(image)
    (folder / "blobs").unlink()
    (folder / "blobs").symlink_to("/etc")
    with pytest.raises(IntegrityError):
        store.publish_image_layout(image)
