"""What is missing is never read as success; and what a run came to, as findings and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.closing import show_report
from builders.github import handover
from builders.github.annotations import gpus_missed, place_of_finding
from builders.github.handover import HandedImage, HandedSmoke
from builders.github.judging import (
    RunVerdict,
    channels_from,
    exit_code,
    judge_run,
    stages_from,
)
from builders.github.summary import COMMENT_CHARACTERS, shortened, summary_of
from engines import index
from engines.channels.moves import Mover, promote
from engines.snapshot import BudgetFigures, DeviceReport, Snapshot
from engines.store.local_store import LocalStore
from planyard.core.cells import Cell, expand
from planyard.core.compat import load_compat
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, SmokeNotRunError
from planyard.core.findings import Finding
from planyard.core.matrix import Matrix
from planyard.core.report import (
    BuildReport,
    ImageOutcome,
    PlanFailure,
    SnapshotWritten,
    WaitingCell,
)
from planyard.core.results import ImageRecord, SmokeVerdict
from planyard.edge.console import Console
from tests import small_site

CELLS = ("cpu/plain/8/fp32/cpu", "cpu/plain/16/fp32/cpu")
WHEN = "2026-11-21T18:00:00Z"


class Run:
    """A run of the image `cpu`: everything good until a test takes something away."""

    def __init__(self, root: Path) -> None:
        self.loaded = small_site.lay_out(root)
        self.workspace = small_site.workspace_of(root, lambda _: None)  # type: ignore[arg-type,return-value]
        self.store = self.workspace.store
        assert isinstance(self.store, LocalStore)
        (self.image,) = small_site.put_images(self.loaded, self.workspace, names=("cpu",)).values()
        self.verdicts = {cell: SmokeVerdict(cell=cell, verdict="passed") for cell in CELLS}
        self.images = {"cpu": HandedImage(image=self.image)}
        self.jobs: dict[str, str] = {}

    @property
    def matrix(self) -> Matrix:
        return self.loaded.matrix

    @property
    def cells(self) -> tuple[Cell, ...]:
        everything = expand(self.matrix, load_compat()).cells
        return tuple(cell for cell in everything if cell.id in CELLS)

    def smoke(self, *cells: str, image: ImageRecord | None = None) -> HandedSmoke:
        """What a smoke job hands over; its snapshot is in the store."""
        of = image or self.image
        mine = tuple(self.verdicts[cell] for cell in cells or CELLS)
        snapshot = Snapshot(
            image=of.digest,
            image_name="cpu",
            image_recipe=of.recipe,
            gpu="cpu",
            sm=None,
            pins={},
            versions_found={},
            device=DeviceReport(),
            workspace_bytes=0,
            plans=(),
            smoke=mine,
            gates_off=(),
            budget=BudgetFigures(pull_bytes=1, unpacked_bytes=1, largest_layer_bytes=1),
            commit=None,
            matrix_digest=digest_of_bytes(b"matrix"),
            created=WHEN,
            planyard_version="0",
        )
        digest = index.put_snapshot(self.store, snapshot)
        written = SnapshotWritten(image=of.digest, gpu="cpu", digest=digest)
        return HandedSmoke(
            verdicts={each.cell: each.verdict for each in mine}, snapshots=(written,)
        )

    def judge(self, *smoked: HandedSmoke, **changes: Any) -> RunVerdict:
        given: dict[str, Any] = {
            "matrix": self.matrix,
            "images": self.images,
            "smoked": smoked,
            "store": self.store,
            "jobs": self.jobs,
            "channels": {"stable": "cpu"},
        }
        return judge_run(self.cells, **{**given, **changes})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def whys(found: RunVerdict) -> set[tuple[str, str]]:
    return {(each.verdict, each.why) for each in found.cells}


def test_a_run_that_is_good(run: Run):
    found = run.judge(run.smoke())
    assert found.passed
    assert exit_code(found) == 0
    assert [(each.channel, each.digest) for each in found.promotions] == [
        ("stable", run.image.digest)
    ]


def test_a_job_that_never_ran(run: Run):
    found = run.judge(run.smoke(CELLS[0]))
    assert not found.passed
    assert exit_code(found) == 7
    assert found.promotions == ()
    assert whys(found) == {
        ("passed", ""),
        ("missing", "no smoke job reported on it: it died, or never ran"),
    }


def test_no_cells_are_no_success(run: Run):
    assert not RunVerdict(cells=(), images=()).passed


def test_an_image_that_nobody_handed_over(run: Run):
    found = run.judge(run.smoke(), images={})
    assert exit_code(found) == 7
    assert {verdict for verdict, _ in whys(found)} == {"missing"}


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped", "", "SUCCESS"])
def test_a_stage_that_did_not_succeed_although_every_cell_passed(run: Run, result: str):
    run.jobs = stages_from(["images=success", f"smoke={result}"], empty=["plans"])
    found = run.judge(run.smoke())
    assert all(each.verdict == "passed" for each in found.cells)
    assert not found.passed
    assert found.promotions == ()
    assert exit_code(found) == 7


def test_only_an_empty_stage_may_be_skipped():
    stages = ["images=success", "plans=skipped", "smoke=success"]
    assert stages_from(stages, empty=["plans"]) == {}
    assert stages_from(stages, empty=[]) == {"plans": "skipped"}
    assert stages_from(["smoke="], empty=["smoke"]) == {"smoke": "no result"}
    with pytest.raises(InputError):
        stages_from(["success"], empty=[])


def test_a_verdict_that_the_store_does_not_have(run: Run):
    """What a job says counts for nothing: the store decides."""
    said = run.smoke()
    lost = msgspec.structs.replace(said.snapshots[0], digest=digest_of_bytes(b"another"))
    found = run.judge(msgspec.structs.replace(said, snapshots=(lost,)))
    assert exit_code(found) == 7
    assert all(verdict == "missing" and "no snapshot" in why for verdict, why in whys(found))


def test_verdicts_on_another_image_do_not_count(run: Run):
    """A snapshot of yesterday's image passed all cells; today's has none."""
    data = b"the manifest of yesterday"
    run.store.put_blob(digest_of_bytes(data), [data])
    yesterday = msgspec.structs.replace(run.image, digest=digest_of_bytes(data))
    found = run.judge(run.smoke(image=yesterday))
    assert {verdict for verdict, _ in whys(found)} == {"missing"}


def test_a_store_that_says_failed_where_a_job_said_passed(run: Run):
    bad = Finding(gate="logs", rule="logs.x", message="fell back", where=CELLS[0])
    run.verdicts[CELLS[0]] = SmokeVerdict(cell=CELLS[0], verdict="failed", findings=(bad,))
    said = run.smoke()
    found = run.judge(msgspec.structs.replace(said, verdicts=dict.fromkeys(CELLS, "passed")))
    assert exit_code(found) == 4
    assert ("failed", "fell back [logs.x]") in whys(found)


def test_a_cell_that_was_not_run_is_not_done(run: Run):
    run.verdicts[CELLS[1]] = SmokeVerdict(cell=CELLS[1], verdict="not run", reason="no GPU")
    found = run.judge(run.smoke())
    assert ("not run", "no GPU") in whys(found)
    assert exit_code(found) == 7


def test_one_bad_verdict_of_two_jobs_decides(run: Run):
    good = run.smoke()
    run.verdicts[CELLS[0]] = SmokeVerdict(cell=CELLS[0], verdict="failed")
    found = run.judge(good, run.smoke(CELLS[0]))
    assert ("failed", "it failed") in whys(found)


def test_an_image_over_its_budget(run: Run):
    text = small_site.MATRIX.replace("context: ours}", "context: ours, budget: {pull: 1 B}}", 1)
    run.loaded = small_site.lay_out(run.workspace.root, matrix=text)
    found = run.judge(run.smoke())
    assert exit_code(found) == 4
    assert [each.rule for each in found.images[0].findings] == ["budget.pull"]
    assert found.promotions == ()


# What is handed over


def test_what_is_written_can_be_read(run: Run, tmp_path: Path):
    image, smoke = HandedImage(image=run.image), run.smoke()
    for each in (image, smoke):
        handover.write(tmp_path / "handed" / "deep", each)
    assert set(map(type, handover.read_all(tmp_path / "handed"))) == {HandedImage, HandedSmoke}
    assert handover.images_handed(handover.read_all(tmp_path / "handed")) == {"cpu": image}
    assert handover.read_all(tmp_path / "nowhere") == ()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kind": "image", "schema": 2}', "\xff"])
def test_anything_else_in_the_folder_is_refused(tmp_path: Path, content: str):
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"x\.json"):
        handover.read_all(tmp_path)


def test_two_digests_of_one_image_are_refused(run: Run):
    other = msgspec.structs.replace(run.image, digest=digest_of_bytes(b"other"))
    with pytest.raises(IntegrityError, match="two jobs handed over different images cpu"):
        handover.images_handed((HandedImage(image=run.image), HandedImage(image=other)))


def test_an_image_is_taken_only_when_the_store_has_all_of_it(run: Run):
    assert handover.take_image(run.images, "cpu", store=run.store).image == run.image
    with pytest.raises(SmokeNotRunError, match="handed over the image gpu"):
        handover.take_image(run.images, "gpu", store=run.store)
    gone = msgspec.structs.replace(run.image, digest=digest_of_bytes(b"gone"))
    with pytest.raises(LookupMissError):
        handover.take_image({"cpu": HandedImage(image=gone)}, "cpu", store=run.store)


def test_an_image_without_one_of_its_layers_is_not_taken(run: Run):
    *_, layer = index.read_manifest(run.store, run.image.digest).digests
    for name in run.store.objects_of_blob(layer):
        (run.store.root / name).unlink()
    with pytest.raises(IntegrityError, match="lacks 1 parts of cpu"):
        handover.take_image(run.images, "cpu", store=run.store)


# Channels


def test_channels_name_images_of_the_run():
    assert channels_from(["stable=rtx", "canary = ort"], images=["rtx", "ort"]) == {
        "stable": "rtx",
        "canary": "ort",
    }
    assert channels_from(["stable"], images=["rtx"]) == {"stable": "rtx"}


@pytest.mark.parametrize(
    "asked", [["stable"], ["stable=x"], ["stable="], ["a=rtx", "a=ort"], ["=rtx"]]
)
def test_channels_that_cannot_be_meant(asked):
    with pytest.raises(InputError):
        channels_from(asked, images=["rtx", "ort"])


# Markdown

EVIL = "::error::x | `y` <img src=x> [a](http://x) @team\n## head\n- item \x1b[31m"


def test_nothing_from_outside_is_markup(run: Run):
    bad = Finding(gate="logs", rule="logs.x", message=EVIL, where=CELLS[0])
    run.verdicts[CELLS[0]] = SmokeVerdict(cell=CELLS[0], verdict="failed", findings=(bad,))
    text = summary_of(run.judge(run.smoke()), store=run.store, channels={})
    (line,) = [line for line in text.splitlines() if "error" in line]
    outside = line.partition(" failed: ")[2]
    assert not set("|`<>[]@\n\x1b:_*#") - {"#"} & set(outside.replace("&#", ""))
    assert "## head" not in text


def test_the_summary_of_a_good_run_and_of_the_next(run: Run):
    first = run.judge(run.smoke())
    text = summary_of(first, store=run.store, channels={"stable": "cpu"})
    assert "## planyard: passed" in text
    assert "Nothing was accepted here before" in text
    assert "2 passed" in text
    mover = Mover(by="ann@desk", now=WHEN, because="")
    assert promote(run.store, "stable", run.image.digest, mover=mover).moved
    text = summary_of(first, store=run.store, channels={"stable": "cpu"})
    assert "The same image" in text


def test_a_comment_is_never_too_long():
    text = shortened("line\n" * 50_000)
    assert len(text) <= COMMENT_CHARACTERS
    assert "shortened" in text
    assert shortened("short\n") == "short\n"


# Annotations


@pytest.mark.parametrize(
    ("gate", "rule", "where", "place"),
    [
        ("budget", "budget.pull", "rtx", ("images", "rtx", "budget", "pull")),
        ("image", "image.library-missing", "rtx", ("images", "rtx")),
        ("logs", "logs.x", "rtx/m/640/fp16/sm89", ("models", "m", "profiles", "640")),
        ("outputs", "outputs.x", "rtx/m/640/fp16/sm89", ("models", "m", "tolerance", "fp16")),
        ("versions", "versions.differs", "rtx/m/640/fp16/sm89", ("images", "rtx", "lock")),
        ("latency", "latency.x", "rtx/m/640/fp16/sm89", ("models", "m", "profiles", "640")),
    ],
)
def test_a_finding_has_its_line(gate, rule, where, place):
    assert place_of_finding(Finding(gate=gate, rule=rule, message="", where=where)) == place


def test_what_could_not_be_made_is_shown_at_its_line(run: Run, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(run.workspace.root / "summary.md"))
    broken = ImageOutcome(name="gpu", digest=None, error="no such stage\n::error::x")
    refused = PlanFailure(cell="rtx/plain/16/fp32/sm89", message="no such operator")
    lost = SmokeVerdict(cell="gpu/plain/8/fp32/sm89", verdict="not run", reason="no GPU")
    show_report(
        BuildReport(images=(broken,), plan_failures=(refused,), verdicts=(lost,)),
        loaded=run.loaded,
        console=Console(),
        json=False,
        require_smoke=True,
    )
    lines = small_site.MATRIX.splitlines()
    places = {
        "gpu: no such stage": "  gpu: {backend",
        "rtx/plain/16/fp32/sm89: no such operator": '      "16"',
        "gpu/plain/8/fp32/sm89 was not run: no GPU": "  sm89: {sm",
    }
    said = capsys.readouterr().err.splitlines()
    for text, key in places.items():
        number = next(at for at, line in enumerate(lines, 1) if line.startswith(key))
        assert any(
            line.startswith(f"::error file=matrix.yaml,line={number},") and text in line
            for line in said
        ), text
    assert not [line for line in said if line.startswith("::error::x")]


def test_every_gpu_that_was_missed_is_named_once():
    missed = tuple(
        SmokeVerdict(cell=f"rtx/m/{profile}/fp16/{gpu}", verdict="not run", reason="no GPU")
        for gpu in ("sm86", "sm89")
        for profile in ("640", "960")
    )
    waiting = (WaitingCell(cell="trt/m/640/fp16/sm90", reason="waits"),)
    report = BuildReport(images=(), verdicts=missed, waiting=waiting)
    assert sorted(cell for cell, _ in gpus_missed(report)) == [
        "rtx/m/640/fp16/sm86",
        "rtx/m/640/fp16/sm89",
        "trt/m/640/fp16/sm90",
    ]
