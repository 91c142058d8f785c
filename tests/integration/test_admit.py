"""Admission in real containers: refused without a GPU, admitted on fake trees, and what follows.

The image is built by planyard from an own Dockerfile like those of `images/`; what a GPU machine
has is laid over its containers by `tests/fake_machine.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from builders.image import load_image, make_image, order_image
from builders.workspace import Workspace
from planyard.core.reader import load_matrix
from planyard.edge.console import Console
from tests.conftest import Built
from tests.fake_machine import (
    ENTRYPOINT,
    KERNEL,
    LIBRARIES,
    PROVIDER,
    PYTHON,
    SITE,
    USER,
    Machine,
    compiled,
    lay_out_fakes,
)
from tests.workspaces import lay_out

pytestmark = pytest.mark.docker

DOCKERFILE = f"""\
ARG BASE
FROM ${{BASE}} AS app
COPY site {SITE}
COPY lib {LIBRARIES}
COPY service.py /srv/service.py
COPY planyard-admission/admit.py /opt/planyard/admit.py
COPY planyard-admission/expect.json /etc/planyard/expect.json
COPY --chown={USER}:{USER} planyard-admission/run /run/planyard
USER {USER}:{USER}
ENTRYPOINT {json.dumps(list(ENTRYPOINT))}
CMD ["{PYTHON}", "/srv/service.py"]
"""
IMAGE = """
  app:
    backend: onnxruntime-cuda
    base: slim
    dockerfile: app/Dockerfile
    context: app
    python: /usr/bin/python3.11
"""
SERVICE = """\
import json, os, signal, sys
from pathlib import Path

def end(*_):
    print("asked to end", flush=True)
    sys.exit(43)

