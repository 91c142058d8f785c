"""What this machine has and lacks, each with what it means and the command that mends it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from builders import setup
from planyard.core.errors import PlanyardError
from planyard.core.units import format_bytes
from planyard.edge import docker, docker_cli
from planyard.edge.cosign import find_cosign
from planyard.edge.cosign_flags import SETUP_COMMAND, CosignError
from planyard.edge.gpu import local_gpus
from planyard.edge.proc import find_program

if TYPE_CHECKING:
    from engines.store.objects import Objects

_WANTED_BYTES = 12 * 10**9


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at: what was found, and what to do when it is not enough."""

    name: str
    ok: bool
    found: str
    means: str = ""
    mend: str = ""


def examine() -> tuple[Check, ...]:
    """Look at everything once; nothing is changed."""
    engine = docker.find_engine()
    return (
        _engine(engine),
        _build_client(engine),
        *(_tool(tool) for tool in (setup.SKOPEO, setup.MMDEBSTRAP)),
        _cosign(),
        _disk(),
        _gpu(engine),
    )


def examine_store(url: str) -> tuple[Check, ...]:
    """Whether a store answers, and whether channels can move in it: 32 writers race for one."""
    from engines.store.opening import open_objects

    try:
        objects = open_objects(url)
        next(iter(objects.pointers()), None)
        trouble = _swap_trouble(objects)
    except PlanyardError as error:
        means = "nothing can be read from it or written to it"
        return (Check(name="store", ok=False, found=error.message, means=means, mend=error.mend),)
    return (
        Check(name="store", ok=True, found=f"{objects.url} answers"),
        Check(
            name="channels",
            ok=not trouble,
            found=trouble or "compare-and-swap holds: of many writers at once, one wins",
            means="promote and rollback are refused there",
            mend="keep channels in a directory, or on a server with conditional writes",
        ),
    )


def _swap_trouble(objects: Objects) -> str:
    """Why channels cannot move at a place; empty where they can."""
    from engines.store.s3 import S3Objects, probe_compare_and_swap

    if isinstance(objects, S3Objects):
        return probe_compare_and_swap(objects)
    return "" if objects.is_near else "a registry has no compare-and-swap for its tags"


def _engine(engine: docker.Engine | None) -> Check:
    if engine:
        return Check(name="Docker engine", ok=True, found=f"{engine.version()} at {engine.host}")
    if find_program("dockerd"):
        found = "none answers; a build starts a private one (dockerd is installed)"
        may = os.geteuid() == 0 or shutil.which("sudo") is not None
        return Check(
            name="Docker engine",
            ok=may,
            found=found,
            means="a private engine needs root or sudo",
            mend="run as root, or install sudo",
        )
    return Check(
        name="Docker engine",
        ok=False,
        found="none answers, and dockerd is not installed",
        means="images and plans are built in containers",
        mend="planyard setup",
    )


def _build_client(engine: docker.Engine | None) -> Check:
    try:
        command = docker_cli.find_build_client()
    except PlanyardError as error:
        mend = "planyard setup" if engine is None else "install the docker-buildx plugin"
        means = "images are built with BuildKit"
        return Check(name="BuildKit client", ok=False, found=error.message, means=means, mend=mend)
    return Check(name="BuildKit client", ok=True, found=" ".join(command))


def _tool(tool: setup.Tool) -> Check:
    path = find_program(tool.program)
    return Check(
        name=tool.program,
        ok=path is not None,
        found=path or "not installed",
        means=f"it {tool.purpose}",
        mend=setup.install_command([tool]),
    )


def _cosign() -> Check:
    """Optional: only signing and verifying need it, and they refuse to go on without."""
    try:
        cosign = find_cosign()
    except CosignError as error:
        found = f"none to be trusted ({error.message}); optional: {SETUP_COMMAND}"
        return Check(name="cosign", ok=True, found=found, means="it signs and verifies evidence")
    version = ".".join(map(str, cosign.version))
    return Check(name="cosign", ok=True, found=f"{version} at {cosign.program}")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check(
        name="disk",
        ok=free >= _WANTED_BYTES,
        found=f"{format_bytes(free)} free here",
        means=f"the default matrix needs about {format_bytes(_WANTED_BYTES)} while it is built",
        mend="make room, or build elsewhere with --matrix",
    )


def _gpu(engine: docker.Engine | None) -> Check:
    gpus = local_gpus()
    if not gpus:
        found = "none; GPU cells will be `not run`, plans are compiled all the same"
        return Check(name="GPU", ok=True, found=found)
    found = ", ".join(f"SM {gpu.sm / 10} (driver {gpu.driver})" for gpu in gpus)
    if engine and not engine.has_gpu_runtime():
        return Check(
            name="GPU",
            ok=False,
            found=found,
            means="the engine cannot hand the GPU to a container",
            mend="install nvidia-container-toolkit and restart Docker",
        )
    return Check(name="GPU", ok=True, found=found)
