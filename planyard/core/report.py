"""What a build came to, and the one place that decides its exit code."""

from __future__ import annotations

import msgspec

from planyard.core import errors
from planyard.core.findings import Finding, failures
from planyard.core.results import PlanRecord, SmokeVerdict
from planyard.core.units import format_bytes, format_seconds

BUILD_SCHEMA = 1


class ImageOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the matrix after a build; sizes in bytes, None where it was not built.

    `budget` holds the limits by name, `seconds` is this image's share of the build.
    """

    name: str
    digest: str | None
    pull_bytes: int | None = None
    unpacked_bytes: int | None = None
    budget: dict[str, int] = {}
    built: bool = False
    error: str = ""
    log_tail: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    plans: int = 0
    plans_wanted: int = 0
    smoke: dict[str, int] = {}
    seconds: float = 0.0


class PlanFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that could not be compiled, in the compiler's own words."""

    cell: str
    message: str
    log_tail: tuple[str, ...] = ()


class WaitingCell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell whose plan cannot be compiled here, and why; it is not forgotten."""

    cell: str
    reason: str


class SnapshotWritten(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that a build wrote."""

    image: str
    gpu: str
    digest: str


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a build did: the document of `planyard build --json`."""

    schema: int = BUILD_SCHEMA
    images: tuple[ImageOutcome, ...]
    plans: tuple[PlanRecord, ...] = ()
    compiled: tuple[str, ...] = ()
    """The cells whose plan was compiled now; the other plans were in the store."""
    plan_failures: tuple[PlanFailure, ...] = ()
    waiting: tuple[WaitingCell, ...] = ()
    verdicts: tuple[SmokeVerdict, ...] = ()
    snapshots: tuple[SnapshotWritten, ...] = ()
    seconds: float = 0.0
    outside_seconds: float = 0.0
    """The part of `seconds` spent in Docker, the compiler, downloads and containers."""


def findings_of(report: BuildReport) -> tuple[Finding, ...]:
    """Every finding, images first."""
    found = [finding for image in report.images for finding in image.findings]
    found += [finding for verdict in report.verdicts for finding in verdict.findings]
    return tuple(found)


def exit_code(report: BuildReport, *, require_smoke: bool = False) -> int:
    """What the process ends with: work that could not be done first, then what is wrong."""
    if any(image.error for image in report.images):
        return errors.ImageBuildError.exit_code
    if report.plan_failures:
        return errors.PlanCompileError.exit_code
    if failures(findings_of(report)):
        return errors.EXIT_FINDINGS
    if require_smoke and (report.waiting or not_run(report)):
        return errors.SmokeNotRunError.exit_code
    return errors.EXIT_DONE


def not_run(report: BuildReport) -> tuple[SmokeVerdict, ...]:
    """The cells that nobody ran."""
    return tuple(verdict for verdict in report.verdicts if verdict.verdict == "not run")


def table_rows(report: BuildReport) -> list[tuple[str, ...]]:
    """The closing table: image, digest, pull, unpacked, plans, smoke, time."""
    return [
        (
            image.name,
            (image.digest or "not built")[:19],
            _against(image.pull_bytes, image.budget.get("pull")),
            _against(image.unpacked_bytes, image.budget.get("unpacked")),
            f"{image.plans} of {image.plans_wanted}" if image.plans_wanted else "-",
            smoke_text(image.smoke),
            format_seconds(image.seconds),
        )
        for image in report.images
    ]


TABLE_HEADER = ("image", "digest", "pull / budget", "unpacked / budget", "plans", "smoke", "time")


def smoke_text(counts: dict[str, int]) -> str:
    """`3 passed, 9 not run`: the bad news first."""
    order = ("failed", "not run", "passed")
    return ", ".join(f"{counts[each]} {each}" for each in order if counts.get(each)) or "-"


def _against(size_bytes: int | None, limit_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    limit = format_bytes(limit_bytes) if limit_bytes is not None else "no limit"
    mark = " OVER" if limit_bytes is not None and size_bytes > limit_bytes else ""
    return f"{format_bytes(size_bytes)} / {limit}{mark}"
