"""The model that a starting matrix is written for, read from its ONNX file without ONNX.

It is checked as a build will check it: a plain file below the folder of the matrix, a sound ONNX
file, external weights beside it, inputs that a matrix can declare. All problems come at once.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import msgspec

from builders.models import MODEL_LIMIT_BYTES, check_external_files
from builders.starting.shapes import OpenInputs, open_inputs, problems_of
from planyard.core.attention import count_attention
from planyard.core.errors import InputError
from planyard.core.matrix import DType
from planyard.core.onnx_outline import (
    OnnxOutline,
    outline_of_onnx,
    plain_path,
)
from planyard.core.units import format_bytes
from planyard.edge.beneath import open_beneath
from planyard.edge.files import digest_of_file

_LONGEST_NAME = 63
_POINTER = b"version https://git-lfs"


class StartingModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk: its name in the matrix, its path beside it, and what its file says.

    `external` gives the digest of each file of weights by its path beside the model;
    `attention_blocks` is 0 where the graph has none or cannot be followed.
    """

    name: str
    path: str
    sha256: str
    external: Mapping[str, str]
    size_bytes: int
    inputs: OpenInputs
    attention_blocks: int


def read_model(path: Path, *, root: Path) -> StartingModel:
    """The model at `path`; `root` is the folder of the matrix. Raises InputError."""
    place = _below(path, root=root)
    with open_beneath(root, place) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        start = file.read(len(_POINTER))
    if start == _POINTER:
        raise InputError(
            [f"{path}: a pointer of Git LFS, not the model itself"], mend="run git lfs pull"
        )
    if not 0 < size_bytes <= MODEL_LIMIT_BYTES:
        limit = format_bytes(MODEL_LIMIT_BYTES)
        raise InputError([f"{path}: has {size_bytes} bytes; an ONNX file has 1 to {limit}"])
    return _starting_model(root / place, place=place, size_bytes=size_bytes)


def _starting_model(path: Path, *, place: str, size_bytes: int) -> StartingModel:
    data = _mapped(path)
    try:
        outline = outline_of_onnx(data)
    except ValueError as error:
        raise InputError(
            [f"{place}: not a sound ONNX file: {error}"],
            mend="give a file that onnx.save or an exporter wrote",
        ) from error
    if problems := tuple(problems_of(outline.inputs, dtypes=get_args(DType))):
        raise InputError([f"{place}: {problem}" for problem in problems])
    external = _external(path, place=place, outline=outline)
    return StartingModel(
        name=model_name(path.stem),
        path=place,
        sha256=digest_of_file(path),
        external=external,
        size_bytes=size_bytes + sum((path.parent / file).stat().st_size for file in external),
        inputs=open_inputs(outline.inputs),
        attention_blocks=_attention_blocks(data),
    )


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _attention_blocks(data: memoryview) -> int:
    try:
        return count_attention(data)
    except ValueError:
        return 0


def model_name(stem: str) -> str:
    """A name as the matrix takes it: lower-case letters, digits, dots, dashes, underscores."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
    return plain[:_LONGEST_NAME] or "model"


def _below(path: Path, *, root: Path) -> str:
    """`path` as seen from the folder of the matrix."""
    whole, folder = Path(os.path.abspath(path)), Path(os.path.abspath(root))  # noqa: PTH100
    try:
        return whole.relative_to(folder).as_posix()
    except ValueError:
        raise InputError(
            [f"{path} does not lie below {root}, where matrix.yaml would be"],
            mend="move the model below it, or name a folder that holds it with --dir",
        ) from None


def _external(path: Path, *, place: str, outline: OnnxOutline) -> dict[str, str]:
    """The digests of the files that hold the model's weights."""
    names = sorted({plain_path(each.location) for each in outline.external})
    problems = check_external_files(path.parent, outline, dict.fromkeys(names, ""))
    if problems:
        lines = [f"{place}: {problem}" for problem in problems]
        raise InputError(lines, mend="put the files of its weights beside the model")
    return {name: digest_of_file(path.parent / name) for name in names}
