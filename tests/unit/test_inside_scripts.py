"""The scripts that run inside images, run here as they are: JSON in, JSON out, and honest ends."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders.probing import ProbeReport
from planyard.core.results import SmokeReport
from smoke.run import read_outputs, read_report
from tests import onnx_models

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("*/**/inside/*.py") if ".venv" not in path.parts)
CPU = "CPUExecutionProvider"
FLOAT = TensorProto.FLOAT
X = np.linspace(-1, 1, 3 * 8 * 8, dtype="float32").reshape(1, 3, 8, 8)


def run(script: str, *arguments: str, env: dict[str, str] | None = None, bare: bool = False) -> Any:
    """Run a script to its end; `bare` leaves installed packages out, which starts faster."""
    return subprocess.run(
        [sys.executable, *["-S"] * bare, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
        env={**os.environ, "PYTHONPATH": "", **(env or {})},
    )


def plain_model() -> onnx.ModelProto:
    """The model of the other tests, at an IR version that today's runtimes read."""
    model = onnx_models.plain_model()
    model.ir_version = 10
    return model


def write_job(tmp_path: Path, **changes: Any) -> str:
    """A job for a smoke script, as `smoke/job.py` writes it."""
    X.tofile(tmp_path / "input-0.bin")
    (tmp_path / "model.onnx").write_bytes(plain_model().SerializeToString())
    (tmp_path / "out").mkdir(exist_ok=True)
    job = {
        "schema": 1,
        "model": str(tmp_path / "model.onnx"),
        "providers": [CPU],
        "series": [series()],
        "warmup": 1,
        "requests": 5,
        "series_seconds": 10,
        "out": str(tmp_path / "out"),
        **changes,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    return str(tmp_path / "job.json")


def series(*, shape: tuple[int, ...] = X.shape, **changes: Any) -> dict[str, Any]:
    """One series of requests for the plain model."""
    x = {"file": "input-0.bin", "dtype": "float32", "shape": list(shape)}
    return {"batch": 1, "concurrency": 1, "inputs": {"x": x}, **changes}


def report_in(tmp_path: Path) -> SmokeReport:
    report = read_report(tmp_path / "out" / "report.json")
    assert report is not None
    return report


def test_onnx_runtime_answers_and_says_where_everything_ran(tmp_path: Path) -> None:
    done = run("smoke/inside/ort.py", write_job(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "[W:onnxruntime" in done.stderr  # of its own: no level hides what the log gate reads
    assert "planyard: session ready" in done.stdout
    assert "planyard: batch 1, 1 at once: 5 requests" in done.stdout
    report = report_in(tmp_path)
    assert (report.providers_asked, report.providers_active) == ((CPU,), (CPU,))
    assert {each.provider for each in report.placement} == {CPU}
    assert sum(each.count for each in report.placement) >= 1
    assert len(report.latencies_ms) == 5
    assert (report.memcpy_nodes, report.cpu_fallback_refused) == (0, None)
    assert list(report.versions) == ["onnxruntime"]
    outputs = read_outputs(report, tmp_path / "out")
    assert np.allclose(outputs["y"], np.maximum(X, 0) + 0.5)


def refused_model() -> bytes:
    """Sound ONNX with an operator that no runtime has."""
    model = plain_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "said"),
    [(refused_model(), "NoSuchOperator"), (None, "model.onnx")],
    ids=["unknown operator", "no file"],
)
def test_a_model_that_is_refused_ends_with_one_and_its_reason(
    tmp_path: Path, model: bytes | None, said: str
) -> None:
    job = write_job(tmp_path)
    if model is None:
        (tmp_path / "model.onnx").unlink()
    else:
        (tmp_path / "model.onnx").write_bytes(model)
    done = run("smoke/inside/ort.py", job)
    assert done.returncode == 1
    report = report_in(tmp_path)
    assert said.lower() in report.error.lower()
    assert report.error.splitlines()[0] in done.stderr
    assert (report.providers_active, report.outputs, report.placement) == ((), (), ())


def test_a_request_that_fails_leaves_no_outputs_behind(tmp_path: Path) -> None:
    done = run("smoke/inside/ort.py", write_job(tmp_path, series=[series(shape=(3, 64))]))
    assert done.returncode == 1
    assert "rank" in report_in(tmp_path).error.lower()
    assert report_in(tmp_path).outputs == ()


def test_series_are_asked_in_order_and_the_first_gives_the_outputs(tmp_path: Path) -> None:
    twice = np.concatenate([X, -X])
    twice.tofile(tmp_path / "batch-2-0.bin")
    two = {"x": {"file": "batch-2-0.bin", "dtype": "float32", "shape": list(twice.shape)}}
    asked = [series(), series(concurrency=3), series(batch=2, inputs=two)]
    (tmp_path / "scratch").mkdir()
    job = write_job(tmp_path, series=asked, requests=7, warmup=0)
    before = time.time()
    done = run("smoke/inside/ort.py", job, env={"TMPDIR": str(tmp_path / "scratch")})
    assert done.returncode == 0, done.stderr
    report = report_in(tmp_path)
    found = [(each.batch, each.concurrency, len(each.latencies_ms)) for each in report.series]
    assert found == [(1, 1, 7), (1, 3, 7), (2, 1, 7)]
    assert report.latencies_ms == report.series[0].latencies_ms
    assert read_outputs(report, tmp_path / "out")["y"].shape == X.shape
    began, ended = report.requests_began_seconds, report.requests_ended_seconds
    assert before < (began or 0) < (ended or 0) < time.time()
    assert list((tmp_path / "scratch").glob("planyard-*")) == []  # the profile is gone


def test_versions_are_those_of_what_is_in_memory(tmp_path: Path) -> None:
    done = run("smoke/inside/ort.py", write_job(tmp_path))
    assert done.returncode == 0, done.stderr
    loaded = report_in(tmp_path).loaded
    assert loaded.keys() == {"onnxruntime", "python"}
    assert loaded["onnxruntime"].version == importlib.metadata.version("onnxruntime")
    assert Path(loaded["onnxruntime"].path).suffix == ".so"
    assert loaded["python"].version == platform.python_version()


def attention_model(calls: int) -> bytes:
    """Attention as one operator and as three, and once more in the body of a loop."""
    qkv = [helper.make_tensor_value_info(name, FLOAT, [1, 2, 4, 8]) for name in "qkv"]
    state = helper.make_tensor_value_info("state", FLOAT, [1, 2, 4, 8])
    after = helper.make_tensor_value_info("after", FLOAT, [1, 2, 4, 8])
    flags = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go", "go on")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [
            helper.make_node("Attention", ["state", "k", "v"], ["after"], name="inner"),
            helper.make_node("Identity", ["go"], ["go on"]),
        ],
        "body",
        [count, flags[0], state],
        [flags[1], after],
    )
    nodes = [
        helper.make_node("Attention", ["q", "k", "v"], ["one"], name="outer"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["one", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "v"], ["two"]),
        helper.make_node("Loop", ["calls", "", "two"], ["y"], body=body),
    ]
    calls_made = helper.make_tensor("calls", TensorProto.INT64, [], [calls])
    y = helper.make_tensor_value_info("y", FLOAT, [1, 2, 4, 8])
    graph = helper.make_graph(nodes, "attention", qkv, [y], [calls_made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_fused_attention_is_counted_by_node_whatever_names_it(tmp_path: Path) -> None:
    x = {"file": "input-0.bin", "dtype": "float32", "shape": [1, 2, 4, 8]}
    job = write_job(tmp_path, series=[series(inputs=dict.fromkeys("qkv", x))])
    np.ones(64, "float32").tofile(tmp_path / "input-0.bin")
    (tmp_path / "model.onnx").write_bytes(attention_model(calls=4))
    done = run("smoke/inside/ort.py", job)
    assert done.returncode == 0, done.stderr
    attention = report_in(tmp_path).attention
    assert attention is not None
    assert (attention.fused, attention.kinds) == (2, {"Attention": 2})
    assert attention.how == "executed nodes of a profiled request"


def test_a_version_without_assignment_says_where_nodes_ran(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import onnxruntime.capi.onnxruntime_inference_collection as c\n"
        "del c.Session.get_provider_graph_assignment_info\n"
    )
    done = run("smoke/inside/ort.py", write_job(tmp_path), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert [(p.provider, p.operator, p.count) for p in report_in(tmp_path).placement] == [
        (CPU, "Add", 1),
        (CPU, "Relu", 1),
    ]


def constant_model() -> bytes:
    """Nothing to compute: no node that could be anywhere but where it was asked to be."""
    x = helper.make_tensor_value_info("x", FLOAT, list(X.shape))
    y = helper.make_tensor_value_info("y", FLOAT, [1])
    graph = helper.make_graph([], "constant", [x], [y], [helper.make_tensor("y", FLOAT, [1], [1])])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("providers", "model", "refused"),
    [
        (["CUDAExecutionProvider"], None, True),
        (["AzureExecutionProvider", CPU], None, True),
        (["AzureExecutionProvider"], constant_model(), False),
        ([CPU, "AzureExecutionProvider"], None, None),
    ],
    ids=["not there", "takes nothing", "no node elsewhere", "CPU cell"],
)
def test_a_session_that_may_not_fall_back_is_the_second_witness(
    tmp_path: Path, providers: list[str], model: bytes | None, refused: bool | None
) -> None:
    job = write_job(tmp_path, providers=providers)
    if model:
        (tmp_path / "model.onnx").write_bytes(model)
    done = run("smoke/inside/ort.py", job)
    assert done.returncode == 0, done.stderr
    report = report_in(tmp_path)
    assert report.cpu_fallback_refused is refused
    assert ("fallback to CPU EP has been" in report.cpu_fallback_said) is (refused is True)
    # What the witness says is in the report, and nowhere that the log gate would judge it.
    assert "explicitly disabled" not in done.stderr + done.stdout
    assert "Falling back" not in done.stdout


def full_disk(out: Path) -> None:
    (out / "output-0.bin").symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (full_disk, "OSError"),
        (lambda out: (out / "report.json").write_text("{}"), "SystemExit"),
        (lambda out: (out / "report.json.part").write_text("{"), "RuntimeError"),
    ],
    ids=["no space", "library that exits", "words that are no text"],
)
def test_whatever_happens_the_report_is_whole_and_says_so(
    tmp_path: Path, prepare: Any, said: str
) -> None:
    job = write_job(tmp_path)
    prepare(tmp_path / "out")
    env = {}
    if said != "OSError":
        stub(tmp_path, "numpy")
        broken = {"SystemExit": "import sys; sys.exit(0)", "RuntimeError": "raise RuntimeError"}
        text = broken[said] + r"('\udcff')" * (said == "RuntimeError")
        (tmp_path / "stubs" / "onnxruntime.py").write_text(text)
        env = {"PYTHONPATH": str(tmp_path / "stubs")}
    done = run("smoke/inside/ort.py", job, env=env, bare=bool(env))
    assert done.returncode == 1
    assert report_in(tmp_path).error.startswith(said)
    assert report_in(tmp_path).outputs == ()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    stub(tmp_path, "numpy", "onnxruntime")
    job = write_job(tmp_path, schema=2)
    (tmp_path / "out" / "report.json").mkdir()
    done = run("smoke/inside/ort.py", job, env={"PYTHONPATH": str(tmp_path / "stubs")}, bare=True)
    assert done.returncode == 1
    assert "schema 1" in done.stderr
    assert "no report could be written: [Errno 21]" in done.stderr


