"""Plans: found by their recipe, or compiled in a container of the compiler image.

Cells that share image, model and precision are compiled in one container: the model is converted
and parsed once. The container has no network and a read-only root; the model is mounted read-only.
A model the compiler refuses ends that cell, in the compiler's own words; the others go on.

Recipes are in plan_recipes.py, what becomes of a compiler's files in plan_results.py, and what
classic TensorRT measured before in plan_timings.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from builders.conversion import ConversionJob
from builders.inside import Event, Place, out_folder, run_inside
from builders.models import FetchedModel
from builders.plan_recipes import SCRIPTS, PlanOrder, order_plans, stored_plan
from builders.plan_results import store_plan
from builders.plan_timings import Timings, bring_timings, keep_timings
from builders.shared_conversion import shared_conversion
from builders.sharing import Sharing
from builders.workspace import Workspace
from planyard.core.cells import Cell, CompileGroup
from planyard.core.errors import PlanCompileError
from planyard.core.matrix import Compile, Model
from planyard.core.matrix_runtime import TensorRtBuild
from planyard.core.report import PlanFailure, WaitingCell
from planyard.core.results import PlanRecord
from planyard.edge import files
from planyard.edge.console import Step
from planyard.edge.gpu import LocalGpu

__all__ = [
    "CompileJob",
    "PlanOrder",
    "compile_plans",
    "failure_of",
    "order_plans",
    "stored_plan",
]

_JOB_SCHEMA = 1

Outcome = PlanRecord | PlanFailure | WaitingCell
"""What came of one cell: `WaitingCell` where the container's GPU was not the cell's."""


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """Plans to compile in one container, and what it needs.

    `gpu` is the one of this machine that classic TensorRT compiles on; None for plans that need
    none.
    """

    group: CompileGroup
    orders: tuple[PlanOrder, ...]
    model: FetchedModel
    spec: Model
    settings: Compile
    image: str
    python: str
    version: str
    sharing: Sharing
    tensorrt: TensorRtBuild = field(default_factory=TensorRtBuild)
    gpu: LocalGpu | None = None

    @property
    def is_classic(self) -> bool:
        """Whether the plans are TensorRT's, which compiles on a GPU."""
        return self.group.backend == "tensorrt"


def compile_plans(job: CompileJob, *, workspace: Workspace, step: Step) -> Iterator[Outcome]:
    """Compile the plans of a job; yields what came of each cell, as they come."""
    with files.scratch_folder(workspace.scratch, prefix="compile-") as scratch:
        try:
            model = _prepared_model(job, workspace=workspace, scratch=scratch, step=step)
            yield from _compile(job, model, workspace=workspace, scratch=scratch, step=step)
        except PlanCompileError as error:
            for order in job.orders:
                yield failure_of(order.cell, error)


def failure_of(cell: Cell, error: PlanCompileError) -> PlanFailure:
    """What a cell without a plan says: why, and what to do about it."""
    message = ": ".join(filter(None, (error.message, error.mend)))
    return PlanFailure(cell=cell.id, message=message, log_tail=error.log_tail)


def _prepared_model(job: CompileJob, *, workspace: Workspace, scratch: Path, step: Step) -> Path:
    """The model's file as it is compiled: as fetched, or converted and compared."""
    recipe = job.orders[0].recipe
    if recipe.conversion is None:
        return job.model.path
    conversion = ConversionJob(
        name=job.group.model,
        model=job.model,
        spec=job.spec,
        precision=job.group.precision,
        conversion=recipe.conversion,
        builder=recipe.builder_image,
        image=lambda: job.image,
        python=job.python,
        settings=job.settings,
    )
    converted = shared_conversion(
        conversion, workspace=workspace, scratch=scratch, step=step, sharing=job.sharing
    )
    return converted.path


def _compile(
    job: CompileJob, model: Path, *, workspace: Workspace, scratch: Path, step: Step
) -> Iterator[Outcome]:
    out = out_folder(scratch, "plans")
    names = {f"{number}.plan": order for number, order in enumerate(job.orders)}
    document, timings = _document(job, model, names), None
    if job.is_classic:
        timings = bring_timings(
            job.orders,
            build=job.tensorrt,
            gpu=job.gpu,
            workspace=workspace,
            folder=scratch / "timings",
        )
        document |= {"flags": job.orders[0].recipe.flags, **timings.fields("/inputs")}
    place = _place(job, model, out, timings)
    script = SCRIPTS[job.group.backend]
    events, tail = run_inside(script, document, place=place, workspace=workspace, step=step)
    cache = ""
    if timings is not None:
        cache = keep_timings(timings, events, out=out, workspace=workspace, step=step)
    by_cell = {event["cell"]: event for event in events if "seconds" in event and "cell" in event}
    for name, order in names.items():
        if event := by_cell.get(order.cell.id):
            path = out / name
            yield store_plan(order, event, path, workspace=workspace, timing_cache=cache)
        else:
            yield _why_none(order.cell, events, tail)


def _document(job: CompileJob, model: Path, names: Mapping[str, PlanOrder]) -> dict[str, Any]:
    """The job as every script of a backend reads it."""
    return {
        "schema": _JOB_SCHEMA,
        "backend": job.group.backend,
        "model": f"/model/{model.name}",
        "version": job.version,
        "workspace_bytes": job.settings.workspace,
        "optimization_level": job.settings.optimization_level,
        "out": "/out",
        "plans": [
            {
                "cell": order.cell.id,
                "sm": order.cell.sm,
                "profile": msgspec.to_builtins(order.recipe.profile),
                "out": name,
            }
            for name, order in names.items()
        ],
    }


def _why_none(cell: Cell, events: list[Event], tail: tuple[str, ...]) -> PlanFailure | WaitingCell:
    """Why a cell has no plan, in the compiler's own words if it has any."""
    refused = {event["cell"]: event for event in events if event["event"] == "refused"}
    failed = next((event["message"] for event in events if event["event"] == "failed"), "")
    event = refused.get(cell.id, {})
    message = event.get("message") or failed or "the compiler ended before this plan"
    if event.get("awaiting_gpu"):
        return WaitingCell(cell=cell.id, reason=f"awaiting a GPU runner: the container {message}")
    return PlanFailure(cell=cell.id, message=message, log_tail=tuple(event.get("log") or tail))


def _place(job: CompileJob, model: Path, out: Path, timings: Timings | None) -> Place:
    """Where a script of this job runs, and within which limits."""
    return Place(
        image=job.image,
        python=job.python,
        model=model.parent,
        out=out,
        inputs=timings.folder if timings else None,
        gpu=job.is_classic,
        memory_bytes=job.settings.memory,
        timeout_seconds=job.settings.timeout_seconds,
    )
