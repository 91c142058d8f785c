"""What came of a build, as the document that `planyard build --json` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from planyard.core.cells import plan_cells
from planyard.core.report import BuildReport, ImageOutcome

if TYPE_CHECKING:
    from builders.pipeline import Build


def report_build(work: Build, *, seconds: float) -> BuildReport:
    """What came of it, image by image."""
    names = dict.fromkeys(cell.image for cell in work.cells)
    return BuildReport(
        images=tuple(_outcome(name, work) for name in names),
        plans=tuple(work.plans.values()),
        compiled=tuple(work.compiled),
        plan_failures=tuple(work.failures),
        waiting=tuple(work.waiting),
        verdicts=tuple(work.verdicts.values()),
        snapshots=work.snapshots,
        seconds=round(seconds, 3),
        outside_seconds=round(work.workspace.outside.seconds, 3),
    )


def _outcome(name: str, work: Build) -> ImageOutcome:
    spec = work.matrix.images[name]
    limits = {
        "pull": spec.budget.pull,
        "unpacked": spec.budget.unpacked,
        "largest_layer": spec.budget.largest_layer,
    }
    budget = {key: int(limit) for key, limit in limits.items() if limit is not None}
    error = work.image_errors.get(name)
    if error is not None:
        return ImageOutcome(
            name=name, digest=None, budget=budget, error=error.message, log_tail=error.log_tail
        )
    image = work.images[name]
    mine = [cell for cell in work.cells if cell.image == name]
    return ImageOutcome(
        name=name,
        digest=image.digest,
        pull_bytes=image.pull_bytes,
        unpacked_bytes=image.unpacked_bytes,
        budget=budget,
        built=name in work.built,
        findings=work.findings[name],
        plans=sum(cell.id in work.plans for cell in mine),
        plans_wanted=len(plan_cells(mine)),
        smoke=dict(
            Counter(work.verdicts[cell.id].verdict for cell in mine if cell.id in work.verdicts)
        ),
        seconds=round(work.seconds[name], 3),
    )
