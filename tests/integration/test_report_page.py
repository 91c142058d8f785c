"""The report as people open it: in Chromium, from disk, with and without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.page.making import ReportWritten, write_report
from engines.store.memory import MemoryObjects
from engines.store.store import ObjectStore
from planyard.core.contents import ImageAudit, Owner, OwnerSize
from planyard.core.findings import Finding
from planyard.core.reader import load_matrix
from tests.browser import open_browser, open_page, violations
from tests.page_stores import IMAGES, MARKUP, hostile, thousand
from tests.workspaces import REPOSITORY

pytestmark = [pytest.mark.chromium, pytest.mark.xdist_group("chromium")]
MADE = "2026-11-22T10:00:00Z"
PHONE = {"viewport": {"width": 360, "height": 740}}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


def filled(fill: Any) -> ObjectStore:
    store = ObjectStore(MemoryObjects())
    fill(store)
    return store


def report(folder: Path, store: ObjectStore, **options: Any) -> ReportWritten:
    return write_report(store, folder / "report", root=folder, made=MADE, **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Eighty cells of one model on two GPUs, in four steps, and an audit; its index.html."""
    folder = tmp_path_factory.mktemp("small")
    store = filled(lambda each: thousand(each, steps=4, models=("unet",), sms=(89, 120), loads=2))
    audit = an_audit(report(folder, store).images["rtx"])
    written = report(folder, store, audits={audit.image: audit}, store_shown="s3://plans/team")
    assert written.cells == {"failed": 5, "not run": 10, "no evidence": 0, "passed": 65}
    return Path(written.index)


def an_audit(image: str) -> ImageAudit:
    owner = Owner(kind="wheel", name="tensorrt-rtx", version="1.7")
    return ImageAudit(
        image=image,
        name="rtx",
        pull_bytes=100,
        unpacked_bytes=200,
        layers=(),
        owners=(OwnerSize(owner=owner, pull_bytes=90_000, unpacked_bytes=190, files=3),),
        packages=(),
        findings=(Finding(gate="audit", rule="audit.shell", message="/bin/sh is there"),),
    )


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Path:
    return Path(report(tmp_path_factory.mktemp("hostile"), filled(hostile)).index)


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """An empty store with the default matrix: no cell has evidence."""
    matrix = load_matrix((REPOSITORY / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix
    return Path(
        report(tmp_path_factory.mktemp("empty"), filled(lambda _: None), matrix=matrix).index
    )


def cell_page(index: Path, part: str) -> Path:
    return next(index.parent.glob(f"evidence-*/cells/{part}-*.html"))


# Speed


def test_a_thousand_cells_open_in_less_than_a_second(browser, tmp_path_factory):
    """Time of the page's own thread: what else the machine does is not counted."""
    store = filled(lambda each: thousand(each, steps=8, loads=2))
    written = report(tmp_path_factory.mktemp("thousand"), store)
    assert sum(written.cells.values()) == written.pages == 1000
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    page = opened.new_page()
    devtools = opened.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(Path(written.index).as_uri())
    assert page.locator(".grid td[data-id]").count() == 1000
    assert page.locator(".grid .ld").count() == 990
    assert Path(written.index).stat().st_size < 4_000_000
    measured = {
        each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]
    }
    opened.close()
    assert 0.01 < measured["TaskDuration"] < 1


# Every view, with the mouse


def test_from_a_failure_to_its_line_in_the_log_and_back(browser, small):
    with open_page(browser, small) as page:
        page.locator("#image-3 td.failed a").first.click()
        assert page.locator(".banner").inner_text().startswith("✕ Failed by logs")
        page.get_by_role("link", name="in the log").click()
        line = page.locator("#stderr-200")
        assert line.is_visible()
        assert "fail" in line.get_attribute("class")
        assert "Failed to create CUDAExecutionProvider" in line.inner_text()
        assert "provider-not-created" in line.inner_text()
        assert page.locator("#stderr-150").count() == 0
        assert "185 lines are not shown here" in page.locator("#log-h ~ .log").last.inner_text()
        page.get_by_role("link", name="the whole as text").last.click()
        assert "request 150 answered" in page.locator("body").inner_text()
        page.go_back()
        page.get_by_label("Up").get_by_role("link", name="rtx").click()
        assert page.url.endswith("index.html#image-3")


def test_a_cell_shows_its_evidence_plan_and_command(browser, small):
    with open_page(browser, cell_page(small, "rtx-unet-640-fp16-sm89")) as page:
        text = page.locator("main").inner_text()
        assert "102 nodes, 97.1 %" in text
        assert "32 of 32 blocks fused" in text
        assert "GPU 80 % over 9 samples" in text
        assert "profile.x.min" in text
        assert "[1, 3, 640]" in text
        command = page.locator(".command code").inner_text()
        assert command.startswith("planyard lookup sha256:")
        assert command.endswith(" --sm 89 --pull plans/ --store s3://plans/team")
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Selected").or_(
            page.get_by_role("button", name="Copied")
        ).wait_for()
        assert page.locator("#history-h ~ .scroll tbody tr").count() == 4
        page.get_by_text("Operators on CUDAExecutionProvider").click()
        assert page.get_by_role("rowheader", name="Conv", exact=True).is_visible()


