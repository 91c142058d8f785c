"""The images of a build and the compilers of its plans: found, or made once among all builds.

An image that cannot be built ends its own cells; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builders.converted import needs_converter
from builders.image import ImageOrder, Inspect, make_image, order_image
from builders.plan_recipes import gpu_of_cell
from builders.probing import probe_image
from builders.sharing import Wanted, is_sent, send_image
from engines import index
from planyard.core.cells import Cell, plan_cells
from planyard.core.errors import ImageBuildError
from planyard.core.results import ImageRecord

if TYPE_CHECKING:
    from builders.pipeline import Build

AWAITING_GPU = "awaiting a GPU runner: classic TensorRT compiles on a GPU of the cell's own SM"


def make_missing_images(work: Build) -> None:
    """Every image the selected cells need, and the compilers of their plans.

    An image that cannot be built ends its own cells; the others go on.
    """
    wanted: list[Wanted[_ImageToMake]] = []
    for name in _needed_images(work):
        with _ending_alone(name, work):
            wanted += _wanted_images(name, work)
    work.sharing.each_once(
        wanted,
        find=lambda each: _find_image(each, work),
        make=lambda batch: _make_images(batch, work),
    )


@dataclass(frozen=True, kw_only=True)
class _ImageToMake:
    """An image of the matrix, or the compiler that belongs to it."""

    name: str
    order: ImageOrder
    is_compiler: bool


def _wanted_images(name: str, work: Build) -> list[Wanted[_ImageToMake]]:
    spec = work.matrix.images[name]
    needs_compiler = work.hands_over or compiles_here(name, work)
    kinds = [False, True] if spec.compiler and needs_compiler else [False]
    wanted = []
    for is_compiler in kinds:
        order = order_image(
            name, spec, matrix=work.matrix, workspace=work.workspace, compiler=is_compiler
        )
        recipe, what = order.recipe.digest, f"image {order.name}"
        each = _ImageToMake(name=name, order=order, is_compiler=is_compiler)
        wanted.append(Wanted(recipe=recipe, what=what, group=recipe, order=each))
    return wanted


def _find_image(wanted: _ImageToMake, work: Build) -> bool:
    """Look for an image that others see too, or need not be looked for any more."""
    if wanted.name in work.image_errors:
        return True
    store = work.workspace.store
    with work.timing(wanted.name):
        image = index.image_of_recipe(store, wanted.order.recipe.digest)
    if image is None or not is_sent(store, index.IMAGES, image):
        return False
    _note_image(wanted, image, work)
    return True


def _make_images(batch: Sequence[_ImageToMake], work: Build) -> None:
    for each in batch:
        _make_image(each, work)


def _make_image(wanted: _ImageToMake, work: Build) -> None:
    python = work.matrix.images[wanted.name].python
    inspect = None if wanted.is_compiler else _probe(python, work)
    with _ending_alone(wanted.name, work):
        image, built = make_image(wanted.order, workspace=work.workspace, inspect=inspect)
        if not built:
            send_image(work.workspace.store, image)
        _note_image(wanted, image, work)
        if built and not wanted.is_compiler:
            work.built.add(wanted.name)


def _note_image(wanted: _ImageToMake, image: ImageRecord, work: Build) -> None:
    if wanted.is_compiler:
        work.compilers[wanted.name] = (wanted.order, image)
    else:
        work.images[wanted.name] = image
        work.orders[wanted.name] = wanted.order


@contextmanager
def _ending_alone(name: str, work: Build) -> Iterator[None]:
    """Count the time, and let an image that cannot be built end its own cells only."""
    with work.timing(name):
        try:
            yield
        except ImageBuildError as error:
            for line in error.log_tail:
                work.workspace.console.detail(f"  │ {line}")
            work.workspace.console.error(f"{name}: {error.message}")
            work.image_errors[name] = error


def _needed_images(work: Build) -> list[str]:
    """The images of the selected cells, and of the references that cells on a GPU here need."""
    wanted = list(work.cells)
    if work.gpus:
        served = {(cell.model, cell.profile) for cell in work.cells if cell.sm is not None}
        wanted += [
            cell
            for cell in work.all_cells
            if cell.backend == "onnxruntime-cpu" and (cell.model, cell.profile) in served
        ]
    return list(dict.fromkeys(cell.image for cell in wanted))


def _probe(python: str, work: Build) -> Inspect:
    """Ask a new image for its versions while the engine still holds it."""

    def ask(image: ImageRecord, reference: str) -> None:
        probe_image(image, python=python, workspace=work.workspace, reference=reference)

    return ask


def compiles_here(image: str, work: Build) -> bool:
    """Whether anything of an image's cells is compiled or converted on this machine."""
    if needs_converter(image, work.cells):
        return True
    mine = [cell for cell in plan_cells(work.cells) if cell.image == image]
    if work.matrix.images[image].backend == "tensorrt-rtx":
        return True
    return any(not why_not_here(cell, work) for cell in mine)


def why_not_here(cell: Cell, work: Build) -> str:
    """Why a cell's plan cannot be compiled on this machine; empty when it can.

    Classic TensorRT needs a GPU of the cell's own SM, inside a container.
    """
    if cell.backend != "tensorrt":
        return ""
    if not work.gpus:
        return AWAITING_GPU
    if gpu_of_cell(cell, work.gpus) is None:
        here = ", ".join(sorted({f"SM {gpu.sm / 10}" for gpu in work.gpus}))
        needs = f"the cell needs SM {(cell.sm or 0) / 10}"
        return f"awaiting a GPU runner: this machine has {here}, {needs}"
    if not work.workspace.engine().has_gpu_runtime():
        return (
            "awaiting a GPU runner: this machine's Docker engine cannot give its GPU to a "
            "container: install the NVIDIA container toolkit"
        )
    return ""
