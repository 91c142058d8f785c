"""What is in the runtime images, and what is not: read layer by layer from the store."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import gzip
import io
import json
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pytest

from builders.audit.contents import ImageContents
from builders.audit.known_layers import known_index
from builders.audit.reading import read_layer
from builders.closure import check_closure
from builders.image import load_image
from builders.layers import DEFAULT_EPOCH_SECONDS
from builders.workspace import Workspace
from engines.index import all_images
from planyard.core.digest import digest_of_bytes
from planyard.core.results import ImageRecord
from planyard.edge.console import Console
from planyard.edge.docker import Container
from tests.conftest import Built
from tests.workspaces import Site

pytestmark = pytest.mark.docker

IMAGES = ("rtx", "ort-cpu", "ort-gpu")
SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "csh", "busybox", "toybox", "perl"}
INSTALLERS = {"pip", "pip3", "apt", "apt-get", "aptitude", "dpkg", "dpkg-deb", "uv", "conda", "npm"}
FETCHERS = {"curl", "wget", "nc", "ssh", "tar", "git", "gcc", "cc", "ld", "make"}
BUILD_FILES = ("*.a", "*.h", "*.hpp", "*.pyc", "*.pyi", "*.o")
LAZY = {"ort-gpu": ["libcudnn.so.9", "libnvrtc.so.13"], "rtx": [], "ort-cpu": []}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A runtime image, read once: every member of every layer, and what the loader would see."""

    name: str
    record: ImageRecord
    config: dict[str, Any]
    listing: tuple[tarfile.TarInfo, ...]
    contents: ImageContents

    @property
    def environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config.get("Env", []))


def open_image(built: Built, name: str) -> Opened:
    store = built.site.store
    digest = built.image(name)["digest"]
    record = next(each for each in all_images(store) if each.digest == digest)
    listing: list[tarfile.TarInfo] = []
    indexes = []
    for layer in record.layers:
        with (
            unpacked(built.site, layer.digest) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            listing += tar.getmembers()
        known = known_index(store, layer.digest, diff_id=layer.diff_id, pull_bytes=layer.pull_bytes)
        assert known, f"the build left no index of {layer.digest}"
        indexes.append(known)
    manifest = json.loads(store.read_blob(digest, limit_bytes=1 << 20))
    config = json.loads(store.read_blob(manifest["config"]["digest"], limit_bytes=1 << 20))
    return Opened(
        name=name,
        record=record,
        config=config["config"],
        listing=tuple(listing),
        contents=ImageContents(
            image=digest,
            name=name,
            config=config,
            layers=tuple(indexes),
            created_by=tuple(layer.created_by for layer in record.layers),
            metadata_bytes=0,
        ),
    )


@contextlib.contextmanager
def unpacked(site: Site, digest: str) -> Iterator[IO[bytes]]:
    """A layer's tar, in a file: that of CUDA has more than a gigabyte."""
    path = site.store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")
    with tempfile.TemporaryFile() as file:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
        file.seek(0)
        yield file


@pytest.fixture(scope="module")
def every(built: Built) -> dict[str, Opened]:
    built.ran.expect(0)
    return {name: open_image(built, name) for name in IMAGES}


@pytest.fixture(params=IMAGES)
def opened(request: pytest.FixtureRequest, every: dict[str, Opened]) -> Opened:
    found = every[request.param]
    assert len(found.listing) > 100
    return found


@pytest.fixture
def listing(opened: Opened) -> tuple[tarfile.TarInfo, ...]:
    return opened.listing


def test_no_shell_installer_or_fetcher(listing: tuple[tarfile.TarInfo, ...]) -> None:
    forbidden = SHELLS | INSTALLERS | FETCHERS
    named = [each.name for each in listing if posixpath.basename(each.name) in forbidden]
    assert [name for name in named if "/bin/" in f"/{name}" or "/sbin/" in f"/{name}"] == []
    packages = [each.name for each in listing if "/pip/" in f"/{each.name}/"]
    assert packages == []


def test_every_program_is_known(listing: tuple[tarfile.TarInfo, ...]) -> None:
    """A list of what is there, so that a new base package cannot bring a tool unseen."""
    programs = {
        posixpath.basename(each.name)
        for each in listing
        if not each.isdir() and posixpath.dirname(f"/{each.name}").endswith(("/bin", "/sbin"))
    }
    assert programs <= {"python3.11", "getconf", "getent", "iconv", "ldd", "locale", "localedef",
                        "pldd", "tzselect", "zdump", "catchsegv", "ldconfig"}  # fmt: skip


def test_nothing_is_privileged_or_writable_by_all(listing: tuple[tarfile.TarInfo, ...]) -> None:
    assert [each.name for each in listing if each.mode & 0o6000] == []
    devices = [each.name for each in listing if each.ischr() or each.isblk() or each.isfifo()]
    assert devices == []
    open_to_all = [
        each.name
        for each in listing
        if each.mode & 0o002 and not each.issym() and not each.mode & 0o1000
    ]
    assert open_to_all == []


def test_nothing_of_a_build_is_left(listing: tuple[tarfile.TarInfo, ...]) -> None:
    left = [
        each.name
        for each in listing
        if any(fnmatch.fnmatch(each.name, pattern) for pattern in BUILD_FILES)
        or "__pycache__" in each.name
        or each.name.startswith(("wheels", "context", "planyard", "var/cache/apt/"))
    ]
    assert left == []
    # What the packages are is said, for scanners; dpkg's own database is not there.
    database = {
        each.name.split("/")[3] for each in listing if each.name.startswith("var/lib/dpkg/")
    }
    assert database <= {"", "status.d"}


def test_no_file_is_newer_than_the_fixed_date(listing: tuple[tarfile.TarInfo, ...]) -> None:
    assert max(each.mtime for each in listing) <= DEFAULT_EPOCH_SECONDS
    assert {(each.uname, each.gname) for each in listing} == {("", "")}


def test_it_is_not_root(opened: Opened) -> None:
    assert opened.config["User"] == "65532:65532"
    assert opened.config["Entrypoint"] == [
        "/usr/bin/python3.11",
        "-I",
        "-S",
        "/opt/planyard/admit.py",
    ]
    assert "PYTHONDONTWRITEBYTECODE=1" in opened.config["Env"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ort-cpu", "import onnxruntime as o; print(o.get_available_providers()[-1])"),
        ("ort-gpu", "import onnxruntime as o; print(o.get_available_providers()[-1])"),
        ("rtx", "import tensorrt_rtx_bindings as t; print(t.__version__)"),
    ],
)
def test_it_runs_read_only_as_nobody(
    built: Built,
    every: dict[str, Opened],
    name: str,
    code: str,
    engine_host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_host)
    who = "import os; print(os.getuid(), os.getgid()); "
    refused = "\ntry: open('/srv-test', 'w')\nexcept OSError as e: print(e.errno)"
    with workspace_of(built) as workspace:
        tag = load_image(every[name].record, workspace=workspace)
        ended = workspace.engine().run(
            Container(
                image=tag,
                command=("/usr/bin/python3.11", "-c", who + code + refused),
                memory_bytes=2 << 30,
                timeout_seconds=120,
            )
        )
    assert ended.exit_code == 0, ended.stderr.decode()
    answer = {"rtx": "1.7.1.116"}.get(name, "CPUExecutionProvider")
    assert ended.stdout.decode().split("\n")[:3] == ["65532 65532", answer, "30"]  # EROFS


