"""Parts of the GPU lane: split and joined again, with small files; nothing damaged gets through."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.gpu import bundle, fetching
from tests.gpu.bundle import BundleError, join
from tests.gpu.fetching import FetchError, Fetching, fetch, take_in
from tests.gpu.machine import ROOT, TENSORRT
from tests.gpu.subjects import OCR_REC_DIGEST, lane_matrix

NOISE = random.Random(7).randbytes(400_000)


@pytest.fixture
def groups(tmp_path: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """Two groups, one of them of several blocks."""
    made = []
    for name, files in {
        "one": {"a/b.py": b"b = 1\n", "c.so": NOISE},
        "two": {"d.bin": NOISE[::-1], "empty": b""},
    }.items():
        folder = tmp_path / "given" / name
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        bundle.write_tar(folder, tmp_path / f"{name}.tar")
        entry = bundle.compress(tmp_path / f"{name}.tar", tmp_path / f"{name}.xz", preset=0)
        made.append((name, tmp_path / f"{name}.xz", entry))
    return made


@pytest.fixture
def parts(tmp_path: Path, groups, monkeypatch) -> Path:
    bundle.split(groups, tmp_path / "parts", part_bytes=100_000)
    return tmp_path / "parts"


def test_what_is_split_is_joined(tmp_path, parts):
    manifest = bundle.read_manifest(parts)
    assert len(manifest["parts"]) > 5
    assert all(part["size_bytes"] <= 100_000 for part in manifest["parts"])
    assert join(parts, tmp_path / "into") == {"one": "joined", "two": "joined"}
    assert (tmp_path / "into" / "one" / "a" / "b.py").read_bytes() == b"b = 1\n"
    assert (tmp_path / "into" / "one" / "c.so").read_bytes() == NOISE
    assert (tmp_path / "into" / "two" / "d.bin").read_bytes() == NOISE[::-1]
    assert (tmp_path / "into" / "two" / "empty").read_bytes() == b""
    assert join(parts, tmp_path / "into") == {"one": "was here", "two": "was here"}


def test_blocks_are_put_together_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "BLOCK_BYTES", 10_000)
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "noise").write_bytes(NOISE)
    bundle.write_tar(folder, tmp_path / "t")
    entry = bundle.compress(tmp_path / "t", tmp_path / "x", preset=0)
    assert len(entry["blocks"]) > 40
    bundle.split([("g", tmp_path / "x", entry)], tmp_path / "parts", part_bytes=33_333)
    assert join(tmp_path / "parts", tmp_path / "into") == {"g": "joined"}
    assert (tmp_path / "into" / "g" / "noise").read_bytes() == NOISE


def test_the_first_group_needs_only_the_first_parts(tmp_path, parts):
    names = [part["name"] for part in bundle.read_manifest(parts)["parts"]]
    (parts / names[-1]).unlink()
    said = join(parts, tmp_path / "into")
    assert said["one"] == "joined"
    assert said["two"] == f"waits for {names[-1]}"
    assert not (tmp_path / "into" / "two").exists()


def test_a_damaged_part_is_refused_by_name(tmp_path, parts):
    path = parts / "part-001"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="part-001 is damaged"):
        join(parts, tmp_path / "into")
    assert not (tmp_path / "into" / "one").exists()


def test_a_part_of_another_bundle_is_refused(tmp_path, parts):
    """Its own digest is right, and the group's is not."""
    manifest = json.loads((parts / bundle.MANIFEST).read_text())
    manifest["groups"][0]["sha256"] = "0" * 64
    (parts / bundle.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="one does not have the digest"):
        join(parts, tmp_path / "into")
    assert not (tmp_path / "into" / "one").exists()


def test_no_manifest_says_what_to_run(tmp_path):
    with pytest.raises(BundleError, match=r"fetch\.sh"):
        join(tmp_path, tmp_path / "into")


def test_an_unknown_group_is_an_error(tmp_path, parts):
    with pytest.raises(BundleError, match="no group is called three"):
        join(parts, tmp_path / "into", only=["three"])


def test_joining_needs_the_standard_library_alone(tmp_path, parts):
    script = ROOT / "tests" / "gpu" / "bundle.py"
    command = [sys.executable, "-I", "-S", str(script), "join", str(parts), str(tmp_path / "into")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "bundle: one: joined\nbundle: two: joined\n")
    (parts / "part-000").write_bytes(b"")
    command[-1] = str(tmp_path / "again")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert "part-000 is damaged" in done.stderr


# Fetching, with files that are here already.


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    """A wheel, a wheel's member, and an archive's: small, and in a folder of files to use."""
    have = tmp_path / "have"
    have.mkdir()
    digests = {}
    for name, members in {
        "tool-1.0-py3-none-any.whl": {"tool/__init__.py": b"x = 1\n"},
        "models-2.0-py3-none-any.whl": {"models/a.onnx": b"onnx", "models/b.onnx": b"other"},
        "libs-3.jar": {"org/libs/liba.so.1": NOISE, "org/libs/libb.so.1": b"b"},
    }.items():
        with zipfile.ZipFile(have / name, "w") as file:
            for member, data in members.items():
                file.writestr(member, data)
        digests[name] = hashlib.sha256((have / name).read_bytes()).hexdigest()
    tool, models, libs = digests.values()
    archive = {"path": "org/libs/3/libs-3.jar", "sha256": libs, "below": "org/libs/"}
    return {
        "groups": [
            {"name": "site", "wheels": [{"name": "tool", "version": "1.0", "sha256": tool}]},
            {
                "name": "models",
                "wheels": [
                    {
                        "name": "models",
                        "version": "2.0",
                        "sha256": models,
                        "members": {"models/a.onnx": "first.onnx"},
                    }
                ],
            },
            {"name": "lib", "archives": [{**archive, "members": ["liba.so.1"]}]},
        ]
    }


