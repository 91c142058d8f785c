"""Running one cell: limits, mounts and paths, and evidence that is taken only as what it is."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from planyard.core.cells import Cell
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import SmokeReport, TensorEvidence
from planyard.core.units import ByteSize
from planyard.edge.docker import Container, Ended
from smoke.job import PROVIDERS, SmokeJob, can_smoke
from smoke.run import read_outputs, read_report, run_job
from tests.smoke_runs import CPU, InProcess, ended, host_path

X = np.arange(6, dtype="float32").reshape(2, 3)


def double(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": feeds["x"] * 2}


@pytest.fixture
def job(tmp_path: Path) -> SmokeJob:
    served = tmp_path / "model" / "model.onnx"
    served.parent.mkdir()
    served.write_bytes(b"onnx")
    return job_of(served)


def job_of(served: Path, **changes: Any) -> SmokeJob:
    cell = Cell(
        id="ort-cpu/ocr/640/fp32/cpu",
        image="ort-cpu",
        model="ocr",
        profile="640",
        precision="fp32",
        gpu="cpu",
        sm=None,
        backend=changes.pop("backend", "onnxruntime-cpu"),
    )
    fields: dict[str, Any] = {
        "cell": cell,
        "image": "planyard/ort-cpu:0123",
        "python": "/usr/bin/python3.11",
        "served": served,
        "inputs": {"x": X},
        "limits": SmokeLimits(memory=ByteSize(1 << 30), timeout_seconds=7, requests=2),
        "gpu": False,
    }
    return SmokeJob(**{**fields, **changes})


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_a_run_brings_back_what_was_said_and_done(job: SmokeJob, scratch: Path) -> None:
    streams = ended(exit_code=3, stdout=b"out \xff", stderr=b"err")
    run, outputs = run_job(job, runner=InProcess(serve=double, ended=streams), scratch=scratch)
    assert np.array_equal(outputs["y"], X * 2)
    assert (run.cell, run.image) == (job.cell.id, job.image)
    assert (run.exit_code, run.stdout, run.stderr, run.seconds) == (3, "out \ufffd", "err", 0.5)
    assert run.report is not None
    assert run.report.providers_active == (CPU,)
    assert run.report.latencies_ms == (1.0, 1.0)


def test_the_container_is_bounded_and_sees_nothing_it_may_write_but_its_out_folder(
    job: SmokeJob, scratch: Path
) -> None:
    runner = InProcess(serve=double)
    run_job(job, runner=runner, scratch=scratch)
    [container] = runner.containers
    assert container.command == ("/usr/bin/python3.11", "/planyard/smoke.py", "/job/job.json")
    assert (container.memory_bytes, container.timeout_seconds, container.gpu) == (1 << 30, 7, False)
    writable = [mount.target for mount in container.mounts if mount.writable]
    assert writable == ["/out"]
    assert host_path(container, "/model") == job.served.parent
    assert host_path(container, "/planyard/smoke.py").name == "ort.py"
    assert host_path(container, "/out").stat().st_mode & 0o777 == 0o777


def test_a_job_has_no_path_of_this_machine(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double)
    run_job(job, runner=runner, scratch=scratch)
    text = host_path(runner.containers[0], "/job/job.json").read_text()
    assert str(scratch.parent) not in text
    document = json.loads(text)
    assert document["model"] == "/model/model.onnx"
    assert document["inputs"]["x"]["file"] == "/job/input-0.bin"
    assert document["requests"] == 2


def test_a_gpu_cell_is_asked_to_run_on_nothing_but_its_gpu(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double)
    gpu = job_of(job.served, backend="onnxruntime-cuda", gpu=True)
    run_job(gpu, runner=runner, scratch=scratch)
    [container] = runner.containers
    asked = json.loads(host_path(container, "/job/job.json").read_bytes())["providers"]
    assert asked == ["CUDAExecutionProvider"]
    assert container.gpu
    assert not [names for backend, names in PROVIDERS.items() if "cuda" in backend and CPU in names]


def test_levels_that_hide_lines_are_set_open(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double)
    run_job(job, runner=runner, scratch=scratch)
    assert runner.containers[0].environment["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert runner.containers[0].environment["PYTHONUNBUFFERED"] == "1"


def test_each_plan_backend_has_its_script() -> None:
    assert can_smoke("tensorrt-rtx")
    assert can_smoke("onnxruntime-cuda")
    assert not can_smoke("tensorrt")


def silent(_: Container) -> Ended:
    return ended(exit_code=137, stdout=b"", stderr=b"Killed")


def test_a_killed_container_leaves_no_evidence(job: SmokeJob, scratch: Path) -> None:
    run, outputs = run_job(job, runner=silent, scratch=scratch)
    assert (run.report, outputs) == (None, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b'{"providers_asked": "CUDA"}',
        b'{"latencies_ms": [NaN]}',
        b'{"error": "\xff"}',
        b'{"unknown": ' + b"[" * 200_000,
        b'{"error": "' + b"x" * (17 << 20) + b'"}',
    ],
    ids=["empty", "text", "list", "wrong type", "NaN", "no UTF-8", "deep", "large"],
)
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    assert read_report(path) is None


def test_a_report_may_say_more_than_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b'{"providers_asked": ["a"], "new": {"x": 1}}')
    assert read_report(path) == SmokeReport(providers_asked=("a",))


def in_time(function: Any, *arguments: Any) -> Any:
    """The answer of a function that must not wait for anybody."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert answers, "it waits"
    return answers[0]


