"""The line from a matrix to snapshots; the only place where images, plans and smoke runs meet.

It reads as a list of verbs. Each step finds its result in the store or makes it, so a build that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from builders.auditing import audit_images
from builders.conversion import ConvertedModel
from builders.converted import convert_models
from builders.image import ImageOrder, load_image
from builders.making_images import AWAITING_GPU, make_missing_images, why_not_here
from builders.models import FetchedModel, fetch_model
from builders.outcome import report_build
from builders.plan import CompileJob, PlanOrder, compile_plans, order_plans, stored_plan
from builders.plan_recipes import gpu_of_cell
from builders.sharing import Sharing, Wanted, is_sent, send_plan
from builders.smoking import Smoking
from builders.snapshots import write_snapshots
from builders.workspace import Workspace
from engines import index
from planyard.core.cells import Cell, CompileGroup, compile_groups, expand, plan_cells, select
from planyard.core.compat import load_compat, pinned_version
from planyard.core.errors import ImageBuildError
from planyard.core.findings import Finding
from planyard.core.matrix import Matrix
from planyard.core.reader import LoadedMatrix
from planyard.core.report import BuildReport, PlanFailure, SnapshotWritten, WaitingCell
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict
from planyard.edge.gpu import LocalGpu, local_gpus

__all__ = ["AWAITING_GPU", "STEPS", "Build", "Models", "build", "check_selection", "start_build"]

_NO_COMPILER = "awaiting a GPU runner: its compiler image was not handed over"


@dataclass(kw_only=True)
class Build:
    """One build: what was asked, and what has come of it so far."""

    loaded: LoadedMatrix
    workspace: Workspace
    cells: tuple[Cell, ...]
    all_cells: tuple[Cell, ...]
    images: dict[str, ImageRecord] = field(default_factory=dict)
    orders: dict[str, ImageOrder] = field(default_factory=dict)
    findings: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    compilers: dict[str, tuple[ImageOrder, ImageRecord]] = field(default_factory=dict)
    built: set[str] = field(default_factory=set)
    image_errors: dict[str, ImageBuildError] = field(default_factory=dict)
    models: dict[str, FetchedModel] = field(default_factory=dict)
    plans: dict[str, PlanRecord] = field(default_factory=dict)
    converted: dict[str, ConvertedModel] = field(default_factory=dict)
    compiled: list[str] = field(default_factory=list)
    failures: list[PlanFailure] = field(default_factory=list)
    waiting: list[WaitingCell] = field(default_factory=list)
    verdicts: dict[str, SmokeVerdict] = field(default_factory=dict)
    snapshots: tuple[SnapshotWritten, ...] = ()
    hands_over: bool = False
    """Whether machines with GPUs get the compilers that are built here."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @cached_property
    def sharing(self) -> Sharing:
        """How this build gets on with others on its store."""
        return Sharing.of(self.workspace)

    @cached_property
    def gpus(self) -> tuple[LocalGpu, ...]:
        """The GPUs of this machine."""
        return local_gpus()

    @property
    def matrix(self) -> Matrix:
        """The matrix being built."""
        return self.loaded.matrix

    @contextmanager
    def timing(self, image: str) -> Iterator[None]:
        """Count a block's time as that image's share."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[image] += time.monotonic() - started


def build(
    loaded: LoadedMatrix,
    *,
    patterns: Sequence[str],
    workspace: Workspace,
    until: str = "snapshots",
) -> BuildReport:
    """Build the selected cells, from images to snapshots, or up to the step named by `until`."""
    started = time.monotonic()
    work = start_build(loaded, patterns=patterns, workspace=workspace)
    for name, step in STEPS.items():
        step(work)
        if name == until:
            break
    return report_build(work, seconds=time.monotonic() - started)


def check_selection(loaded: LoadedMatrix, patterns: Sequence[str]) -> None:
    """Raise NothingSelectedError for patterns that match no cell, before anything is written."""
    select(expand(loaded.matrix, load_compat()).cells, patterns)


def start_build(loaded: LoadedMatrix, *, patterns: Sequence[str], workspace: Workspace) -> Build:
    """Expand and select; nothing outside is asked yet."""
    expansion = expand(loaded.matrix, load_compat())
    cells = select(expansion.cells, patterns)
    return Build(loaded=loaded, workspace=workspace, cells=cells, all_cells=expansion.cells)


def make_images(work: Build) -> None:
    """Every image the selected cells need, and the compilers of their plans; each is audited."""
    make_missing_images(work)
    audit_images(work)


def make_plans(work: Build) -> None:
    """Every plan and converted model the selected cells need: found by recipe, or made now."""
    _compile_missing(work)
    work.converted, refused = convert_models(
        work.cells,
        matrix=work.matrix,
        compilers=work.compilers,
        models=Models(work),
        workspace=work.workspace,
        sharing=work.sharing,
    )
    work.failures += refused


def _compile_missing(work: Build) -> None:
    """Every plan the selected cells need; those that cannot be compiled here are waiting."""
    wanted: list[Wanted[_PlanToMake]] = []
    for group in compile_groups(plan_cells(work.cells)):
        if group.image in work.image_errors:
            continue
        here = []
        for cell in group.cells:
            reason = why_not_here(cell, work)
            if not reason and cell.backend == "tensorrt" and group.image not in work.compilers:
                reason = _NO_COMPILER
            if reason:
                work.waiting.append(WaitingCell(cell=cell.id, reason=reason))
            else:
                here.append(cell)
        if here:
            wanted += _wanted_plans(msgspec.structs.replace(group, cells=tuple(here)), work)
    work.sharing.each_once(
        wanted,
        find=lambda each: _find_plan(each, work),
        make=lambda batch: _make_plans_of_group(batch, work),
    )
    work.plans = {cell.id: work.plans[cell.id] for cell in work.cells if cell.id in work.plans}


@dataclass(frozen=True, kw_only=True)
class _PlanToMake:
    """A plan, and the group whose plans are compiled together."""

    group: CompileGroup
    order: PlanOrder


def _wanted_plans(group: CompileGroup, work: Build) -> list[Wanted[_PlanToMake]]:
    order, compiler = work.compilers[group.image]
    packages = {wheel.name: wheel.version for wheel in order.recipe.wheels}
    together = f"{group.image} {group.model} {group.precision}"
    orders = order_plans(
        group, matrix=work.matrix, compiler=compiler, packages=packages, gpus=work.gpus
    )
    return [
        Wanted(
            recipe=plan.digest,
            what=f"plan {plan.cell.id}",
            # What is compiled on a GPU is compiled for that one alone.
            group=f"{together} {plan.cell.sm}" if group.backend == "tensorrt" else together,
            order=_PlanToMake(group=group, order=plan),
        )
        for plan in orders
    ]


def _find_plan(wanted: _PlanToMake, work: Build, *, may_be_near: bool = False) -> bool:
    """Look for a plan that others see too. One that only the near store has is sent, if wanted."""
    store, cell = work.workspace.store, wanted.order.cell
    with work.timing(cell.image):
        stored = stored_plan(wanted.order, workspace=work.workspace)
    if stored is None:
        return False
    if not is_sent(store, index.PLANS, stored):
        if not may_be_near:
            return False
        send_plan(store, stored)
    work.plans[cell.id] = msgspec.structs.replace(stored, cell=cell.id)
    return True


def _make_plans_of_group(batch: Sequence[_PlanToMake], work: Build) -> None:
    wanted = [each for each in batch if not _find_plan(each, work, may_be_near=True)]
    if not wanted:
        return
    group = wanted[0].group
    with work.timing(group.image):
        _compile(group, tuple(each.order for each in wanted), work)


def _compile(group: CompileGroup, orders: tuple[PlanOrder, ...], work: Build) -> None:
    _, compiler = work.compilers[group.image]
    job = CompileJob(
        group=group,
        orders=orders,
        model=_model(group.model, work),
        spec=work.matrix.models[group.model],
        settings=work.matrix.compile,
        image=load_image(compiler, workspace=work.workspace),
        python=work.matrix.images[group.image].python,
        version=pinned_version(work.matrix.pins, group.backend),
        sharing=work.sharing,
        tensorrt=work.matrix.images[group.image].tensorrt,
        gpu=gpu_of_cell(orders[0].cell, work.gpus),
    )
    title = f"compile {len(orders)} plans of {group.model} {group.precision}"
    with work.workspace.console.step(title) as step:
        for result in compile_plans(job, workspace=work.workspace, step=step):
            if isinstance(result, PlanRecord):
                work.plans[result.cell] = result
                work.compiled.append(result.cell)
            elif isinstance(result, WaitingCell):
                work.waiting.append(result)
            else:
                work.failures.append(result)


def smoke_cells(work: Build) -> None:
    """Run what can run here, references first; the rest is `not run`, with its reason."""
    smoking = Smoking(
        matrix=work.matrix,
        workspace=work.workspace,
        all_cells=work.all_cells,
        images=work.images,
        models=Models(work),
        plans=work.plans,
        converted=work.converted,
    )
    for cell in work.cells:
        with work.timing(cell.image):
            work.verdicts[cell.id] = smoking.smoke(cell)


def snapshot_images(work: Build) -> None:
    """Write what each image proved on each GPU."""
    work.snapshots = write_snapshots(
        work.loaded,
        cells=work.cells,
        images=work.images,
        plans=work.plans,
        verdicts=work.verdicts,
        findings=work.findings,
        workspace=work.workspace,
    )


STEPS: dict[str, Callable[[Build], None]] = {
    "images": make_images,
    "plans": make_plans,
    "smoke": smoke_cells,
    "snapshots": snapshot_images,
}


class Models(dict[str, FetchedModel]):
    """Models, fetched when first asked for: a build with nothing to do reads none."""

    def __init__(self, work: Build) -> None:
        super().__init__()
        self._work = work

    def __missing__(self, name: str) -> FetchedModel:
        return _model(name, self._work)


def _model(name: str, work: Build) -> FetchedModel:
    if name not in work.models:
        workspace = work.workspace
        with workspace.console.step(f"fetch model {name}") as now, workspace.outside.running():
            work.models[name] = fetch_model(
                name,
                work.matrix.models[name],
                root=workspace.root,
                cache=workspace.cache,
                network=True,
                report=now.update,
            )
    return work.models[name]
