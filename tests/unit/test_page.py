"""The report's model: histories, cells and their states, charts, what is compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.page import cells as page_cells
from builders.page import charts, collect, comparing, details, drawing, overview
from builders.page.collect import History
from engines import index
from engines.store.memory import MemoryObjects
from engines.store.store import ObjectStore
from planyard.core.cells import Dropped, Expansion, expand
from planyard.core.compat import load_compat
from planyard.core.digest import digest_of_bytes
from planyard.core.reader import load_matrix
from tests.capability_sites import a_plan, a_snapshot, a_verdict, proved_fully, stored
from tests.page_stores import a_log
from tests.small_site import MATRIX

replace = msgspec.structs.replace
CELL = "rtx/ocr/640/fp16/sm89"


def at(day: int, image: str, verdict: str = "passed", **fields: Any) -> Any:
    """A snapshot of an image on a day of November, with one cell."""
    smoke = fields.pop("smoke", (a_verdict(CELL, verdict),))
    return a_snapshot(image=image, created=f"2026-11-{day:02}T15:00:00Z", smoke=smoke, **fields)


def history(*snapshots: Any, steps: int = 40, **channels: list[str]) -> History:
    by_image = {digest_of_bytes(f"image {name}".encode()): on for name, on in channels.items()}
    return collect.history_of("rtx", snapshots, channels=by_image, steps=steps)


def only_cell(of: History | None, expansion: Expansion | None = None) -> page_cells.Cell:
    (cell,) = page_cells.cells_of(of, name="rtx", expansion=expansion)
    return cell


def wanting(*ids: str) -> Expansion:
    """A matrix with these cells."""
    cells = expand(load_matrix(MATRIX.encode(), name="m").matrix, load_compat()).cells
    return Expansion(
        cells=tuple(replace(cells[0], id=each, image="rtx") for each in ids), dropped=()
    )


# Histories


def test_an_image_that_came_back_is_a_step_of_its_own():
    found = history(at(3, "A"), at(1, "A"), at(2, "B"))
    assert [step.created[8:10] for step in found.steps] == ["01", "02", "03"]
    assert found.steps[0].image == found.steps[2].image != found.steps[1].image


def test_a_step_knows_nothing_of_what_came_after_it():
    found = history(at(1, "A", "failed"), at(2, "B"), at(3, "A"))
    assert found.steps[0].view.verdicts["ocr/640/fp16/sm89"].verdict == "failed"
    assert found.steps[2].view.verdicts["ocr/640/fp16/sm89"].verdict == "passed"


def test_old_steps_are_counted_and_those_in_a_channel_kept():
    found = history(*(at(day, f"i{day}") for day in range(1, 11)), steps=3, i2=["stable"])
    assert [step.created[8:10] for step in found.steps] == ["02", "08", "09", "10"]
    assert found.older == 6
    assert [step.channels for step in found.steps] == [("stable",), (), (), ()]


def test_a_channel_is_marked_once_at_the_last_step_of_its_image():
    found = history(at(1, "A"), at(2, "B"), at(3, "A"), A=["stable"])
    assert [step.channels for step in found.steps] == [(), (), ("stable",)]


# States


@pytest.mark.parametrize("said", ["passed", "failed", "not run"])
def test_the_newest_image_decides(said):
    cell = only_cell(history(at(1, "A", "passed"), at(2, "B", said)))
    assert cell.state == said
    assert cell.older is None


def test_what_only_an_older_image_proved_is_no_evidence():
    cell = only_cell(history(at(1, "A"), at(2, "B", smoke=())))
    assert cell.state == "no evidence"
    assert cell.older is not None
    assert cell.older.verdict.verdict == "passed"
    assert "newest image has no snapshot" in overview.why(cell)


def test_a_plan_without_a_verdict_is_no_evidence():
    cell = only_cell(history(at(1, "A", plans=(a_plan(),), smoke=())))
    assert cell.state == "no evidence"
    assert cell.plan is not None


def test_a_cell_of_the_matrix_that_nobody_built_is_no_evidence():
    cell = only_cell(None, wanting(CELL))
    assert cell.state == "no evidence"
    assert "no snapshot of this image" in overview.why(cell)


def test_a_cell_that_left_the_matrix_is_said_so_and_an_older_one_is_gone():
    snapshots = at(1, "A", smoke=(a_verdict("rtx/old/1/fp16/sm89"),)), at(2, "B")
    cell = only_cell(history(*snapshots), wanting())
    assert (cell.id, cell.wanted) == (CELL, False)
    both = page_cells.cells_of(history(*snapshots), name="rtx", expansion=None)
    assert {each.id for each in both} == {CELL, "rtx/old/1/fp16/sm89"}


def test_ids_that_look_alike_have_pages_of_their_own():
    smoke = tuple(
        a_verdict(f"rtx/{each}/fp16/sm89") for each in ("a/b-c", "a-b/c", "A-b/c", "../..")
    )
    cells = page_cells.cells_of(history(at(1, "A", smoke=smoke)), name="rtx", expansion=None)
    pages = {cell.page.lower() for cell in cells}
    assert len(pages) == len(cells) == 4
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", page) for page in pages)


def test_the_grid_has_gpus_in_order_and_dropped_points_beside_cells():
    smoke = tuple(a_verdict(f"rtx/ocr/{p}/fp16/sm{sm}") for p, sm in (("1280", 120), ("640", 89)))
    cells = page_cells.cells_of(history(at(1, "A", smoke=smoke)), name="rtx", expansion=None)
    dropped = [
        Dropped(id=f"rtx/ocr/{rest}", rule="r", reason="why", source="s")
        for rest in ("640/fp16/sm120", "640/fp32/sm120", "640/fp16/sm75")
    ]
    grid = page_cells.grid_of(cells, dropped)
    assert grid.gpus == ("sm89", "sm120")
    rows = grid.models["ocr"]
    assert [(row.profile, row.precision) for row in rows] == [("640", "fp16"), ("1280", "fp16")]
    assert [type(each).__name__ for each in rows[0].places] == ["Cell", "Dropped"]
    assert rows[1].places[0] is None


# Charts


def test_a_chart_breaks_where_a_value_is_missing_and_marks_the_bad():
    made = charts.chart(
        label="l",
        values=[10, None, 30, 40],
        texts=["a", "b", "c", "d"],
        unit=str,
        limit=[None, 20, 20, 20],
        limit_text="budget",
        flags=["stable", "", "", "canary"],
        bad=[False, False, True, True],
    )
    assert made.line.count("M") == 2
    assert [dot.bad for dot in made.dots] == [False, True, True]
    assert [dot.text for dot in made.dots] == ["a", "c", "d"]
    assert made.dots[0].y > made.dots[1].y > made.dots[2].y
    assert made.limit_label is not None
    assert made.dots[0].y > made.limit_label.y > made.dots[1].y
    assert [(flag.text, flag.low) for flag in made.flags] == [("stable", False), ("canary", True)]


def test_heights_can_be_compared_because_the_scale_begins_at_zero():
    top = charts.scale_end([50, 100])
    floor = charts.height(0, top)
    one, two = (floor - charts.height(value, top) for value in (50, 100))
    assert two == pytest.approx(2 * one, abs=0.05)


@pytest.mark.parametrize("values", [[], [0.0], [None], [float("nan")], [1e-9], [5.0]])
def test_a_chart_of_little_is_still_a_chart(values):
    top = charts.scale_end(values)
    assert top > 0
    assert 1 <= len(charts.ticks(top)) <= 6
    assert charts.spark(values) == ""


def test_a_budget_is_drawn_and_said():
    over = proved_fully().budget
    over = replace(over, pull_bytes=150_000_000)
    found = history(at(1, "A"), at(2, "B", budget=over))
    charts_of = dict(drawing.size_charts(found))
    pull = charts_of["Pull"]
    assert [dot.bad for dot in pull.dots] == [False, True]
    assert "from 111.7 MB to 150.0 MB; budget 140.0 MB" in pull.label
    assert charts_of["Unpacked"].limit_label is None
    meters = {each.name: each for each in drawing.meters(found.now)}
    assert meters["pull"].over
    assert not meters["unpacked"].over


def test_a_latency_is_bad_when_the_gate_said_so():
    failed = a_verdict(CELL, "failed", gates={"latency": "failed"})
    cell = only_cell(history(at(1, "A"), at(2, "B", smoke=(failed,))))
    (series,) = drawing.all_series(cell, None)
    assert series.chart is not None
    assert [dot.bad for dot in series.chart.dots] == [False, True]
    assert series.chart.limit == ""
    matrix = load_matrix(MATRIX.encode(), name="m").matrix
    (limited,) = drawing.all_series(cell, matrix)
    assert limited.chart is not None
    assert limited.chart.limit != ""


# Details


def test_a_cell_tells_its_gates_placement_versions_and_recipe():
    cell = only_cell(collect.history_of("rtx", [proved_fully()], channels={}))
    shown = details.details(cell, image_anchor="i", matrix=None, store="", log=None, log_files={})
    assert [row.name for row in shown.gates] == ["exit", "logs", "outputs", "latency"]
    assert shown.placement[0].share == 100
    versions = {row.name: row for row in shown.versions}
    assert (versions["tensorrt_rtx"].pinned, versions["tensorrt_rtx"].loaded) == ("1.7.1.116",) * 2
    assert ("profile.x.min", "[1, 3, 640]") in shown.recipe
    assert {name.split(".")[0] for name, _ in shown.recipe} == set(a_plan().inputs)
    assert shown.command == f"planyard lookup {cell.step.image} --sm 89 --pull plans/"


def test_a_gate_that_is_off_says_why():
    off = a_verdict(CELL, gates={"attention": "off", "logs": "passed"})
    said = "attention for rtx/*: no attention in this model"
    cell = only_cell(history(at(1, "A", smoke=(off,), gates_off=(said, "latency"))))
    rows = {row.name: row for row in details.gate_rows(cell)}
    assert rows["attention"].off == said
    assert rows["logs"].off == ""


def test_a_command_is_quoted_for_a_shell():
    cell = only_cell(None, wanting("rtx/a b;rm/1/fp16/sm89"))
    command = details.command_of(cell, store="s3://b/p?x=1&y=2")
    assert command == "planyard build --select 'rtx/a b;rm/1/fp16/sm89' --store 's3://b/p?x=1&y=2'"


# What is compared


def test_neighbours_and_channels_are_worked_out_and_each_pair_once():
    steps = history(*(at(day, f"i{day}") for day in range(1, 6)), i1=["stable"], i3=["canary"])
    pairs = [(a.created[9:10], b.created[9:10]) for a, b in comparing.pairs_of([steps])]
    assert pairs[:4] == [("4", "5"), ("3", "4"), ("2", "3"), ("1", "2")]
    assert set(pairs[4:]) == {("1", "3"), ("3", "1"), ("1", "5"), ("3", "5")}


def test_an_image_is_not_compared_with_itself_and_the_newest_of_equal_pairs_counts():
    steps = history(at(1, "A"), at(2, "B"), at(3, "A"), at(4, "B"), B=["stable", "canary"])
    pairs = comparing.pairs_of([steps])
    assert [(a.created[9:10], b.created[9:10]) for a, b in pairs] == [("3", "4"), ("2", "3")]


def test_consequences_are_those_of_snapshot_diff():
    found = history(at(1, "A", plans=(a_plan(),)), at(2, "B", "failed"))
    said = comparing.follows(*found.steps)
    assert said.severity == "breaks"
    assert any(each.severity == "breaks" and CELL in each.cells for each in said.changes)


def test_the_figures_name_every_image_and_only_what_is_known():
    found = history(at(1, "A", plans=(a_plan(),)), at(2, "B", "not run"), at(3, "A", "failed"))
    document = comparing.figures([found], {})
    assert [each["digest"] for each in document["images"]] == [
        found.steps[1].image,
        found.steps[2].image,
    ]
    assert document["images"][0]["cells"] == {"0": ["not run"]}
    row = document["images"][1]["cells"]["0"]
    assert row[:3] == ["failed", 2.0, 2.5]
    assert row[5] == "logs"
    assert document["keys"] == ["ocr/640/fp16/sm89"]


# Logs in a store


def test_a_log_that_is_gone_or_damaged_is_told_and_not_shown(tmp_path):
    store: Any = ObjectStore(MemoryObjects())
    digest = a_log(store, stdout="one")
    reader = collect.LogReader(store=store)
    assert reader.read(digest).stdout == "one"
    assert "not in the store any more" in reader.read(digest_of_bytes(b"gone")).problem
    assert reader.damaged == []
    (name,) = (each.name for each in store.objects.listing("blobs/sha256/"))
    store.objects.held[name] = b"{}"
    assert reader.read(digest).damaged
    assert reader.read(digest).stdout == ""
    assert len(reader.damaged) == 2


def test_a_store_is_read_whole(tmp_path: Path):
    store = ObjectStore(MemoryObjects())
    stored(store, [at(1, "A")])
    known = collect.read_store(store, root=tmp_path)
    assert list(known.histories) == ["rtx"]
    assert list(store.keys(index.SNAPSHOTS)) == [known.histories["rtx"].now.image]
