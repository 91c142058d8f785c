"""Where no engine answers: planyard starts its own, stops it, and cleans up after a killed run."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from planyard.edge.docker_cli import DEFAULT_SOCKET
from tests.conftest import ENGINE, Built
from tests.workspaces import NO_ENGINE, Site, engines_of

pytestmark = [
    pytest.mark.docker,
    pytest.mark.xdist_group(ENGINE),  # beside each other they would count each other's engines
    pytest.mark.skipif(DEFAULT_SOCKET.exists(), reason="an engine has the default socket"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a private engine"),
]
OWN = {"DOCKER_HOST": None}
SELECT = ("--select", "ort-cpu/*/640/*")
HIDE = 'for each in {programs}; do mount --bind /dev/null "$each"; done; exec "$@"'


def run_folders() -> set[str]:
    """The folders that private engines keep their sockets in."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("planyard-engine-*")}


def hiding(*programs: str) -> tuple[str, ...]:
    """A command that runs another where these programs cannot be executed."""
    paths = [path for program in programs if (path := shutil.which(program))]
    assert len(paths) == len(programs)
    script = HIDE.format(programs=" ".join(paths))
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


def test_it_is_started_and_stopped(empty_site: Callable[[str], Site], built: Built) -> None:
    site, before = empty_site("alone"), run_folders()
    ran = site.planyard("build", *SELECT, env=OWN).expect(0)
    assert "✓ start a private Docker engine" in ran.stderr
    assert "1 passed" in ran.stderr
    assert site.leftovers() == []
    assert run_folders() <= before
    report = site.planyard("build", *SELECT, "--json", env=OWN).expect(0).document()
    assert report["images"][0]["digest"] == built.image("ort-cpu")["digest"]


def test_an_engine_that_answers_is_used_as_it_is(site: Site) -> None:
    site.edit("\ngates:\n", "\nsmoke: {requests: 5}\n\ngates:\n")
    ran = site.planyard("build", *SELECT).expect(0)
    assert "✓ smoke ort-cpu/ocr-det/640/fp32/cpu" in ran.stderr
    assert "private" not in ran.stderr
    assert not (site.state / "engine").exists()


def test_a_named_engine_that_does_not_answer_is_not_replaced(
    empty_site: Callable[[str], Site],
) -> None:
    """DOCKER_HOST is somebody's decision: a private engine instead would be a surprise."""
    site = empty_site("named")
    ran = site.planyard("image", "build", *SELECT, env={"DOCKER_HOST": NO_ENGINE}).expect(5)
    assert f"no Docker engine answers at DOCKER_HOST={NO_ENGINE}" in ran.stderr
    assert "mend:  start it, or unset DOCKER_HOST" in ran.stderr
    assert not (site.state / "engine").exists()
    assert site.leftovers() == []


@pytest.mark.parametrize("program", ["skopeo", "mmdebstrap", "dockerd"])
def test_no_setup_refuses_and_says_the_command(
    empty_site: Callable[[str], Site], program: str, room: Path
) -> None:
    site = empty_site("lacking")
    env = {**OWN, "PLANYARD_CACHE": str(room / "cache")}
    ran = site.planyard("build", "--no-setup", *SELECT, env=env, before=hiding(program)).expect(5)
    assert f"missing: {program} (" in ran.stderr
    assert f"error: {program} missing, and --no-setup was given" in ran.stderr
    mend = next(line for line in ran.stderr.splitlines() if line.startswith("mend:"))
    package = "docker.io" if program == "dockerd" else program
    assert "apt-get install --yes --no-install-recommends " in mend
    assert package in mend.split()
    assert site.leftovers() == []
    assert not site.store.root.exists()


def test_a_killed_build_is_cleaned_up_by_the_next(
    empty_site: Callable[[str], Site], built: Built
) -> None:
    site, before = empty_site("killed"), run_folders()
    with site.running("build", *SELECT, env=OWN) as running:
        running.wait_for("… store image ort-cpu")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(timeout=60)
    (left,) = engines_of(site.root)
    try:
        assert site.leftovers() != []
        ran = site.planyard("build", *SELECT, env=OWN).expect(0)
        assert "1 passed" in ran.stderr
        assert engines_of(site.root) == []
        assert not Path(f"/proc/{left}").exists()
        assert site.leftovers() == []
        mounts = Path("/proc/self/mounts").read_text()
        assert not [name for name in run_folders() - before if name in mounts]
    finally:
        for engine in engines_of(site.root):
            os.kill(engine, signal.SIGTERM)
        for name in run_folders() - before:
            shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)
