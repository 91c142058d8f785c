"""The real failure: `ort-gpu` without a GPU answers every request, on the CPU, and ends with 0.

Each gate refuses it alone, with the others off: no gate is the only one that stands in its way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import smoke.session
from planyard.core.findings import failures
from planyard.core.gates import GATE_NAMES
from planyard.core.matrix_runtime import SessionSpec
from smoke.session import session_document
from tests.cell_runs import RanCell, run_cell
from tests.conftest import Built

pytestmark = pytest.mark.docker

CELL = "ort-gpu/ocr-det/640/fp32/sm89"
CPU_CELL = "ort-cpu/ocr-det/640/fp32/cpu"
VARIANTS = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt-then-cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "cuda-then-cpu": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def fallen(
    request: pytest.FixtureRequest,
    built: Built,
    cache: Path,
    engine_host: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RanCell]:
    built.ran.expect(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        patch.setitem(smoke.session.PROVIDERS, "onnxruntime-cuda", request.param)  # type: ignore[arg-type]
        room = tmp_path_factory.mktemp("fallen")
        yield run_cell(built, CELL, cache=cache, room=room)


def test_it_looks_healthy(fallen: RanCell) -> None:
    assert fallen.run.exit_code == 0
    assert not fallen.run.timed_out
    assert fallen.run.report is not None
    assert fallen.run.report.error == ""
    assert len(fallen.run.report.latencies_ms) > 0
    assert all(np.isfinite(array).all() for array in fallen.evidence.outputs.values())
    assert fallen.judged("outputs").verdict == "passed"


@pytest.mark.parametrize("gate", ["logs", "providers", "placement", "versions", "utilization"])
def test_each_gate_alone_refuses_it(fallen: RanCell, gate: str) -> None:
    verdict = fallen.judged(gate, "outputs")
    assert verdict.verdict == "failed"
    assert {finding.gate for finding in failures(verdict.findings)} == {gate}
    assert verdict.gates["outputs"] == "passed"


def test_the_log_gate_quotes_the_line(fallen: RanCell) -> None:
    quoted = [line for finding in fallen.judged("logs").findings for line in finding.evidence]
    assert any("CUDAExecutionProvider" in line for line in quoted)
    assert "CUDAExecutionProvider" in fallen.log


def test_the_gates_name_what_was_asked_for_and_what_ran(fallen: RanCell) -> None:
    assert fallen.run.report is not None
    asked = fallen.run.report.providers_asked
    verdict = fallen.judged("providers", "placement")
    messages = " ".join(finding.message for finding in verdict.findings)
    assert f"{asked[0]}" in messages
    assert "CPUExecutionProvider" in messages


def test_the_same_model_on_the_cpu_image_passes_every_gate(
    built: Built, cache: Path, room: Path, engine_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.ran.expect(0)
    monkeypatch.setenv("DOCKER_HOST", engine_host)
    ran = run_cell(built, CPU_CELL, cache=cache, room=room)
    verdict = ran.judged(*GATE_NAMES)
    assert failures(verdict.findings) == ()
    assert set(verdict.gates.values()) == {"passed"}
    # The image says how its service makes sessions, and the run was made so.
    assert ran.run.report is not None
    assert ran.run.report.session is not None
    assert ran.run.report.session.baked == session_document(SessionSpec(), "onnxruntime-cpu")
    # Had the matrix said something else, image and run would both be refused.
    other = dataclasses.replace(ran.evidence, session=SessionSpec(io_binding=True))
    refused = failures(RanCell(evidence=other).judged("providers").findings)
    rules = [finding.rule for finding in refused]
    assert rules == ["providers.session-differs", "providers.session-requests"]
