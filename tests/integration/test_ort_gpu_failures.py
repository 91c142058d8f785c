"""Real failures of `ort-gpu` on a machine without a GPU: what each gate and admission say of them.

The image as it was built, and images derived from it: a CUDA library removed, `onnxruntime`
installed over `onnxruntime-gpu`, an image for TensorRT without its libraries. All of them answer
every request, on the CPU, and end with 0. Each gate refuses each of them with all others off, and
admission refuses each on a machine that has a GPU as far as it can look, so for that failure alone.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import smoke.session
from planyard.core.findings import failures
from planyard.core.reader import load_matrix
from tests.cell_runs import RanCell, run_cell, tag_of
from tests.conftest import Built
from tests.fake_machine import LIBRARIES, PYTHON, SITE, Machine, lay_out_fakes

pytestmark = pytest.mark.docker
STARTS = int(os.environ.get("PLANYARD_STARTS", "3"))
"""Starts that are measured: docs/admission.md has 30."""

CELL = "ort-gpu/ocr-det/640/fp32/sm89"
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU_CHECKS = ("toolkit", "devices", "driver", "cuda", "gpu", "sm")
GATES = ("logs", "providers", "placement", "versions")
DERIVED = "planyard-tests/ort-gpu"
EXPECT = "/etc/planyard/expect.json"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an image is derived (`derive` fills its context, gives its instructions), and judged.

    `refused` are the checks that refuse it on the fake GPU, `said` words of the refusal, `logged`
    words of the line that the log gate quotes.
    """

    derive: Callable[[Path, Built, Path], str] | None = None
    asked: tuple[str, ...] = (CUDA,)
    refused: tuple[str, ...]
    said: str
    logged: str = CUDA


def removing(library: str) -> Callable[[Path, Built, Path], str]:
    """The image without a library of CUDA."""
    found = "import pathlib; [path.unlink() for path in pathlib.Path"
    code = f"{found}('{SITE}/nvidia').rglob('{library}*')]"
    return lambda _context, _built, _cache: f"RUN {json.dumps([PYTHON, '-c', code])}\n"


def onnxruntime_over(context: Path, built: Built, cache: Path) -> str:
    """`pip install onnxruntime` in an image that has onnxruntime-gpu: its files over the others."""
    matrix = load_matrix(built.site.matrix.read_bytes(), name="matrix.yaml").matrix
    digest = matrix.pins.onnxruntime.wheels["onnxruntime"].removeprefix("sha256:")
    (wheel,) = (cache / "wheels" / "files" / digest).glob("onnxruntime-*.whl")
    left_out = ("onnxruntime/tools/", "onnxruntime/transformers/", "onnxruntime/quantization/")
    with zipfile.ZipFile(wheel) as archive:
        names = [each for each in archive.namelist() if not each.startswith(left_out)]
        archive.extractall(context / "site", names)
    return f"COPY site {SITE}\n"


def for_tensorrt(context: Path, built: Built, cache: Path) -> str:
    """An image that is to run on TensorRT: the same, expecting that provider's libraries."""
    folder = "onnxruntime/capi/libonnxruntime_providers_"
    files = [f"{folder}tensorrt.so", f"{folder}shared.so"]
    expected = expectation_of(built)
    expected["provider"] = {"name": TENSORRT, "files": files}
    expected["libraries"] += ["libnvinfer.so.10"]
    (context / "expect.json").write_text(json.dumps(expected))
    return f"COPY expect.json {EXPECT}\n"


