"""Sessions with I/O binding, really made: `ort.py` with `bound.py` beside its job, on the CPU.

A GPU would change the device's name and nothing of the way. Page-locked memory is asked of a
library that stands for the CUDA runtime: it counts what it is asked, and copies.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from planyard.core.cells import Cell
from planyard.core.errors import InputError
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import SessionFound, SmokeReport
from smoke.job import INSIDE, Places, SmokeJob, write_job
from smoke.run import read_outputs, read_report
from smoke.session import session_document
from tests import onnx_models
from tests.fake_machine import compiled

X = np.linspace(-1, 1, 3 * 8 * 8, dtype="float32").reshape(1, 3, 8, 8)
BOUND = SessionSpec(io_binding=True)
CPU = "CPUExecutionProvider"
RUNTIME = r"""
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
static void said(const char *what) {
    FILE *file = fopen(getenv("FAKE_CUDA_CALLS"), "a");
    fprintf(file, "%s\n", what);
    fclose(file);
}
int cudaHostAlloc(void **host, size_t size, unsigned flags) {
    said("cudaHostAlloc");
    if (getenv("FAKE_CUDA_FULL")) return 2;
    *host = malloc(size);
    return flags;
}
int cudaMemcpy(void *target, const void *source, size_t size, int kind) {
    said("cudaMemcpy");
    memmove(target, source, size);
    return kind == 4 ? 0 : 21;
}
int cudaFreeHost(void *host) {
    said("cudaFreeHost");
    free(host);
    return 0;
}
"""


@pytest.fixture(scope="module")
def bound() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bound_script", INSIDE / "bound.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job_of(tmp_path: Path, session: SessionSpec = BOUND, **changes: Any) -> SmokeJob:
    """A cell on the CPU that is asked two batch sizes, one of them by three clients at once."""
    model = onnx_models.plain_model()
    model.ir_version = 10
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    fields: dict[str, Any] = {
        "cell": Cell(
            id="ort-cpu/plain/8/fp32/cpu",
            image="ort-cpu",
            model="plain",
            profile="8",
            precision="fp32",
            gpu="cpu",
            sm=None,
            backend="onnxruntime-cpu",
        ),
        "image": "planyard/ort-cpu:0123",
        "python": sys.executable,
        "served": tmp_path / "model.onnx",
        "inputs": {"x": X},
        "limits": SmokeLimits(warmup=1, requests=7, batches=(1, 2), concurrency=(1, 3)),
        "gpu": False,
        "inputs_at": lambda batch: {"x": np.repeat(X, batch, axis=0)},
        "session": session,
    }
    return SmokeJob(**{**fields, **changes})


def answered(
    tmp_path: Path, job: SmokeJob, *, env: dict[str, str] | None = None, **changes: Any
) -> tuple[SmokeReport, subprocess.CompletedProcess[str]]:
    """What `ort.py` reports of a job; `changes` are laid over the job's document."""
    (tmp_path / "out").mkdir(exist_ok=True)
    write_job(job, tmp_path, places=Places(model=str(tmp_path), out=str(tmp_path / "out")))
    path = tmp_path / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
    done = subprocess.run(
        [sys.executable, str(INSIDE / "ort.py"), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    report = read_report(tmp_path / "out" / "report.json")
    assert report is not None
    return report, done


def found_in(report: SmokeReport) -> SessionFound:
    assert report.session is not None
    return report.session


def test_a_bound_session_answers_as_another_one_does(tmp_path: Path) -> None:
    report, done = answered(tmp_path, job_of(tmp_path))
    assert report.error == ""
    assert done.returncode == 0
    assert (found_in(report).io_binding, found_in(report).pinned_memory) == (True, False)
    found = [(each.batch, each.concurrency, len(each.latencies_ms)) for each in report.series]
    assert found == [(1, 1, 7), (1, 3, 7), (2, 1, 7), (2, 3, 7)]
    outputs = read_outputs(report, tmp_path / "out")
    assert outputs.keys() == {"y"}
    assert np.allclose(outputs["y"], np.maximum(X, 0) + 0.5)
    assert {each.provider for each in report.placement} == {CPU}


def test_a_session_without_binding_says_so(tmp_path: Path) -> None:
    job = job_of(tmp_path, SessionSpec())
    report, _ = answered(tmp_path, job)
    assert (found_in(report).io_binding, found_in(report).pinned_memory) == (False, False)
    assert not (tmp_path / "bound.py").exists()


def test_threads_and_providers_are_those_of_the_session(tmp_path: Path) -> None:
    report, _ = answered(tmp_path, job_of(tmp_path, SessionSpec(intra_threads=2)))
    assert found_in(report).options["session_options"] == {"intra_op_num_threads": "2"}
    assert found_in(report).options[CPU] == {}
    assert report.providers_active == (CPU,)


def test_a_device_that_is_not_there_is_an_error_and_no_run_on_the_cpu(tmp_path: Path) -> None:
    """Bound outputs alone would quietly lie on the CPU: ONNX Runtime takes any device for them."""
    cuda = ["CUDAExecutionProvider"]
    session = {**(session_document(BOUND, "onnxruntime-cpu") or {}), "providers": [[cuda[0], {}]]}
    report, done = answered(tmp_path, job_of(tmp_path), providers=cuda, session=session)
    assert done.returncode == 1
    assert "allocate memory on the device" in report.error
    assert report.session is None


def test_where_outputs_are_they_say_themselves(bound: ModuleType) -> None:
    """A client for a GPU whose outputs lie on the CPU has no binding to speak of."""
    places = {"cuda": "cpu", "cpu": "cuda"}
    for device, place in places.items():
        client = bound.Client.__new__(bound.Client)
        client.device, client.given, client.taken = device, [], []
        outputs = [SimpleNamespace(device_name=lambda place=place: place)]
        client.binding = SimpleNamespace(get_outputs=lambda outputs=outputs: outputs)
        assert not client.said()["io_binding"]


def test_each_client_has_tensors_and_a_graph_of_its_own(bound: ModuleType, tmp_path: Path) -> None:
    job_of(tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=[CPU])
    job = {"providers": [CPU], "session": {"pinned_memory": False}, "steps": 2}
    clients = [bound.Client(session, job, {"x": X}) for _ in range(2)]
    places = [client.binding.get_outputs()[0].data_ptr() for client in clients]
    for client in clients:
        assert np.allclose(client()()["y"], np.maximum(X, 0) + 0.5)
    assert [client.binding.get_outputs()[0].data_ptr() for client in clients] == places
    assert len(set(places)) == 2
    graphs = {client.options.get_run_config_entry("gpu_graph_id") for client in clients}
    assert len(graphs) == 2
    assert not graphs & {"", "0", "-1"}


@pytest.fixture
def runtime(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has loaded something in the CUDA runtime's place."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not here to compile what stands for the CUDA runtime")
    compiled(tmp_path, "libcudart.so.13", RUNTIME)
    library, calls = tmp_path / "libcudart.so.13", tmp_path / "calls"
    return {"LD_PRELOAD": str(library), "FAKE_CUDA_CALLS": str(calls)}


PINNED = {**(session_document(BOUND, "onnxruntime-cpu") or {}), "pinned_memory": True}
ONE = SmokeLimits(warmup=1, requests=5, concurrency=(1,))


def test_requests_copy_in_and_out_by_page_locked_memory(
    tmp_path: Path, runtime: dict[str, str]
) -> None:
    report, _ = answered(tmp_path, job_of(tmp_path, limits=ONE), env=runtime, session=PINNED)
    assert report.error == ""
    assert found_in(report).pinned_memory
    outputs = read_outputs(report, tmp_path / "out")
    assert np.allclose(outputs["y"], np.maximum(X, 0) + 0.5)
    calls = (tmp_path / "calls").read_text().split()
    clients, requests = 2, 1 + 5  # the profiled request's own client; it is the whole warm-up
    assert calls.count("cudaHostAlloc") == 2 * clients
    assert calls.count("cudaMemcpy") == clients + 2 * requests
    assert calls.count("cudaFreeHost") == 2 * clients


def test_memory_that_cannot_be_locked_fails_the_run(
    tmp_path: Path, runtime: dict[str, str]
) -> None:
    env = {**runtime, "FAKE_CUDA_FULL": "1"}
    report, done = answered(tmp_path, job_of(tmp_path, limits=ONE), env=env, session=PINNED)
    assert done.returncode == 1
    assert report.error == "RuntimeError: cudaHostAlloc: CUDA error 2"
    assert report.outputs == ()


def test_without_a_cuda_runtime_there_is_no_page_locked_memory(tmp_path: Path) -> None:
    report, done = answered(tmp_path, job_of(tmp_path, limits=ONE), session=PINNED)
    assert done.returncode == 1
    assert "page-locked memory needs one CUDA runtime, loaded are []" in report.error


MAP = "7f01-7f02 r-xp 00001000 fe:00 2    {}\n"


@pytest.mark.parametrize(
    "paths",
    [
        ("/a/libcudart.so.13", "/b/libcudart.so.12"),
        ("/a/libcudart_static.a", "/a/libnvcudart.so", "/libcudart.so.13/x"),
        (),
    ],
)
def test_any_number_of_runtimes_but_one_is_an_error(
    bound: ModuleType, paths: tuple[str, ...]
) -> None:
    with pytest.raises(RuntimeError, match="needs one CUDA runtime"):
        bound.Cuda("".join(MAP.format(path) for path in paths))


@pytest.mark.parametrize("name", ["libcudart.so.13", "libcudart-9f2e1c4a.so.13.0.96"])
def test_the_runtime_is_found_by_what_is_in_memory(bound: ModuleType, name: str) -> None:
    """Found, and then not loaded: nothing of that name is in this process."""
    lines = MAP.format(f"/my libs/{name}") + MAP.format(f"/my libs/{name}").replace("r-xp", "r--p")
    with pytest.raises(OSError, match=name):
        bound.Cuda(lines)


def test_a_graph_of_many_requests_at_once_is_refused_before_anything_runs(tmp_path: Path) -> None:
    graph = SessionSpec(io_binding=True, cuda_graph=True)
    with pytest.raises(InputError) as caught:
        write_job(job_of(tmp_path, graph), tmp_path)
    assert "images.ort-cpu.session.cuda_graph" in caught.value.message
    assert "is asked 3 at once" in caught.value.message
    assert "concurrency: [1]" in caught.value.mend
    write_job(job_of(tmp_path, graph, limits=ONE), tmp_path)
