"""What must hold between the fields of a matrix; what a single field may be is in its type.

Every rule is a pure function over one struct and gives key paths with what to write instead. Rules
run on whatever could be read, so `Part`s come in, not a `Matrix`: a matrix that is wrong somewhere
is still checked everywhere else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from planyard.core.located import KeyPath, Part, did_you_mean, quoted
from planyard.core.matrix import (
    GPU_BACKENDS,
    PLAN_BACKENDS,
    Base,
    Drop,
    Gpu,
    Image,
    Matrix,
    Model,
    Promotion,
    ShapeRange,
    Source,
    TensorSpec,
)
from planyard.core.runtime_rules import tensorrt_broken
from planyard.core.session_rules import session_broken

if TYPE_CHECKING:
    from planyard.core.cells import Cell

_SLASHES_IN_A_CELL_ID = 4
_CLOSED_SET = re.compile(r"\[!?+\]?+[^\]]*\]")
"""How fnmatch reads a set: a ] right after the opening stands for itself."""

_ACCURACY = (
    "the matrix names the accuracy it must keep: "
    "add tolerance: with int8: {max_abs: …, mean_abs: …, cosine: …}"
)


class Broken(NamedTuple):
    """A rule that does not hold: where, and what to write instead."""

    path: KeyPath
    message: str


def broken_rules(parts: Sequence[Part]) -> list[Broken]:
    """Every rule that the parts of a matrix break."""
    broken: list[Broken] = []
    for path, kind, value in parts:
        if value is not None:
            broken.extend(Broken(path + at, message) for at, message in _RULES[kind](value))
    broken.extend(_unknown_bases(parts))
    broken.extend(_repeated_drops(parts))
    return broken


def broken_cell_rules(matrix: Matrix, cells: Sequence[Cell]) -> list[Broken]:
    """The rules that the cells of a whole matrix break; `cells` are those that are left of it."""
    int8, converted = defaultdict(list), defaultdict(list)
    for cell in cells:
        if cell.precision == "int8":
            int8[cell.model].append(cell.id)
        if cell.precision != "fp32" and cell.backend not in PLAN_BACKENDS:
            converted[cell.image].append(cell.id)
    broken = [
        Broken(("models", model, *at), message)
        for model, ids in int8.items()
        for at, message in _int8(matrix.models[model], ids)
    ]
    for name, image in matrix.images.items():
        at: KeyPath = ("images", name)
        if image.backend in PLAN_BACKENDS or bool(converted[name]) == bool(image.compiler):
            continue
        if image.compiler:
            message = "every cell of this image serves the model as published: remove this key"
            broken.append(Broken((*at, "compiler"), message))
        else:
            message = f"{_counted(converted[name])} of this image, and nothing converts the model"
            advice = "add compiler: with a stage that has the converter, or drop them"
            broken.append(Broken(at, f"{message}: {advice}"))
    return broken


def _int8(model: Model, cells: Sequence[str]) -> Iterator[Broken]:
    """INT8 needs samples to measure ranges on, fed one at a time, and the accuracy to keep."""
    if "int8" not in model.tolerance:
        yield Broken((), f"{_counted(cells)}, and {_ACCURACY}")
    if model.calibration is None:
        advice = "add calibration: {file: samples.npz, sha256: …}, or drop them"
        yield Broken((), f"{_counted(cells)}, and there are no samples to measure on: {advice}")
    for name, spec in model.inputs.items():
        if spec.shape and spec.shape[0] != 1 and not isinstance(spec.shape[0], str):
            message = f"int8 is calibrated with a batch of one, and {name} has {spec.shape[0]} here"
            yield Broken(("inputs", name, "shape", 0), f"{message}: name the dimension")


def _counted(cells: Sequence[str]) -> str:
    """`a/b/c/int8/d and 3 more cells`."""
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f"{cells[0]}{more} are cells" if more else f"{cells[0]} is a cell"


def parts_of(matrix: Matrix) -> list[Part]:
    """The parts of a matrix that rules are about, when it was not read from a file."""
    parts = [Part(("bases", name), Base, base) for name, base in matrix.bases.items()]
    parts += [Part(("images", name), Image, image) for name, image in matrix.images.items()]
    parts += [Part(("gpus", name), Gpu, gpu) for name, gpu in matrix.gpus.items()]
    parts += [Part(("drop", index), Drop, drop) for index, drop in enumerate(matrix.drop)]
    if matrix.promotion != Promotion():
        parts.append(Part(("promotion",), Promotion, matrix.promotion))
    for name, model in matrix.models.items():
        parts.append(Part(("models", name), Model, model))
        parts.append(Part(("models", name, "source"), Source, model.source))
        parts += [
            Part(("models", name, "profiles", profile, tensor), ShapeRange, shapes)
            for profile, ranges in model.profiles.items()
            for tensor, shapes in ranges.items()
        ]
    return parts


def _exactly_one(value: Base | Source) -> Iterator[Broken]:
    """Base and Source are choices: one key, no more."""
    names = value.__struct_fields__
    given = [name for name in names if getattr(value, name) is not None]
    if not given:
        yield Broken((), f"nothing is chosen here: write exactly one of {', '.join(names)}")
    for name in given[1:]:
        yield Broken((name,), f"{given[0]} is given already: keep exactly one of the two")


def _image(image: Image) -> Iterator[Broken]:
    """Plans need a compiler; elsewhere it converts models, which `broken_cell_rules` asks for."""
    if image.backend in PLAN_BACKENDS and image.compiler is None:
        advice = "add compiler: with the Dockerfile stage that has the compiler"
        yield Broken((), f"the backend {image.backend} compiles plans: {advice}")
    if image.compiler_lock is not None and image.compiler is None:
        yield Broken(("compiler_lock",), "there is no compiler to lock: remove this key")
    for at, message in (*session_broken(image), *tensorrt_broken(image)):
        yield Broken(at, message)


def _promotion(promotion: Promotion) -> Iterator[Broken]:
    """One signer is believed, a key or an identity, and only where signatures are asked for."""
    named = [name for name in ("key", "identity", "issuer") if getattr(promotion, name)]
    if named and not promotion.signed:
        yield Broken(
            (named[0],), "nothing has to be signed: write signed: true, or remove this key"
        )
    if promotion.key and len(named) > 1:
        yield Broken((named[1],), "key is given already: keep the key, or identity with issuer")
    elif bool(promotion.identity) != bool(promotion.issuer):
        lacking = "issuer" if promotion.identity else "identity"
        yield Broken((), f"an identity is only its issuer's word: add {lacking}:")


def _gpu(gpu: Gpu) -> Iterator[Broken]:
    """A GPU is known by its SM, a CPU has none."""
    needs = [backend for backend in gpu.backends if backend in GPU_BACKENDS]
    if needs and gpu.sm is None:
        yield Broken((), f"{needs[0]} runs on a GPU: add sm: with its SM, like 89 for SM 8.9")
    if not needs and gpu.sm is not None:
        yield Broken(("sm",), "no backend here runs on a GPU: remove sm, or add a GPU backend")


def _drop(drop: Drop) -> Iterator[Broken]:
    """A drop pattern can match a cell id, image/model/profile/precision/gpu."""
    slashes, shown = drop.cells.count("/"), quoted(drop.cells)
    if "[" in _CLOSED_SET.sub("", drop.cells):
        message = f"{shown} opens a set with [ and does not close it: add ], or write [[] for ["
        yield Broken(("cells",), message)
    elif slashes > _SLASHES_IN_A_CELL_ID or (
        slashes < _SLASHES_IN_A_CELL_ID and "*" not in drop.cells
    ):
        advice = "write image/model/profile/precision/gpu, with * for what may vary"
        yield Broken(("cells",), f"{shown} can match no cell: {advice}")


def _shape_range(shapes: ShapeRange) -> Iterator[Broken]:
    """Equal ranks, and min <= opt <= max in every dimension."""
    ranks = {len(shapes.min), len(shapes.opt), len(shapes.max)}
    if len(ranks) > 1:
        lengths = f"min has {len(shapes.min)} dimensions, opt {len(shapes.opt)}"
        yield Broken((), f"{lengths} and max {len(shapes.max)}: write one number for each")
        return
    for index, (low, best, high) in enumerate(zip(shapes.min, shapes.opt, shapes.max, strict=True)):
        if low > high:
            message = f"min {low} is greater than max {high}: write min <= opt <= max"
            yield Broken(("min", index), message)
        elif not low <= best <= high:
            message = f"opt {best} is outside of min {low} and max {high}: write one between them"
            yield Broken(("opt", index), message)


def _model(model: Model) -> Iterator[Broken]:
    """Every profile covers the inputs that vary, and nothing else."""
    for profile, ranges in model.profiles.items():
        for tensor, spec in model.inputs.items():
            path: KeyPath = ("profiles", profile)
            if tensor in ranges:
                for at, message in _against_input(ranges[tensor], spec):
                    yield Broken((*path, tensor, *at), message)
            elif dynamic := [name for name in spec.shape if isinstance(name, str)]:
                message = f"the input {tensor} varies in {', '.join(dynamic)} and has no range here"
                yield Broken(path, f"{message}: add {tensor}: with min, opt and max")
        for tensor in (name for name in ranges if name not in model.inputs):
            known = did_you_mean(tensor, model.inputs) or f"write one of {', '.join(model.inputs)}"
            message = f"the model has no input {quoted(tensor)}: {known}"
            yield Broken(("profiles", profile, tensor), message)
        yield from _named_dimensions(profile, ranges, model.inputs)
    if model.calibration is not None and "int8" not in model.tolerance:
        yield Broken(("calibration",), f"calibration is for int8: {_ACCURACY}")


def _against_input(shapes: ShapeRange, spec: TensorSpec) -> Iterator[Broken]:
    """The rank of the input, and its fixed dimensions unchanged."""
    rank = len(spec.shape)
    if not len(shapes.min) == len(shapes.opt) == len(shapes.max):
        return  # said by the rule of the range itself
    for side in ("min", "opt", "max"):
        shape: tuple[int, ...] = getattr(shapes, side)
        if len(shape) != rank:
            message = f"{len(shape)} dimensions, but the input has {rank}"
            yield Broken((side,), f"{message}: write {rank} numbers")
            continue
        for index, (given, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(fixed, int) and given != fixed:
                message = f"the input has {fixed} here, not {given}"
                yield Broken((side, index), f"{message}: write {fixed}, or name the dimension")


def _named_dimensions(
    profile: str, ranges: Mapping[str, ShapeRange], inputs: Mapping[str, TensorSpec]
) -> Iterator[Broken]:
    """A name that stands in several places has one range in a profile."""
    first: dict[str, tuple[str, tuple[int, int, int]]] = {}
    for tensor, shapes in ranges.items():
        spec = inputs.get(tensor)
        if spec is None or not len(spec.shape) == len(shapes.min) == len(shapes.opt) == len(
            shapes.max
        ):
            continue
        for index, name in enumerate(spec.shape):
            if not isinstance(name, str):
                continue
            span = (shapes.min[index], shapes.opt[index], shapes.max[index])
            other, expected = first.setdefault(name, (tensor, span))
            if span != expected:
                message = f"{name} is {_span(span)} here and {_span(expected)} in {other}"
                yield Broken(
                    ("profiles", profile, tensor),
                    f"{message}: write the same min, opt and max, or give it another name",
                )


def _span(span: tuple[int, int, int]) -> str:
    return "/".join(map(str, span))


def _unknown_bases(parts: Sequence[Part]) -> Iterator[Broken]:
    """An image starts from a base that the matrix has, readable or not."""
    bases = [str(part.path[-1]) for part in parts if part.kind is Base]
    for path, _kind, image in parts:
        if isinstance(image, Image) and image.base is not None and image.base not in bases:
            known = f"write one of {', '.join(bases)}" if bases else "add it under bases"
            near = did_you_mean(image.base, bases)
            message = f"there is no base {quoted(image.base)}: {known}"
            yield Broken((*path, "base"), f"{message}; {near}" if near else message)


def _repeated_drops(parts: Sequence[Part]) -> Iterator[Broken]:
    """The id of a drop rule is what `cells --explain` shows, so it names one rule."""
    first: dict[str, KeyPath] = {}
    for path, _kind, drop in parts:
        if isinstance(drop, Drop) and first.setdefault(drop.id, path) != path:
            message = f"drop[{first[drop.id][-1]}] has the id {drop.id} already: write another id"
            yield Broken((*path, "id"), message)


_RULES: Mapping[type, Callable[..., Iterator[Broken]]] = {
    Base: _exactly_one,
    Source: _exactly_one,
    Image: _image,
    Model: _model,
    Gpu: _gpu,
    Drop: _drop,
    Promotion: _promotion,
    ShapeRange: _shape_range,
}
RULED_TYPES: frozenset[type] = frozenset(_RULES)
"""The structs that rules are about: what a reader must keep."""
