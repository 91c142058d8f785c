"""The output gate: what a run computed is within limits of the fp32 golden from `ort-cpu`.

NaN and infinity always fail. Differences are taken in float64, of 64-bit integers exactly; integers
and booleans (as 0 and 1) are held to the same limits, so a limit below 1 asks for equal ones. What
each figure is stands at `Distance`; limits are the matrix's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planyard.core.findings import Finding
from planyard.core.matrix import Tolerance
from planyard.core.results import SmokeRun

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]
    Arrays = Mapping[str, Array]

GATE = "outputs"
_BLOCK_VALUES = 1 << 18  # what is compared at once: copies of large outputs stay small
_KINDS = {"f": "floats", "i": "integers", "u": "integers", "b": "booleans"}


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far an output is from its golden, over all its values; NaN where it cannot be said.

    `cosine` is that of the two as vectors: 1 for two zero vectors, 0 when only one is zero.
    `psnr_db` is 10 log10(peak² / mean squared difference), where peak is the golden's largest less
    its smallest value: infinite for equal outputs, minus infinity when a constant was missed.
    `place` is the index of the largest difference, `found` and `wanted` are the values there.
    """

    max_abs: float
    mean_abs: float
    cosine: float
    psnr_db: float
    values: int
    place: tuple[int, ...] = ()
    found: float | None = None
    wanted: float | None = None


@dataclass(frozen=True, kw_only=True)
class BrokenLimit:
    """A limit that a distance does not keep: the rule's name, and both in words."""

    rule: str
    figure: str
    limit: str


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
        wrote = f"it wrote {', '.join(sorted(outputs))}"
        found.append(_finding(run, "missing", f"the run did not write {', '.join(missing)}", wrote))
    for name in sorted(golden.keys() & outputs.keys()):
        found += _too_far(run, name, outputs[name], golden[name], tolerance)
    return tuple(found)


def _not_finite(run: SmokeRun, name: str, array: Array) -> list[Finding]:
    if array.size == 0:
        return [_finding(run, "empty", f"output {name} is empty")]
    if array.dtype.kind not in _KINDS:
        return [_finding(run, "no-numbers", f"output {name} holds {array.dtype}, no numbers")]
    if array.dtype.kind != "f":
        return []
    nan, infinite = _count_not_finite(array)
    if nan == infinite == 0:
        return []
    message = f"{nan + infinite} of {array.size} values of {name} are NaN or Inf"
    return [_finding(run, "not-finite", message, f"{name}: {nan} NaN, {infinite} Inf")]


def _count_not_finite(array: Array) -> tuple[int, int]:
    import numpy as np

    flat: Any = array.reshape(-1)
    nan = infinite = 0
    for start in range(0, flat.size, _BLOCK_VALUES):
        block = flat[start : start + _BLOCK_VALUES]
        nan += int(np.count_nonzero(np.isnan(block)))
        infinite += int(np.count_nonzero(np.isinf(block)))
    return nan, infinite


def _too_far(
    run: SmokeRun, name: str, array: Array, golden: Array, tolerance: Tolerance
) -> list[Finding]:
    kinds = [_KINDS.get(each.dtype.kind, str(each.dtype)) for each in (array, golden)]
    if kinds[0] != kinds[1]:
        return [_finding(run, "kind", f"{name} holds {kinds[0]}, the golden {kinds[1]}")]
    if array.shape != golden.shape:
        return [
            _finding(run, "shape", f"{name} has shape {array.shape}, the golden {golden.shape}")
        ]
    distance = measure(array, golden)
    return [
        _finding(
            run,
            broken.rule,
            f"{broken.figure} of {name} {broken.limit}",
            *evidence_of(name, distance, tolerance),
        )
        for broken in broken_limits(distance, tolerance)
    ]


def broken_limits(distance: Distance, tolerance: Tolerance) -> list[BrokenLimit]:
    """The limits that a distance does not keep; what is NaN keeps none."""
    most = (
        ("max-abs", "largest difference", distance.max_abs, tolerance.max_abs),
        ("mean-abs", "mean difference", distance.mean_abs, tolerance.mean_abs),
    )
    least = (
        ("cosine", "cosine", distance.cosine, tolerance.cosine),
        ("psnr", "PSNR in dB", distance.psnr_db, tolerance.psnr_db),
    )
    found = [
        BrokenLimit(rule=rule, figure=words, limit=f"is {value:.3g}, the limit is {limit:.3g}")
        for rule, words, value, limit in most
        if not value <= limit
    ]
    found += [
        BrokenLimit(rule=rule, figure=words, limit=f"is {value:.6g}, the least is {bound:.6g}")
        for rule, words, value, bound in least
        if bound is not None and not value >= bound
    ]
    return found