def test_a_report_that_is_no_plain_file_is_none(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_bytes(msgspec.json.encode(SmokeReport(error="secret")))
    link, pipe, folder = (tmp_path / name for name in ("link", "pipe", "folder"))
    link.symlink_to(secret)
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (link, pipe, folder, tmp_path / "absent"):
        assert in_time(read_report, path) is None


def tensor(**changes: Any) -> TensorEvidence:
    fields: dict[str, Any] = {"name": "y", "dtype": "float32", "shape": (2, 3), "file": "y.bin"}
    return TensorEvidence(**{**fields, **changes})


def outputs_of(folder: Path, *tensors: TensorEvidence) -> dict[str, Any]:
    found: dict[str, Any] = in_time(read_outputs, SmokeReport(outputs=tensors), folder)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_outputs_are_what_the_report_says(tmp_path: Path, dtype: str) -> None:
    array = np.array([[1, 0, 1], [0, 1, 1]], dtype=dtype)
    array.tofile(tmp_path / "y.bin")
    found = outputs_of(tmp_path, tensor(dtype=dtype))
    assert np.array_equal(found["y"], array)
    assert found["y"].dtype == array.dtype


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "absent.bin"},
        {"shape": (2, 4)},
        {"shape": (-1,)},
        {"shape": (-2, -3)},
        {"shape": (2, 2)},
        {"shape": (1 << 40, 1 << 40)},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"dtype": "O"},
        {"dtype": "S4"},
        {"dtype": "V4"},
        {"dtype": "complex64"},
        {"dtype": "datetime64[s]"},
        {"dtype": "f4,f4"},
        {"dtype": "no such type"},
        {"dtype": "(2"},
        {"dtype": ""},
        {"file": ""},
        {"file": ".."},
        {"file": "/"},
    ],
)
def test_an_output_that_is_something_else_is_left_out(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    X.tofile(tmp_path / "y.bin")
    assert outputs_of(tmp_path, tensor(**changes), tensor(name="good")).keys() == {"good"}


def test_an_output_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    X.tofile(tmp_path / "secret.bin")
    (out / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(out / "pipe.bin")
    names = ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "pipe.bin")
    assert outputs_of(out, *(tensor(name=name, file=name) for name in names)) == {}


def test_a_file_larger_than_its_shape_is_not_read(tmp_path: Path) -> None:
    """A hole of a terabyte costs an image nothing, and the reader everything."""
    with (tmp_path / "y.bin").open("wb") as file:
        file.truncate(1 << 40)
    assert outputs_of(tmp_path, tensor(), tensor(name="all", shape=(1 << 38,))) == {}
