"""The walk-through of the README, for real: build here, pull there, sign, promote, roll back.

A bucket on SeaweedFS is what two machines share. Each machine is a folder of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from planyard.core.digest import digest_of_bytes
from planyard.edge.cosign import Cosign
from planyard.edge.files import digest_of_file
from tests import places_s3
from tests.conftest import Built
from tests.cosign_fixture import KeyPair
from tests.workspaces import Ran, Site

WITHOUT_DOCKER = {"DOCKER_HOST": "unix:///nonexistent"}
SELECTED = ("--select", "rtx/*", "--select", "ort-cpu/*")

pytestmark = [pytest.mark.docker, pytest.mark.s3]


@pytest.fixture(scope="module")
def shared(cosign_program: Cosign) -> dict[str, str]:
    """The environment of every machine: cosign, the server, and the store they share."""
    url = f"s3://{places_s3.BUCKET}/walk-{uuid.uuid4().hex}"
    path = f"{Path(cosign_program.program).parent}{os.pathsep}{os.environ['PATH']}"
    return {**places_s3.server(), "PLANYARD_STORE": url, "PATH": path}


def on(folder: Path, shared: dict[str, str]) -> Callable[..., Ran]:
    """Runs planyard on a machine with an empty folder, no Docker, and the store they share."""
    folder.mkdir()
    site = Site(root=folder, environment={**shared, "PLANYARD_CACHE": str(folder / "cache")})
    return lambda *args, **env: site.planyard(*args, env={**WITHOUT_DOCKER, **env})


def test_from_one_machine_to_another_and_back(
    built: Built, site: Site, room: Path, shared: dict[str, str], cosign_keys: KeyPair
) -> None:
    there = on(room / "there", shared)
    keys = {"PLANYARD_SIGN_KEY": str(cosign_keys.private), **cosign_keys.environment}
    # Everything is in the workspace's own store: it is sent, and nothing is made again.
    report = site.planyard("build", *SELECTED, "--sign", "--json", env={**shared, **keys})
    sent = report.expect(0).document()
    assert (sent["compiled"], {image["built"] for image in sent["images"]}) == ([], {False})

    rtx, cpu = (built.image(name)["digest"] for name in ("rtx", "ort-cpu"))
    first = there("lookup", rtx, "--sm", "89", "--pull", "plans").expect(0)
    assert first.stdout.count("wrote plans/ocr-det-") == 3
    second = there("lookup", rtx[7:30], "--sm", "86", "--pull", "more", "--seed", "plans").expect(0)
    assert "were here already" in second.stderr + second.stdout
    plans = {plan["digest"] for plan in sent["plans"]}
    pulled = [*(room / "there" / "plans").glob("*.plan"), *(room / "there" / "more").glob("*.plan")]
    assert len(pulled) == 6
    assert {digest_of_file(path) for path in pulled} <= plans

    public = str(cosign_keys.public)
    assert "genuine" in there("verify", cpu, "--key", public).expect(0).stdout
    there("verify", rtx, "--key", public).expect(4)  # its cells were not run: no GPU here
    there("promote", "stable", cpu, "--require-signed", "--key", public).expect(0)
    refused = there("promote", "stable", rtx).expect(4)
    assert "not-run" in refused.stdout + refused.stderr
    reason = ("--waive", "not-run", "--because", "run by hand on a GPU")
    there("promote", "stable", rtx, *reason).expect(0)
    assert rtx in there("lookup", "stable").expect(0).stdout
    there("rollback", "stable", "--because", "latency doubled").expect(0)
    assert cpu in there("lookup", "stable").expect(0).stdout
    history = there("channels", "stable", "--json").expect(0).document()
    assert [state["action"] for state in history["history"]] == ["rollback", "promote", "promote"]
    assert history["history"][1]["waived"][0]["because"] == "run by hand on a GPU"
    assert not there("store", "fsck", "--json").expect(0).document()["problems"]
    there("store", "gc", "--dry-run").expect(0)


def test_another_machine_builds_nothing_that_the_store_has(
    built: Built,
    site: Site,
    empty_site: Callable[[str], Site],
    shared: dict[str, str],
) -> None:
    one = "rtx/*/640/*"
    site.planyard("build", "--select", one, env=shared).expect(0)
    other = empty_site("other")
    report = other.planyard("build", "--select", one, "--json", env=shared).expect(0).document()
    assert (report["compiled"], [image["built"] for image in report["images"]]) == ([], [False])
    assert [image["digest"] for image in report["images"]] == [built.image("rtx")["digest"]]
    assert len(report["plans"]) == 3
    assert not any(other.store.has_blob(plan["digest"]) for plan in report["plans"])


def test_a_store_that_is_not_there_is_said_at_once(site: Site, shared: dict[str, str]) -> None:
    gone = {**shared, "PLANYARD_STORE": "s3://no-such-bucket-of-ours/x"}
    ran = site.planyard("lookup", digest_of_bytes(b"any"), env={**gone, **WITHOUT_DOCKER})
    assert ran.expect(8).stderr
    assert "no-such-bucket-of-ours" in ran.stderr
