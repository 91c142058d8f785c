"""The exit code of a build is decided in one place, and the table says the bad news first."""

from __future__ import annotations

from typing import Any

import pytest

from planyard.core.digest import digest_of_bytes
from planyard.core.findings import Finding
from planyard.core.report import (
    TABLE_HEADER,
    BuildReport,
    ImageOutcome,
    PlanFailure,
    WaitingCell,
    exit_code,
    findings_of,
    not_run,
    smoke_text,
    table_rows,
)
from planyard.core.results import SmokeVerdict

DIGEST = digest_of_bytes(b"image")
BUDGET = Finding(gate="budget", rule="budget.pull", message="too large", where="rtx")
LOGS = Finding(gate="logs", rule="x", message="CPU", where="c")
WARNING = Finding(gate="logs", rule="y", message="hm", where="c", severity="warn")


def image(**changes: Any) -> ImageOutcome:
    return ImageOutcome(**{"name": "rtx", "digest": DIGEST, **changes})


def report(*images: ImageOutcome, **changes: Any) -> BuildReport:
    return BuildReport(images=images or (image(),), **changes)


BROKEN = image(error="no space", digest=None)
OVER = image(findings=(BUDGET,))
REFUSED = (PlanFailure(cell="c", message="no"),)
WAITING = (WaitingCell(cell="c", reason="a GPU"),)
FAILED = (SmokeVerdict(cell="c", verdict="failed", findings=(LOGS,)),)
NOT_RUN = (SmokeVerdict(cell="c", verdict="not run", reason="no GPU"),)


@pytest.mark.parametrize(
    ("built", "code", "required"),
    [
        (report(), 0, 0),
        (report(verdicts=(SmokeVerdict(cell="c", verdict="passed"),)), 0, 0),
        (report(image(findings=(WARNING,))), 0, 0),
        (report(OVER), 4, 4),
        (report(verdicts=FAILED), 4, 4),
        (report(verdicts=NOT_RUN), 0, 7),
        (report(waiting=WAITING), 0, 7),
        (report(plan_failures=REFUSED), 6, 6),
        (report(BROKEN), 5, 5),
        (report(OVER, verdicts=NOT_RUN), 4, 4),
        (report(plan_failures=REFUSED, verdicts=FAILED), 6, 6),
        (report(image(), BROKEN, plan_failures=REFUSED, verdicts=FAILED), 5, 5),
    ],
)
def test_the_exit_code(built: BuildReport, code: int, required: int) -> None:
    assert exit_code(built) == code
    assert exit_code(built, require_smoke=True) == required


def test_every_finding_is_told_images_first() -> None:
    assert findings_of(report(OVER, verdicts=FAILED)) == (BUDGET, LOGS)


def test_not_run_is_never_passed() -> None:
    passed = SmokeVerdict(cell="d", verdict="passed")
    assert not_run(report(verdicts=(*NOT_RUN, passed, *FAILED))) == NOT_RUN


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"passed": 3, "not run": 9, "failed": 1}, "1 failed, 9 not run, 3 passed"),
        ({"passed": 3, "failed": 0}, "3 passed"),
        ({}, "-"),
    ],
)
def test_the_bad_news_comes_first(counts: dict[str, int], text: str) -> None:
    assert smoke_text(counts) == text


def test_a_row_says_what_was_weighed_against_what() -> None:
    outcome = image(
        pull_bytes=133_400_000,
        unpacked_bytes=350_000_000,
        budget={"pull": 140_000_000, "unpacked": 340_000_000},
        plans=8,
        plans_wanted=9,
        smoke={"not run": 9},
        seconds=12.0,
    )
    [row] = table_rows(report(outcome))
    assert row == (
        "rtx",
        DIGEST[:19],
        "133.4 MB / 140.0 MB",
        "350.0 MB / 340.0 MB OVER",
        "8 of 9",
        "9 not run",
        "12 s",
    )
    assert len(row) == len(TABLE_HEADER)


def test_an_image_that_was_not_built_has_no_figures() -> None:
    [row] = table_rows(report(BROKEN))
    assert row == ("rtx", "not built", "-", "-", "-", "-", "0.0 s")


def test_an_image_without_a_budget_has_no_limit() -> None:
    [row] = table_rows(report(image(pull_bytes=5, unpacked_bytes=7)))
    assert row[2:4] == ("5 B / no limit", "7 B / no limit")
