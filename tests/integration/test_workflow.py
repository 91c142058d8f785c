"""The workflow, whole, under act: from a push to a promoted channel; and three that must not.

What is real: the workflow and action.yml as they are, expressions and matrices (act), Docker, the
smoke run, the bucket (SeaweedFS), the registry, cosign. One cell of the default matrix, in a
repository that is somebody else's. Each broken twin must be red, for its own reason, and leave the
channel where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from planyard.edge.cosign import Cosign
from tests import go_programs, places_s3
from tests.act import PLANYARD, Act, ActRun, caller, pinned_actions
from tests.conftest import do_without
from tests.cosign_fixture import KeyPair
from tests.registry import served_digest
from tests.workspaces import REPOSITORY, Site, lay_out

pytestmark = [pytest.mark.docker, pytest.mark.s3, pytest.mark.registry]

CELL = "ort-cpu/ocr-det/640/fp32/cpu"
BUDGET = "budget: {pull: 80 MB, unpacked: 260 MB, largest_layer: 60 MB}"
PACKAGES = "/usr/local/lib/python3.11/dist-packages"
STAGE = f"FROM root AS ort-cpu\nCOPY --from=ort-cpu-site /site {PACKAGES}\n"
# A service that asks for a GPU's provider in an image whose ONNX Runtime has none: it works, on the
# CPU, and says so once.
ASKS_FOR_CUDA = """\
import onnxruntime

_init = onnxruntime.InferenceSession.__init__


def _ask(self, model, sess_options=None, providers=None, *args, **kwargs):
    asked = ["CUDAExecutionProvider", *(providers or [])]
    _init(self, model, sess_options, asked, *args, **kwargs)


