"""A budget that is passed for real: the finding names what weighs most, and nothing is rebuilt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Built
from tests.workspaces import Ran, Site

pytestmark = pytest.mark.docker

UNPACKED = "budget: {unpacked: 2.2 GB}"


def line_of(site: Site, text: str) -> int:
    lines = site.matrix.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def build(site: Site, summary: Path) -> Ran:
    actions = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    return site.planyard("build", env=actions)


@pytest.fixture
def over(site: Site) -> Site:
    site.edit(UNPACKED, "budget: {unpacked: 900 MB, largest_layer: 300 MB}")
    return site


def test_the_finding_names_layers_and_files(over: Site, room: Path) -> None:
    ran = build(over, room / "summary.md").expect(4)
    assert "error: ort-gpu: unpacked size" in ran.stderr
    assert "over its budget of 900.0 MB [budget.unpacked]" in ran.stderr
    assert "error: ort-gpu: largest layer" in ran.stderr
    after = ran.stderr.partition("[budget.unpacked]")[2].splitlines()[1:9]
    layers = [line for line in after if line.strip().startswith("layer ")]
    files = [line for line in after if line.strip().startswith("file ")]
    assert "ort-gpu-site" in layers[0] or "/site" in layers[0]
    assert "libcublasLt.so.13" in files[0]
    sizes = [float(re.search(r"file ([0-9.]+) MB", line)[1]) for line in files]  # type: ignore[index]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 400


def test_the_table_marks_it(over: Site, room: Path) -> None:
    ran = build(over, room / "summary.md").expect(4)
    rows = [line for line in ran.stderr.splitlines() if line.startswith(("ort-", "rtx "))]
    assert [row.split()[0] for row in rows if "OVER" in row] == ["ort-gpu"]


def test_github_sees_the_line_and_a_summary(over: Site, room: Path) -> None:
    ran = build(over, room / "summary.md").expect(4)
    number = line_of(over, "unpacked: 900 MB")
    marks = [line for line in ran.stderr.splitlines() if line.startswith("::error")]
    assert len(marks) == 2
    assert all(mark.startswith(f"::error file=matrix.yaml,line={number},col=") for mark in marks)
    assert "ort-gpu: unpacked size" in marks[0] + marks[1]
    summary = (room / "summary.md").read_text()
    assert summary.startswith("## planyard build\n")
    assert "| ort-gpu |" in summary
    assert "`budget.unpacked`" in summary


def test_nothing_is_rebuilt_and_no_memo_hides_it(built: Built, over: Site, room: Path) -> None:
    first = over.planyard("build", "--json").expect(4).document()
    assert not any(image["built"] for image in first["images"])
    assert first["compiled"] == []
    assert {image["name"]: image["digest"] for image in first["images"]} == {
        image["name"]: image["digest"] for image in built.report["images"]
    }
    over.planyard("build").expect(4)
    over.edit("unpacked: 900 MB, largest_layer: 300 MB", "unpacked: 2.2 GB")
    over.planyard("build").expect(0)


def test_a_closer_limit_on_the_pull_size_counts_too(site: Site) -> None:
    site.edit("budget: {pull: 140 MB,", "budget: {pull: 14 MB,")
    ran = site.planyard("image", "build", "--select", "rtx/*").expect(4)
    assert "[budget.pull]" in ran.stderr
    assert "libtensorrt_rtx" in ran.stderr
