"""Items 3 and 4: plans of classic TensorRT built and run here, and fused attention in the UNet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engines.header import NotAPlan
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import Verdict
from tests.gpu.bench import Asked, Bench, Progress
from tests.gpu.compiling import (
    Compiled,
    compile_here,
    copy_with_version,
    header_of,
    kept_plan,
)
from tests.gpu.items_ort import OCR_LIMITS, conclude, golden_on_cpu, p50_ms
from tests.gpu.machine import TENSORRT
from tests.gpu.record import JudgedRun
from tests.gpu.subjects import CannotRunError, Subject, ocr_det, unet

DESERIALIZE = Path(__file__).parent / "inside" / "deserialize.py"
OCR_SECONDS, UNET_SECONDS = 200, 540
PLAN_LIMITS = SmokeLimits(warmup=3, requests=100, series_seconds=5, timeout_seconds=180)
UNET_LEVEL = 2
"""Optimization level of the UNet's plans: what a call of ten minutes surely has time for is not
known before one has run."""


def run_classic(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 3: each version builds and runs a plan, builds it again with its timings, and refuses
    the other's plan, our header check first."""
    subject, said = ocr_det(bench.matrix, bench.places), ""
    made: dict[str, Path] = {}
    bench.sm  # noqa: B018 - raises where there is no GPU
    versions = versions_here(bench)
    if not bench.has_golden(subject.cell("onnxruntime-cpu", sm=None).id):
        progress.add(golden_on_cpu(bench, subject, limits=OCR_LIMITS))
    for version in versions:
        first = compile_here(bench, [subject], version=version, seconds=OCR_SECONDS)
        progress.compiled(first.plans.values(), how="without a timing cache")
        if not first.plans:
            said = f"TensorRT {version} built no plan: {first.why_not}"
            progress.note(said)
            continue
        made[version] = next(iter(first.paths.values()))
        progress.add(_run_plan(bench, subject, made[version], version))
        if first.cache:
            caches = [first.cache]
            again = compile_here(
                bench, [subject], version=version, seconds=OCR_SECONDS, caches=caches
            )
            progress.compiled(again.plans.values(), how="with its timing cache")
    if not made:
        return "failed", f"no version of TensorRT built a plan; the last: {said}"
    for version, path in made.items():
        _refuse_other(bench, progress, subject, version=version, others=made, own=path)
    progress.figures["versions that build here"] = ", ".join(made)
    return conclude(progress)


def versions_here(bench: Bench) -> tuple[str, ...]:
    """The versions of TensorRT whose libraries were joined, newest first."""
    found = tuple(each for each in TENSORRT if bench.places.has_tensorrt(each))
    if not found:
        raise CannotRunError("no TensorRT is here: the parts with its libraries were not joined")
    return found


def _run_plan(
    bench: Bench,
    subject: Subject,
    plan: Path,
    version: str,
    *,
    what: str = "",
    refused: bool = False,
) -> JudgedRun:
    """Run a plan with a version; a model in fp32 is held to the limits of fp16, because TensorRT
    rounds its products to TF32 unless it is told not to."""
    golden = subject.cell("onnxruntime-cpu", sm=None).id
    kept, _ = bench.run(
        subject,
        Asked(
            what=what or f"{subject.name} {subject.profile} by TensorRT {version}",
            backend="tensorrt",
            environment=bench.around.tensorrt(version),
            served=plan,
            golden=golden,
            wanted="refused" if refused else "passed",
            tensorrt=version,
            limits=PLAN_LIMITS,
            tolerance_of="fp16" if "fp16" in subject.spec.tolerance else None,
        ),
    )
    return kept


def _refuse_other(
    bench: Bench,
    progress: Progress,
    subject: Subject,
    *,
    version: str,
    others: dict[str, Path],
    own: Path,
) -> None:
    """A plan of another version, or this one with another version in its header, where no other
    version built one: our check says so, and TensorRT refuses it by itself."""
    other = next((each for each in others if each != version), None)
    if other:
        plan, what = others[other], f"a plan of {other}"
    else:
        other = next(each for each in TENSORRT if each != version)
        plan = copy_with_version(own, own.with_suffix(".other"), other)
        what = f"its own plan, marked as one of {other}"
    header = header_of(plan)
    said = header.reason if isinstance(header, NotAPlan) else header.version
    progress.note(f"The header of {what} says {said}; TensorRT here is {version}.")
    kept = _run_plan(
        bench, subject, plan, version, what=f"TensorRT {version} and {what}", refused=True
    )
    progress.add(kept)
    error = kept.run.report.error if kept.run.report else ""
    if "does not run on" not in error:
        progress.note(f"Our header check did not say it first: {error[:200] or 'nothing was said'}")
    ended = bench.program(
        (sys.executable, str(DESERIALIZE), str(plan.absolute())),
        environment=bench.around.tensorrt(version),
        seconds=60,
    )
    try:
        answer = json.loads(ended.stdout.decode(errors="replace").splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"taken": None, "said": [ended.stderr.decode(errors="replace")[-200:]]}
    words = {True: "took it", False: "refused it", None: "did not answer"}[answer["taken"]]
    key = f"TensorRT {version} without our check"
    progress.figures[key] = f"{words}: {'; '.join(answer['said'])[:300]}"


def run_attention(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 4: the UNet's plans, fused attention by the inspector, fp16 against the CPU's fp32."""
    bench.sm  # noqa: B018 - raises where there is no GPU
    subjects = [unet(bench.matrix, bench.places, profile=each) for each in ("512", "1024")]
    version, compiled = _first_that_compiles(bench, progress, subjects)
    subject = subjects[0]
    plan = kept_plan(bench, subject, version=version) if version else None
    if version is None or plan is None:
        return "failed", compiled.why_not if compiled else "no plan of the UNet was built"
    golden = subject.cell("onnxruntime-cpu", sm=None).id
    if not bench.has_golden(golden):
        progress.note("No golden of the UNet was made at 512 (item 1): its outputs were not held.")
    kept = _run_plan(bench, subject, plan, version)
    progress.add(kept)
    found = kept.run.report.attention if kept.run.report else None
    progress.figures["attention blocks of the graph"] = kept.attention_blocks or 0
    progress.figures["fused by the inspector"] = found.fused if found else "not said"
    for each in kept.outputs:
        progress.figures[f"{each.name}: largest difference to fp32"] = each.max_abs or "not known"
        progress.figures[f"{each.name}: cosine to fp32"] = each.cosine or "not known"
    if p50 := p50_ms(kept.run):
        progress.figures["one step at 512, one picture, p50 ms"] = p50
    progress.note("fp32 is ONNX Runtime on the CPU: the weights are fp16, its arithmetic is fp32.")
    return conclude(progress)


def _first_that_compiles(
    bench: Bench, progress: Progress, subjects: list[Subject]
) -> tuple[str | None, Compiled | None]:
    """The newest version that has, or builds, the plan of the first subject."""
    compiled = None
    for version in versions_here(bench):
        missing = [each for each in subjects if not kept_plan(bench, each, version=version)]
        if missing:
            compiled = compile_here(
                bench, missing, version=version, seconds=UNET_SECONDS, level=UNET_LEVEL
            )
            progress.compiled(compiled.plans.values(), how=f"optimization level {UNET_LEVEL}")
            if compiled.why_not:
                progress.note(f"TensorRT {version}: {compiled.why_not}")
        if kept_plan(bench, subjects[0], version=version):
            return version, compiled
    return None, compiled