def evidence_of(name: str, distance: Distance, tolerance: Tolerance) -> tuple[str, ...]:
    """All figures of an output beside their limits, and its worst value: one line each."""
    figures = [
        f"max_abs {distance.max_abs:.6g} (limit {tolerance.max_abs:g})",
        f"mean_abs {distance.mean_abs:.6g} (limit {tolerance.mean_abs:g})",
        f"cosine {distance.cosine:.6g}" + _least(tolerance.cosine),
        f"psnr_db {distance.psnr_db:.4g}" + _least(tolerance.psnr_db),
    ]
    lines = [f"{name}: {', '.join(figures)}, over {distance.values:,} values"]
    if distance.wanted is not None:
        at = ", ".join(map(str, distance.place))
        values = f"{distance.found:.6g}, the golden has {distance.wanted:.6g}"
        lines.append(f"{name}[{at}]: {values}")
    return tuple(lines)


def _least(bound: float | None) -> str:
    return "" if bound is None else f" (least {bound:g})"


def measure(array: Array, golden: Array) -> Distance:
    """The distance of an output from a golden of the same shape, block by block; not empty."""
    import numpy as np

    mine, theirs = _wide_blocks(array), _wide_blocks(golden)
    peak = float(golden.max()) - float(golden.min())
    # Squares of very large or very small numbers would leave float64.
    scale = max(abs(float(each)) for a in (array, golden) for each in (a.max(), a.min())) or 1.0
    largest, place = -1.0, 0
    total, square = [], []
    dot, own, other = [], [], []
    with np.errstate(all="ignore"):
        for number, (left, right) in enumerate(zip(mine, theirs, strict=True)):
            difference = np.abs(left - right)
            worst = int(difference.argmax())  # the first NaN, when there is one
            if not float(difference[worst]) <= largest:
                largest, place = float(difference[worst]), number * _BLOCK_VALUES + worst
            total.append(float(difference.sum()))
            near, far = left / scale, right / scale
            square.append(float(np.square(difference / scale).sum()))
            dot.append(float((near * far).sum()))
            own.append(float(np.square(near).sum()))
            other.append(float(np.square(far).sum()))
    at = tuple(int(each) for each in np.unravel_index(place, array.shape))
    mean_square = sum(square) / array.size
    return Distance(
        max_abs=largest,
        mean_abs=sum(total) / array.size,
        cosine=cosine_of(sum(dot), sum(own), sum(other), equal=mean_square == 0),
        psnr_db=psnr_of(peak / scale, mean_square),
        values=array.size,
        place=at,
        found=float(array[at]),
        wanted=float(golden[at]),
    )


def _wide_blocks(array: Array) -> Any:
    """The values of an array a block at a time, wide enough that their differences are exact."""
    import numpy as np

    flat: Any = array.reshape(-1)
    # float64 holds integers up to 2⁵³ only; long double holds all of 64 bits.
    wide = np.longdouble if array.dtype.kind in "iu" and array.dtype.itemsize > 4 else np.float64
    for start in range(0, flat.size, _BLOCK_VALUES):
        yield flat[start : start + _BLOCK_VALUES].astype(wide)


def cosine_of(dot: float, own: float, other: float, *, equal: bool) -> float:
    """Cosine from the product of two vectors and their squares; exactly 1 for equal vectors."""
    if equal:
        return 1.0
    if math.isnan(dot) or math.isnan(own) or math.isnan(other):
        return math.nan
    if own == 0 or other == 0:
        return 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(own) / math.sqrt(other)))


def psnr_of(peak: float, mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB; see `Distance`."""
    if mean_square == 0:
        return math.inf
    if math.isnan(peak) or math.isnan(mean_square):
        return math.nan
    return 20 * math.log10(peak) - 10 * math.log10(mean_square) if peak > 0 else -math.inf


def _finding(run: SmokeRun, rule: str, message: str, *evidence: str) -> Finding:
    where = run.cell
    return Finding(
        gate=GATE, rule=f"{GATE}.{rule}", where=where, message=message, evidence=evidence
    )
