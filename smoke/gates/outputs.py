"""The output gate: what a run computed is within limits of the fp32 golden from `ort-cpu`.

NaN and infinity always fail. Arrays are compared in float64; limits are the matrix's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from planyard.core.findings import Finding
from planyard.core.matrix import Tolerance
from planyard.core.results import SmokeRun

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.generic]]

GATE = "outputs"


def check_outputs(
    run: SmokeRun, *, outputs: Arrays, golden: Arrays | None, tolerance: Tolerance | None
) -> tuple[Finding, ...]:
    """Findings for each output that is not a number, has another shape, or is too far off.

    `golden` is None for the run that makes it; a run that is judged against a golden passes the
    arrays of the golden by output name. A golden without outputs proves nothing.
    """
    if not outputs:
        return (_finding(run, "no-evidence", "the run wrote no outputs"),)
    found = [each for name, array in outputs.items() for each in _not_finite(run, name, array)]
    if golden is None or found:
        return tuple(found)
    if not golden:
        return (_finding(run, "no-golden", "the golden holds no outputs"),)
    if tolerance is None:
        return (_finding(run, "no-limit", "the matrix gives no tolerance for this precision"),)
    missing = sorted(golden.keys() - outputs.keys())
    if missing:
        found.append(_finding(run, "missing", f"the run did not write {', '.join(missing)}"))
    for name in sorted(golden.keys() & outputs.keys()):
        found += _too_far(run, name, outputs[name], golden[name], tolerance)
    return tuple(found)


def _not_finite(run: SmokeRun, name: str, array: npt.NDArray[np.generic]) -> list[Finding]:
    import numpy as np

    if array.size == 0:
        return [_finding(run, "empty", f"output {name} is empty")]
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return []
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    return [_finding(run, "not-finite", f"{bad} of {array.size} values of {name} are NaN or Inf")]


def _too_far(
    run: SmokeRun,
    name: str,
    array: npt.NDArray[np.generic],
    golden: npt.NDArray[np.generic],
    tolerance: Tolerance,
) -> list[Finding]:
    import numpy as np

    if array.shape != golden.shape:
        return [
            _finding(run, "shape", f"{name} has shape {array.shape}, the golden {golden.shape}")
        ]
    distance = np.abs(array.astype(np.float64) - golden.astype(np.float64))
    figures = (
        ("max-abs", "largest difference", float(distance.max()), tolerance.max_abs),
        ("mean-abs", "mean difference", float(distance.mean()), tolerance.mean_abs),
    )
    return [
        _finding(run, rule, f"{words} of {name} is {value:.3g}, the limit is {limit:.3g}")
        for rule, words, value, limit in figures
        if not value <= limit
    ]


def _finding(run: SmokeRun, rule: str, message: str) -> Finding:
    return Finding(gate=GATE, rule=f"{GATE}.{rule}", where=run.cell, message=message)
