"""What is in the runtime images, and what is not: read layer by layer from the store."""

from __future__ import annotations

import fnmatch
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from builders.closure import Contents, check_closure
from builders.image import load_image
from builders.workspace import Workspace
from engines.index import all_images
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


def record_of(built: Built, name: str) -> ImageRecord:
    digest = built.image(name)["digest"]
    return next(each for each in all_images(built.site.store) if each.digest == digest)


def members(site: Site, record: ImageRecord) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    for layer in record.layers:
        path = site.store.root / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                yield member, tar


def config_of(site: Site, record: ImageRecord) -> dict[str, Any]:
    manifest = json.loads(site.store.read_blob(record.digest, limit_bytes=1 << 20))
    data = site.store.read_blob(manifest["config"]["digest"], limit_bytes=1 << 20)
    config: dict[str, Any] = json.loads(data)["config"]
    return config


@pytest.fixture(scope="module", params=IMAGES)
def listing(request: pytest.FixtureRequest, built: Built) -> list[tarfile.TarInfo]:
    built.ran.expect(0)
    found = [member for member, _ in members(built.site, record_of(built, request.param))]
    assert len(found) > 100
    return found


def test_no_shell_installer_or_fetcher(listing: list[tarfile.TarInfo]) -> None:
    forbidden = SHELLS | INSTALLERS | FETCHERS
    named = [each.name for each in listing if posixpath.basename(each.name) in forbidden]
    assert [name for name in named if "/bin/" in f"/{name}" or "/sbin/" in f"/{name}"] == []
    packages = [each.name for each in listing if "/pip/" in f"/{each.name}/"]
    assert packages == []


def test_every_program_is_known(listing: list[tarfile.TarInfo]) -> None:
    """A list of what is there, so that a new base package cannot bring a tool unseen."""
    programs = {
        posixpath.basename(each.name)
        for each in listing
        if not each.isdir() and posixpath.dirname(f"/{each.name}").endswith(("/bin", "/sbin"))
    }
    assert programs <= {"python3.11", "getconf", "getent", "iconv", "ldd", "locale", "localedef",
                        "pldd", "tzselect", "zdump", "catchsegv", "ldconfig"}  # fmt: skip


def test_nothing_is_privileged_or_writable_by_all(listing: list[tarfile.TarInfo]) -> None:
    assert [each.name for each in listing if each.mode & 0o6000] == []
    devices = [each.name for each in listing if each.ischr() or each.isblk() or each.isfifo()]
    assert devices == []
    open_to_all = [
        each.name
        for each in listing
        if each.mode & 0o002 and not each.issym() and not each.mode & 0o1000
    ]
    assert open_to_all == []


def test_nothing_of_a_build_is_left(listing: list[tarfile.TarInfo]) -> None:
    left = [
        each.name
        for each in listing
        if any(fnmatch.fnmatch(each.name, pattern) for pattern in BUILD_FILES)
        or "__pycache__" in each.name
        or each.name.startswith(("wheels", "context", "planyard", "var/lib/dpkg", "var/cache/apt/"))
    ]
    assert left == []


def test_times_are_fixed(listing: list[tarfile.TarInfo]) -> None:
    assert len({each.mtime for each in listing}) == 1
    assert {(each.uname, each.gname) for each in listing} == {("", "")}


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_not_root(built: Built, name: str) -> None:
    config = config_of(built.site, record_of(built, name))
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/usr/bin/python3.11"]
    assert "PYTHONDONTWRITEBYTECODE=1" in config["Env"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ort-cpu", "import onnxruntime as o; print(o.get_available_providers()[-1])"),
        ("ort-gpu", "import onnxruntime as o; print(o.get_available_providers()[-1])"),
        ("rtx", "import tensorrt_rtx_bindings as t; print(t.__version__)"),
    ],
)
def test_it_runs_read_only_as_nobody(
    built: Built, name: str, code: str, engine_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_host)
    who = "import os; print(os.getuid(), os.getgid()); "
    refused = "\ntry: open('/srv-test', 'w')\nexcept OSError as e: print(e.errno)"
    with workspace_of(built) as workspace:
        tag = load_image(record_of(built, name), workspace=workspace)
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


@pytest.fixture(scope="module")
def contents(built: Built) -> dict[str, Contents]:
    """The files of each image, read from the store as the build read them from the engine."""
    found = {}
    for name in IMAGES:
        found[name] = Contents()
        for layer in record_of(built, name).layers:
            found[name].add_layer(io.BytesIO(unpacked(built.site, layer.digest)))
    return found


def unpacked(site: Site, digest: str) -> bytes:
    import gzip

    return gzip.decompress(b"".join(site.store.open_blob(digest)))


@pytest.mark.parametrize("name", IMAGES)
def test_every_library_is_there(
    built: Built, contents: dict[str, Contents], name: str
) -> None:
    missing = check_closure(
        contents[name], image=name, environment=environment(built, name), lazy_libraries=LAZY[name]
    )
    assert missing == ()
    assert len(contents[name].elf_files) > 20


def test_a_missing_library_is_found(built: Built, contents: dict[str, Contents]) -> None:
    """The same image without the library path that leads to CUDA, then without one file."""
    lost = check_closure(contents["ort-gpu"], image="ort-gpu", environment={}, lazy_libraries=[])
    named = " ".join(finding.message for finding in lost)
    assert "libcublas.so.13 is not in the image" in named
    assert "libonnxruntime_providers_cuda.so needs it" in named
    lazy = check_closure(
        contents["ort-cpu"],
        image="ort-cpu",
        environment=environment(built, "ort-cpu"),
        lazy_libraries=["libcudnn.so.9"],
    )
    (finding,) = lazy
    assert finding.rule == "image.library-missing"
    assert "libcudnn.so.9 is not in the image" in finding.message


def test_a_layer_that_takes_a_library_away_is_found(built: Built) -> None:
    contents = Contents()
    for layer in record_of(built, "ort-cpu").layers:
        contents.add_layer(io.BytesIO(unpacked(built.site, layer.digest)))
    gone = next(path for path in sorted(contents.paths) if "/libstdc++.so.6." in path)
    contents.add_layer(whiteout(gone))
    found = check_closure(
        contents, image="x", environment=environment(built, "ort-cpu"), lazy_libraries=[]
    )
    assert any("libstdc++.so.6 is not in the image" in finding.message for finding in found)


def whiteout(path: str) -> io.BytesIO:
    buffer = io.BytesIO()
    folder, name = posixpath.split(path.lstrip("/"))
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"{folder}/.wh.{name}"))
    buffer.seek(0)
    return buffer


def environment(built: Built, name: str) -> dict[str, str]:
    variables = config_of(built.site, record_of(built, name)).get("Env", [])
    return dict(entry.split("=", 1) for entry in variables)


@pytest.mark.parametrize("name", IMAGES)
def test_licences_stay(built: Built, name: str) -> None:
    names = [member.name for member, _ in members(built.site, record_of(built, name))]
    assert any(each.endswith("usr/share/doc/libc6/copyright") for each in names)
