"""What a conversion measured, held against the matrix: what is too far from fp32 is refused.

Pure. Reports are what the scripts of `engines/inside` wrote; figures and limits are those of the
output gate. A refusal is a PlanCompileError: there is no product that could be found bad.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from planyard.core.errors import InputError, PlanCompileError
from planyard.core.matrix import Precision, Tolerance
from smoke.gates.outputs import Distance, broken_limits, evidence_of

Report = Mapping[str, Any]
LARGEST_FP16 = 65504
_TAIL_LINES = 40
_KEEP_FP32 = "keep this model in fp32, or find the layer that overflows"


def check_range(report: Report) -> None:
    """Refuse an fp16 model of which a tensor is infinite that is finite in fp32."""
    if not report["tensors"]:
        raise PlanCompileError("no tensor of the fp16 model was looked at")
    if report["overflows"]:
        first = report["overflows"][0]
        raise PlanCompileError(
            f"fp16 overflows: {first['tensor']}, made by {first['operator']}, reaches "
            f"{first['largest']:,.0f} ({first['inputs']} inputs), and fp16 ends at "
            f"{LARGEST_FP16:,}; tensors that overflow: {report['count']}",
            mend=_KEEP_FP32,
            log_tail=[
                f"{each['tensor']} ({each['operator']}): {each['largest']:,.0f}"
                for each in report["overflows"]
            ],
        )


def check_fp16(report: Report, *, name: str, limits: Tolerance | None) -> None:
    """Refuse a converted model whose outputs are too far from the fp32 ones."""
    for comparison in report["comparisons"]:
        for output in comparison["outputs"]:
            _check_finite(output, precision="fp16")
            if limits and not (
                output["max_abs"] <= limits.max_abs and output["mean_abs"] <= limits.mean_abs
            ):
                raise PlanCompileError(
                    f"fp16 moves {output['name']} by {output['max_abs']:.3g} at most and "
                    f"{output['mean_abs']:.3g} on average ({comparison['inputs']} inputs); the "
                    f"limits are {limits.max_abs:.3g} and {limits.mean_abs:.3g}",
                    mend=f"raise models.{name}.tolerance.fp16 if that is acceptable",
                )


def _check_finite(output: Mapping[str, Any], *, precision: Precision) -> None:
    if output["nan"] or output["inf"]:
        raise PlanCompileError(
            f"{precision} makes {output['nan']} NaN and {output['inf']} Inf of {output['name']}",
            mend=_KEEP_FP32,
        )


def check_int8(report: Report, *, name: str, limits: Tolerance | None) -> None:
    """Refuse a quantized model that breaks tolerance.int8 on any sample, or has no such limits."""
    if limits is None:
        raise InputError(["int8 needs the accuracy it must keep"], mend="add tolerance.int8")
    if not report["comparisons"]:
        raise PlanCompileError("int8 was compared with fp32 on nothing")
    evidence: list[str] = []
    broken: list[tuple[float, str]] = []
    for inputs, output in _outputs_of(report):
        _check_finite(output, precision="int8")
        distance = _distance_of(output)
        evidence += [f"{inputs}: {line}" for line in evidence_of(output["name"], distance, limits)]
        if found := broken_limits(distance, limits):
            said = ", ".join(f"{each.figure} {each.limit}" for each in found)
            broken.append((distance.max_abs, f"{output['name']}, {inputs}: {said}"))
    if broken:
        count = f"{len(broken)} of {len(evidence)} comparisons"
        raise PlanCompileError(
            f"int8 is too far from fp32 in {count}; the worst: {max(broken)[1]}",
            mend="calibrate on samples of what is really served, or write the accuracy that is "
            f"good enough in models.{name}.tolerance.int8",
            log_tail=evidence[-_TAIL_LINES:],
        )


def _outputs_of(report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for comparison in report["comparisons"]:
        for output in comparison["outputs"]:
            yield comparison["inputs"], output


def _distance_of(output: Mapping[str, Any]) -> Distance:
    """What the script measured. It says null where the ratio is infinite, which JSON has not."""
    psnr_db = output["psnr_db"]
    if psnr_db is None:
        psnr_db = math.inf if output["max_abs"] == 0 else -math.inf
    return Distance(
        max_abs=output["max_abs"],
        mean_abs=output["mean_abs"],
        cosine=output["cosine"],
        psnr_db=psnr_db,
        values=output["values"],
    )
