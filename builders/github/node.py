"""Whether a node is the one that a job's cells ask for: its GPU's SM and its driver's branch.

Runner labels are a promise that nobody checks; a node that was moved to another driver keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planyard.core.cells import Cell
from planyard.core.errors import SmokeNotRunError
from planyard.core.matrix import GPU_BACKENDS, Matrix
from planyard.edge.gpu import LocalGpu


def check_node(cells: Sequence[Cell], *, matrix: Matrix, gpus: Sequence[LocalGpu]) -> None:
    """Raise SmokeNotRunError, with every reason, unless `gpus` has what the cells need.

    Cells on a CPU run anywhere.
    """
    problems = tuple(dict.fromkeys(_problems(cells, matrix=matrix, gpus=gpus)))
    if problems:
        names = sorted({cell.gpu for cell in cells if cell.backend in GPU_BACKENDS})
        labels = {name: ", ".join(matrix.gpus[name].runs_on) or "none" for name in names}
        said = "; ".join(f"gpus.{name}.runs_on: {text}" for name, text in labels.items())
        raise SmokeNotRunError(
            "this node is not the one the cells ask for: " + "; ".join(problems),
            mend=f"mend the labels of this runner, or of the matrix ({said}, and "
            f"driver-{matrix.pins.driver})",
        )


def _problems(cells: Sequence[Cell], *, matrix: Matrix, gpus: Sequence[LocalGpu]) -> Iterator[str]:
    wanted = matrix.pins.driver
    for cell in cells:
        if cell.backend not in GPU_BACKENDS or cell.sm is None:
            continue
        asked = f"{cell.gpu} is SM {cell.sm / 10} with driver branch {wanted}"
        if not gpus:
            yield f"{asked}, and nvidia-smi finds no GPU here"
            continue
        same = [gpu for gpu in gpus if gpu.sm == cell.sm]
        if not same:
            here = ", ".join(sorted({f"SM {gpu.sm / 10}" for gpu in gpus}))
            yield f"{asked}, and here is {here}"
        elif all(gpu.driver.partition(".")[0] != wanted for gpu in same):
            here = ", ".join(sorted({gpu.driver for gpu in same}))
            yield f"{asked}, and here is driver {here}"
