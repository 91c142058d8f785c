"""Two workflows at once on one store, four jobs each: nothing is lost, and nothing made twice.

Eight real planyard commands in workspaces of their own on one SeaweedFS; their engine is made up
(`tests/fake_builds.py`), and writes down whatever is built, compiled or converted. The last test is
`planyard` with a real engine. How long anything takes decides nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import signal
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from engines import index
from engines.keeping.checking import check_store
from engines.store.fsck import Slice
from engines.store.opening import open_url
from engines.store.s3 import S3Objects
from engines.store.store import ObjectStore
from tests import places_s3, small_site
from tests.fake_builds import GATE, HANG, Builds, Command
from tests.workspaces import REPOSITORY, Site

pytestmark = pytest.mark.s3

WORKFLOW = {
    "images": ("image", "build", "--json"),
    "plans": ("plan", "build", "--json"),
    "half": ("build", "--select", "cpu/*", "--select", "rtx/*/8/*", "--json"),
    "all": ("build", "--json"),
}
"""The four jobs of a workflow: overlapping parts of one matrix."""

PLANS = {f"plan rtx/plain/{size}/{kind}/sm89" for size in (8, 16) for kind in ("fp32", "fp16")}
IMAGES = {"image cpu", "image gpu", "image rtx", "image compiler"}
HIDDEN = {"image compiler", "fp16"}
EVERYTHING = PLANS | IMAGES | HIDDEN


@pytest.fixture
def builds(tmp_path: Path) -> Iterator[Builds]:
    server = places_s3.server()
    store = f"s3://{places_s3.BUCKET}/{uuid.uuid4().hex}"
    with places_s3.environment(server):
        yield Builds(
            folder=tmp_path,
            store=store,
            environment={**server, "PLANYARD_LEASE_SECONDS": "3600", "GITHUB_ACTIONS": "false"},
        )


def run_of(workflow: int, job: str) -> dict[str, str]:
    """What GitHub gives a job."""
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_RUN_ID": str(4710 + workflow),
        "GITHUB_JOB": job,
        "CI": "true",
    }


@contextlib.contextmanager
def two_workflows(builds: Builds, **changes: str) -> Iterator[list[Command]]:
    """Eight jobs that begin at one moment; none is left running."""
    gate = builds.folder / "gate"
    jobs: list[Command] = []
    try:
        with gate.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for workflow in (1, 2):
                for job, arguments in WORKFLOW.items():
                    given = {**run_of(workflow, job), **changes, GATE: str(gate)}
                    jobs.append(builds.start(f"{job}-{workflow}", *arguments, **given))
            for each in jobs:
                each.wait_until(lambda each=each: "ready" in each.said())  # type: ignore[misc]
        yield jobs
    finally:
        for each in jobs:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()


def claimed(reports: list[Any]) -> list[str]:
    """What the reports say was made in their run."""
    images = [
        f"image {each['name']}" for report in reports for each in report["images"] if each["built"]
    ]
    return images + [f"plan {cell}" for report in reports for cell in report["compiled"]]


def nothing_is_lost(builds: Builds, reports: list[Any]) -> None:
    """The store is sound and has all that any report names; leases are all given back."""
    store = open_url(builds.store)
    for report in reports:
        for image in report["images"]:
            assert index.read_manifest(store, image["digest"]).digests
        for plan in report["plans"]:
            [record] = index.plans_of_recipe(store, plan["recipe"])
            assert record.digest == plan["digest"]
    assert check_store(store, part=Slice()).is_sound
    assert leases_left(store) == {}


def leases_left(store: ObjectStore) -> dict[str, str]:
    """Who still has a lease, by what it is for."""
    found = {}
    for number in range(256):
        pointer = store.objects.pointer(f"leases/{number:02x}")
        for row in msgspec.json.decode(pointer.data)["leases"].values() if pointer else ():
            found[row["what"]] = row["by"]
    return found


def test_eight_jobs_make_everything_once_though_one_more_is_killed(builds: Builds) -> None:
    """The ninth dies while it builds an image that the others wait for."""
    given = {"PLANYARD_LEASE_SECONDS": "15"}
    hanging = {**run_of(9, "dies"), **given, HANG: "image compiler"}
    victim = builds.start("victim", "build", **hanging)
    victim.wait_until(lambda: builds.made("began")["image compiler"])
    with two_workflows(builds, **given) as jobs:
        jobs[1].wait_until(lambda: "wait for image compiler" in jobs[1].said())
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        reports = [each.report() for each in jobs]
    assert builds.made() == dict.fromkeys(EVERYTHING, 1)
    assert builds.made("began") - builds.made() == {"image compiler": 1}
    # What the ninth made, the compiler and the conversion are in no report.
    others = [what for what in claimed(reports) if what not in builds.made_by(victim.process.pid)]
    assert sorted(others) == sorted(EVERYTHING - builds.made_by(victim.process.pid) - HIDDEN)
    nothing_is_lost(builds, reports)
    said = jobs[1].said()
    assert "run 4719/dies has had it since 20" in said
    assert "more, and longer if it renews its lease" in said
    took_over = [each for each in jobs if "run 4719/dies did not renew its lease" in each.said()]
    assert len(took_over) == 1


def test_a_job_that_is_cancelled_lets_go_at_once(builds: Builds) -> None:
    """The lease would last an hour: who goes on did not wait for that."""
    cell = "rtx/plain/8/fp16/sm89"
    first = builds.start("first", "plan", "build", "--select", cell, **{HANG: f"plan {cell}"})
    first.wait_until(lambda: builds.made("began")[f"plan {cell}"])
    second = builds.start("second", "plan", "build", "--select", cell, "--json", CI="true")
    second.wait_until(lambda: f"wait for plan {cell}" in second.said())
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(60) == 130, first.said()
    report = second.report()
    assert report["compiled"] == [cell]
    assert builds.made()[f"plan {cell}"] == 1
    assert builds.made()["fp16"] == 1  # the cancelled one had it in the store already
    assert builds.made("began")[f"plan {cell}"] == 2
    nothing_is_lost(builds, [report])


def test_what_only_one_workspace_had_is_sent_and_not_made_again(builds: Builds) -> None:
    """A workspace that was built without the shared store has all of it near."""
    root = builds.lay_out("owner")
    own = dataclasses.replace(builds, store=str(root / ".planyard" / "store"))
    own.start("owner", "plan", "build", "--json").report()
    assert builds.made() == dict.fromkeys(EVERYTHING, 1)
    assert not (root / ".planyard" / "store" / "leases").exists()
    first = builds.start("owner", "plan", "build", "--json").report()
    second = builds.start("guest", "plan", "build", "--json").report()
    assert claimed([first, second]) == []
    assert builds.made() == dict.fromkeys(EVERYTHING, 1)
    nothing_is_lost(builds, [first, second])


# A real engine

TINY = """\
ARG BASE
FROM ${BASE} AS tiny
RUN ["/usr/bin/python3.11", "-c", "import time; time.sleep(4)"]
COPY who /who
USER 65532:65532
"""


@pytest.mark.docker
def test_planyard_itself_takes_over_from_one_that_was_killed(
    room: Path, environment: dict[str, str]
) -> None:
    server = places_s3.server()
    store = f"s3://{places_s3.BUCKET}/{uuid.uuid4().hex}"
    given = {**environment, **server, "PLANYARD_STORE": store, "PLANYARD_LEASE_SECONDS": "10"}
    sites = [tiny_site(room / str(number), environment=given) for number in range(3)]
    command = ("image", "build")
    with sites[0].running(*command) as first:
        first.wait_for("… build image tiny")
        with sites[1].running(*command) as second:
            second.wait_until(lambda: "image tiny" in second.said())
            first.process.kill()
            first.process.wait()
            said = second.ended(timeout_seconds=400).expect(0).stderr
    assert "did not renew its lease for 10 s: this run goes on in its place" in said
    assert "✓ store image tiny" in said
    ran = sites[2].planyard(*command, "--json").expect(0)
    assert [each["built"] for each in ran.document()["images"]] == [False]
    assert leases_left(ObjectStore(S3Objects(places_s3.bucket(1), prefix=store[-32:]))) == {}


def tiny_site(root: Path, *, environment: Mapping[str, str]) -> Site:
    """A matrix of one small image on the default matrix's base."""
    slim = yaml.safe_load((REPOSITORY / "matrix.yaml").read_text())["bases"]
    matrix = yaml.safe_load(small_site.MATRIX)
    image = {"backend": "onnxruntime-cpu", "base": "slim"}
    matrix["images"] = {"tiny": {**image, "dockerfile": "ours/Dockerfile", "context": "ours"}}
    matrix["gpus"].pop("sm89")
    site = Site(root=root, environment=environment)
    small_site.lay_out(root, matrix=json.dumps({**matrix, "bases": slim}))
    site.write("ours/Dockerfile", TINY)
    site.write("ours/who", "one")
    return site
