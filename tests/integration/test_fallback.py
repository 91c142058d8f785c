"""The real failure: `ort-gpu` without a GPU answers every request, on the CPU, and ends with 0.

Each gate refuses it alone, with the others off: no gate is the only one that stands in its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import smoke.job
from builders.goldens import find_golden, golden_key
from builders.image import load_image
from builders.models import fetch_model, identity_of_model
from builders.workspace import Workspace
from engines import index
from planyard.core.cells import Cell, expand
from planyard.core.compat import load_compat
from planyard.core.matrix import Tolerance
from planyard.core.matrix_smoke import Gates
from planyard.core.reader import load_matrix
from planyard.core.results import SmokeRun, SmokeVerdict
from planyard.edge.console import Console
from smoke.inputs import input_shapes, make_inputs
from smoke.job import SmokeJob
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from smoke.run import run_job
from tests.conftest import Built

pytestmark = pytest.mark.docker

Arrays = dict[str, npt.NDArray[np.generic]]
CELL = "ort-gpu/ocr-det/640/fp32/sm89"
CPU_CELL = "ort-cpu/ocr-det/640/fp32/cpu"
VARIANTS = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt-then-cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "cuda-then-cpu": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}


@dataclass(frozen=True, kw_only=True)
class Fallen:
    """A run of the GPU image without a GPU, and what it is held against."""

    run: SmokeRun
    outputs: Arrays
    golden: Arrays
    tolerance: Tolerance

    def judged(self, gates: Gates) -> SmokeVerdict:
        evidence = Evidence(
            run=self.run, outputs=self.outputs, golden=self.golden, tolerance=self.tolerance
        )
        return judge(evidence, gates=gates, rules=load_rules())


def run_cell(built: Built, cell_id: str, cache: Path, room: Path) -> Fallen:
    """Run a cell of the built workspace in its own image, never with a GPU."""
    matrix = load_matrix(built.site.matrix.read_bytes(), name="matrix.yaml").matrix
    cell: Cell = next(each for each in expand(matrix, load_compat()).cells if each.id == cell_id)
    spec = matrix.models[cell.model]
    shapes = input_shapes(spec.inputs, spec.profiles[cell.profile])
    model = fetch_model(
        cell.model, spec, root=built.site.root, cache=cache, network=False, report=str
    )
    store = built.site.store
    record = next(
        each for each in index.all_images(store) if each.digest == built.image(cell.image)["digest"]
    )
    workspace = Workspace(root=built.site.root, store=store, console=Console(quiet=True))
    with workspace:
        job = SmokeJob(
            cell=cell,
            image=load_image(record, workspace=workspace),
            python=matrix.images[cell.image].python,
            served=model.path,
            inputs=make_inputs(spec.inputs, shapes),
            limits=matrix.smoke,
            gpu=False,
        )
        run, outputs = run_job(job, runner=workspace.engine().run, scratch=room)
    reference = built.image("ort-cpu")["digest"]
    key = golden_key(image=reference, model=identity_of_model(spec), shapes=shapes)
    golden = find_golden(store, key)
    assert golden is not None
    return Fallen(run=run, outputs=outputs, golden=golden, tolerance=spec.tolerance["fp32"])


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def fallen(
    request: pytest.FixtureRequest,
    built: Built,
    cache: Path,
    engine_host: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fallen]:
    built.ran.expect(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        patch.setitem(smoke.job.PROVIDERS, "onnxruntime-cuda", request.param)  # type: ignore[arg-type]
        yield run_cell(built, CELL, cache, tmp_path_factory.mktemp("fallen"))


def test_it_looks_healthy(fallen: Fallen) -> None:
    assert fallen.run.exit_code == 0
    assert not fallen.run.timed_out
    assert fallen.run.report is not None
    assert fallen.run.report.error == ""
    assert len(fallen.run.report.latencies_ms) == 3
    assert all(np.isfinite(array).all() for array in fallen.outputs.values())
    only_outputs = Gates(logs=False, providers=False, placement=False)
    assert fallen.judged(only_outputs).verdict == "passed"


@pytest.mark.parametrize("gate", ["logs", "providers", "placement"])
def test_each_gate_alone_refuses_it(fallen: Fallen, gate: str) -> None:
    on = {name: name == gate for name in ("logs", "providers", "placement")}
    verdict = fallen.judged(Gates(**on))
    assert verdict.verdict == "failed"
    assert {finding.gate for finding in verdict.findings if finding.severity == "fail"} == {gate}
    assert verdict.gates["outputs"] == "passed"


def test_the_log_gate_quotes_the_line(fallen: Fallen) -> None:
    verdict = fallen.judged(Gates(providers=False, placement=False, outputs=False))
    said = fallen.run.stdout + fallen.run.stderr
    quoted = [line for finding in verdict.findings for line in finding.evidence]
    assert quoted
    assert any("CUDAExecutionProvider" in line for line in quoted)
    assert "CUDAExecutionProvider" in said


def test_the_gates_name_what_was_asked_for_and_what_ran(fallen: Fallen) -> None:
    assert fallen.run.report is not None
    asked = fallen.run.report.providers_asked
    verdict = fallen.judged(Gates(logs=False))
    messages = " ".join(finding.message for finding in verdict.findings)
    assert f"{asked[0]}" in messages
    assert "the run was on CPUExecutionProvider" in messages
    assert f"nodes was placed on {asked[0]}" in messages


def test_the_same_model_on_the_cpu_image_passes_every_gate(
    built: Built, cache: Path, room: Path, engine_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_host)
    verdict = run_cell(built, CPU_CELL, cache, room).judged(Gates())
    assert verdict.findings == ()
    assert set(verdict.gates.values()) == {"passed"}
