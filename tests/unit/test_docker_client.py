"""Which Docker client builds, where an engine is looked for, and how a container is bounded."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from planyard.core.errors import ImageBuildError, InputError
from planyard.core.matrix import Image
from planyard.edge import docker, docker_cli
from planyard.edge.docker import Container, Engine, Mount
from planyard.edge.docker_cli import engine_addresses, find_build_client
from tests import small_site

NEW = "Docker version 28.5.1, build e180ab8"
OLD = "Docker version 20.10.24+dfsg1, build 297e128"
Put = Callable[..., str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Puts a `docker` that answers like that version into a folder; returns the folder."""

    def write(name: str, version: str, *, buildx: bool = False, exit_code: int = 0) -> str:
        folder = tmp_path / name
        folder.mkdir()
        said = f"echo {shlex.quote(version)}; exit {exit_code}"
        script = f'#!/bin/sh\ncase "$1" in\nbuildx) {"exit 0" if buildx else "exit 1"};;\n'
        script += f"--version) {said};;\n*) exit 9;;\nesac\n"
        (folder / "docker").write_text(script)
        (folder / "docker").chmod(0o755)
        return str(folder)

    return write


def test_a_client_with_buildx_builds_into_the_engine_itself(put: Put) -> None:
    folder = put("new", NEW, buildx=True)
    command = find_build_client([folder])
    assert command[:3] == (f"{folder}/docker", "buildx", "build")
    assert command[3:] == ("--builder", "default", "--load")


def test_an_old_client_has_buildkit_built_in(put: Put) -> None:
    folder = put("old", OLD)
    assert find_build_client([folder]) == (f"{folder}/docker", "build")


def test_the_first_client_that_works_is_taken_not_the_first(put: Put) -> None:
    """Two clients, as on the machine this was built on: 28 without buildx, then Debian's."""
    folders = [put("none", NEW), put("old", OLD), put("buildx", NEW, buildx=True)]
    assert find_build_client(folders) == (f"{folders[1]}/docker", "build")


@pytest.mark.parametrize(
    ("version", "exit_code", "said"),
    [
        (NEW, 0, "28.5.1, without buildx"),
        ("Docker version 23.0.0, build x", 0, "23.0.0, without buildx"),
        (OLD, 1, "no version"),
        ("podman version 4.3.1", 0, "no version"),
        ("Docker version unknown-version", 0, "no version"),
        ("Docker version 2x.1", 0, "no version"),
        ("", 0, "no version"),
        ("a b 20", 0, "no version"),
    ],
)
def test_a_client_that_cannot_build_is_named(
    put: Put, version: str, exit_code: int, said: str
) -> None:
    folder = put("it", version, exit_code=exit_code)
    with pytest.raises(ImageBuildError, match=r"no Docker client with BuildKit") as caught:
        find_build_client([folder])
    assert f"{folder}/docker ({said}" in caught.value.message
    assert caught.value.mend == "planyard setup"


def test_without_any_client_that_is_said(tmp_path: Path) -> None:
    for folders in ([], [str(tmp_path), "/nonexistent", ""]):
        with pytest.raises(ImageBuildError, match="no docker on the PATH"):
            find_build_client(folders)


def test_one_client_under_two_names_is_asked_once(put: Put, tmp_path: Path) -> None:
    folder = put("none", NEW)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "docker").symlink_to(f"{folder}/docker")
    with pytest.raises(ImageBuildError) as caught:
        find_build_client([folder, str(tmp_path / "link")])
    assert caught.value.message.count("without buildx") == 1


def test_a_file_that_cannot_be_run_is_no_client(put: Put, tmp_path: Path) -> None:
    folder = put("broken", OLD)
    (Path(folder) / "docker").write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(ImageBuildError, match="no version"):
        find_build_client([folder])
    (Path(folder) / "docker").chmod(0o644)
    with pytest.raises(ImageBuildError, match="no docker on the PATH"):
        find_build_client([folder])