def expectation_of(built: Built) -> dict[str, Any]:
    """What is baked into the image."""
    host, tag = built.site.environment["DOCKER_HOST"], tag_of(built, "ort-gpu")
    code = f"print(open('{EXPECT}').read())"
    start = ["docker", "--host", host, "run", "--rm", "--network", "none", "--entrypoint", PYTHON]
    ended = subprocess.run([*start, tag, "-c", code], capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


FAILURES = {
    "no-gpu": Failure(refused=(), said=""),
    "no-cublaslt": Failure(
        derive=removing("libcublasLt.so"),
        refused=("libraries",),
        said="libcublasLt.so.13 not there",
        logged="libcublasLt.so.13",
    ),
    "no-cudnn": Failure(
        derive=removing("libcudnn.so"), refused=("libraries",), said="libcudnn.so.9 not there"
    ),
    "onnxruntime-over-it": Failure(
        derive=onnxruntime_over,
        refused=("packages",),
        said="onnxruntime 1.31.1, which overwrites it",
    ),
    "no-tensorrt": Failure(
        derive=for_tensorrt,
        asked=(TENSORRT, CUDA),
        refused=("libraries", "provider"),
        said="libonnxruntime_providers_tensorrt.so not there",
        logged="libonnxruntime_providers_tensorrt.so",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Failing:
    """One of the images in the engine, and a run of the cell in it."""

    failure: Failure
    tag: str
    host: str
    ran: RanCell


@pytest.fixture(scope="module", params=FAILURES)
def failing(
    request: pytest.FixtureRequest,
    built: Built,
    cache: Path,
    engine_host: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Failing]:
    built.ran.expect(0)
    failure, folder = FAILURES[request.param], tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        patch.setitem(smoke.session.PROVIDERS, "onnxruntime-cuda", failure.asked)  # type: ignore[arg-type]
        tag = tag_of(built, "ort-gpu")
        if failure.derive:
            tag = derived(tag, failure, built=built, cache=cache, folder=folder / "context")
        try:
            (folder / "run").mkdir()
            ran = run_cell(built, CELL, cache=cache, room=folder / "run", image=tag)
            yield Failing(failure=failure, tag=tag, host=engine_host, ran=ran)
        finally:
            if failure.derive:
                remove = ["docker", "--host", engine_host, "rmi", "--force", tag]
                subprocess.run(remove, check=True, capture_output=True)
            shutil.rmtree(folder)


def derived(base: str, failure: Failure, *, built: Built, cache: Path, folder: Path) -> str:
    """An image made from another by a few instructions; its layers are small."""
    folder.mkdir()
    assert failure.derive
    instructions = failure.derive(folder, built, cache)
    user = "USER 65532:65532\n"
    (folder / "Dockerfile").write_text(f"FROM {base}\nUSER 0:0\n{instructions}{user}")
    tag = f"{DERIVED}:{folder.parent.name}"
    host = built.site.environment["DOCKER_HOST"]
    build = ["docker", "--host", host, "build", "--network", "none", "--tag", tag, str(folder)]
    # The old builder: a docker command may lack buildx, and this needs none of it.
    done = subprocess.run(
        build,
        capture_output=True,
        text=True,
        check=False,
        env={**built.site.variables(), "DOCKER_BUILDKIT": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tag


@pytest.fixture(scope="module")
def whole(built: Built, engine_host: str, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The image as it was built, on a machine that fits as far as admission can look."""
    if not shutil.which("gcc"):
        pytest.skip("docker: gcc is not here to compile the fake driver libraries")
    built.ran.expect(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        tag = tag_of(built, "ort-gpu")
    fakes = lay_out_fakes(tmp_path_factory.mktemp("fakes"))
    return Machine(host=engine_host, image=tag, fakes=fakes, gpu=True)


# What is wrong with them is not seen from outside


def test_it_looks_healthy(failing: Failing) -> None:
    run = failing.ran.run
    assert (run.exit_code, run.timed_out, run.out_of_memory) == (0, False, False)
    assert run.report is not None
    assert run.report.error == ""
    assert run.report.providers_active == ("CPUExecutionProvider",)
    assert failing.ran.judged("outputs").verdict == "passed"


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_alone_refuses_it(failing: Failing, gate: str) -> None:
    verdict = failing.ran.judged(gate)
    found = failures(verdict.findings)
    assert verdict.verdict == "failed"
    assert {finding.gate for finding in found} == {gate}
    assert {name for name, state in verdict.gates.items() if state != "off"} == {"exit", gate}


def test_the_log_gate_quotes_what_was_lost(failing: Failing) -> None:
    found = failures(failing.ran.judged("logs").findings)
    quoted = [line for finding in found for line in finding.evidence]
    assert any(failing.failure.logged in line for line in quoted), quoted


def test_the_other_gates_name_what_was_lost(failing: Failing) -> None:
    asked = failing.failure.asked[0]
    for gate, words in {
        "providers": f"{', '.join(failing.failure.asked)} was asked for and is not active",
        "placement": f"nodes was placed on {asked}",
        "versions": "cuda was not loaded",
    }.items():
        said = [finding.message for finding in failures(failing.ran.judged(gate).findings)]
        assert any(words in message for message in said), (gate, said)


# Admission


def test_plain_docker_run_refuses_it(failing: Failing) -> None:
    """Its own entrypoint, no GPU: all that has to do with one, and what else is wrong with it."""
    plain = Machine(host=failing.host, image=failing.tag, fakes=Path())
    document = plain.run().refused(*GPU_CHECKS, *failing.failure.refused)
    assert all(each["expected"] and each["mend"] for each in document["mismatches"])


def test_admission_refuses_it_beside_a_gpu(whole: Machine, failing: Failing) -> None:
    """Where a GPU is, only the failure itself is left to refuse it."""
    machine = replace(whole, image=failing.tag)
    if not failing.failure.refused:  # what is wrong is the machine: taken away piece by piece below
        machine.run(PYTHON, "-c", "raise SystemExit(9)").started(exit_code=9)
        return
    document = machine.run(PYTHON, "-c", "raise SystemExit(9)").refused(*failing.failure.refused)
    found = " ".join(each["found"] for each in document["mismatches"])
    assert failing.failure.said in found


@pytest.mark.parametrize(
    ("missing", "checks"),
    [
        (("nvidia0", "nvidiactl", "nvidia-uvm"), ("devices",)),
        (("libcuda.so.1",), ("toolkit", "cuda", "gpu", "sm")),
        (("libnvidia-ml.so.1",), ("cuda", "gpu", "sm")),
    ],
)
def test_the_image_as_built_is_refused_without_any_part_of_a_gpu(
    whole: Machine, missing: tuple[str, ...], checks: tuple[str, ...]
) -> None:
    replace(whole, missing=frozenset(missing)).run().refused(*checks)


def test_the_fake_driver_is_what_makes_it_fit(whole: Machine) -> None:
    """The control: with the libraries laid over it, the image as built becomes the service."""
    code = f"import os; print(os.getpid(), os.path.exists('{LIBRARIES}/libcuda.so.1'))"
    ended = whole.run(PYTHON, "-c", code)
    assert (ended.exit_code, ended.stdout.strip(), ended.stderr) == (0, "1 True", "")


@pytest.mark.parametrize(("missing", "exit_code"), [((), 3), (("libcuda.so.1",), 78)])
def test_the_start_is_measured(
    whole: Machine,
    missing: tuple[str, ...],
    exit_code: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Reported, not judged: the machine may be busy. docs/admission.md has a quiet one."""
    starts = replace(whole, missing=frozenset(missing)).starts(STARTS, exit_code=exit_code)
    wall_ms, cpu_ms = (statistics.median(each) * 1000 for each in zip(*starts, strict=True))
    what = "refused" if missing else "accepted"
    record_property(f"{what}_cpu_ms", round(cpu_ms))
    print(f"{what}: {wall_ms:.0f} ms, CPU {cpu_ms:.0f} ms, load {os.getloadavg()[0]:.1f}")