def test_not_run_is_loud_and_never_green(browser, small, empty):
    with open_page(browser, small) as page:
        cell = page.locator("#image-4 td.not-run").first
        cell.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        assert cell.inner_text() == "NOT RUN"
        green = page.locator("#image-4 td.passed").first
        ground = "(each) => getComputedStyle(each).backgroundColor"
        assert cell.evaluate(ground) != green.evaluate(ground)
        assert (
            "10 cells of rtx-large: this machine has no GPU"
            in page.locator("#overview").inner_text()
        )
    with open_page(browser, empty) as page:
        assert page.locator("td.passed").count() == 0
        assert page.locator("td.no-evidence").count() == 15
        page.locator("#dropped summary").first.click()
        assert page.locator("#dropped li").first.is_visible()
        page.locator("td.no-evidence a").first.click()
        assert "No evidence" in page.locator(".banner").inner_text()
        assert "planyard build --select rtx/" in page.locator(".command").inner_text()


def test_the_charts_have_budgets_channels_and_a_table(browser, small):
    with open_page(browser, small) as page:
        part = page.locator("#image-2")
        part.scroll_into_view_if_needed()
        chart = part.get_by_role("img", name="Pull size over 4 images")
        assert "budget" in chart.get_attribute("aria-label")
        assert chart.locator("path.limit").count() == 1
        assert chart.locator("text.ch").all_text_contents() == ["stable", "canary"]
        part.get_by_text("The sizes as a table").click()
        rows = part.get_by_role("group", name="Sizes of ort-lite").locator("tbody tr")
        assert rows.count() == 4
        assert "canary" in rows.nth(1).inner_text()
        panels = part.locator(".panels figure")
        assert panels.count() == 20
        assert panels.first.locator("path.steps").count() == 1
        page.locator("#image-3 summary", has_text="Contents by owner").click()
        assert "tensorrt-rtx" in page.get_by_role("group", name="Contents of rtx").inner_text()


def test_a_load_run_is_drawn_with_its_figures_and_the_run_before_it(browser, small):
    with open_page(browser, small) as page:
        mark = page.locator("#image-3 td[data-id='rtx/unet/640/fp16/sm89'] .ld")
        mark.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        assert mark.inner_text() == "load"
        mark.click()
        latency = page.get_by_role("img", name="diffusion: P50 and P95 of a request by batch size")
        assert latency.locator("path.v").count() == latency.locator("path.upper").count() == 3
        assert latency.locator("circle").count() == 12
        said = latency.evaluate("(e) => document.getElementById(e.ariaDescribedByElements[0].id)")
        assert said is not None
        assert "Concurrency 4: P50 19.6 ms" in latency.locator("desc").text_content()
        drawn = "(each) => each.getTotalLength() > 300 && getComputedStyle(each).stroke"
        strokes = [each.evaluate(drawn) for each in latency.locator("path.v").all()]
        assert all(strokes)
        assert len(set(strokes)) == 3
        assert page.get_by_role("img", name="items per second").locator("path.v").count() == 3
        figures = page.get_by_role("table", name="Figures of diffusion")
        assert figures.locator("tbody tr").count() == 12
        assert figures.locator("tbody tr").last.inner_text().split("\t")[-3:] == [
            "80 %",
            "2.5 GB",
            "182 W",
        ]
        page.get_by_text("Earlier runs of diffusion").click()
        runs = page.get_by_role("table", name="Runs of diffusion")
        assert runs.get_by_role("row", name="batch 8, concurrency 4").is_visible()
        assert runs.locator("tbody").count() == 12
        assert runs.get_by_text("+0.0 %").count() == 12