def test_the_path_is_where_clients_are_looked_for(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put("new", NEW, buildx=True)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert find_build_client()[0] == f"{folder}/docker"


def test_a_named_engine_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2376")
    assert engine_addresses() == ("tcp://10.0.0.1:2376",)


def test_without_a_name_the_usual_sockets_are_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(docker_cli, "DEFAULT_SOCKET", tmp_path / "default.sock")
    assert engine_addresses() == ()
    (tmp_path / "docker.sock").write_text("")
    assert engine_addresses() == (f"unix://{tmp_path}/docker.sock",)
    (tmp_path / "default.sock").write_text("")
    assert engine_addresses()[0] == f"unix://{tmp_path}/default.sock"


@pytest.mark.parametrize("host", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"])
def test_an_engine_that_is_not_there_does_not_answer(host: str) -> None:
    assert not Engine(host).answers()


def arguments(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "image": "planyard/x:1",
        "command": ("/usr/bin/python3", "-c", "$(id) --privileged"),
        "memory_bytes": 1 << 30,
        "timeout_seconds": 5,
        "mounts": (
            Mount(source=Path("/tmp/a:b,c"), target="/in"),
            Mount(source=Path("/tmp/out"), target="/out", writable=True),
        ),
        "environment": {"A": "$B"},
    }
    return docker._create_arguments(Container(**{**fields, **changes}))


def test_a_container_runs_the_way_production_would() -> None:
    made = arguments()
    assert made["network_mode"] == "none"
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges"]
    assert made["mem_limit"] == made["memswap_limit"] == 1 << 30
    assert made["pids_limit"] > 0
    assert made["user"] is None
    assert "device_requests" not in made
    assert "privileged" not in made


def test_a_command_is_a_list_and_never_a_shell() -> None:
    made = arguments()
    assert made["entrypoint"] == ["/usr/bin/python3"]
    assert made["command"] == ["-c", "$(id) --privileged"]


def test_only_what_may_be_written_is_writable() -> None:
    read_only = {mount["Target"]: mount["ReadOnly"] for mount in arguments()["mounts"]}
    assert read_only == {"/in": True, "/out": False}
    assert arguments()["mounts"][0]["Source"] == "/tmp/a:b,c"


def test_a_gpu_is_asked_for_only_by_a_gpu_cell() -> None:
    [request] = arguments(gpu=True)["device_requests"]
    assert request["Capabilities"] == [["gpu"]]


def test_killing_what_has_ended_meanwhile_is_no_error() -> None:
    """It is a thread's work: what it raised would end nowhere."""

    class Gone:
        def kill(self) -> None:
            raise APIError("409 Client Error: Conflict (container 1 is not running)")

    killed = threading.Event()
    docker._kill(Gone(), killed)
    assert killed.is_set()


def with_image(root: Path, **fields: object) -> Image:
    """The image `cpu` of a matrix that says these things of it."""
    said = "".join(f" {key}: {json.dumps(value)}," for key, value in fields.items())
    matrix = small_site.MATRIX.replace(
        "cpu: {backend: onnxruntime-cpu,", f"cpu: {{backend: onnxruntime-cpu,{said}"
    )
    return small_site.lay_out(root, matrix=matrix).matrix.images["cpu"]


@pytest.mark.parametrize("name", ["-x", "--target", "a b", "", "a;b", "$(id)", "a\n", "a=b"])
def test_no_stage_or_argument_can_look_like_an_option(tmp_path: Path, name: str) -> None:
    """Words that reach `docker build` are held to a form when the matrix is read."""
    for fields in ({"target": name}, {"build_args": {name: "x"}}):
        with pytest.raises(InputError, match=r"images\.cpu"):
            with_image(tmp_path, **fields)


@pytest.mark.parametrize("value", ["-x", "--target=y", "$(id)", "a;b", "'\"`", "a=b", ""])
def test_a_value_of_a_build_argument_is_any_text(tmp_path: Path, value: str) -> None:
    assert with_image(tmp_path, build_args={"A": value}).build_args == {"A": value}