@pytest.mark.parametrize("script", ["smoke/inside/ort.py", "smoke/inside/trt.py"])
@pytest.mark.parametrize("schema", [2, None])
def test_a_smoke_job_of_another_schema_is_refused(
    tmp_path: Path, script: str, schema: object
) -> None:
    stub(tmp_path, "tensorrt_rtx_bindings", "onnxruntime", "numpy")
    job = write_job(tmp_path, schema=schema)
    done = run(script, job, env={"PYTHONPATH": str(tmp_path / "stubs")}, bare=True)
    assert done.returncode == 1
    assert "schema 1" in report_in(tmp_path).error


def stub(tmp_path: Path, *modules: str) -> None:
    """Empty modules in place of heavy libraries, for what happens before they are used."""
    for name in modules:
        path = tmp_path / "stubs" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")


COMPILERS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


def compile_job(tmp_path: Path, kind: str, **changes: Any) -> str:
    plan = {"cell": "c", "sm": 89, "profile": {}, "out": "0.plan"}
    job = {
        "schema": 1,
        "backend": kind,
        "model": "/model/model.onnx",
        "version": "1.7.1.116",
        "workspace_bytes": 1 << 20,
        "out": str(tmp_path),
        "plans": [plan],
        **changes,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    return str(tmp_path / "job.json")


def events_of(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", COMPILERS)
@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"backend": "other"},
        {"plans": [{"cell": "c", "sm": 89, "profile": {}, "out": "../x"}]},
        {"plans": [{"cell": "c", "sm": 89, "profile": {}, "out": ".hidden"}]},
    ],
)
def test_a_compile_job_of_another_protocol_is_refused(
    tmp_path: Path, script: str, changes: dict[str, Any]
) -> None:
    stub(tmp_path, "tensorrt_rtx_bindings")
    job = compile_job(tmp_path, COMPILERS[script], **changes)
    env = {"PYTHONPATH": str(tmp_path / "stubs")}
    done = run(f"engines/inside/{script}.py", job, env=env, bare=True)
    assert done.returncode == 2
    [event] = events_of(done)
    assert event["event"] == "failed"
    assert event["message"].startswith("ValueError: ")


