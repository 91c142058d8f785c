"""Seeded inputs for smoke runs: the same bytes for every runtime, image and machine.

They are made on the host and handed over as raw files, because not every image has numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from planyard.core.matrix import ShapeRange, TensorSpec

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


def write_inputs(arrays: Mapping[str, npt.NDArray[np.generic]], folder: Path) -> dict[str, object]:
    """Write raw little-endian files; returns the job's description of them (files by name)."""
    described: dict[str, object] = {}
    for number, (name, array) in enumerate(arrays.items()):
        file = f"input-{number}.bin"
        array.tofile(folder / file)
        described[name] = {"file": file, "dtype": str(array.dtype), "shape": list(array.shape)}
    return described
