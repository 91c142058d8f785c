"""The whole line with the default matrix: build, look up, pull, build again, change one thing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import jsonschema
import pytest

from builders.schemas import all_schemas
from engines.header import HEAD_BYTES, PlanHeader, read_header
from planyard.core.digest import is_digest
from planyard.edge import files
from tests.conftest import Built
from tests.workspaces import WITHOUT_DOCKER, Site

pytestmark = pytest.mark.docker

IMAGES = ("rtx", "ort-cpu", "ort-gpu")
PLANS = {
    f"rtx/ocr-det/{profile}/fp16/{gpu}"
    for profile in ("640", "960", "1280")
    for gpu in ("sm86", "sm89", "sm120")
}


def cut_off() -> tuple[str, ...]:
    """A command that runs another one without any network, where this machine can."""
    unshare = shutil.which("unshare")
    return (unshare, "--net") if unshare and os.geteuid() == 0 else ()


def test_the_default_matrix_builds(built: Built) -> None:
    built.ran.expect(0)
    if built.fresh:
        assert "✓ compile 9 plans of ocr-det fp16" in built.ran.stderr
    assert {plan["cell"] for plan in built.report["plans"]} == PLANS
    assert built.report["plan_failures"] == built.report["waiting"] == []


def test_the_table_has_every_image_within_its_budget(built: Built) -> None:
    built.ran.expect(0)
    lines = built.ran.stderr.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith("image "))
    rows = [re.split(r"  +", line) for line in lines[start + 1 : start + 4]]
    assert [row[0] for row in rows] == list(IMAGES)
    for name, row in zip(IMAGES, rows, strict=True):
        image = built.image(name)
        assert row[1] == image["digest"][:19]
        assert "OVER" not in " ".join(row)
        sizes = {"pull": image["pull_bytes"], "unpacked": image["unpacked_bytes"]}
        # GPU code for SMs that nobody asks for is true, and NVIDIA's to mend.
        assert {each["rule"] for each in image["findings"]} <= {"image.gpu-code-unused"}
        assert {each["severity"] for each in image["findings"]} <= {"warn"}
        assert all(sizes[key] <= limit for key, limit in image["budget"].items() if key in sizes)
        assert "unpacked" in image["budget"]
    assert [row[4] for row in rows] == ["9 of 9", "-", "-"]


def test_the_last_line_is_a_command_that_works(built: Built) -> None:
    line = built.ran.stderr.splitlines()[-1]
    command = line.removeprefix("next:").split()
    assert command[:2] == ["planyard", "lookup"]
    assert command[2] == built.image("rtx")["digest"]
    found = built.site.planyard(*command[1:], env=WITHOUT_DOCKER).expect(0)
    assert all(cell in found.stdout for cell in PLANS)


def test_cells_without_their_gpu_are_not_run_and_said_loudly(built: Built) -> None:
    by_verdict: dict[str, set[str]] = {"passed": set(), "not run": set(), "failed": set()}
    for verdict in built.report["verdicts"]:
        by_verdict[verdict["verdict"]].add(verdict["cell"])
    assert {f"ort-cpu/ocr-det/{profile}/fp32/cpu" for profile in ("640", "960", "1280")} <= (
        by_verdict["passed"]
    )
    assert not by_verdict["failed"]
    if by_verdict["not run"]:
        assert "warning: NOT RUN: " in built.ran.stderr
        refused = built.site.planyard("build", "--require-smoke").expect(7)
        assert "error: NOT RUN: " in refused.stderr


def test_lookup_needs_no_docker_and_finds_what_is_really_inside(built: Built) -> None:
    rtx, ort = built.image("rtx"), built.image("ort-gpu")
    found = lookup(built, rtx["digest"])
    assert {plan["cell"] for plan in found["plans"]} == PLANS
    assert all(is_digest(plan["recipe"]) and is_digest(plan["digest"]) for plan in found["plans"])
    assert {snapshot["gpu"] for snapshot in found["snapshots"]} == {"sm86", "sm89", "sm120"}
    versions = found["snapshots"][0]["versions_found"]
    assert version(versions, "tensorrt_rtx") == "1.7.1.116"
    (snapshot, *_) = lookup(built, ort["digest"])["snapshots"]
    versions = snapshot["versions_found"]
    assert version(versions, "onnxruntime") == "1.31.1"
    assert version(versions, "cudnn").startswith("9.28.0")
    assert version(versions, "cuda").startswith("13.")
    assert is_digest(snapshot["matrix_digest"])
    assert snapshot["pins"]["cudnn"] == "9.28.0.42"
    assert len(snapshot["commit"]["id"]) == 40


def version(versions: dict[str, dict[str, str]], name: str) -> str:
    assert name in versions, f"found only {sorted(versions)}"
    assert versions[name]["how"]
    return versions[name]["version"]


def lookup(built: Built, digest: str, *args: str) -> dict[str, object]:
    ran = built.site.planyard("lookup", digest, "--json", *args, env=WITHOUT_DOCKER)
    return ran.expect(0).document()


def test_documents_are_as_their_schemas_say(built: Built) -> None:
    schemas = all_schemas()
    digest = built.image("rtx")["digest"]
    shown = built.site.planyard("snapshot", "show", digest, "--json", env=WITHOUT_DOCKER)
    jsonschema.validate(built.report, schemas["build"])
    jsonschema.validate(lookup(built, digest, "--sm", "89"), schemas["lookup"])
    jsonschema.validate(shown.expect(0).document(), schemas["snapshot"])
    assert len(shown.document()["snapshots"]) == 3
    cells = built.site.planyard("cells", "--json", env=WITHOUT_DOCKER).expect(0).document()
    jsonschema.validate(cells, schemas["cells"])
    wrong = {**built.report, "images": "none"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schemas["build"])


def test_pull_writes_verified_plans_of_one_sm(built: Built, room: Path) -> None:
    folder = room / "plans"
    found = lookup(built, built.image("rtx")["digest"], "--sm", "89", "--pull", str(folder))
    plans = {plan["digest"]: plan for plan in found["plans"]}
    assert len(plans) == 3
    assert len(found["not_fitting"]) == 6
    assert all(
        "not 8.9: a plan runs only on its own SM" in left["why"] for left in found["not_fitting"]
    )
    written = sorted(folder.glob("*.plan"))
    assert {files.digest_of_file(path) for path in written} == set(plans)
    for path in written:
        head = read_header(path.read_bytes()[:HEAD_BYTES], size_bytes=path.stat().st_size)
        assert isinstance(head, PlanHeader)
        assert head.sm_targets == (89,)
        assert head.version == "1.7.1.116"
        shown = built.site.planyard("plan", "show", str(path), env=WITHOUT_DOCKER).expect(0)
        assert "8.9" in shown.stdout
    assert (folder / "snapshot.json").exists()


def test_nothing_changed_asks_neither_docker_nor_the_network(built: Built) -> None:
    built.ran.expect(0)
    again = built.site.planyard("build", env=WITHOUT_DOCKER, before=cut_off()).expect(0)
    assert "nothing to do: 3 images and 9 plans are up to date" in again.stderr
    assert not (built.site.state / "engine").exists()
    assert again.stderr.splitlines()[-1] == built.ran.stderr.splitlines()[-1]


def test_a_build_with_nothing_to_do_says_so_in_its_document(built: Built) -> None:
    built.ran.expect(0)
    document = built.site.planyard("build", "--json", env=WITHOUT_DOCKER).expect(0).document()
    assert document["compiled"] == []
    assert not any(image["built"] for image in document["images"])
    assert len(document["plans"]) == 9


def test_without_the_memo_everything_is_found_in_the_store(site: Site) -> None:
    assert not (site.state / "state").exists()
    report = site.planyard("build", "--json", before=cut_off()).expect(0).document()
    assert report["compiled"] == []
    assert [image["built"] for image in report["images"]] == [False, False, False]
    assert len(report["plans"]) == 9
    again = site.planyard("build", env=WITHOUT_DOCKER).expect(0)
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize("lost", ["plan", "layer"])
def test_the_memo_does_not_hide_a_lost_blob(built: Built, site: Site, lost: str) -> None:
    site.planyard("build").expect(0)
    record = built.report["plans"][0]
    layers = {name: image_layers(site, built.image(name)["digest"]) for name in ("ort-cpu", "rtx")}
    own = [layer for layer in layers["ort-cpu"] if layer not in layers["rtx"]]
    digest = record["digest"] if lost == "plan" else own[-1]
    site.store.objects.remove(site.store.objects_of_blob(digest)[-1])
    report = site.planyard("build", "--json").expect(0).document()
    if lost == "plan":
        assert report["compiled"] == [record["cell"]]
    else:
        assert {image["name"]: image["built"] for image in report["images"]} == {
            "rtx": False,
            "ort-cpu": True,
            "ort-gpu": False,
        }
        assert site.store.has_blob(digest)


def image_layers(site: Site, digest: str) -> tuple[str, ...]:
    from engines.index import read_manifest

    return read_manifest(site.store, digest).digests


def test_a_changed_profile_compiles_only_its_own_cells(built: Built, site: Site) -> None:
    site.edit("max: [4, 3, 1280, 1280]", "max: [2, 3, 1280, 1280]")
    report = site.planyard("build", "--json").expect(0).document()
    assert set(report["compiled"]) == {cell for cell in PLANS if "/1280/" in cell}
    assert not any(image["built"] for image in report["images"])
    before = {plan["cell"]: plan for plan in built.report["plans"]}
    for plan in report["plans"]:
        same = plan["recipe"] == before[plan["cell"]]["recipe"]
        assert same == ("/1280/" not in plan["cell"])