def test_loads_of_two_images_stand_side_by_side(browser, small):
    with open_page(browser, small) as page:
        page.locator("#compare").scroll_into_view_if_needed()
        page.locator("#pick").wait_for()
        rows = page.get_by_role("group", name="Load, of the same workload").locator("tbody tr")
        assert rows.count() == 120
        first = rows.first.inner_text().split("\t")
        assert first[0].startswith("diffusion: unet/")
        assert first[1:7] == ["NVIDIA L4, SM 8.9", "1", "1", "7.00 ms", "7.00 ms", "+0.0 %"]
        oldest = page.locator("#pick-before optgroup[label=rtx-large] option").last
        page.select_option("#pick-before", oldest.get_attribute("value"))
        said = "120 batch sizes and concurrencies were measured on one of the two only"
        assert said in page.locator("#compared").inner_text()


# The filter and the comparison


def test_cells_are_found_by_words_and_state_with_the_keyboard(browser, small):
    with open_page(browser, small) as page:
        page.locator("#filter-text").focus()
        page.keyboard.type("SM89 640")
        assert page.locator("#filter-said").inner_text() == "8 cells fit"
        assert page.locator("#image-1 .grid tr:visible td").count() == 4  # a row has both GPUs
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.locator("button[aria-pressed=true]").inner_text() == "failed 5"
        assert page.locator("#filter-said").inner_text() == "5 cells fit"
        assert page.locator("#image-2").is_hidden()
        page.keyboard.press("Space")
        assert page.locator("#image-2").is_visible()


def test_any_two_images_are_compared(browser, small):
    with open_page(browser, small) as page:
        page.locator("#compare").scroll_into_view_if_needed()
        page.locator("#pick").wait_for()
        options = page.locator("#pick-before option")
        assert options.count() == 4 * len(IMAGES)
        first = page.locator("#pick-before optgroup[label=rtx] option")
        page.select_option("#pick-before", first.last.get_attribute("value"))
        page.select_option("#pick-after", first.first.get_attribute("value"))
        said = page.locator("#compared").inner_text()
        assert "planyard snapshot diff sha256:" in said  # four steps apart: no neighbours
        assert "passed\tfailed\tlogs" in said
        assert "104.5 MB" in said
        page.select_option("#pick-before", first.nth(1).get_attribute("value"))
        assert "10 cells failed" not in page.locator("#compared").inner_text()
        assert "cells failed: logs.provider-not-created" in page.locator("#compared").inner_text()
        address = page.url
        assert "#compare=" in address
        page.select_option("#pick-after", first.nth(1).get_attribute("value"))
        assert "the same image" in page.locator("#compared").inner_text()
        page.goto("about:blank")
        page.goto(address)
        page.locator("#pick").wait_for()
        assert "cells failed: logs.provider-not-created" in page.locator("#compared").inner_text()


# For everybody


def test_without_javascript_the_essentials_are_there(browser, small):
    with open_page(browser, small, java_script_enabled=False) as page:
        assert page.locator("#overview .tally").inner_text().split()[:2] == ["failed", "5"]
        assert page.locator("td.failed").first.is_visible()
        assert page.locator("#image-1 .plot path.v").first.is_visible()
        assert page.locator("noscript").is_visible()
        assert page.locator("#filter").is_hidden()
        assert page.locator("#pick").is_hidden()
        assert page.locator("#image-3").get_by_text("What changed with").is_visible()
        page.locator("td.failed a").first.click()
        assert page.locator("li.fail").first.is_visible()
        assert page.locator("button:visible").count() == 0


