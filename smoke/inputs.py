"""Seeded inputs for smoke runs: the same bytes for every runtime, image and machine.

They are made on the host and handed over as raw files, because not every image has numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from planyard.core.errors import InputError
from planyard.core.matrix import Model, ShapeRange, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SEED = 20261121


def input_shapes(
    inputs: Mapping[str, TensorSpec], profile: Mapping[str, ShapeRange]
) -> dict[str, tuple[int, ...]]:
    """The optimum shape of each input; an input without dynamic dimensions has its own."""
    return {
        name: profile[name].opt if name in profile else tuple(map(int, spec.shape))
        for name, spec in inputs.items()
    }


def batch_of(inputs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The batch size of these shapes: where an input begins with a named dimension, its size.

    A model without such an input has the batch its first input was exported with; 1 for a scalar.
    """
    named = [name for name, spec in inputs.items() if _has_batch(spec)]
    first = shapes[next(iter(named or inputs))]
    return first[0] if first else 1


def shapes_at_batch(
    model: Model, *, name: str, profile: str, batch: int
) -> dict[str, tuple[int, ...]]:
    """The optimum shapes of a profile with another batch size; its own gives the optimum's.

    The batch is the first dimension of an input, where that has a name; inputs whose first
    dimension is a number stay as they are. Raises InputError where the profile has no such batch.
    """
    ranges = model.profiles[profile]
    shapes = input_shapes(model.inputs, ranges)
    if batch == batch_of(model.inputs, shapes):
        return shapes
    where = f"models.{name}.profiles.{profile}"
    named = [each for each, spec in model.inputs.items() if _has_batch(spec) and each in ranges]
    problems = [
        f"{where}.{each}: a batch of {batch} is not within {size.min[0]} to {size.max[0]}"
        for each, size in ranges.items()
        if each in named and not size.min[0] <= batch <= size.max[0]
    ]
    if not named:
        problems = [f"{where}: no input has a first dimension that could be a batch of {batch}"]
    if problems:
        raise InputError(
            problems,
            mend="change smoke.batches, or the min and max of the profile's first dimensions",
        )
    return shapes | {each: (batch, *shapes[each][1:]) for each in named}


def _has_batch(spec: TensorSpec) -> bool:
    return bool(spec.shape) and isinstance(spec.shape[0], str)


def make_inputs(
    inputs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]], *, seed: int = SEED
) -> dict[str, npt.NDArray[np.generic]]:
    """Uniform numbers in [-1, 1) for floats, 0 and 1 for the rest.

    Each input has its own stream, named by the seed and the input, so that adding an input
    changes no other. Philox gives the same numbers on every machine and NumPy version.
    """
    import numpy as np

    made = {}
    for name, spec in inputs.items():
        key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
        bits = np.random.Philox(key=key).random_raw(int(np.prod(shapes[name], dtype=np.int64)))
        if spec.dtype.startswith("float"):
            values = (bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0
        else:
            values = (bits >> np.uint64(63)).astype(np.float64)
        made[name] = values.reshape(shapes[name]).astype(spec.dtype)
    return made


def write_inputs(
    arrays: Mapping[str, npt.NDArray[np.generic]], folder: Path, *, stem: str = "input"
) -> dict[str, dict[str, object]]:
    """Write raw little-endian files `STEM-0.bin` and so on; returns the job's description of them.

    Files are named relative to `folder`.
    """
    described: dict[str, dict[str, object]] = {}
    for number, (name, array) in enumerate(arrays.items()):
        file = f"{stem}-{number}.bin"
        array.tofile(folder / file)
        described[name] = {"file": file, "dtype": str(array.dtype), "shape": list(array.shape)}
    return described
