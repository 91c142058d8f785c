"""A run and its verdict, kept so that it can be judged again by the gates of any later day.

Outputs are not kept, only how far they were from their golden; everything else a gate looks at is.
What is judged is what is kept: cleaned of its machine; where that changes no verdict, its log is
shortened, and samples of NVML are merged as `planyard.edge.nvml.Picture` does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from planyard.core.findings import Finding, failures
from planyard.core.matrix import Tolerance
from planyard.core.matrix_smoke import Gates
from planyard.core.results import GpuSample, SmokeRun, SmokeVerdict
from planyard.edge.nvml import Picture
from smoke.gates.outputs import Distance, broken_limits, measure
from smoke.job import SmokeJob, series_of
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from tests.gpu.record import JudgedRun, OutputDistance, cleaned

Array = np.ndarray[Any, np.dtype[Any]]
OWN, NONE = "own", "none"
"""Goldens of a run that makes its own, and of one that there is none for."""
LOG_CHARACTERS = 40_000
"""What is kept of a stream: as much of its beginning as of its end."""
SAMPLES_KEPT = 600


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run is held to: `golden` is the name of what made it, `arrays` its outputs."""

    gates: Gates
    pins: Mapping[str, str]
    needed: Sequence[str]
    attention_blocks: int | None
    tolerance: Tolerance | None = None
    golden: str = OWN
    arrays: Mapping[str, Array] | None = None


def judged(
    job: SmokeJob,
    run: SmokeRun,
    outputs: Mapping[str, Array],
    *,
    what: str,
    limits: Limits,
    wanted: Literal["passed", "refused"] = "passed",
    counts: bool = True,
) -> JudgedRun:
    """Judge a run as it will be kept, and keep it."""
    run = cleaned(run)
    golden = limits.arrays or {}
    bare = JudgedRun(
        what=what,
        wanted=wanted,
        counts=counts,
        backend=job.cell.backend,
        run=run,
        gates=limits.gates,
        pins=dict(limits.pins),
        needed=tuple(limits.needed),
        attention_blocks=limits.attention_blocks,
        asked=series_of(job),
        golden=limits.golden,
        tolerance=limits.tolerance,
        outputs=tuple(_distance(name, each, golden.get(name)) for name, each in outputs.items()),
        missing_outputs=tuple(sorted(golden.keys() - outputs.keys())),
        verdict="not run",
        verdicts={},
    )
    whole = _with_verdict(bare)
    short = _with_verdict(msgspec.structs.replace(bare, run=_shortened(run)))
    return short if short.verdicts == whole.verdicts else whole


def judge_again(kept: JudgedRun) -> SmokeVerdict:
    """What today's gates say of a run that was kept; outputs are held against today's rules too."""
    gates = msgspec.structs.replace(kept.gates, outputs=False)
    evidence = Evidence(
        run=kept.run,
        backend=kept.backend,
        outputs={},
        golden=None,
        tolerance=kept.tolerance,
        pins=kept.pins,
        needed=kept.needed,
        attention_blocks=kept.attention_blocks,
        asked=kept.asked,
    )
    verdict = judge(evidence, gates=gates, rules=load_rules())
    if not kept.gates.outputs:
        return verdict
    found = tuple(_output_findings(kept))
    findings = (*verdict.findings, *found)
    return msgspec.structs.replace(
        verdict,
        verdict="failed" if failures(findings) else "passed",
        gates={**verdict.gates, "outputs": "failed" if found else "passed"},
        findings=findings,
    )


def _with_verdict(kept: JudgedRun) -> JudgedRun:
    verdict = judge_again(kept)
    return msgspec.structs.replace(
        kept,
        verdict=verdict.verdict,
        verdicts={name: str(said) for name, said in verdict.gates.items()},
        findings=verdict.findings,
    )


def _output_findings(kept: JudgedRun) -> Iterable[Finding]:
    """The rules of smoke/gates/outputs.py, from distances instead of arrays."""
    if kept.golden == NONE:
        yield _finding(kept, "no-golden", "there is no golden for this run")
        return
    if not kept.outputs:
        yield _finding(kept, "no-evidence", "the run wrote no outputs")
        return
    for each in kept.outputs:
        if each.not_finite:
            words = f"{each.not_finite} values of {each.name} are NaN or Inf"
            yield _finding(kept, "not-finite", words)
    if kept.golden == OWN or any(each.not_finite for each in kept.outputs):
        return
    if kept.tolerance is None:
        yield _finding(kept, "no-limit", "there is no tolerance for this run")
        return
    for name in kept.missing_outputs:
        yield _finding(kept, "missing", f"the run did not write {name}")
    for each in kept.outputs:
        for broken in broken_limits(distance_of(each), kept.tolerance):
            words = f"{broken.figure} of {each.name} {broken.limit}"
            yield _finding(kept, broken.rule, words)


def distance_of(kept: OutputDistance) -> Distance:
    """The figures as the gate takes them. Unknown is NaN, which keeps no limit."""

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    equal = kept.max_abs == 0
    return Distance(
        max_abs=known(kept.max_abs),
        mean_abs=known(kept.mean_abs),
        cosine=known(kept.cosine),
        psnr_db=math.inf if equal else known(kept.psnr_db),
        values=math.prod(kept.shape),
    )


def _distance(name: str, array: Array, golden: Array | None) -> OutputDistance:
    """How far an output is from its golden; another shape or kind leaves every figure unknown."""
    floats = array.dtype.kind == "f"
    bad = int(array.size - np.count_nonzero(np.isfinite(array))) if floats else 0
    found = OutputDistance(name=name, dtype=str(array.dtype), shape=array.shape, not_finite=bad)
    if golden is None or bad or not array.size:
        return found
    same_kind = (golden.dtype.kind == "f") == floats
    if not same_kind or golden.shape != array.shape:
        return found
    distance = measure(array, golden)
    return msgspec.structs.replace(
        found,
        max_abs=_finite(distance.max_abs),
        mean_abs=_finite(distance.mean_abs),
        cosine=_finite(distance.cosine),
        psnr_db=_finite(distance.psnr_db),
        peak=_finite(float(golden.max()) - float(golden.min())),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _shortened(run: SmokeRun) -> SmokeRun:
    """A run whose streams are cut in their middle, where they are long, and with fewer samples."""
    run = msgspec.structs.replace(run, stdout=_cut(run.stdout), stderr=_cut(run.stderr))
    return _fewer_samples(run)


def _cut(text: str) -> str:
    left_out = len(text) - LOG_CHARACTERS
    if left_out <= 0:
        return text
    half = LOG_CHARACTERS // 2
    return f"{text[:half]}\n({left_out} characters are left out here)\n{text[-half:]}"


def _fewer_samples(run: SmokeRun) -> SmokeRun:
    """A run with at most `SAMPLES_KEPT` moments of NVML's; means and peaks stay what they were."""
    if not run.gpu_samples:
        return run
    picture = Picture(limit=SAMPLES_KEPT)
    for _, tick in itertools.groupby(run.gpu_samples, key=_moment):
        picture.add(tuple(tick))
    return msgspec.structs.replace(run, gpu_samples=picture.samples())


def _moment(sample: GpuSample) -> float:
    return sample.at_seconds


def _finding(kept: JudgedRun, rule: str, message: str) -> Finding:
    return Finding(gate="outputs", rule=f"outputs.{rule}", where=kept.run.cell, message=message)