def test_the_keyboard_alone_goes_everywhere(browser, small):
    with open_page(browser, small) as page:
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the content"
        assert page.locator(":focus").is_visible()
        outline = page.locator(":focus").evaluate("(each) => getComputedStyle(each).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        inside = "(each) => document.querySelector('main').contains(each)"
        assert page.locator(":focus").evaluate(inside)
        page.locator("#image-1 td.failed a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/cells/*")
        assert page.locator("h1").inner_text().startswith("ort-gpu/unet/")


@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", ("color-contrast",))])
def test_axe_finds_nothing(browser, small, hostile_page, empty, scheme, rules):
    """The schemes differ in nothing but colours."""
    cells = ("rtx-unet-1280-int8-sm89", "rtx-large-unet-640-fp16-sm120")
    pages = [small, *(cell_page(small, part) for part in cells)]
    if scheme == "light":
        pages += [hostile_page, empty, cell_page(hostile_page, "rtx")]
    for file in pages:
        with open_page(browser, file, color_scheme=scheme) as page:
            page.evaluate(
                "document.querySelectorAll('details').forEach((each) => each.open = true)"
            )
            if page.locator("#compare").count():
                page.locator("#compare").scroll_into_view_if_needed()
                page.wait_for_timeout(200)
            assert violations(page, *rules) == [], file


def test_axe_would_find_something(browser, empty):
    with open_page(browser, empty) as page:
        page.evaluate("document.querySelector('h1').innerHTML = '<img src=\"\">'")
        assert any(each.startswith("image-alt") for each in violations(page))
    with open_page(browser, empty) as page:
        page.evaluate("document.documentElement.style.setProperty('--soft', '#aaa')")
        assert len(violations(page, "color-contrast")) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_telephone_never_scrolls_sideways(browser, small, hostile_page, empty, scheme):
    wide = "document.documentElement.scrollWidth - innerWidth"
    for file in (
        small,
        hostile_page,
        empty,
        cell_page(small, "rtx-unet-640-fp16-sm89"),
        cell_page(hostile_page, "rtx"),
    ):
        with open_page(browser, file, color_scheme=scheme, **PHONE) as page:
            page.evaluate(
                "document.querySelectorAll('details').forEach((each) => each.open = true)"
            )
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            page.wait_for_timeout(100)
            assert page.evaluate(wide) <= 0, file


# Hostile text


def test_nothing_from_the_store_is_more_than_text(browser, hostile_page):
    for file in (hostile_page, cell_page(hostile_page, "rtx")):
        with open_page(browser, file) as page:
            if file == hostile_page:
                page.locator("#compare").scroll_into_view_if_needed()
                page.locator("#pick").wait_for()
            assert "owned" not in page.title().split("=")[0]
            assert page.title() != "owned"
            assert page.locator("img").count() == 0
            assert page.locator("h1 b").count() == 0
            text = page.locator("body").inner_text()
            assert MARKUP in text
            assert "\\u202e" in text
            assert "\u202e" not in text
            assert "{{7*7}}" in text


def test_the_policy_obeys_no_other_script_or_style(browser, small):
    refused: list[str] = []
    opened = browser.new_context()
    page = opened.new_page()
    page.on("console", lambda message: refused.append(message.text))
    page.goto(small.as_uri())
    page.evaluate(
        "const script = document.createElement('script'); script.textContent = "
        "'document.title = \"owned\"'; document.body.append(script); "
        "document.body.insertAdjacentHTML('beforeend', '<p id=late style=\"color:red\">x</p>')"
    )
    assert page.title() == "Planyard report"
    colour = page.locator("#late").evaluate("(each) => getComputedStyle(each).color")
    opened.close()
    assert colour != "rgb(255, 0, 0)"
    assert len([each for each in refused if "Content Security Policy" in each]) == 2