@pytest.fixture
def order(tmp_path: Path) -> Fetching:
    (tmp_path / "cache").mkdir()
    return Fetching(
        cache=tmp_path / "cache",
        parts=tmp_path / "parts",
        maven=None,
        python="3.12",
        preset=0,
        part_bytes=64_000,
    )


def test_what_is_fetched_arrives(tmp_path, wanted, order):
    take_in(tmp_path / "have", order, wanted)
    manifest = fetch(order, wanted)
    assert [group["name"] for group in manifest["groups"]] == ["site", "models", "lib"]
    join(order.parts, tmp_path / "into")
    files = sorted(
        str(path.relative_to(tmp_path / "into"))
        for path in (tmp_path / "into").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    assert files == ["lib/liba.so.1", "models/first.onnx", "site/tool/__init__.py"]
    assert (tmp_path / "into" / "lib" / "liba.so.1").read_bytes() == NOISE


def test_a_second_fetch_makes_the_same_parts_of_what_is_there(tmp_path, wanted, order, monkeypatch):
    take_in(tmp_path / "have", order, wanted)
    first = fetch(order, wanted)
    monkeypatch.setattr(fetching, "_compress", None)
    assert fetch(order, wanted) == first


def test_an_archive_needs_an_address(tmp_path, wanted, order):
    (tmp_path / "have" / "libs-3.jar").unlink()
    take_in(tmp_path / "have", order, wanted)
    with pytest.raises(FetchError, match="MAVEN_REPOSITORY is not set"):
        fetch(order, wanted)


def test_a_file_with_another_digest_is_removed(tmp_path, wanted, order):
    archive = wanted["groups"][2]["archives"][0]
    part = order.cache / "archives" / archive["sha256"] / "libs-3.jar.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    with pytest.raises(FetchError, match=r"libs-3\.jar\.part has SHA-256 .*run this again"):
        fetching.check_digest(part, archive["sha256"])
    assert not part.exists()


def test_files_that_are_not_wanted_are_not_taken(tmp_path, wanted, order):
    with zipfile.ZipFile(tmp_path / "have" / "tool-1.0-py3-none-any.whl", "a") as file:
        file.writestr("tool/more.py", b"")
    take_in(tmp_path / "have", order, wanted)
    assert not (order.cache / "wheels" / wanted["groups"][0]["wheels"][0]["sha256"]).exists()


# What is wanted.


def test_what_is_wanted_is_what_the_lane_looks_for():
    wanted = tomllib.loads(fetching.WANTED.read_text())
    names = {group["name"] for group in wanted["groups"]}
    assert {"site", "models"} <= names
    for version, name in TENSORRT.items():
        assert {f"site-{name}", f"lib-{name}"} <= names
        bindings = next(g for g in wanted["groups"] if g["name"] == f"site-{name}")["wheels"]
        assert [(each["name"], each["version"]) for each in bindings] == [
            ("tensorrt-cu13-bindings", version)
        ]
    matrix = lane_matrix()
    site = next(group for group in wanted["groups"] if group["name"] == "site")["wheels"]
    versions = {each["name"]: each["version"] for each in site}
    assert versions["onnxruntime-gpu"] == matrix.pins.onnxruntime.version
    assert matrix.pins.tensorrt in TENSORRT
    assert OCR_REC_DIGEST.startswith("sha256:")


def test_no_registry_is_named():
    text = fetching.WANTED.read_text() + (ROOT / "tests/gpu/fetch.sh").read_text()
    text += Path(fetching.__file__).read_text()
    assert "://" not in text


def test_parts_are_below_what_a_transfer_takes():
    assert bundle.PART_BYTES < 60 << 20
    with pytest.raises(SystemExit):
        fetching.main(["--part-mib", "60"])


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `NOISE`; below `/ranges` it knows ranges."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        if self.path.startswith("/ranges") and asked:
            data = NOISE[start:]
            self.send_response(206 if data else 416)
        else:
            data = NOISE
            self.send_response(404 if self.path.startswith("/none") else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def maven() -> Iterator[str]:
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ARCHIVE = {"path": "a/libs.jar", "sha256": hashlib.sha256(NOISE).hexdigest()}


@pytest.mark.parametrize("below", ["/ranges", "/whole"])
@pytest.mark.parametrize("have", [0, 1000, len(NOISE)])
def test_a_download_that_broke_off_goes_on(order, maven, below, have):
    part = order.cache / "archives" / ARCHIVE["sha256"] / "libs.jar.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(NOISE[:have])
    fetched = fetching.fetched_archive(replace(order, maven=maven + below), ARCHIVE)
    assert fetched.read_bytes() == NOISE
    assert Server.asked == ([f"bytes={have}-"] if have else [""])
    assert not part.exists()
    fetching.fetched_archive(replace(order, maven=maven + below), ARCHIVE)
    assert len(Server.asked) == 1


def test_an_archive_that_is_not_there_is_refused(order, maven):
    with pytest.raises(FetchError, match=r"libs\.jar was refused: 404"):
        fetching.fetched_archive(replace(order, maven=f"{maven}/none"), ARCHIVE)