onnxruntime.InferenceSession.__init__ = _ask
"""


@dataclass(frozen=True, kw_only=True)
class Somebody:
    """A repository that calls the workflow, and the store, keys and registry it has."""

    act: Act
    store: str
    registry: str
    environment: dict[str, str] = field(repr=False)
    keys: KeyPair
    secrets: dict[str, str] = field(repr=False)

    @property
    def site(self) -> Site:
        """Their checkout."""
        return self.act.site

    def push(self, meanwhile: Callable[[subprocess.Popen[bytes]], None] | None = None) -> ActRun:
        """Push what is there."""
        inputs = {
            "select": json.dumps(CELL),
            "channels": "stable=ort-cpu",
            "public-key": json.dumps(self.keys.public.read_text()),
            "registry": f"oci://{self.registry}/somebody/images",
            "s3-endpoint": self.environment["AWS_ENDPOINT_URL"],
        }
        return self.act.push(
            caller(self.store, inputs),
            secrets=self.secrets,
            environment=self.environment,
            meanwhile=meanwhile,
        )

    def stable(self) -> tuple[str, int]:
        """The image that the channel is at, and how often it moved."""
        args = ("channels", "stable", "--json", "--store", self.store)
        history = self.site.planyard(*args, env=self.environment).expect(0).document()["history"]
        return history[0]["image"], len(history)


@pytest.fixture(scope="module")
def act_program(request: pytest.FixtureRequest) -> str:
    """The pinned act, built now where it is not in the cache."""
    reason = go_programs.why_not_here(go_programs.ACT)
    return (
        go_programs.ensure(go_programs.ACT)
        if not reason
        else do_without(request.config, "registry", reason)
    )


@pytest.fixture(scope="module")
def somebody(
    act_program: str,
    session_folder: Path,
    environment: dict[str, str],
    cosign_program: Cosign,
    cosign_keys: KeyPair,
    registry: str,
) -> Iterator[Somebody]:
    room = session_folder / "workflow"
    site = lay_out(room / "repository", environment=environment)
    site.write(".gitignore", ".planyard/\n")
    server = places_s3.server()
    path = f"{Path(cosign_program.program).parent}{os.pathsep}{os.environ['PATH']}"
    keys = {name: server[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    signing = {"COSIGN_PRIVATE_KEY": cosign_keys.private.read_text()} | cosign_keys.environment
    act = Act(program=act_program, site=site, room=room)
    yield Somebody(
        act=act,
        store=f"s3://{places_s3.BUCKET}/workflow-{uuid.uuid4().hex}",
        registry=registry,
        environment={**server, "PATH": path},
        keys=cosign_keys,
        secrets=keys | signing,
    )
    shutil.rmtree(room, ignore_errors=True)


@pytest.fixture(scope="module")
def accepted(somebody: Somebody) -> ActRun:
    """The first push: everything is good."""
    return somebody.push()


@pytest.fixture
def changed(somebody: Somebody, accepted: ActRun) -> Iterator[Somebody]:
    """The same repository for a change, which is taken back afterwards."""
    assert accepted.exit_code == 0, accepted.failures()
    kept = {name: (somebody.site.root / name).read_text() for name in FILES}
    yield somebody
    for name, text in kept.items():
        somebody.site.write(name, text)


FILES = ("matrix.yaml", "images/Dockerfile", "images/.dockerignore")


def test_from_a_push_to_a_promoted_channel(somebody: Somebody, accepted: ActRun) -> None:
    assert accepted.exit_code == 0, accepted.failures()
    ran = accepted.results()
    assert set(ran) == {"cells", "images", "smoke", "judge", "evidence", "promote", "verdict"}
    assert set.union(*ran.values()) == {"success"}
    digest, moves = somebody.stable()
    assert moves == 1
    assert digest in accepted.said("images")
    assert served_digest(somebody.registry, "somebody/images", digest) == digest
    verify = ("verify", digest, "--key", str(somebody.keys.public), "--store", somebody.store)
    somebody.site.planyard(*verify, env=somebody.environment).expect(0)
    assert "## planyard: passed" in accepted.summary
    assert "Nothing was accepted here before" in accepted.summary


def test_the_jobs_hand_over_digests(somebody: Somebody, accepted: ActRun) -> None:
    digest, _ = somebody.stable()
    handed = [json.loads(path.read_text()) for path in accepted.artifacts.rglob("*.json")]
    image, smoke = sorted(handed, key=lambda each: each["kind"])
    assert image["image"]["digest"] == digest
    assert [each["image"] for each in smoke["snapshots"]] == [digest]
    assert smoke["verdicts"] == {CELL: "passed"}


def expect_red(run: ActRun, somebody: Somebody, before: tuple[str, int]) -> None:
    """Red, and nothing moved."""
    assert run.exit_code != 0
    results = run.results()
    assert results["verdict"] == results["judge"] == {"failure"}
    assert "promote" not in results
    assert "evidence" not in results
    assert somebody.stable() == before
    assert "## planyard: NOT passed" in run.summary


def test_a_budget_that_is_passed(changed: Somebody) -> None:
    before = changed.stable()
    changed.site.edit(BUDGET, BUDGET.replace("80 MB", "8 MB"))
    number = changed.site.matrix.read_text().partition("pull: 8 MB")[0].count("\n") + 1
    run = changed.push()
    expect_red(run, changed, before)
    assert run.results()["images"] == {"failure"}
    assert "smoke" not in run.results()
    said = run.said("images")
    assert "over its budget of 8.0 MB [budget.pull]" in said
    assert f"file=matrix.yaml,line={number},col=" in said
    assert "the stage images ended with failure" in run.said("judge")
    assert "**42." in run.summary
    assert "8.0 MB OVER**" in run.summary


def test_a_fallback(changed: Somebody) -> None:
    before = changed.stable()
    changed.site.write("images/asking/asks.py", ASKS_FOR_CUDA)
    changed.site.write("images/asking/asks.pth", "import asks\n")  # read when Python starts
    changed.site.edit("!wheels/*.whl", "!wheels/*.whl\n!asking/*", file="images/.dockerignore")
    put = f"COPY asking {PACKAGES}\n"
    changed.site.edit(STAGE, STAGE + put, file="images/Dockerfile")
    run = changed.push()
    expect_red(run, changed, before)
    assert run.results()["images"] == {"success"}
    assert run.results()["smoke"] == {"failure"}
    assert "'CUDAExecutionProvider' is not in available provider names" in run.said("smoke")
    assert f"{CELL} failed:" in run.said("judge")
    assert "[logs." in run.said("judge") or "[provider" in run.said("judge")
    assert CELL in run.summary


def test_a_job_that_is_killed(changed: Somebody) -> None:
    before = changed.stable()
    changed.site.edit(STAGE, f"{STAGE}ENV NEW_IMAGE=1\n", file="images/Dockerfile")
    killed: list[int] = []

    def kill(act: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the smoke job's planyard, as the kernel does when memory is short."""
        deadline = time.monotonic() + 300
        while act.poll() is None and time.monotonic() < deadline:
            for pid in below(act.pid):
                if is_smoke(command_of(pid)):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
            time.sleep(0.1)

    run = changed.push(meanwhile=kill)
    assert killed
    expect_red(run, changed, before)
    assert run.results()["images"] == {"success"}
    assert run.results()["smoke"] == {"failure"}
    judged = run.said("judge")
    assert "the stage smoke ended with failure" in judged
    assert f"{CELL} missing: no smoke job reported on it: it died, or never ran" in judged


FIVE_LINES = """\
on: push
jobs:
  build:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@{checkout}
      - uses: {planyard}
        with:
          verb: cells
          select: |
            ort-cpu/*/640/*
            rtx/*/640/*
"""


@pytest.mark.network
def test_the_action_installs_itself_and_runs_a_verb(
    act_program: str, room: Path, environment: dict[str, str]
) -> None:
    """In a repository of somebody else's, on a runner without planyard."""
    args = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run(
        [*args, "--exclude-standard"], cwd=REPOSITORY, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            target = room / "planyard" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
    site = lay_out(room / "repository", environment=environment)
    checkout = room / "planyard"
    act = Act(program=act_program, site=site, room=room, planyard=checkout, installed=False)
    text = FIVE_LINES.format(checkout=pinned_actions()["actions/checkout"], planyard=PLANYARD)
    run = act.push(text, secrets={}, environment={"PYTHONPATH": ""})
    assert run.exit_code == 0, run.failures()
    said = run.said("build")
    assert CELL in said
    assert "rtx/ocr-det/640/fp16/sm89" in said
    assert "960" not in said
    assert "planyard 0." in said


def is_smoke(command: list[str]) -> bool:
    return "builders" in command and command[3:5] == ["github", "smoke"]


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def below(top: int) -> list[int]:
    """Every process that descends from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {top}
    for _ in range(20):
        found |= {pid for pid, parent in parents.items() if parent in found}
    return sorted(found - {top})
