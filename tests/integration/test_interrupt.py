"""Ctrl-C and a cancelled CI job: nothing half done stays, and the next build carries on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from planyard.edge import docker
from planyard.edge.docker_cli import DEFAULT_SOCKET
from tests import sampling
from tests.conftest import Built
from tests.workspaces import Running, Site

pytestmark = pytest.mark.docker

SIGNALS = [signal.SIGINT, signal.SIGTERM]
"""What both do is one path of the code; the longer tests try one, with `--full-sweep` both."""
NEW_PROFILE = ("max: [4, 3, 1280, 1280]", "max: [{batch}, 3, 1280, 1280]")


def containers_of(engine: docker.Engine, process: int) -> list[Any]:
    """The containers, running or not, that a planyard process made."""
    label = f"{docker.LABEL}={process}"
    found: list[Any] = engine.client.containers.list(all=True, filters={"label": label})
    return found


def want_new_plans(site: Site, *, batch: int) -> None:
    """Three plans that no store has yet: several seconds in one container."""
    old, new = NEW_PROFILE
    site.edit(old, new.format(batch=batch))


@contextlib.contextmanager
def engine_at(running: Running, site: Site) -> Iterator[docker.Engine]:
    """The private engine that a running planyard started."""
    found: list[str] = []

    def look() -> bool:
        pid_file = site.state / "engine" / "dockerd.pid"
        if "✓ start a private Docker engine" in running.said() and pid_file.exists():
            with contextlib.suppress(OSError):
                command = (b"/proc/%d/cmdline" % int(pid_file.read_text())).decode()
                with open(command, "rb") as file:  # noqa: PTH123
                    parts = file.read().decode().split("\0")
                found.extend(p.removeprefix("--host=") for p in parts if p.startswith("--host="))
        return bool(found)

    running.wait_until(look)
    engine = docker.Engine(found[0])
    with contextlib.closing(engine):
        yield engine


@pytest.mark.parametrize("sign", SIGNALS)
def test_during_a_compile(site: Site, engine: docker.Engine, sign: signal.Signals) -> None:
    want_new_plans(site, batch=2)
    with site.running("build", "--select", "rtx/*") as running:
        pid = running.process.pid
        running.wait_for("… compile 3 plans")
        running.wait_until(lambda: containers_of(engine, pid))
        running.process.send_signal(sign)
        ran = running.ended(timeout_seconds=60).expect(130)
    assert "interrupted; what was half done has been removed" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert containers_of(engine, pid) == []
    assert site.leftovers() == []
    assert not (site.state / "state").exists()
    report = site.planyard("build", "--select", "rtx/*", "--json").expect(0).document()
    assert len(report["compiled"]) == 3
    assert len(report["plans"]) == 9


@pytest.mark.parametrize("sign", SIGNALS if sampling.full_sweep else [signal.SIGTERM])
def test_during_an_image_build(
    empty_site: Callable[[str], Site], engine: docker.Engine, built: Built, sign: signal.Signals
) -> None:
    site = empty_site("interrupted")
    select = ("--select", "ort-cpu/*/640/*")
    engine.prune_builds()
    with site.running("build", *select) as running:
        pid = running.process.pid
        running.wait_for("… build image ort-cpu")
        scratch = site.state / "scratch"
        running.wait_until(lambda: list(scratch.glob("image-*/context/wheels")))
        running.wait_until(lambda: builds_of(pid))
        running.process.send_signal(sign)
        running.ended(timeout_seconds=60).expect(130)
    assert builds_of(pid) == []
    assert site.leftovers() == []
    assert containers_of(engine, pid) == []
    report = site.planyard("image", "build", *select, "--json").expect(0).document()
    assert report["images"][0]["digest"] == built.image("ort-cpu")["digest"]


def builds_of(parent: int) -> list[str]:
    """The docker clients that a planyard process started and that still run."""
    from pathlib import Path

    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # "pid (command) state parent …"
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
                if int(fields[1]) == parent and b"--iidfile" in command:
                    found.append(entry.name)
    return found


def test_while_an_image_is_stored(
    empty_site: Callable[[str], Site], engine: docker.Engine, built: Built
) -> None:
    site = empty_site("interrupted")
    select = ("--select", "ort-cpu/*/640/*")
    with site.running("build", *select) as running:
        running.wait_for("… store image ort-cpu")
        running.process.send_signal(signal.SIGINT)
        running.ended(timeout_seconds=60).expect(130)
    assert site.leftovers() == []
    title = "org.opencontainers.image.title=ort-cpu"
    untagged = [
        image.id
        for image in engine.client.images.list(all=True, filters={"label": title})
        if not image.tags
    ]
    assert untagged == []
    report = site.planyard("image", "build", *select, "--json").expect(0).document()
    assert report["images"][0]["digest"] == built.image("ort-cpu")["digest"]


@pytest.mark.skipif(DEFAULT_SOCKET.exists(), reason="an engine has the default socket")
@pytest.mark.parametrize("sign", SIGNALS if sampling.full_sweep else [signal.SIGINT])
def test_with_a_private_engine(site: Site, sign: signal.Signals) -> None:
    """The engine planyard started goes with it: process, socket, mounts; its data stays."""
    want_new_plans(site, batch=3)
    own = {"DOCKER_HOST": None}
    with site.running("build", "--select", "rtx/*", env=own) as running:
        with engine_at(running, site) as engine:
            running.wait_for("… compile 3 plans")
            running.wait_until(lambda: containers_of(engine, running.process.pid))
            running.process.send_signal(sign)
        running.ended(timeout_seconds=90).expect(130)
    assert site.leftovers() == []
    assert not (site.state / "engine" / "dockerd.pid").exists()
    again = site.planyard("build", "--select", "rtx/*", "--json", env=own).expect(0).document()
    assert len(again["compiled"]) == 3
    assert site.leftovers() == []
