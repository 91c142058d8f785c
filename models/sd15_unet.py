"""Write Stable Diffusion 1.5's UNet with random weights: `python sd15_unet.py OUT [--seed N]`.

`OUT/model.onnx` is the graph beside this script, unpacked; `OUT/weights.bin` holds its 432 large
tensors as little-endian fp16. Nobody's trained weights are in it: it measures compiling, storing
and serving a model of that size, not pictures.

The numbers come from raw bits of SFC64, whose stream numpy keeps fixed between versions (NEP 19),
and are mapped by masks alone, so one seed gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

GRAPH = Path(__file__).with_name("sd15-unet.onnx.gz")
WEIGHTS_NAME = "weights.bin"
"""The external data location that the graph's tensors name."""
WEIGHTS_BYTES = 1_718_641_920
PIECE_BYTES = 16 << 20

SIGN_EXPONENT_MANTISSA = np.uint16(0x8FFF)
"""Bits kept: the sign, the two low bits of the exponent, the mantissa."""
SMALLEST_EXPONENT = np.uint16(0x1000)
"""Biased exponents 4 to 7: magnitudes from 2**-11 up to 2**-7, so no layer overflows fp16."""


def pieces_of_weights(seed: int, *, size_bytes: int = WEIGHTS_BYTES) -> Iterator[bytes]:
    """Yield `size_bytes` of finite, normal fp16 numbers, at most 16 MiB at a time."""
    bits = np.random.SFC64(seed)
    for start in range(0, size_bytes, PIECE_BYTES):
        wanted = min(PIECE_BYTES, size_bytes - start)
        words = bits.random_raw(-(-wanted // 8)).astype("<u8", copy=False)
        halves = words.view("<u2")
        halves &= SIGN_EXPONENT_MANTISSA
        halves |= SMALLEST_EXPONENT
        yield halves.tobytes()[:wanted]


def write_model(folder: Path, *, seed: int = 0) -> None:
    """Write the graph and its weights into `folder`, which is made when absent."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(GRAPH) as packed, (folder / "model.onnx").open("wb") as file:
        shutil.copyfileobj(packed, file)
    with (folder / WEIGHTS_NAME).open("wb") as file:
        for piece in pieces_of_weights(seed):
            file.write(piece)


def main() -> None:
    """Read the arguments and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--seed", type=int, default=0, help="0 or more; default 0")
    arguments = parser.parse_args()
    write_model(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
