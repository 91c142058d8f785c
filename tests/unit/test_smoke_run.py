"""Running one cell: limits, mounts and paths, and evidence that is taken only as what it is."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

import smoke.run
from planyard.core.cells import Cell
from planyard.core.matrix import Backend
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import SmokeReport, TensorEvidence
from planyard.core.units import ByteSize
from planyard.edge.docker import Container, Ended
from smoke.job import INSIDE, SCRIPTS, SmokeJob, series_of, write_job
from smoke.own_lines import PROTOCOL
from smoke.run import UnreadableError, read_outputs, read_report, run_job
from smoke.session import PROVIDERS, session_document
from tests.smoke_runs import CPU, InProcess, ended, host_path

X = np.arange(6, dtype="float32").reshape(2, 3)
X_FILE = {"file": "input-0.bin", "dtype": "float32", "shape": [2, 3]}


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
    assert json.loads(text) == {
        "schema": 1,
        "backend": "onnxruntime-cpu",
        "model": "/model/model.onnx",
        "source": None,
        "version_compatible": False,
        "providers": [CPU],
        "session": session_document(job.session, job.cell.backend),
        "client": None,
        "steps": 1,
        "contexts": None,
        "series": [{"batch": 1, "concurrency": 1, "inputs": {"x": X_FILE}}],
        "warmup": 2,
        "requests": 2,
        "series_seconds": 10,
        "least_seconds": 0,
        "out": "/out",
    }


def limits_of(batches: tuple[int, ...], concurrency: tuple[int, ...]) -> SmokeLimits:
    return SmokeLimits(
        warmup=3, requests=50, series_seconds=7, batches=batches, concurrency=concurrency
    )


@pytest.mark.parametrize(
    ("batches", "concurrency", "asked"),
    [
        ((), (1,), [(2, 1)]),
        ((), (4, 1, 4), [(2, 4), (2, 1)]),
        ((1, 8), (1, 4), [(2, 1), (1, 1), (1, 4), (8, 1), (8, 4)]),
        ((2,), (4, 1), [(2, 4), (2, 1)]),
    ],
)
def test_the_optimum_comes_first_then_every_batch_at_every_concurrency(
    job: SmokeJob, batches: tuple[int, ...], concurrency: tuple[int, ...], asked: list[Any]
) -> None:
    limits = limits_of(batches, concurrency)
    assert list(series_of(replace(job, batch=2, limits=limits))) == asked


def test_the_inputs_of_a_batch_are_made_and_written_once(job: SmokeJob, tmp_path: Path) -> None:
    made: list[int] = []

    def inputs_at(batch: int) -> dict[str, np.ndarray]:
        made.append(batch)
        return {"x": np.full((batch, 3), batch, "float32")}

    limits = limits_of((2, 8), (1, 4))
    write_job(replace(job, batch=2, limits=limits, inputs_at=inputs_at), tmp_path)
    document = json.loads((tmp_path / "job.json").read_bytes())
    assert made == [8]
    files = [each["inputs"]["x"]["file"] for each in document["series"]]
    assert files == ["input-0.bin", "input-0.bin", "batch-8-0.bin", "batch-8-0.bin"]
    assert document["series"][2]["inputs"]["x"]["shape"] == [8, 3]
    assert np.fromfile(tmp_path / "batch-8-0.bin", "float32").tolist() == [8.0] * 24
    assert np.fromfile(tmp_path / "input-0.bin", "float32").tolist() == X.flatten().tolist()
    assert (document["warmup"], document["requests"], document["series_seconds"]) == (3, 50, 7)


def test_a_batch_that_nothing_makes_inputs_for_is_a_mistake_of_ours(
    job: SmokeJob, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="nothing makes inputs of batch 8"):
        write_job(replace(job, limits=limits_of((8,), (1,))), tmp_path)


def test_a_gpu_cell_is_asked_to_run_on_nothing_but_its_gpu(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double)
    gpu = job_of(job.served, backend="onnxruntime-cuda", gpu=True)
    run_job(gpu, runner=runner, scratch=scratch)
    [container] = runner.containers
    asked = json.loads(host_path(container, "/job/job.json").read_bytes())["providers"]
    assert asked == ["CUDAExecutionProvider"]
    assert container.gpu
    assert not [names for backend, names in PROVIDERS.items() if "cuda" in backend and CPU in names]


def test_a_session_is_what_the_matrix_says_and_brings_what_binds_it(
    job: SmokeJob, scratch: Path
) -> None:
    runner, session = InProcess(serve=double), SessionSpec(io_binding=True, intra_threads=2)
    run_job(replace(job, session=session), runner=runner, scratch=scratch)
    [container] = runner.containers
    document = json.loads(host_path(container, "/job/job.json").read_bytes())
    assert document["session"] == session_document(session, "onnxruntime-cpu")
    laid = host_path(container, f"/job/{document['client']}")
    assert laid.read_bytes() == (INSIDE / "bound.py").read_bytes()


def test_a_plan_has_no_session_and_an_own_command_no_script(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double)
    run_job(job_of(job.served, backend="tensorrt-rtx", gpu=True), runner=runner, scratch=scratch)
    document = json.loads(host_path(runner.containers[0], "/job/job.json").read_bytes())
    assert (document["session"], document["client"]) == (None, None)
    own = replace(job, session=SessionSpec(io_binding=True), command=("/serve",))
    write_job(own, scratch)
    assert json.loads((scratch / "job.json").read_bytes())["client"] is None
    assert not (scratch / "bound.py").exists()


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-cpu"])
def test_providers_of_the_matrix_are_asked_for_in_its_order(
    job: SmokeJob, scratch: Path, backend: str
) -> None:
    asked = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    session = SessionSpec(providers=asked)
    write_job(job_of(job.served, backend=backend, session=session), scratch)
    document = json.loads((scratch / "job.json").read_bytes())
    assert tuple(document["providers"]) == asked
    assert [name for name, _ in document["session"]["providers"]] == list(asked)


def test_levels_that_hide_lines_are_set_open(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double)
    run_job(job, runner=runner, scratch=scratch)
    assert runner.containers[0].environment["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert runner.containers[0].environment["PYTHONUNBUFFERED"] == "1"


def test_each_backend_has_its_script() -> None:
    assert set(SCRIPTS) == set(get_args(Backend))
    assert all((INSIDE / name).is_file() for name in SCRIPTS.values())


def test_a_run_says_when_it_began_and_what_it_was_allowed(job: SmokeJob, scratch: Path) -> None:
    times = iter([1_700_000_000.25])
    runner = InProcess(serve=double)
    run, _ = run_job(job, runner=runner, scratch=scratch, clock=lambda: next(times))
    assert run.began_seconds == 1_700_000_000.25
    assert run.memory_limit_bytes == 1 << 30
    assert (run.own_command, run.out_of_memory, run.flooded, run.problems) == (False, False, "", ())


@pytest.mark.parametrize("changes", [{"out_of_memory": True}, {"flooded": "stderr"}])
def test_what_the_engine_saw_of_its_end_is_kept(
    job: SmokeJob, scratch: Path, changes: dict[str, Any]
) -> None:
    said = replace(ended(exit_code=137), **changes)
    run, _ = run_job(job, runner=lambda _: said, scratch=scratch)
    assert {name: getattr(run, name) for name in changes} == changes


def silent(_: Container) -> Ended:
    return ended(exit_code=137, stdout=b"", stderr=b"Killed")


def test_a_killed_container_leaves_no_evidence(job: SmokeJob, scratch: Path) -> None:
    run, outputs = run_job(job, runner=silent, scratch=scratch)
    assert (run.report, outputs) == (None, {})
    assert run.problems == ()  # that it was killed is enough


def test_a_script_that_ends_well_and_reports_nothing_is_a_problem(
    job: SmokeJob, scratch: Path
) -> None:
    run, _ = run_job(job, runner=lambda _: ended(), scratch=scratch)
    assert run.problems == ("the script ended with 0 and left no report.json",)


def leaving(name: str, data: bytes) -> Any:
    """An engine whose container does its work, and then writes a file over."""

    def runner(container: Container) -> Ended:
        done = InProcess(serve=double)(container)
        (host_path(container, "/out") / name).write_bytes(data)
        return done

    return runner


def test_a_report_cut_off_is_a_problem(job: SmokeJob, scratch: Path) -> None:
    run, outputs = run_job(job, runner=leaving("report.json", b'{"error": "x'), scratch=scratch)
    assert (run.report, outputs) == (None, {})
    [problem] = run.problems
    assert problem.startswith("report.json is no whole report (Input data was truncated)")


def test_an_output_cut_off_is_a_problem(job: SmokeJob, scratch: Path) -> None:
    run, outputs = run_job(job, runner=leaving("output-0.bin", b"1234"), scratch=scratch)
    assert outputs == {}
    [problem] = run.problems
    assert problem == (
        "output 'y' cannot be read: float32 of shape (2, 3) is 24 bytes, the file has 4"
    )


def test_problems_are_bounded(job: SmokeJob, scratch: Path) -> None:
    entry = {"name": "y", "dtype": "float32", "shape": [2, 3], "file": "absent"}
    runner = InProcess(serve=double, changes={"outputs": [entry] * 1000})
    run, _ = run_job(job, runner=runner, scratch=scratch)
    assert 1 <= len(run.problems) <= 20


# An image's own command

OWN = ("/opt/app/smoke", "--model", "$PLANYARD_MODEL")


def own(job: SmokeJob, **changes: Any) -> SmokeJob:
    return replace(job, command=OWN, **changes)


def test_an_own_command_runs_as_it_stands_and_without_a_script_of_ours(
    job: SmokeJob, scratch: Path
) -> None:
    containers: list[Container] = []

    def runner(container: Container) -> Ended:
        containers.append(container)
        return ended()

    run, _ = run_job(own(job), runner=runner, scratch=scratch)
    [container] = containers
    assert container.command == OWN
    assert {mount.target: mount.writable for mount in container.mounts} == {
        "/job": False,
        "/model": False,
        "/out": True,
    }
    assert host_path(container, "/model") == job.served.parent
    assert (container.memory_bytes, container.timeout_seconds, container.gpu) == (1 << 30, 7, False)
    assert {
        name: value for name, value in container.environment.items() if name.startswith("PLANYARD_")
    } == {
        "PLANYARD_JOB": "/job/job.json",
        "PLANYARD_MODEL": "/model/model.onnx",
        "PLANYARD_OUT": "/out",
        "PLANYARD_CELL": "ort-cpu/ocr/640/fp32/cpu",
        "PLANYARD_PROTOCOL": "1",
    }
    assert PROTOCOL == 1
    assert container.environment["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert run.own_command


def test_an_own_command_serves_a_backend_without_a_script(job: SmokeJob, scratch: Path) -> None:
    plan = own(job_of(job.served, backend="tensorrt", gpu=True))
    run, _ = run_job(plan, runner=lambda _: ended(), scratch=scratch)
    assert (run.exit_code, run.own_command) == (0, True)


def printing(*lines: bytes, files: dict[str, bytes] | None = None) -> Any:
    """An engine whose container prints these lines and leaves these files."""

    def runner(container: Container) -> Ended:
        for name, data in (files or {}).items():
            (host_path(container, "/out") / name).write_bytes(data)
        return ended(stdout=b"\n".join(lines))

    return runner


PROVIDERS_LINE = b'{"planyard": 1, "event": "providers", "asked": ["A"], "active": ["A"]}'
OUTPUT_LINE = (
    b'{"planyard": 1, "event": "output", "name": "y", "dtype": "float32", "shape": [2, 3],'
)
OUTPUT_LINE += b' "file": "y.bin"}'


def test_an_own_command_reports_by_lines(job: SmokeJob, scratch: Path) -> None:
    runner = printing(b"ready", PROVIDERS_LINE, OUTPUT_LINE, b"bye", files={"y.bin": X.tobytes()})
    run, outputs = run_job(own(job), runner=runner, scratch=scratch)
    assert run.report is not None
    assert run.report.providers_active == ("A",)
    assert np.array_equal(outputs["y"], X)
    assert run.stdout == "ready\n\n\nbye"
    assert run.problems == ()


def test_a_line_that_cannot_be_read_is_a_problem_and_stays_in_the_log(
    job: SmokeJob, scratch: Path
) -> None:
    runner = printing(b"ready", PROVIDERS_LINE[:30])
    run, _ = run_job(own(job), runner=runner, scratch=scratch)
    assert run.report is None
    assert run.stdout == "ready\n" + PROVIDERS_LINE[:30].decode()
    [problem] = run.problems
    assert problem.startswith("stdout line 2: this is not one whole JSON object")


def test_a_report_file_is_nothing_to_an_own_command(job: SmokeJob, scratch: Path) -> None:
    data = msgspec.json.encode(SmokeReport(providers_active=("CUDA",)))
    runner = printing(b"ready", files={"report.json": data})
    run, _ = run_job(own(job), runner=runner, scratch=scratch)
    assert (run.report, run.problems) == (None, ())


def test_lines_are_nothing_to_a_script_of_ours(job: SmokeJob, scratch: Path) -> None:
    runner = InProcess(serve=double, ended=ended(stdout=PROVIDERS_LINE))
    run, _ = run_job(job, runner=runner, scratch=scratch)
    assert run.report is not None
    assert run.report.providers_active == (CPU,)
    assert run.stdout == PROVIDERS_LINE.decode()


# What a run left, taken only as what it is


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
def test_a_report_that_cannot_be_read_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match=r"^report\.json "):
        read_report(path)


def test_a_report_may_say_more_than_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b'{"providers_asked": ["a"], "new": {"x": 1}}')
    assert read_report(path) == SmokeReport(providers_asked=("a",))


def in_time(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """The answer of a function that must not wait for anybody, or the error it raised."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(function(*arguments, **keywords))
        except (OSError, ValueError) as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert answers, "it waits"
    return answers[0]


