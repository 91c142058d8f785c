"""`planyard init` in an empty folder, from an installed planyard to a lookup and a channel.

What is installed is a wheel made of this checkout: what `init` cuts from has to be in it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.attention_models import bert
from tests.conftest import Built
from tests.workspaces import REPOSITORY, WITHOUT_DOCKER, Ran, Site, share_store

pytestmark = pytest.mark.docker

CUT_FROM = ("matrix.yaml", "images/Dockerfile", "images/admit.py", "images/locks/ort-gpu.txt")


@pytest.fixture(scope="module")
def installed(session_folder: Path) -> Path:
    """The folder of an installed planyard, without what it depends on."""
    wheels, folder = session_folder / "init-wheel", session_folder / "init-installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    made = [*pip, "wheel", "--no-deps", f"--wheel-dir={wheels}", str(REPOSITORY)]
    subprocess.run(made, check=True)
    (wheel,) = wheels.glob("planyard-*.whl")
    put = [*pip, "install", "--no-deps", f"--target={folder}", str(wheel)]
    subprocess.run(put, check=True)
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"builders/starting/ours/{name}" for name in CUT_FROM} <= set(names)
    assert not any("__pycache__" in name for name in names)
    return folder


@pytest.fixture
def empty(installed: Path, room: Path, environment: dict[str, str]) -> Site:
    """An empty folder in which the installed planyard runs, far from the checkout."""
    root = room / "mine"
    root.mkdir()
    return Site(root=root, environment={**environment, "PYTHONPATH": str(installed)})


def build(site: Site, *args: str) -> Any:
    return site.planyard("build", "--json", *args).expect(0).document()


def verdicts(report: Any) -> dict[str, str]:
    return {each["cell"]: each["verdict"] for each in report["verdicts"]}


def next_command(ran: Ran) -> list[str]:
    line = (ran.stdout + ran.stderr).splitlines()[-1]
    assert line.startswith("next:  planyard ")
    return line.removeprefix("next:  planyard ").split()


def test_from_an_empty_folder_to_a_channel(empty: Site) -> None:
    started = empty.planyard("init", env=WITHOUT_DOCKER).expect(0)
    built = empty.planyard(*next_command(started)).expect(0)
    assert "1 passed" in built.stderr
    found = empty.planyard(*next_command(built), env=WITHOUT_DOCKER).expect(0)
    assert "smoke 1 passed" in found.stdout
    digest = found.stdout.split()[1]
    empty.planyard("promote", "stable", digest, env=WITHOUT_DOCKER).expect(0)
    assert digest in empty.planyard("lookup", "stable", env=WITHOUT_DOCKER).expect(0).stdout
    again = empty.planyard("build", env=WITHOUT_DOCKER).expect(0)
    assert "nothing to do" in again.stderr


def test_a_model_on_disk_and_plans(built: Built, empty: Site) -> None:
    """Beside the default matrix's store: of its images only the one that serves plans is new."""
    built.ran.expect(0)
    share_store(built.site.store.root, empty.store.root)
    empty.write("nets/Bert v2.onnx", bert(2).SerializeToString())
    ran = empty.planyard("init", "nets/Bert v2.onnx", "--image-backend", "rtx", "--json")
    document = ran.expect(0).document()
    assert (document["model"], document["images"]) == ("bert-v2", ["rtx", "ort-cpu"])
    report = build(empty)
    images = {image["name"]: image for image in report["images"]}
    assert images["ort-cpu"]["digest"] == built.image("ort-cpu")["digest"]
    assert not images["ort-cpu"]["built"]
    assert report["compiled"] == ["rtx/bert-v2/default/fp32/sm89"]
    assert verdicts(report)["ort-cpu/bert-v2/default/fp32/cpu"] == "passed"
    assert set(verdicts(report).values()) <= {"passed", "not run"}
    found = empty.planyard("lookup", images["rtx"]["digest"], "--sm", "89", "--pull", "plans")
    assert "wrote plans/bert-v2-default-fp32-sm89.plan" in found.expect(0).stdout
