"""Ranges for the dimensions that a model leaves open, guessed from their names and places.

An ONNX file says that a dimension varies, never between which sizes. What its name or place makes
likely is taken, and said to the person who knows. Nothing here is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from planyard.core.onnx_outline import Shape, ValueInfo

MAX_RANK = 8
MAX_SIZE = 1 << 20


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """The least, usual and largest size of a dimension; `meaning` is what it was taken for."""

    min: int
    opt: int
    max: int
    meaning: str


BATCH = Range(min=1, opt=1, max=4, meaning="a batch")
SIDE = Range(min=224, opt=224, max=448, meaning="a side of an image")
LENGTH = Range(min=1, opt=128, max=512, meaning="a length in tokens or steps")
OTHER = Range(min=1, opt=16, max=64, meaning="nothing known")

_BY_NAME = (
    (re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE), BATCH),
    (re.compile(r"h|w|.*(height|width|image|rows|cols).*", re.IGNORECASE), SIDE),
    (
        re.compile(r"[lst]|.*(seq|len|token|time|step|frame|past|sample).*", re.IGNORECASE),
        LENGTH,
    ),
)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 63


class OpenShape(msgspec.Struct, frozen=True, kw_only=True):
    """An input as the matrix writes it: numbers are fixed, names vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class OpenInputs(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a model, and the range of each name in them."""

    inputs: tuple[OpenShape, ...]
    ranges: dict[str, Range]


def open_inputs(inputs: Sequence[ValueInfo]) -> OpenInputs:
    """Inputs with a name and a range for each dimension that varies.

    A name that stands in several places is one dimension, as in the matrix. Every shape is known,
    has at most 8 dimensions, and none over 2^20: `problems_of` says where that does not hold.
    """
    ranges: dict[str, Range] = {}
    written: dict[str, str] = {}
    opened = []
    for value in inputs:
        shape: list[int | str] = []
        for index, size in enumerate(value.shape or ()):
            if isinstance(size, int) and size > 0:
                shape.append(size)
                continue
            said = size if isinstance(size, str) else ""
            found, text = _by_sum(said) or _by_name(said), said
            if found is None:
                found = _by_place(index, value)
                # A name that says nothing, like dim_0, gives way to what the place says.
                if not said or found in (BATCH, SIDE):
                    text = _place_name(index, value, found)
            name = _written(said or text, text, written)
            ranges.setdefault(name, found)
            shape.append(name)
        opened.append(OpenShape(name=value.name, dtype=value.dtype, shape=tuple(shape)))
    return OpenInputs(inputs=tuple(opened), ranges=ranges)


def problems_of(inputs: Sequence[ValueInfo], *, dtypes: Sequence[str]) -> Iterator[str]:
    """Why a matrix cannot declare these inputs; `dtypes` are those that it knows."""
    if not inputs:
        yield "the model has no inputs, so nothing can be asked of it"
    for value in inputs:
        where = f"the input {value.name!r}"
        if value.dtype not in dtypes:
            yield f"{where} is {value.dtype}; planyard feeds {', '.join(dtypes)}"
        elif value.shape is None:
            yield f"{where} has no shape in the file: export the model with the ranks of its inputs"
        elif len(value.shape) > MAX_RANK:
            yield f"{where} has {len(value.shape)} dimensions, a matrix takes {MAX_RANK}"
        elif any(isinstance(size, int) and size > MAX_SIZE for size in value.shape):
            yield f"{where} has a dimension over {MAX_SIZE:,}"


def _by_name(name: str) -> Range | None:
    return next((found for pattern, found in _BY_NAME if pattern.fullmatch(name)), None)


def _by_sum(name: str) -> Range | None:
    """`past_length + 1`, as exporters write what depends on other dimensions."""
    parts = [part.strip() for part in name.split("+")]
    if len(parts) < 2:
        return None
    found = [_constant(part) or _by_name(part) for part in parts]
    known = [each for each in found if each is not None]
    if len(known) < len(parts):
        return None
    return Range(
        min=sum(each.min for each in known),
        opt=sum(each.opt for each in known),
        max=sum(each.max for each in known),
        meaning="a sum",
    )


def _constant(text: str) -> Range | None:
    if not text.isdecimal() or len(text) > 6:
        return None
    size = int(text)
    return Range(min=size, opt=size, max=size, meaning="a number")


def _by_place(index: int, value: ValueInfo) -> Range:
    """What stands first is a batch; pictures are NCHW or NHWC; what is counted is a sequence."""
    rank = len(value.shape or ())
    if index == 0:
        return BATCH
    if rank == 4 and index in _sides(value.shape or ()):
        return SIDE
    if index == 1 and rank in {2, 3}:
        return LENGTH
    return OTHER


def _sides(shape: Shape) -> tuple[int, ...]:
    """Which of four dimensions are height and width."""
    channels = (1, 3, 4)
    return (1, 2) if shape[3] in channels and shape[1] not in channels else (2, 3)


def _place_name(index: int, value: ValueInfo, found: Range) -> str:
    if found is BATCH:
        return "batch"
    if found is SIDE:
        return "height" if index == _sides(value.shape or ())[0] else "width"
    return f"{value.name}.{index}"


def _written(said: str, text: str, written: dict[str, str]) -> str:
    """`text` as the matrix takes it, the same for all that is `said`; others get another one."""
    if said in written:
        return written[said]
    plain = _NOT_IN_A_NAME.sub("-", text).strip("-._")
    plain = plain if plain[:1].isalpha() and plain[:1].isascii() else f"dim-{plain}".rstrip("-")
    plain = plain[: _LONGEST_NAME - 4]
    name, number = plain, 2
    while name in written.values():
        name, number = f"{plain}-{number}", number + 1
    written[said] = name
    return name
