"""The work of one job: images, plans or smoke runs of its cells, with what others handed over.

Only the first stage builds images. The others take those that were handed over, by digest, from
the store: a GPU node neither resolves bases nor builds, whatever its Debian mirror says today.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from builders.github.handover import HandedImage, HandedSmoke, take_image
from builders.github.jobs import images_of
from builders.image import ImageOrder, ImageRecipe
from builders.outcome import report_build
from builders.pipeline import (
    Build,
    make_images,
    make_plans,
    smoke_cells,
    snapshot_images,
    start_build,
)
from builders.plan import order_plans, stored_plan
from builders.wheels import Requirement, read_lock
from builders.workspace import Workspace
from planyard.core.cells import compile_groups, plan_cells
from planyard.core.errors import SmokeNotRunError
from planyard.core.matrix import Image
from planyard.core.reader import LoadedMatrix
from planyard.core.report import BuildReport
from planyard.core.results import ImageRecord


def build_images(
    loaded: LoadedMatrix, *, patterns: Sequence[str], workspace: Workspace
) -> tuple[BuildReport, tuple[HandedImage, ...]]:
    """Build the images of the selected cells, and the compilers that belong to them."""
    started = time.monotonic()
    work = start_build(loaded, patterns=patterns, workspace=workspace)
    work.hands_over = True  # a GPU node compiles with it, and builds nothing
    make_images(work)
    handed = [
        HandedImage(
            image=record,
            compiler=_compiler(name, work),
            findings=work.findings[name],
        )
        for name, record in work.images.items()
        if name not in work.image_errors
    ]
    return report_build(work, seconds=time.monotonic() - started), tuple(handed)


def build_plans(
    loaded: LoadedMatrix,
    *,
    patterns: Sequence[str],
    workspace: Workspace,
    images: dict[str, HandedImage],
) -> BuildReport:
    """Compile the plans of the selected cells with the compilers that were handed over."""
    started = time.monotonic()
    work = start_build(loaded, patterns=patterns, workspace=workspace)
    _take_images(work, images)
    make_plans(work)
    return report_build(work, seconds=time.monotonic() - started)


def smoke(
    loaded: LoadedMatrix,
    *,
    patterns: Sequence[str],
    workspace: Workspace,
    images: dict[str, HandedImage],
) -> tuple[BuildReport, HandedSmoke]:
    """Run the selected cells in the images that were handed over, and write their snapshots.

    Raises SmokeNotRunError where a plan is not in the store: it is not compiled here.
    """
    started = time.monotonic()
    work = start_build(loaded, patterns=patterns, workspace=workspace)
    _take_images(work, images)
    if missing := tuple(_plans_not_made(work)):
        raise SmokeNotRunError(
            f"{len(missing)} plans are not in the store: {', '.join(missing[:3])}",
            mend="look at the jobs that compile: smoke jobs compile nothing",
        )
    make_plans(work)
    smoke_cells(work)
    snapshot_images(work)
    report = report_build(work, seconds=time.monotonic() - started)
    verdicts = {each.cell: each.verdict for each in report.verdicts}
    return report, HandedSmoke(verdicts=verdicts, snapshots=report.snapshots)


def _compiler(name: str, work: Build) -> ImageRecord | None:
    return work.compilers[name][1] if name in work.compilers else None


def _take_images(work: Build, images: dict[str, HandedImage]) -> None:
    """Put what was handed over where `make_images` would have put it."""
    for name in images_of(work.cells, all_cells=work.all_cells):
        found = take_image(images, name, store=work.workspace.store)
        spec = work.matrix.images[name]
        work.images[name], work.findings[name] = found.image, found.findings
        if found.compiler:
            order = _order_of(spec, found.compiler, spec.compiler_lock, work)
            work.compilers[name] = (order, found.compiler)


def _order_of(spec: Image, image: ImageRecord, lock: str | None, work: Build) -> ImageOrder:
    """The order of an image that is there already: of its recipe only the wheels count now."""
    recipe = ImageRecipe(
        stages="",
        target=image.name,
        files={},
        wheels=_wheels(lock, work),
        base="",
        build_args={},
        network=spec.network,
        epoch_seconds=work.workspace.epoch_seconds,
    )
    return ImageOrder(
        name=image.name, spec=spec, recipe=recipe, base=None, python=work.matrix.pins.python
    )


def _wheels(lock: str | None, work: Build) -> tuple[Requirement, ...]:
    return read_lock((work.workspace.root / lock).read_text(), name=lock) if lock else ()


def _plans_not_made(work: Build) -> Iterable[str]:
    """The cells whose plan no job has compiled."""
    for group in compile_groups(plan_cells(work.cells)):
        if group.image not in work.compilers:
            yield from (cell.id for cell in group.cells)
            continue
        order, compiler = work.compilers[group.image]
        packages = {wheel.name: wheel.version for wheel in order.recipe.wheels}
        orders = order_plans(
            group, matrix=work.matrix, compiler=compiler, packages=packages, gpus=work.gpus
        )
        for plan in orders:
            if stored_plan(plan, workspace=work.workspace) is None:
                yield plan.cell.id
