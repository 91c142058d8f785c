"""Calibration data of a model: an .npz beside the matrix, looked at before anything is built.

Nothing of it is unpickled, and only the headers of its arrays are read here; no more of it is
unpacked than it says it holds, and that has a limit.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from planyard.core.errors import InputError, IntegrityError
from planyard.core.matrix import Calibration, Model, TensorSpec
from planyard.core.units import format_bytes
from planyard.edge.beneath import open_beneath

if TYPE_CHECKING:
    import numpy as np

    Header = tuple[tuple[int, ...], np.dtype[np.generic]]

LIMIT_BYTES = 2 << 30
"""Of the file, and of what it unpacks to."""
LEAST_SAMPLES = 8
_PIECE_BYTES = 1 << 20


def problems_of_calibration(model: Model, *, root: Path) -> Iterator[str]:
    """What is wrong with a model's calibration file below `root`, in words; nothing when it fits.

    Reads the whole file once, for its digest.
    """
    asked = model.calibration
    if asked is None:
        return
    try:
        with open_beneath(root, asked.file) as file:
            yield from _problems(file, asked, inputs=model.inputs)
    except InputError as error:
        yield from error.problems
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        yield f"{asked.file}: not an .npz file that can be read: {error}"


def copy_calibration(asked: Calibration, *, root: Path, target: Path) -> None:
    """Copy the file to `target`; raises IntegrityError unless the copy is what the matrix names."""
    seen = hashlib.sha256()
    with open_beneath(root, asked.file) as file, target.open("wb") as copy:
        while piece := file.read(_PIECE_BYTES):
            seen.update(piece)
            copy.write(piece)
    target.chmod(0o644)
    if f"sha256:{seen.hexdigest()}" != asked.sha256:
        raise IntegrityError(f"{asked.file} has changed since the matrix was read")


def _problems(
    file: IO[bytes], asked: Calibration, *, inputs: Mapping[str, TensorSpec]
) -> Iterator[str]:
    size_bytes = file.seek(0, 2)
    if size_bytes > LIMIT_BYTES:
        yield f"{asked.file}: {format_bytes(size_bytes)}, more than {format_bytes(LIMIT_BYTES)}"
        return
    file.seek(0)
    found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if found != asked.sha256:
        yield f"{asked.file} has the digest {found}, and sha256: names another: write this one"
        return
    file.seek(0)
    headers = _read_headers(file, asked.file)
    if headers.keys() != inputs.keys():
        held = ", ".join(sorted(headers)) or "nothing"
        yield f"{asked.file} holds {held}: write one array for each of {', '.join(sorted(inputs))}"
        return
    for name, (shape, dtype) in headers.items():
        yield from (
            f"{asked.file}, {name}: {each}" for each in _against_input(shape, dtype, inputs[name])
        )
    yield from (f"{asked.file}: {each}" for each in _against_each_other(headers, inputs))


def _read_headers(file: IO[bytes], name: str) -> dict[str, Header]:
    """Shape and type of each array, from its header alone; ValueError for what is none."""
    from numpy.lib import format as npy

    headers: dict[str, Header] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unpacked = sum(each.file_size for each in members)
        if unpacked > LIMIT_BYTES:
            limit = format_bytes(LIMIT_BYTES)
            raise InputError([f"{name}: unpacks to {format_bytes(unpacked)}, more than {limit}"])
        for member in members:
            array = member.filename.removesuffix(".npy")
            if array in headers:
                raise ValueError(f"it holds {array} twice")
            with archive.open(member) as opened:
                version = npy.read_magic(opened)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _fortran, dtype = read(opened)
            headers[array] = shape, dtype
    return headers


def _against_input(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], spec: TensorSpec
) -> Iterator[str]:
    """An array of samples against the input it is for: a batch of one is fed for each."""
    if str(dtype) != spec.dtype:
        yield f"holds {dtype}: write {spec.dtype}, as the input is declared"
    if len(shape) != max(len(spec.shape), 1):
        wanted = ["samples", *map(str, spec.shape[1:])]
        yield f"has the shape {list(shape)}: write [{', '.join(wanted)}]"
        return
    if shape[0] < LEAST_SAMPLES:
        yield f"has {shape[0]} samples: give at least {LEAST_SAMPLES}, a fourth is held out"
    for given, fixed in zip(shape[1:], spec.shape[1:], strict=True):
        if isinstance(fixed, int) and given != fixed:
            yield f"has the shape {list(shape)}, and the input has {fixed} where this has {given}"


def _against_each_other(
    headers: Mapping[str, Header], inputs: Mapping[str, TensorSpec]
) -> Iterator[str]:
    """All inputs have equally many samples, and a dimension's name means one size."""
    counts = {name: shape[0] for name, (shape, _) in headers.items() if shape}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {name}" for name, count in counts.items())
        yield f"{said}: give every input equally many samples"
    sizes: dict[str, int] = {}
    for name, (shape, _) in headers.items():
        for given, dimension in zip(shape[1:], inputs[name].shape[1:], strict=False):
            if isinstance(dimension, str) and sizes.setdefault(dimension, given) != given:
                yield f"{dimension} is {given} in {name} and {sizes[dimension]} in another input"