def workspace_of(built: Built) -> Workspace:
    console = Console(quiet=True)
    return Workspace(root=built.site.root, store=built.site.store, console=console)


def missing_in(opened: Opened, *, lazy: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    found = check_closure(
        opened.contents, image=opened.name, environment=environment, lazy_libraries=lazy
    )
    assert all(finding.rule == "image.library-missing" for finding in found)
    return [finding.message for finding in found]


def test_every_library_is_there(opened: Opened) -> None:
    lazy = LAZY[opened.name]
    assert missing_in(opened, lazy=lazy, environment=opened.environment) == []
    assert len(opened.contents.elf_files) > 20


def test_a_library_that_cannot_be_found_is_named(every: dict[str, Opened]) -> None:
    """The same image without the library path that leads to CUDA."""
    messages = missing_in(every["ort-gpu"], lazy=LAZY["ort-gpu"], environment={})
    said = "\n".join(messages)
    assert "libcublas.so.13 is not in the image" in said
    assert "libonnxruntime_providers_cuda.so needs it" in said
    assert "libcudnn.so.9 is not in the image, and a program that opens it at run time" in said


def test_a_library_opened_at_run_time_counts(every: dict[str, Opened]) -> None:
    opened = every["ort-cpu"]
    (message,) = missing_in(opened, lazy=["libcudnn.so.9"], environment=opened.environment)
    assert "libcudnn.so.9 is not in the image" in message


def test_a_layer_that_takes_a_library_away_is_found(built: Built) -> None:
    opened = open_image(built, "ort-cpu")
    gone = next(path for path in sorted(opened.contents.visible) if "/libstdc++.so.6." in path)
    data = whiteout(gone)
    digest = digest_of_bytes(data)
    layer = read_layer([data], digest=digest, diff_id=digest)
    layers, said = (*opened.contents.layers, layer), (*opened.contents.created_by, "rm")
    contents = dataclasses.replace(opened.contents, layers=layers, created_by=said)
    messages = missing_in(
        dataclasses.replace(opened, contents=contents), lazy=[], environment=opened.environment
    )
    assert any("libstdc++.so.6 is not in the image" in message for message in messages)


def whiteout(path: str) -> bytes:
    """A layer that removes one file."""
    buffer = io.BytesIO()
    folder, name = posixpath.split(path.lstrip("/"))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"{folder}/.wh.{name}"))
    return buffer.getvalue()


def test_licences_stay(listing: tuple[tarfile.TarInfo, ...]) -> None:
    names = [each.name for each in listing]
    assert any(name.endswith("usr/share/doc/libc6/copyright") for name in names)
