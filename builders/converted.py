"""Models that ONNX Runtime serves at another precision than they were published in.

They are converted as those of plans are, in the compiler stage of the image that serves them: the
runtime image has no converter. A model that is refused ends its cells, as a refused plan does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from builders.conversion import ConversionJob, ConvertedModel, conversion_of, converted_model
from builders.image import ImageOrder, load_image
from builders.models import FetchedModel
from builders.plan import failure_of
from builders.shared_conversion import shared_conversion
from builders.sharing import Sharing
from builders.workspace import Workspace
from planyard.core.cells import Cell
from planyard.core.errors import PlanCompileError
from planyard.core.matrix import PLAN_BACKENDS, Matrix
from planyard.core.report import PlanFailure
from planyard.core.results import ImageRecord
from planyard.edge import files

Compilers = Mapping[str, tuple[ImageOrder, ImageRecord]]
Key = tuple[str, str, str]


def is_converted(cell: Cell) -> bool:
    """Whether a cell serves an ONNX model at another precision than it was published in."""
    return cell.precision != "fp32" and cell.backend not in PLAN_BACKENDS


def needs_converter(image: str, cells: Iterable[Cell]) -> bool:
    """Whether any of these cells of an image serves a converted model."""
    return any(is_converted(cell) for cell in cells if cell.image == image)


def convert_models(
    cells: Iterable[Cell],
    *,
    matrix: Matrix,
    compilers: Compilers,
    models: Mapping[str, FetchedModel],
    workspace: Workspace,
    sharing: Sharing | None = None,
) -> tuple[dict[str, ConvertedModel], tuple[PlanFailure, ...]]:
    """The converted model of each cell that serves one, by cell id, and the cells without.

    `compilers` are those of the images by name; cells of an image that has none are left out. With
    `sharing`, what another build on the store converts is not converted here.
    """
    found: dict[Key, ConvertedModel | PlanCompileError] = {}
    converted: dict[str, ConvertedModel] = {}
    failures: list[PlanFailure] = []
    for cell in filter(is_converted, cells):
        if cell.image not in compilers:
            continue
        key = (cell.image, cell.model, cell.precision)
        if key not in found:
            found[key] = _convert(
                cell,
                matrix=matrix,
                compilers=compilers,
                models=models,
                workspace=workspace,
                sharing=sharing,
            )
        result = found[key]
        if isinstance(result, PlanCompileError):
            failures.append(failure_of(cell, result))
        else:
            converted[cell.id] = result
    return converted, tuple(failures)


def _convert(
    cell: Cell,
    *,
    matrix: Matrix,
    compilers: Compilers,
    models: Mapping[str, FetchedModel],
    workspace: Workspace,
    sharing: Sharing | None,
) -> ConvertedModel | PlanCompileError:
    order, compiler = compilers[cell.image]
    spec = matrix.models[cell.model]
    packages = {wheel.name: wheel.version for wheel in order.recipe.wheels}
    conversion = conversion_of(cell.precision, spec, packages=packages)
    if conversion is None:
        raise ValueError(f"{cell.id} serves the model as published")
    job = ConversionJob(
        name=cell.model,
        model=models[cell.model],
        spec=spec,
        precision=cell.precision,
        conversion=conversion,
        builder=compiler.digest,
        image=lambda: load_image(compiler, workspace=workspace),
        python=matrix.images[cell.image].python,
        settings=matrix.compile,
    )
    with (
        files.scratch_folder(workspace.scratch, prefix="convert-") as scratch,
        workspace.console.step(f"bring {cell.model} to {cell.precision}") as step,
    ):
        try:
            if sharing is None or sharing.place is None:
                return converted_model(job, workspace=workspace, scratch=scratch, step=step)
            return shared_conversion(
                job, workspace=workspace, scratch=scratch, step=step, sharing=sharing
            )
        except PlanCompileError as error:
            return error