def test_a_report_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_bytes(msgspec.json.encode(SmokeReport(error="secret")))
    link, pipe, folder = (tmp_path / name for name in ("link", "pipe", "folder"))
    link.symlink_to(secret)
    os.mkfifo(pipe)
    folder.mkdir()
    for path, kind in ((link, "a link"), (pipe, "a pipe"), (folder, "a folder")):
        error = in_time(read_report, path)
        assert isinstance(error, UnreadableError)
        assert str(error) == f"{path.name} is {kind}, not a file"
    assert isinstance(in_time(read_report, tmp_path / "absent"), FileNotFoundError)


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
def test_an_output_that_is_something_else_is_left_out_and_named(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    X.tofile(tmp_path / "y.bin")
    report = SmokeReport(outputs=(tensor(**changes), tensor(name="good")))
    problems: list[str] = []
    found = in_time(read_outputs, report, tmp_path, on_problem=problems.append)
    assert found.keys() == {"good"}
    [problem] = problems
    assert problem.startswith("output 'y' cannot be read: ")
    assert str(tmp_path) not in problem


def test_an_output_is_reported_once(tmp_path: Path) -> None:
    X.tofile(tmp_path / "y.bin")
    np.full_like(X, 9).tofile(tmp_path / "z.bin")
    problems: list[str] = []
    report = SmokeReport(outputs=(tensor(), tensor(file="z.bin")))
    assert np.array_equal(read_outputs(report, tmp_path, on_problem=problems.append)["y"], X)
    assert problems == ["output 'y' cannot be read: it was reported before"]


def test_all_outputs_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke.run, "_OUTPUTS_LIMIT_BYTES", 50)
    X.tofile(tmp_path / "y.bin")
    found = outputs_of(tmp_path, *(tensor(name=name) for name in "abc"))
    assert found.keys() == {"a", "b"}


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
