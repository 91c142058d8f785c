"""The recipe of each cell's plan, and the plan that is stored under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from builders.conversion import INSIDE, conversion_of
from builders.models import identity_of_model
from builders.workspace import Workspace
from engines import index
from engines.recipe import GpuBuild, PlanRecipe, recipe_digest
from planyard.core.cells import Cell, CompileGroup
from planyard.core.compat import pinned_version
from planyard.core.errors import PlanCompileError
from planyard.core.matrix import Matrix
from planyard.core.matrix_runtime import TensorRtBuild
from planyard.core.results import ImageRecord, PlanRecord
from planyard.edge import files
from planyard.edge.gpu import LocalGpu

SCRIPTS: Mapping[str, Path] = {
    "tensorrt-rtx": INSIDE / "tensorrt_rtx.py",
    "tensorrt": INSIDE / "tensorrt.py",
}
"""The script that compiles the plans of a backend."""


@dataclass(frozen=True, kw_only=True)
class PlanOrder:
    """A plan that a cell asks for: its recipe, and the digest that finds it."""

    cell: Cell
    recipe: PlanRecipe
    digest: str


def order_plans(
    group: CompileGroup,
    *,
    matrix: Matrix,
    compiler: ImageRecord,
    packages: Mapping[str, str],
    gpus: Sequence[LocalGpu] = (),
) -> tuple[PlanOrder, ...]:
    """The recipe of each cell's plan. `packages` are the versions locked in the compiler image.

    `gpus` are those of this machine: plans of classic TensorRT depend on the driver.
    """
    orders = []
    for cell in group.cells:
        recipe = _recipe(cell, matrix=matrix, compiler=compiler, packages=packages)
        if cell.backend == "tensorrt":
            recipe = _of_classic(recipe, cell, matrix=matrix, gpus=gpus)
        orders.append(PlanOrder(cell=cell, recipe=recipe, digest=recipe_digest(recipe)))
    return tuple(orders)


def stored_plan(order: PlanOrder, *, workspace: Workspace) -> PlanRecord | None:
    """A plan of this recipe that is in the store, as it was entered: for the cell of that build."""
    found = index.plans_of_recipe(workspace.store, order.digest)
    return found[0] if found else None


def builder_flags(build: TensorRtBuild) -> tuple[str, ...]:
    """What the script is asked for, in its words; all of it is in the recipe."""
    flags = []
    if build.version_compatible:
        flags.append("version-compatible")
    if build.runtime == "lean":
        # The image has the lean runtime: a plan that brings its own would have to be trusted more.
        flags.append("exclude-lean-runtime")
    if build.hardware_compatibility != "none":
        flags.append(f"hardware-compatibility={build.hardware_compatibility}")
    if build.refit_identical:
        flags += ["refit-identical", "strip-plan"]
    return tuple(flags)


def gpu_of_cell(cell: Cell, gpus: Sequence[LocalGpu]) -> LocalGpu | None:
    """The GPU of this machine that a cell's plan can be compiled on."""
    return next((gpu for gpu in gpus if gpu.sm == cell.sm), None)


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
        script=files.digest_of_file(SCRIPTS[cell.backend]),
        sm_targets=(cell.sm,),
        profile=model.profiles[cell.profile],
        precision=cell.precision,
        workspace_bytes=int(matrix.compile.workspace),
        optimization_level=matrix.compile.optimization_level,
        conversion=conversion_of(cell.precision, model, packages=packages),
    )


def _of_classic(
    recipe: PlanRecipe, cell: Cell, *, matrix: Matrix, gpus: Sequence[LocalGpu]
) -> PlanRecipe:
    """With what only classic TensorRT has. A kept timing cache counts only where it is replayed:
    elsewhere it stands for measuring again, and would make every build another recipe."""
    build, gpu = matrix.images[cell.image].tensorrt, gpu_of_cell(cell, gpus)
    built_on = None
    if gpu is not None:
        built_on = GpuBuild(driver=gpu.driver.partition(".")[0], cuda=matrix.pins.cuda)
    return msgspec.structs.replace(
        recipe, flags=builder_flags(build), timing_cache=build.replay, built_on=built_on
    )
