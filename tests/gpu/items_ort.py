"""Items 0 to 2: the reference on the CPU, ONNX Runtime on CUDA, and CUDA's libraries taken away."""

from __future__ import annotations

from collections.abc import Mapping

from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import SmokeRun, Verdict
from smoke.baseline import percentile_ms
from tests.gpu.bench import Asked, Bench, Progress
from tests.gpu.record import JudgedRun
from tests.gpu.subjects import CannotRunError, Subject, ocr_det, ocr_rec, small, unet

CPU_SECONDS = 240
"""What the UNet's golden may take; where it takes longer, a quarter of the picture is run."""
UNET_LIMITS = SmokeLimits(warmup=1, requests=5, series_seconds=60, timeout_seconds=CPU_SECONDS)
UNET_GPU_LIMITS = SmokeLimits(warmup=3, requests=50, series_seconds=10, timeout_seconds=240)
OCR_LIMITS = SmokeLimits(warmup=3, requests=50, series_seconds=5, timeout_seconds=180)
UNFUSED = ("attention",)
"""Off for ONNX Runtime: neither model with attention has its own operators for it
(matrix.gpu.yaml)."""


def run_reference(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 0: a small model on the CPU, twice; the second run is held against the first."""
    subject, environment = small(bench.matrix, bench.places), bench.around.onnxruntime()
    cell = subject.cell("onnxruntime-cpu", sm=None).id
    limits = SmokeLimits(warmup=2, requests=20, series_seconds=5, timeout_seconds=60)
    for what, golden in (("the golden", None), ("held against the golden", cell)):
        kept, _ = bench.run(
            subject,
            Asked(
                what=f"two operators on the CPU: {what}",
                backend="onnxruntime-cpu",
                environment=environment,
                golden=golden,
                limits=limits,
            ),
        )
        progress.add(kept)
    progress.note("A run on the CPU: it shows that the lane works here, and nothing of a GPU.")
    return conclude(progress)


def run_cuda(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 1: the OCR models and the UNet on the CUDA provider, against goldens made here."""
    bench.sm  # noqa: B018 - raises where there is no GPU, before anything is made
    environment = bench.around.onnxruntime()
    for subject in (ocr_det(bench.matrix, bench.places), ocr_rec(bench.matrix, bench.places)):
        _on_both(bench, progress, subject, environment, cpu=OCR_LIMITS, cuda=OCR_LIMITS)
    exact = {**environment, "NVIDIA_TF32_OVERRIDE": "0"}
    _on_cuda(bench, progress, ocr_det(bench.matrix, bench.places), exact, how="without TF32")
    for profile in ("512", "256"):
        subject = unet(bench.matrix, bench.places, profile=profile)
        if _on_both(bench, progress, subject, environment, cpu=UNET_LIMITS, cuda=UNET_GPU_LIMITS):
            break
        progress.note(f"The UNet's golden could not be made at {profile} on this processor.")
    progress.note(
        "CUDA, cuBLAS and cuDNN are the machine's own, in the versions under `loaded`; the image "
        "ort-gpu pins its own cuDNN. The file of the session in an image is no part of this lane."
    )
    return conclude(progress)


def _on_both(
    bench: Bench,
    progress: Progress,
    subject: Subject,
    environment: Mapping[str, str],
    *,
    cpu: SmokeLimits,
    cuda: SmokeLimits,
) -> bool:
    """The golden on the CPU, then CUDA against it, and the ratio; False where no golden came."""
    golden = golden_on_cpu(bench, subject, limits=cpu)
    progress.add(golden)
    if golden.verdict != "passed":
        return False
    kept = _on_cuda(bench, progress, subject, environment, limits=cuda)
    slow, fast = p50_ms(golden.run), p50_ms(kept.run)
    on_cuda = {kept.verdicts["providers"], kept.verdicts["placement"]} == {"passed"}
    if slow and fast and on_cuda:
        stem = f"{subject.name} {subject.profile}"
        progress.figures |= {
            f"{stem} CPU p50 ms": slow,
            f"{stem} CUDA p50 ms": fast,
            f"{stem} CPU to CUDA": round(slow / fast, 2),
        }
    return True


def golden_on_cpu(bench: Bench, subject: Subject, *, limits: SmokeLimits) -> JudgedRun:
    """The run whose outputs others are held against; attention on a CPU is nobody's concern."""
    kept, _ = bench.run(
        subject,
        Asked(
            what=f"{subject.name} {subject.profile} on the CPU: the golden",
            backend="onnxruntime-cpu",
            environment=bench.around.onnxruntime(),
            limits=limits,
            gates_off=UNFUSED,
            counts=False,
        ),
    )
    return kept


def _on_cuda(
    bench: Bench,
    progress: Progress,
    subject: Subject,
    environment: Mapping[str, str],
    *,
    how: str = "",
    limits: SmokeLimits = OCR_LIMITS,
) -> JudgedRun:
    """One run on the CUDA provider; one that only explains another (`how`) does not count."""
    kept, _ = bench.run(
        subject,
        Asked(
            what=f"{subject.name} {subject.profile} on CUDA{how and f', {how}'}",
            backend="onnxruntime-cuda",
            environment=environment,
            golden=subject.cell("onnxruntime-cpu", sm=None).id,
            limits=limits,
            gates_off=UNFUSED,
            counts=not how,
        ),
    )
    progress.add(kept)
    return kept


def run_without_libraries(bench: Bench, progress: Progress) -> tuple[Verdict, str]:
    """Item 2: the same with the CUDA library path broken, in two ways; the gates have to refuse."""
    subject = ocr_det(bench.matrix, bench.places)
    ways = {
        "the library path is empty": bench.around.emptied(),
        "the libraries are hidden behind empty files": bench.around.hidden(),
    }
    bench.sm  # noqa: B018 - raises where there is no GPU
    golden = subject.cell("onnxruntime-cpu", sm=None).id
    for how, environment in ways.items():
        kept, _ = bench.run(
            subject,
            Asked(
                what=f"{subject.name} {subject.profile} on CUDA, {how}",
                backend="onnxruntime-cuda",
                environment=environment,
                golden=golden if bench.has_golden(golden) else None,
                wanted="refused",
                limits=OCR_LIMITS,
                # A machine may have the libraries in its own folders: then nothing was broken.
                counts="hidden" in how,
            ),
        )
        progress.add(kept)
        if kept.verdict == "passed":
            progress.note(f"Although {how}, the provider worked: this system has others.")
    return conclude(progress)


def conclude(progress: Progress) -> tuple[Verdict, str]:
    """Passed when every run that counts is as it was wanted, and there is one."""
    counting = [run for run in progress.runs if run.counts]
    if not counting:
        raise CannotRunError("none of its runs came about")
    wrong = [f"{run.what}: {_why(run)}" for run in counting if not run.is_as_wanted]
    return ("failed", "; ".join(wrong)) if wrong else ("passed", "")


def _why(run: JudgedRun) -> str:
    if run.wanted == "refused":
        return "the gates did not refuse it"
    rules = dict.fromkeys(each.rule for each in run.findings if each.severity == "fail")
    return f"{run.verdict} ({', '.join(rules)})"


def p50_ms(run: SmokeRun) -> float | None:
    """The median of the first series; None where nothing was timed."""
    times = run.report.latencies_ms if run.report else ()
    return round(percentile_ms(times, 50), 3) if times else None