signal.signal(signal.SIGTERM, end)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "pid": os.getpid(), "arguments": sys.argv[1:], "ignored": int(status["SigIgn"], 16),
    "blocked": int(status["SigBlk"], 16), "environment": dict(os.environ),
    "files": {p.name: p.read_text() for p in sorted(Path("/run/planyard").iterdir())},
    "children": Path("/proc/self/task/1/children").read_text(),
}), flush=True)
if sys.argv[1:2] == ["wait"]:
    signal.pause()
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
"""


def lay_out_app(root: Path) -> None:
    """The build context: packages, libraries and a service; their contents are never executed."""
    compiled(root / "site" / Path(PROVIDER).parent, Path(PROVIDER).name, "int provider;")
    shared = "libonnxruntime_providers_shared.so"
    compiled(root / "site" / Path(PROVIDER).parent, shared, "int shared;")
    size_bytes = (root / "site" / PROVIDER).stat().st_size
    record = root / "site" / "onnxruntime_gpu-1.31.1.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text(f"{PROVIDER},sha256=x,{size_bytes}\n")
    for name in ("cublas.so.13", "cublasLt.so.13", "cudart.so.13", "curand.so.10", "cudnn.so.9"):
        compiled(root / "lib", f"lib{name}", "int library;")
    (root / "service.py").write_text(SERVICE)
    (root / "Dockerfile").write_text(DOCKERFILE)
    shutil.copyfile(Path(__file__).parents[2] / "images" / "admit.py", root / "admit.py")
    (root / ".dockerignore").write_text("Dockerfile\nadmit.py\n")


@pytest.fixture(scope="module")
def bare(
    engine_host: str, cache: Path, session_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """The image on a machine without a GPU: this one."""
    if not shutil.which("gcc"):
        pytest.skip("docker: gcc is not here to compile the fake driver libraries")
    site = lay_out(session_folder / "admit", environment={})
    site.edit("\nmodels:\n", IMAGE + "\nmodels:\n")
    (site.root / "app").mkdir()
    lay_out_app(site.root / "app")
    fakes = lay_out_fakes(tmp_path_factory.mktemp("fakes"))
    matrix = load_matrix(site.matrix.read_bytes(), name="matrix.yaml").matrix
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        patch.setenv("PLANYARD_CACHE", str(cache))
        with Workspace(root=site.root, store=site.store, console=Console(quiet=True)) as workspace:
            spec = matrix.images["app"]
            order = order_image("app", spec, matrix=matrix, workspace=workspace)
            record, _ = make_image(order, workspace=workspace)
            tag = load_image(record, workspace=workspace)
    yield Machine(host=engine_host, image=tag, fakes=fakes)
    subprocess.run(["docker", "--host", engine_host, "rmi", "--force", tag], check=False)
    shutil.rmtree(site.root, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(bare: Machine) -> Machine:
    """The image on a machine that fits, as far as it can look."""
    return replace(bare, gpu=True)


GPU_CHECKS = ("toolkit", "devices", "driver", "cuda", "gpu", "sm")


def test_plain_docker_run_refuses_and_says_why(bare: Machine) -> None:
    ended = bare.run()
    document = ended.refused(*GPU_CHECKS)
    assert all(each["expected"] and each["mend"] for each in document["mismatches"])
    assert "docker run --gpus all" in ended.stderr


def test_the_default_ort_gpu_image_refuses(built: Built, engine_host: str) -> None:
    """The image of the default matrix, started the plain way."""
    built.ran.expect(0)
    tag = f"planyard/ort-gpu:{built.image('ort-gpu')['digest'][7:19]}"
    have = ["docker", "--host", engine_host, "image", "inspect", tag]
    if subprocess.run(have, capture_output=True, check=False).returncode:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", engine_host)
            load_default(built)
    Machine(host=engine_host, image=tag, fakes=Path()).run().refused(*GPU_CHECKS)


def load_default(built: Built) -> None:
    from engines.index import all_images

    digest = built.image("ort-gpu")["digest"]
    record = next(each for each in all_images(built.site.store) if each.digest == digest)
    console = Console(quiet=True)
    with Workspace(root=built.site.root, store=built.site.store, console=console) as workspace:
        load_image(record, workspace=workspace)


def test_a_machine_that_fits_becomes_the_service(whole: Machine) -> None:
    ended = whole.run(PYTHON, "/srv/service.py", "7", "two words", "--flag=ü")
    said = ended.service(exit_code=7)
    assert said["pid"] == 1
    assert said["arguments"] == ["7", "two words", "--flag=ü"]
    assert said["ignored"] & ~0x1001000 == 0  # those two by the service's own Python
    assert said["blocked"] == 0
    assert said["children"].strip() == ""
    assert ended.stderr == ""
    snapshot = json.loads(said["files"]["capability.json"])
    assert snapshot["verdict"] == "admitted"
    assert snapshot["facts"]["kernel_driver"] == "580.65.06"
    assert snapshot["facts"]["gpu"]["devices"][0]["sm"] == 89
    assert said["files"]["planyard.prom"].splitlines()[-1] == "planyard_degraded 0"


def test_a_program_gets_the_signals_and_the_environment_of_a_fresh_start(whole: Machine) -> None:
    """Python ignores two signals and may set LC_CTYPE when it starts; none of it is handed on."""
    ended = whole.given(LANG="C", EXAMPLE="given").run("/fake/probe", "a b")
    assert ended.exit_code == 3, ended.stderr
    said = ended.stdout.splitlines()
    assert said[:3] == ["pid 1", "not default 0", "argument a b"]
    names = {line.partition("=")[0] for line in said[3:]}
    assert names == {"PATH", "HOSTNAME", "HOME", "LANG", "EXAMPLE"}


def test_sigterm_reaches_the_service(whole: Machine) -> None:
    with started(whole, PYTHON, "/srv/service.py", "wait") as (name, process):
        assert process.stdout
        assert json.loads(process.stdout.readline())["pid"] == 1
        ask = ["docker", "--host", whole.host, "kill", "--signal", "TERM", name]
        subprocess.run(ask, check=True, capture_output=True)
        assert process.stdout.readline() == "asked to end\n"
        assert process.wait(timeout=60) == 43


@contextmanager
def started(machine: Machine, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A container that runs while the block does."""
    name = f"planyard-admit-{os.getpid()}"
    command = machine.command(*arguments)
    command[command.index("run") + 1 : command.index("run") + 1] = ["--rm", "--name", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield name, process
    finally:
        remove = ["docker", "--host", machine.host, "rm", "--force", name]
        subprocess.run(remove, check=False, capture_output=True)
        process.wait(timeout=60)
        for stream in (process.stdout, process.stderr):
            assert stream
            stream.close()


Change = Callable[[Machine, Path], Machine]


def lay(name: str, data: bytes, target: str) -> Change:
    """Lays a file with these bytes over a place of the container."""

    def change(machine: Machine, room: Path) -> Machine:
        path = room / name
        path.write_bytes(data)
        path.chmod(0o644)
        return machine.laid(path, target)

    return change


def kernel(version: str) -> Change:
    def change(machine: Machine, room: Path) -> Machine:
        fakes = room / "fakes"
        shutil.copytree(machine.fakes, fakes)
        (fakes / "driver" / "nvidia" / "version").write_text(KERNEL.format(version=version))
        return replace(machine, fakes=fakes)

    return change


def without(*names: str) -> Change:
    return lambda machine, _: replace(machine, missing=frozenset(names))


def variables(**given: str) -> Change:
    return lambda machine, _: machine.given(**given)


def rival(machine: Machine, room: Path) -> Machine:
    """onnxruntime installed over onnxruntime-gpu: another dist-info, another library."""
    folder = room / "onnxruntime-1.31.1.dist-info"
    folder.mkdir()
    return machine.laid(folder, f"{SITE}/{folder.name}")


DIFFERENT: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another kernel driver": (kernel("570.133.20"), ("driver",)),
    "no node of a GPU": (without("nvidia0"), ("devices",)),
    "no node of unified memory": (without("nvidia-uvm"), ("devices",)),
    "no NVML": (without("libnvidia-ml.so.1"), ("gpu", "cuda", "sm")),
    "no libcuda": (without("libcuda.so.1"), ("toolkit", "gpu", "cuda", "sm")),
    "NVML refuses": (variables(FAKE_INIT="18"), ("gpu", "cuda", "sm")),
    "no GPU in NVML": (variables(FAKE_COUNT="0"), ("gpu", "sm")),
    "another SM": (variables(FAKE_SM="75"), ("sm",)),
    "MIG without a slice": (variables(FAKE_MIG="9"), ("gpu",)),
    "only graphics": (variables(NVIDIA_DRIVER_CAPABILITIES="graphics"), ("toolkit",)),
    "a CUDA library gone": (
        lay("empty", b"", f"{LIBRARIES}/libcudart.so.13"),
        ("libraries",),
    ),
    "the provider replaced": (
        lay("short", b"\x7fELF\x02" + bytes(200), f"{SITE}/{PROVIDER}"),
        ("packages",),
    ),
    "the provider gone": (lay("none", b"", f"{SITE}/{PROVIDER}"), ("packages", "provider")),
    "onnxruntime over onnxruntime-gpu": (rival, ("packages",)),
    "no expectation": (lay("e1", b"", "/etc/planyard/expect.json"), ("expectation",)),
    "half an expectation": (
        lay("e2", b'{"schema": 1, "image": "app"', "/etc/planyard/expect.json"),
        ("expectation",),
    ),
    "an oversized expectation": (
        lay("e3", b" " * (2 << 20), "/etc/planyard/expect.json"),
        ("expectation",),
    ),
    "another mode": (variables(PLANYARD_ADMIT="of"), ("mode",)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_refuses(whole: Machine, tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o755)
    change, checks = DIFFERENT[name]
    change(whole, tmp_path).run().refused(*checks)


@pytest.mark.parametrize(("user", "mode"), [(USER, 0o644), (0, 0o664), (0, 0o646)])
def test_an_expectation_that_others_may_write_refuses(
    whole: Machine, tmp_path: Path, user: int, mode: int
) -> None:
    expect = tmp_path / "expect.json"
    expect.write_text("{}")
    try:
        os.chown(expect, user, user)
    except PermissionError:
        pytest.skip("docker: only root can give a file away")
    expect.chmod(mode)
    document = whole.laid(expect, "/etc/planyard/expect.json").run().refused("expectation")
    found = document["mismatches"][0]["found"]
    assert "belongs to user" in found if user else "can be written by others" in found


def test_a_missing_expectation_refuses(whole: Machine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    document = whole.laid(tmp_path, "/etc/planyard").run().refused("expectation")
    assert "No such file" in document["mismatches"][0]["found"]


def test_a_driver_that_hangs_does_not_hang_the_start(whole: Machine) -> None:
    document = whole.given(FAKE_HANG="1").run().refused("gpu", "cuda", "sm")
    said = [each["found"] for each in document["mismatches"] if each["check"] == "gpu"]
    assert said == ["the driver's libraries did not answer within 5 s"]


def test_a_read_only_container_needs_a_place_for_the_snapshot(whole: Machine) -> None:
    read_only = replace(whole, options=("--read-only",))
    document = read_only.run().refused("snapshot")
    assert "mount a writable folder at /run/planyard" in document["mismatches"][0]["mend"]
    place = (*read_only.options, "--tmpfs", f"/run/planyard:uid={USER},gid={USER},mode=755")
    said = replace(whole, options=place).run().service(exit_code=0)
    assert set(said["files"]) == {"capability.json", "planyard.prom"}


def test_warn_starts_loudly_and_marks_it(bare: Machine) -> None:
    ended = bare.given(PLANYARD_ADMIT="warn").run(PYTHON, "/srv/service.py", "5")
    said = ended.service(exit_code=5)
    assert said["pid"] == 1
    assert len(ended.stdout.splitlines()) == 1  # nothing but the service's
    document, plain = ended.stderr.splitlines()
    assert json.loads(document)["verdict"] == "degraded"
    assert plain.endswith("started all the same because of PLANYARD_ADMIT=warn")
    assert said["files"]["planyard.prom"].splitlines()[-1] == "planyard_degraded 1"
    snapshot = json.loads(said["files"]["capability.json"])
    assert snapshot["verdict"] == "degraded"
    assert {each["check"] for each in snapshot["mismatches"]} == set(GPU_CHECKS)


def test_warn_starts_without_an_expectation_and_without_a_place(
    bare: Machine, tmp_path: Path
) -> None:
    lost = replace(bare.laid(tmp_path, "/etc/planyard"), options=(*bare.options, "--read-only"))
    ended = lost.given(PLANYARD_ADMIT="warn").run(PYTHON, "/srv/service.py", "5")
    said = ended.service(exit_code=5)
    assert said["files"] == {}
    checks = [each["check"] for each in json.loads(ended.stderr.splitlines()[0])["mismatches"]]
    assert "snapshot" in checks


def test_a_command_that_is_not_there(whole: Machine) -> None:
    ended = whole.run("/srv/nothing")
    assert ended.exit_code == 127
    assert json.loads(ended.stdout)["mismatches"][0]["check"] == "command"
    assert whole.run("/srv/service.py").exit_code == 126


def test_ending_while_the_driver_hangs(whole: Machine) -> None:
    """SIGTERM before the service is there: the first process of a container must not ignore it."""
    with started(whole.given(FAKE_HANG="loud")) as (name, process):
        assert process.stderr
        assert process.stderr.readline() == "asked\n"
        kill = ["docker", "--host", whole.host, "kill", "--signal", "TERM", name]
        subprocess.run(kill, check=True, capture_output=True)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
