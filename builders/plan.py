"""Plans: found by their recipe, or compiled in a container of the compiler image.

Cells that share image, model and precision are compiled in one container: the model is converted
and parsed once. The container has no network and a read-only root; the model is mounted read-only.
A model the compiler refuses ends that cell, in the compiler's own words; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from builders.conversion import INSIDE, ConversionJob, conversion_of
from builders.inside import Place, out_folder, run_inside
from builders.models import FetchedModel, identity_of_model
from builders.shared_conversion import shared_conversion
from builders.sharing import Sharing
from builders.workspace import Workspace
from engines import header, index
from engines.recipe import PlanRecipe, recipe_digest, recipe_inputs
from planyard.core.cells import Cell, CompileGroup
from planyard.core.compat import pinned_version
from planyard.core.errors import IntegrityError, PlanCompileError
from planyard.core.matrix import Compile, Matrix, Model
from planyard.core.report import PlanFailure
from planyard.core.results import ImageRecord, PlanRecord
from planyard.edge import files
from planyard.edge.console import Step

_SCRIPTS = {"tensorrt-rtx": INSIDE / "tensorrt_rtx.py", "tensorrt": INSIDE / "tensorrt.py"}
_JOB_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PlanOrder:
    """A plan that a cell asks for: its recipe, and the digest that finds it."""

    cell: Cell
    recipe: PlanRecipe
    digest: str


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """Plans to compile in one container, and what it needs."""

    group: CompileGroup
    orders: tuple[PlanOrder, ...]
    model: FetchedModel
    spec: Model
    settings: Compile
    image: str
    python: str
    version: str
    sharing: Sharing


def order_plans(
    group: CompileGroup,
    *,
    matrix: Matrix,
    compiler: ImageRecord,
    packages: Mapping[str, str],
) -> tuple[PlanOrder, ...]:
    """The recipe of each cell's plan. `packages` are the versions locked in the compiler image."""
    return tuple(
        PlanOrder(cell=cell, recipe=recipe, digest=recipe_digest(recipe))
        for cell in group.cells
        for recipe in [_recipe(cell, matrix=matrix, compiler=compiler, packages=packages)]
    )


def _recipe(
    cell: Cell, *, matrix: Matrix, compiler: ImageRecord, packages: Mapping[str, str]
) -> PlanRecipe:
    model = matrix.models[cell.model]
    if cell.sm is None:
        raise PlanCompileError(f"{cell.id}: a plan needs the SM of a GPU")
    return PlanRecipe(
        model=identity_of_model(model),
        backend="tensorrt-rtx" if cell.backend == "tensorrt-rtx" else "tensorrt",
        version=pinned_version(matrix.pins, cell.backend),
        builder_image=compiler.digest,
        script=files.digest_of_file(_SCRIPTS[cell.backend]),
        sm_targets=(cell.sm,),
        profile=model.profiles[cell.profile],
        precision=cell.precision,
        workspace_bytes=int(matrix.compile.workspace),
        optimization_level=matrix.compile.optimization_level,
        conversion=conversion_of(cell.precision, model, packages=packages),
    )


def stored_plan(order: PlanOrder, *, workspace: Workspace) -> PlanRecord | None:
    """A plan of this recipe that is in the store, as it was entered: for the cell of that build."""
    found = index.plans_of_recipe(workspace.store, order.digest)
    return found[0] if found else None


def compile_plans(
    job: CompileJob, *, workspace: Workspace, step: Step
) -> Iterator[PlanRecord | PlanFailure]:
    """Compile the plans of a job; yields a record or a failure for each cell, as they come."""
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
) -> Iterator[PlanRecord | PlanFailure]:
    out = out_folder(scratch, "plans")
    names = {f"{number}.plan": order for number, order in enumerate(job.orders)}
    document = {
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
    script, place = _SCRIPTS[job.group.backend], _place(job, model, out)
    events, tail = run_inside(script, document, place=place, workspace=workspace, step=step)
    by_cell = {event["cell"]: event for event in events if "seconds" in event and "cell" in event}
    refused = {event["cell"]: event for event in events if event["event"] == "refused"}
    failed = next((event["message"] for event in events if event["event"] == "failed"), "")
    for name, order in names.items():
        if event := by_cell.get(order.cell.id):
            yield _store_plan(order, event, out / name, workspace=workspace)
        else:
            event = refused.get(order.cell.id, {})
            message = event.get("message") or failed or "the compiler ended before this plan"
            log = tuple(event.get("log") or tail)
            yield PlanFailure(cell=order.cell.id, message=message, log_tail=log)


def _store_plan(
    order: PlanOrder, event: Mapping[str, Any], path: Path, *, workspace: Workspace
) -> PlanRecord:
    """Check what the compiler wrote against what it says and what was asked, then keep it."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        found = header.read_header(file.read(header.HEAD_BYTES), size_bytes=size_bytes)
    if isinstance(found, header.NotAPlan):
        raise IntegrityError(f"{order.cell.id}: the compiler wrote no plan: {found.reason}")
    _check_header(order, found)
    digest = f"sha256:{event['sha256']}"
    workspace.store.put_blob(digest, path, take=True, family=order.recipe.model)
    record = PlanRecord(
        cell=order.cell.id,
        recipe=order.digest,
        digest=digest,
        size_bytes=size_bytes,
        backend=order.recipe.backend,
        version=order.recipe.version,
        sm=order.recipe.sm_targets[0],
        model=order.cell.model,
        profile=order.cell.profile,
        precision=order.cell.precision,
        compile_seconds=float(event["seconds"]),
        inputs=recipe_inputs(order.recipe),
    )
    index.put_plan(workspace.store, record)
    return record


def _check_header(order: PlanOrder, found: header.PlanHeader) -> None:
    """A plan says itself what it is: it has to be what was asked for, and all of it."""
    wanted = order.recipe
    if found.version != wanted.version:
        said = f"version {found.version}, not {wanted.version}"
    elif found.sm_targets and found.sm_targets != wanted.sm_targets:
        said = f"SM {found.sm_targets}, not {wanted.sm_targets}"
    elif found.whole is False:
        said = found.problem
    else:
        return
    raise IntegrityError(f"{order.cell.id}: the compiler wrote a plan that says: {said}")


def _place(job: CompileJob, model: Path, out: Path) -> Place:
    """Where a script of this job runs, and within which limits."""
    return Place(
        image=job.image,
        python=job.python,
        model=model.parent,
        out=out,
        memory_bytes=job.settings.memory,
        timeout_seconds=job.settings.timeout_seconds,
    )