def test_a_conversion_of_another_schema_is_refused(tmp_path: Path) -> None:
    stub(tmp_path, "onnx")
    job = compile_job(tmp_path, "", schema=9)
    env = {"PYTHONPATH": str(tmp_path / "stubs")}
    done = run("engines/inside/to_fp16.py", job, env=env, bare=True)
    assert done.returncode == 2
    assert events_of(done) == [{"event": "failed", "message": "ValueError: a job has schema 1"}]


def test_classic_tensorrt_without_its_gpu_awaits_one(tmp_path: Path) -> None:
    plans = [{"cell": "c", "sm": 199, "profile": {}, "out": "0.plan"}]
    job = compile_job(tmp_path, "tensorrt", plans=plans)
    done = run("engines/inside/tensorrt.py", job, bare=True)
    assert done.returncode == 0
    [event] = events_of(done)
    assert (event["event"], event["cell"], event["awaiting_gpu"]) == ("refused", "c", True)
    assert "SM 19.9" in event["message"]


@pytest.mark.parametrize("script", ["smoke/inside/ort.py", "engines/inside/tensorrt_rtx.py"])
def test_a_job_that_is_no_json_is_an_error_and_no_success(tmp_path: Path, script: str) -> None:
    (tmp_path / "job.json").write_text("{")
    assert run(script, str(tmp_path / "job.json"), bare=True).returncode != 0


