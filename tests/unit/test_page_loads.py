"""The report's load sections: scales, lines, which run is drawn, what is compared, escaping."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from builders.page import cells as page_cells
from builders.page import collect, comparing, load_scale, loads
from builders.page.load_charts import items_chart, latency_chart
from builders.page.load_scale import format_rate, scale_of, ticks_of
from builders.page.making import write_report
from engines.loads import put_load
from engines.store.memory import MemoryObjects
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError
from planyard.core.loads import LoadRecord
from tests.capability_sites import a_snapshot, a_verdict, stored
from tests.page_loads import a_cpu_load, a_load, a_series, every, of_gpu
from tests.page_stores import hostile

replace = msgspec.structs.replace
CELL = "rtx/ocr/640/fp16/sm89"
CPU_CELL = "rtx/ocr/640/fp32/cpu"
IMAGE = digest_of_bytes(b"image A")
MARK = '<span class="ld" title="load was measured">load</span>'
OTHER = digest_of_bytes(b"image B")


def a_cell(*, cpu: bool = False, image: str = "A") -> page_cells.Cell:
    id_ = CPU_CELL if cpu else CELL
    snapshot = a_snapshot(sm=None if cpu else 89, smoke=(a_verdict(id_),), image=image)
    history = collect.history_of("rtx", [snapshot], channels={})
    (cell,) = page_cells.cells_of(history, name="rtx", expansion=None)
    return cell


def parts(*records: LoadRecord, cell: page_cells.Cell | None = None) -> tuple[loads.LoadPart, ...]:
    cell = cell or a_cell()
    return loads.load_parts(cell, loads.by_cell(records).get(cell.id, ()))


def with_image(store: ObjectStore, day: int, name: str = "A") -> str:
    """The digest of an image that was put in the store on that day, with a snapshot."""
    made = a_snapshot(smoke=(a_verdict(CELL),), image=name, created=f"2026-11-{day}T15:00:00Z")
    return stored(store, [made])[0].image


def pages(store: ObjectStore, tmp_path: Path) -> tuple[str, str]:
    """The first page, and the page of the cell."""
    written = write_report(store, tmp_path / "r", root=tmp_path, made="2026-11-22T10:00:00Z")
    (page,) = (tmp_path / "r").glob("evidence-*/cells/*.html")
    return Path(written.index).read_text(), page.read_text()


def pages_with(tmp_path: Path, *records: LoadRecord) -> tuple[str, str]:
    """The same, of a store with one image and these runs of it."""
    store = ObjectStore(MemoryObjects())
    image = with_image(store, 20)
    for record in records:
        put_load(store, replace(record, image=image))
    return pages(store, tmp_path)


# Scales


def test_a_scale_begins_at_zero_where_it_can_show_both_ends():
    scale = scale_of([10.0, 200.0])
    assert (scale.low, scale.logarithmic) == (0.0, False)
    floor = scale.height(0)
    assert floor - scale.height(200) == pytest.approx(2 * (floor - scale.height(100)), abs=0.05)


def test_a_huge_range_is_logarithmic_and_every_value_can_be_told_from_the_floor():
    scale = scale_of([0.5, 50.0, 5000.0])
    assert scale.logarithmic
    low, middle, high = map(scale.height, (0.5, 50.0, 5000.0))
    assert scale.height(scale.low) - low > 1
    assert low - middle == pytest.approx(middle - high, abs=0.05)


def test_a_zero_keeps_the_scale_linear():
    assert not scale_of([0.0, 1.0, 5000.0]).logarithmic


@pytest.mark.parametrize(
    "values",
    [[5.0], [3.0, 3.0, 3.0], [0.0], [1e-12, 1e12], [1e-9, 1.0], [1.0, 21.0], [7.0, 1e12], [95.6]],
)
def test_ticks_are_few_round_and_on_the_scale(values):
    scale = scale_of(values)
    found = ticks_of(scale)
    assert 1 <= len(found) <= 6
    assert all(scale.low <= each <= scale.high for each in found)
    for each in found:
        power = 10.0 ** math.floor(math.log10(each) + 1e-9)
        assert 4 * each / power == pytest.approx(round(4 * each / power))
    heights = [scale.height(each) for each in (*found, *values)]
    assert all(load_scale._TOP <= each <= 97 for each in heights)
    assert heights[: len(found)] == sorted(heights[: len(found)], reverse=True)


def test_batches_stand_as_their_logarithms_and_one_alone_in_the_middle():
    one, two, four, eight = load_scale.places_of([1, 2, 4, 8])
    assert two - one == pytest.approx(four - two, abs=0.02)
    assert four - two == pytest.approx(eight - four, abs=0.02)
    assert load_scale.places_of([64]) == [50.0]


def test_batch_sizes_that_would_touch_are_not_written_but_the_last_is():
    batches = [*range(1, 16), 4096]
    marks = load_scale.marks_of(dict(zip(batches, load_scale.places_of(batches), strict=True)))
    assert marks[0].text == "1"
    assert marks[-1].text == "4096"
    places = [each.x for each in marks]
    assert all(b - a >= 7 for a, b in pairwise(places))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0432, "0.0432"), (4.214, "4.21"), (52.06, "52.1"), (1480.4, "1480")],
)
def test_a_rate_has_three_digits_or_all_before_the_point(value, text):
    assert format_rate(value) == text


def test_rates_beside_the_scale_have_no_needless_digits():
    assert [load_scale.tick_rate(each) for each in (0.2, 2.5, 40.0, 2e6)] == [
        "0.2",
        "2.5",
        "40",
        "2000000",
    ]


def test_a_scale_is_in_seconds_from_a_thousand_ms_on():
    assert [load_scale.tick_ms(each) for each in (2.5, 500.0, 2500.0, 20_000.0)] == [
        "2.5 ms",
        "500 ms",
        "2.5 s",
        "20 s",
    ]


# Charts


def test_a_line_for_each_concurrency_with_its_p95_above():
    chart = latency_chart(every(a_series), name="w")
    assert chart is not None
    assert [line.concurrency for line in chart.lines] == [1, 2, 4]
    assert len({line.shade for line in chart.lines}) == 3
    for line in chart.lines:
        assert len(line.dots) == 4
        assert line.upper
        assert [dot.x for dot in line.dots] == sorted(dot.x for dot in line.dots)
    assert "Concurrency 4: P50 19.6 ms, P95 22.5 ms at batch 1; P50 78.4 ms" in chart.said
    assert chart.lines[0].dots[0].text == "batch 1, concurrency 1: P50 7.00 ms, P95 8.05 ms"


def test_one_point_alone_is_a_dot_with_its_words():
    chart = items_chart([a_series(4, 2)], name="w")
    assert chart is not None
    (line,) = chart.lines
    assert [(dot.x, line.path.count("L"), line.upper) for dot in line.dots] == [(50.0, 0, "")]
    assert [mark.text for mark in chart.marks] == ["4"]
    assert chart.said.count("batch") == 1


def test_equal_values_are_a_level_line_and_their_words_do_not_lie_on_each_other():
    level = [a_series(batch, c, p50_ms=5.0, p95_ms=5.0) for batch in (1, 2) for c in (1, 2, 3, 4)]
    chart = latency_chart(level, name="w")
    assert chart is not None
    assert {dot.y for line in chart.lines for dot in line.dots} == {chart.lines[0].dots[0].y}
    ends = sorted(line.end_y for line in chart.lines)
    assert all(b - a >= 8.9 for a, b in pairwise(ends))


def test_words_that_are_pushed_down_stay_on_the_picture():
    low = [a_series(1, c, p50_ms=0.001, p95_ms=0.001) for c in range(1, 8)]
    chart = latency_chart([*low, a_series(1, 8, p50_ms=0.0199, p95_ms=0.0199)], name="w")
    assert chart is not None
    ends = sorted(line.end_y for line in chart.lines)
    assert ends[-1] <= 97
    assert ends[0] > 0
    assert all(b - a >= 8.9 for a, b in pairwise(ends))


def test_more_concurrencies_than_can_be_told_apart_are_counted():
    chart = items_chart([a_series(1, c) for c in range(1, 13)], name="w")
    assert chart is not None
    assert [line.concurrency for line in chart.lines] == list(range(1, 9))
    assert chart.said.endswith("4 more concurrencies are in the table only.")


def test_what_is_no_measurement_is_not_drawn():
    odd = [a_series(1, 1, p95_ms=1e300), a_series(2, 1, p50_ms=float("inf"), seconds=1.0)]
    assert latency_chart(odd, name="w") is None
    chart = latency_chart([*odd, a_series(4, 1)], name="w")
    assert chart is not None
    assert [dot.text[:7] for line in chart.lines for dot in line.dots] == ["batch 4"]


def test_a_logarithmic_picture_says_so_in_words():
    chart = latency_chart([a_series(1, 1, p50_ms=0.5), a_series(8, 1, p50_ms=900.0)], name="w")
    assert chart is not None
    assert chart.logarithmic
    assert "The scale is logarithmic." in chart.said


# Which run is drawn


def test_the_newest_run_is_drawn_and_earlier_ones_show_the_drift():
    slow = a_load(CELL, image=IMAGE, created="2026-11-20T01:00:00Z", series=every(slower=2))
    fast = a_load(CELL, image=IMAGE, created="2026-11-21T01:00:00Z")
    (part,) = parts(slow, fast)
    assert part.record is fast
    assert (part.of_now, part.others, part.others_left_out) == (True, 1, 0)
    assert len(part.drift) == 12
    first, second = part.drift[0].rows
    assert (first.shown, first.change) == (True, None)
    assert second.record is slow
    assert second.change == pytest.approx(-50)


def test_a_run_of_another_image_never_stands_for_the_newest():
    old = a_load(CELL, image=OTHER, created="2026-12-24T01:00:00Z")
    (alone,) = parts(old)
    assert not alone.of_now
    mine = a_load(CELL, image=IMAGE, created="2026-11-20T01:00:00Z")
    (part,) = parts(old, mine)
    assert part.record is mine
    assert part.of_now
    assert {row.record.image for each in part.drift for row in each.rows} == {IMAGE, OTHER}


@pytest.mark.parametrize("other", [{"gpu": "NVIDIA A10, SM 8.6"}, {"steps": 50}])
def test_runs_on_another_gpu_or_with_other_steps_are_not_compared(other):
    then = a_load(CELL, image=IMAGE, created="2026-11-20T01:00:00Z", **other)
    (part,) = parts(then, a_load(CELL, image=IMAGE))
    assert {row.change for each in part.drift for row in each.rows} == {None}


def test_workloads_are_apart_and_other_cells_not_there():
    runs = [a_load(CELL, image=IMAGE, workload=name) for name in ("w10", "w2")]
    found = parts(*runs, a_load("rtx/ocr/960/fp16/sm89", image=IMAGE))
    assert [part.record.workload for part in found] == ["w2", "w10"]
    assert len({part.anchor for part in found}) == 2


def test_a_flood_of_runs_stays_small_and_is_counted():
    runs = [
        a_load(CELL, image=IMAGE, created=f"2026-11-{day:02}T01:00:00Z") for day in range(1, 29)
    ]
    wide = every(batches=range(1, 17), concurrency=range(1, 9))
    (part,) = parts(*(replace(run, series=wide) for run in runs))
    assert (part.others, part.others_left_out) == (10, 17)
    assert sum(len(each.rows) for each in part.drift) <= 200
    assert len(part.drift) + part.drift_left_out == 128


# CPU and GPU


def test_a_cpu_run_says_so_and_has_no_figures_of_a_gpu():
    (part,) = parts(a_cpu_load(CPU_CELL, image=IMAGE), cell=a_cell(cpu=True))
    assert part.on_cpu
    assert not part.with_gpu
    (gpu,) = parts(a_load(CELL, image=IMAGE, driver="", series=every(a_series)))
    assert not gpu.on_cpu
    assert not gpu.with_gpu


def test_what_a_gpu_did_not_say_is_a_dash_and_never_zero(tmp_path):
    _, page = pages_with(tmp_path, a_cpu_load(CELL, image=IMAGE, series=(a_series(),)))
    row = page.split("Figures of diffusion</caption>")[1].split("</tbody>")[0]
    assert row.count('<td class="n">\u2013</td>') == 3
    assert '<td class="n">0' not in row
    assert "Nothing was measured of the GPU itself." in page
    said = of_gpu(1, 1, gpu_percent=0.0, gpu_memory_bytes=0, power_watts=0.0)
    _, zero = pages_with(tmp_path / "z", a_load(CELL, image=IMAGE, series=(said,)))
    row = zero.split("Figures of diffusion</caption>")[1].split("</tbody>")[0]
    assert all(each in row for each in (">0 %<", ">0 B<", ">0 W<"))
    assert "\u2013" not in row


# The page


def test_the_first_page_has_a_mark_and_nothing_more(tmp_path):
    index, page = pages_with(tmp_path, a_load(CELL, image=IMAGE))
    assert index.count(MARK) == 1
    assert "Load was measured of the newest image on 1 cell," in index
    assert '<svg class="plot load"' not in index
    assert page.count('<svg class="plot load" role="img"') == 2


def test_without_runs_there_is_no_section_and_no_mark(tmp_path):
    index, page = pages_with(tmp_path)
    assert 'id="load-h"' not in page
    assert MARK not in index
    assert "Load was measured" not in index


def test_a_run_of_an_older_image_has_no_mark_and_one_of_an_unknown_cell_is_counted(tmp_path):
    store = ObjectStore(MemoryObjects())
    older, _ = with_image(store, 20), with_image(store, 21, "B")
    put_load(store, a_load(CELL, image=older))
    put_load(store, a_load("rtx/gone/1/fp16/sm89", image=older))
    index, page = pages(store, tmp_path)
    assert MARK not in index
    assert "1 load run is of cells that are not on this page." in index
    assert "The newest image has no run of this workload." in page


def test_a_damaged_record_ends_the_report_and_nothing_is_written(tmp_path):
    store = ObjectStore(MemoryObjects())
    store.put_entry("loads", with_image(store, 20), b'{"workload":"w"}')
    with pytest.raises(IntegrityError, match="index of loads"):
        write_report(store, tmp_path / "r", root=tmp_path, made="2026-11-22T10:00:00Z")
    assert not (tmp_path / "r").exists()


def test_names_from_a_matrix_are_only_text(tmp_path):
    store = ObjectStore(MemoryObjects())
    hostile(store)
    _, text = pages(store, tmp_path)
    section = text[text.index('id="load-h"') : text.index('id="history-h"')]
    assert section.count("&lt;/script&gt;&lt;img src=x onerror=") >= 8
    assert "<img" not in section
    assert "\\u202e" in section
    assert "{{7*7}}" in section
    assert not set("\u2028\u202e\x1b") & set(section)


# What is compared


def test_the_newest_run_of_each_kind_is_compared_as_long_as_there_is_room():
    old = a_load(CELL, image=IMAGE, created="2026-11-20T01:00:00Z")
    runs = [
        old,
        a_load(CELL, image=IMAGE),
        a_load(CELL, image=IMAGE, gpu="another"),
        a_load(CELL, image=OTHER, created="2026-11-19T01:00:00Z"),
        a_load(CELL, image=digest_of_bytes(b"not on the page")),
    ]
    found = comparing.loads_to_compare(runs, {IMAGE, OTHER})
    assert [(each.image, each.gpu[:2]) for each in found] == [
        (IMAGE, "NV"),
        (IMAGE, "an"),
        (OTHER, "NV"),
    ]
    assert old not in found
    assert len(comparing.loads_to_compare(runs, {IMAGE, OTHER}, most=24)) == 2


def test_the_figures_of_a_run_are_under_its_image_and_cell():
    snapshot = a_snapshot(smoke=(a_verdict(CELL),))
    history = collect.history_of("rtx", [snapshot], channels={})
    run = a_load(CELL, image=IMAGE, series=(of_gpu(8, 4),))
    document = comparing.figures([history], {}, [run])
    (image,) = document["images"]
    assert image["loads"] == [["diffusion", 0, run.gpu, 20, [[8, 4, 78.4, 90.16, 408.2]]]]
    assert document["keys"] == ["ocr/640/fp16/sm89"]
