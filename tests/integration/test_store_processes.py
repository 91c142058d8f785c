"""A directory store between real processes: many writers at once, and writers that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.store.local_store import LocalStore
from engines.store.manifest import OCI_MANIFEST
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.edge import proc

REPOSITORY = Path(__file__).resolve().parents[2]
WRITERS = 8
KEY = digest_of_bytes(b"a key all write under")

WRITER = """
import sys
from pathlib import Path
from engines.store.local_store import LocalStore
from planyard.core.digest import digest_of_bytes

root, writer, key = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = LocalStore(root)
for number in range(12):
    for data in (b"shared %d" % number * 9000, b"own %d %d" % (writer, number) * 9000):
        digest = digest_of_bytes(data)
        store.put_blob(digest, [data[:50_000], data[50_000:]])
        store.put_entry("plans", key, digest.encode())
        if b"".join(store.open_blob(digest)) != data:
            sys.exit(3)
    for entry in store.entries("plans", key):
        if not store.has_blob(entry.decode()):
            sys.exit(4)
"""

SLOW_WRITER = """
import sys, time
from pathlib import Path
from engines.store.local_store import LocalStore

def pieces():
    yield b"x" * 1_500_000
    yield b"x" * 1_500_000
    print("half way", flush=True)
    time.sleep(600)
    yield b"never"

LocalStore(Path(sys.argv[1])).put_blob(sys.argv[2], pieces())
"""

RESTLESS_WRITER = """
import itertools, sys
from pathlib import Path
from engines.store.local_store import LocalStore
from planyard.core.digest import digest_of_bytes

store = LocalStore(Path(sys.argv[1]))
for number in itertools.count():
    data = b"%s %d" % (sys.argv[2].encode(), number) * 20_000
    digest = digest_of_bytes(data)
    source = Path(sys.argv[1]).parent / "source"
    source.write_bytes(data)
    store.put_blob(digest, source, take=number % 2 == 0)
    store.put_entry("plans", sys.argv[3], digest.encode())
    print(number, flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    args = [sys.executable, "-c", script, *map(str, arguments)]
    return proc.start(args, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def everything_visible_is_whole(store: LocalStore) -> int:
    """Read all that a reader can see; returns how many blobs there are."""
    names = [path.name for path in (store.root / "blobs/sha256").glob("[!.]*")]
    for name in names:
        data = b"".join(store.open_blob("sha256:" + name))
        assert digest_of_bytes(data) == "sha256:" + name
    for key in store.keys("plans"):
        for entry in store.entries("plans", key):
            assert store.has_blob(entry.decode())
    return len(names)


def test_eight_processes_write_at_once(tmp_path: Path) -> None:
    writers = [start(WRITER, tmp_path / "store", number, KEY) for number in range(WRITERS)]
    said = [writer.communicate(timeout=300)[0].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, said
    store = LocalStore(tmp_path / "store")
    assert everything_visible_is_whole(store) == 12 + 12 * WRITERS
    assert len(list(store.entries("plans", KEY))) == 12 + 12 * WRITERS
    assert not list(store.root.glob("**/.*"))


def test_a_writer_killed_half_way_leaves_no_blob(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    before = digest_of_bytes(b"stored before")
    store.put_blob(before, [b"stored before"])
    data = b"x" * 3_000_000 + b"never"
    digest = digest_of_bytes(data)
    writer = start(SLOW_WRITER, store.root, digest)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half way\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)

    (left,) = store.root.glob("blobs/sha256/.*")
    assert left.stat().st_size >= 1_000_000
    assert not store.has_blob(digest)
    assert everything_visible_is_whole(store) == 1
    assert store.sweep() == 0
    day_ago = time.time() - 90_000
    os.utime(left, (day_ago, day_ago))
    assert store.sweep() == 1
    store.put_blob(digest, [data])
    assert everything_visible_is_whole(store) == 2


def test_writers_killed_at_any_moment_leave_a_readable_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    moments = random.Random(20261121)  # the same in every run
    for number in range(10):
        writer = start(RESTLESS_WRITER, store.root, number, KEY)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"0\n"
        time.sleep(moments.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
        (tmp_path / "source").unlink(missing_ok=True)
        everything_visible_is_whole(store)
    assert everything_visible_is_whole(store) >= 10
    assert len(list(store.entries("plans", KEY))) >= 10


def test_skopeo_reads_a_published_image(tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if not skopeo:
        pytest.skip("skopeo is not installed")
    store = LocalStore(tmp_path / "store")
    folder = store.publish_image_layout(an_image(store, layer=empty_tar()))
    said = proc.run([skopeo, "inspect", f"oci:{folder}"], timeout_seconds=60).output
    assert json.loads(said)["Digest"] == "sha256:" + folder.name
    target = tmp_path / "copied"
    proc.run([skopeo, "copy", "-q", f"oci:{folder}", f"dir:{target}"], timeout_seconds=60)
    assert digest_of_bytes((target / "manifest.json").read_bytes()) == "sha256:" + folder.name


def empty_tar() -> bytes:
    return bytes(10_240)


def an_image(store: LocalStore, *, layer: bytes) -> str:
    config = canonical_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of_bytes(layer)]},
        }
    )
    named = []
    for data, kind in ((config, "config.v1+json"), (layer, "layer.v1.tar")):
        store.put_blob(digest_of_bytes(data), [data])
        media_type = f"application/vnd.oci.image.{kind}"
        named.append({"mediaType": media_type, "digest": digest_of_bytes(data), "size": len(data)})
    document = canonical_json(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": named[0], "layers": named[1:]}
    )
    store.put_blob(digest_of_bytes(document), [document])
    return digest_of_bytes(document)