def test_the_probe_tells_what_really_is_here() -> None:
    done = run("smoke/inside/probe.py")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    report = ProbeReport(**json.loads(line))
    document = json.loads(line)
    assert report.schema == 1
    assert document["versions"]["python"]["version"] == sys.version.split()[0]
    assert document["versions"]["onnxruntime"]["how"].startswith("imported from /")
    assert document["device"].keys() == {"count", "driver", "fp16", "int8"}
    if document["device"]["count"] == 0:
        assert document["device"]["fp16"] is None


def test_a_probe_finds_nothing_by_name_alone(tmp_path: Path) -> None:
    """Files with the right names that are no libraries, and a package without onnxruntime in it."""
    for name in ("libtensorrt_rtx.so.1", "libnvinfer.so.11", "libcudart.so.13", "libcudnn.so.9"):
        (tmp_path / name).write_bytes(b"not a library")
    broken = tmp_path / "modules" / "onnxruntime"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no library')")
    env = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path / "modules")}
    done = run("smoke/inside/probe.py", env=env, bare=True)
    assert done.returncode == 0, done.stderr
    versions = json.loads(done.stdout)["versions"]
    assert str(tmp_path) not in done.stdout
    assert "onnxruntime" not in versions


def test_what_libraries_print_is_not_the_probes_answer(tmp_path: Path) -> None:
    noisy = tmp_path / "onnxruntime"
    noisy.mkdir()
    (noisy / "__init__.py").write_text("print('hello')\n__version__ = '1.2.3'")
    done = run("smoke/inside/probe.py", env={"PYTHONPATH": str(tmp_path)}, bare=True)
    assert json.loads(done.stdout)["versions"]["onnxruntime"]["version"] == "1.2.3"
    assert "hello" in done.stderr


def test_there_are_scripts_to_check() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"ort.py", "probe.py", "trt.py", "tensorrt.py", "tensorrt_rtx.py"} <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_is_python_3_9_and_imports_nothing_of_ours(script: Path) -> None:
    """People's images bring their own Python; ours is the host's."""
    tree = ast.parse(script.read_text(), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").split(".")[0])
    heavy = {"numpy", "onnx", "onnxruntime", "onnxconverter_common", "tensorrt"}
    heavy |= {"tensorrt_bindings", "tensorrt_rtx_bindings"}
    assert imported <= set(sys.stdlib_module_names) | heavy
    assert not imported & {"planyard", "builders", "engines", "smoke"}


def test_the_syntax_check_can_fail() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=(3, 9))


def test_models_for_these_tests_are_sound() -> None:
    onnx.checker.check_model(plain_model())
