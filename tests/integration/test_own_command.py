"""An image's own smoke command, in real images: one that passes every gate, and ones that do not.

The image `own` is `ort-cpu` with programs beside it: the Python example of docs/smoke-command.md,
and `full.py`, which serves with ONNX Runtime and reports by every event, or does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from builders.base import BaseCache
from builders.layers import DEFAULT_EPOCH_SECONDS
from planyard.core.cells import Cell
from planyard.core.digest import digest_of_bytes
from planyard.core.gates import gates_of_cell
from planyard.core.matrix import DebianBase, Tolerance
from planyard.core.matrix_smoke import Gates, SmokeLimits
from planyard.core.reader import load_matrix
from planyard.core.results import SmokeRun, SmokeVerdict
from planyard.core.units import ByteSize
from planyard.edge.docker import Engine
from smoke.job import SmokeJob, series_of
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from smoke.run import run_job
from tests.onnx_models import plain_model
from tests.workspaces import REPOSITORY, Site, lay_out

pytestmark = pytest.mark.docker

PYTHON = "/usr/bin/python3.11"
PROTO = plain_model()
PROTO.ir_version = 9  # what ONNX Runtime of any age reads
MODEL = PROTO.SerializeToString()
X = np.linspace(-1, 1, 192, dtype="float32").reshape(1, 3, 8, 8)
PAGE = (REPOSITORY / "docs" / "smoke-command.md").read_text()
EXAMPLE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
MATRICES = [
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
]
STAGE = """
FROM ort-cpu AS own
COPY own /opt/app
"""
FULL = '''\
"""Serves with ONNX Runtime and reports by every event; its argument says what goes wrong."""
import json, os, pathlib, sys, time

wrong = sys.argv[1] if len(sys.argv) > 1 else ""
if wrong == "no log":
    os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
import numpy, onnxruntime

job_file = pathlib.Path(os.environ["PLANYARD_JOB"])
job, out = json.loads(job_file.read_text()), pathlib.Path(os.environ["PLANYARD_OUT"])


def say(event, **keys):
    text = json.dumps({"planyard": 1, "event": event, **keys})
    if wrong == "says nothing":
        return
    if wrong == "half a line" and event == "output":
        text = text[:50]
    if wrong == "text before a line" and event == "output":
        text = "request 1 done " + text
    print(text, file=sys.stderr if wrong == "on stderr" else sys.stdout, flush=True)


if wrong != "no log":
    print("loading", os.environ["PLANYARD_MODEL"], os.environ["PLANYARD_CELL"], flush=True)
options = onnxruntime.SessionOptions()
options.log_severity_level = 2
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
session = onnxruntime.InferenceSession(
    os.environ["PLANYARD_MODEL"], options, providers=job["providers"]
)
asked = ["CUDAExecutionProvider"] if wrong == "another provider" else job["providers"]
say("providers", asked=asked, active=session.get_providers())
if wrong == "twice":
    say("providers", asked=asked, active=asked)
counts = {}
for part in session.get_provider_graph_assignment_info():
    for node in part.get_nodes():
        key = part.ep_name, node.op_type
        counts[key] = counts.get(key, 0) + 1
nodes = [{"provider": p, "operator": o, "count": c} for (p, o), c in sorted(counts.items())]
say("placement", nodes=nodes, memcpy_nodes=-1 if wrong == "a negative count" else 0)
say("attention", fused=0, how="the model has none")
began = time.time()
for number, series in enumerate(job["series"]):
    feeds = {
        name: numpy.fromfile(job_file.parent / each["file"], each["dtype"]).reshape(each["shape"])
        for name, each in series["inputs"].items()
    }
    if number == 0:
        for name, array in zip(["y"], session.run(["y"], feeds)):
            array = array * 2 if wrong == "other numbers" else array
            if wrong == "NaN":
                array[0, 0, 0, 0] = numpy.nan
            array[: 0 if wrong == "a short file" else None].tofile(out / "y.bin")
            file = "z.bin" if wrong == "a file that is not there" else "y.bin"
            say("output", name=name, dtype=str(array.dtype), shape=list(array.shape), file=file)
    times = []
    for _ in range(job["requests"]):
        begin = time.perf_counter()
        session.run(["y"], feeds)
        times.append((time.perf_counter() - begin) * 1000)
    times = [float("nan")] * len(times) if wrong == "NaN ms" else times
    say("series", batch=series["batch"], concurrency=series["concurrency"], latencies_ms=times)
say("requests", began_seconds=began, ended_seconds=time.time())
maps = pathlib.Path("/proc/self/maps").read_text().split()
path = next(each for each in maps if "onnxruntime_pybind11_state" in each)
version = "1.0.0" if wrong == "another version" else onnxruntime.__version__
say("loaded", library="onnxruntime", version=version, path=path)
if wrong == "a loss in the log":
    print("Failed to create CUDAExecutionProvider because its libraries are missing", flush=True)
if wrong == "an error and 0":
    say("error", message="the third request was wrong")
sys.exit(3 if wrong == "exit 3" else 0)
'''


@pytest.fixture(scope="module")
def own(session_folder: Path, environment: dict[str, str]) -> Site:
    """A workspace with `ort-cpu` and `own`, one small model, nothing built yet."""
    site = lay_out(session_folder / "own-command", environment=environment)
    document = yaml.safe_load(site.matrix.read_text())
    ort_cpu = document["images"]["ort-cpu"]
    document["images"] = {
        "ort-cpu": ort_cpu,
        "own": {**ort_cpu, "smoke": {"command": [PYTHON, "/opt/app/full.py"]}},
    }
    shape = [1, 3, 8, 8]
    document["models"] = {
        "plain": {
            "source": {"file": "models/plain.onnx"},
            "sha256": digest_of_bytes(MODEL),
            "inputs": {"x": {"dtype": "float32", "shape": ["n", 3, "h", "w"]}},
            "profiles": {"8": {"x": {"min": shape, "opt": shape, "max": shape}}},
            "tolerance": {"fp32": {"max_abs": 0.0, "mean_abs": 0.0}},
        }
    }
    document |= {"precisions": ["fp32"], "smoke": {"requests": 5}}
    document["gpus"] = {"cpu": {"backends": ["onnxruntime-cpu"]}}
    del document["drop"]
    site.matrix.write_text(yaml.safe_dump(document, sort_keys=False))
    dockerfile = site.root / "images" / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + STAGE)
    ignored = site.root / "images" / ".dockerignore"
    ignored.write_text(ignored.read_text() + "!own\n")
    site.write("images/own/full.py", FULL)
    site.write("images/own/smoke.py", EXAMPLE)
    site.write("models/plain.onnx", MODEL)
    return site


@pytest.fixture(scope="module")
def report(own: Site) -> Any:
    """Both images built and smoked through the command line."""
    return own.planyard("build", "--json").expect(0).document()


@pytest.fixture(scope="module")
def engine_of_module(engine_host: str) -> Iterator[Engine]:
    with closing(Engine(engine_host)) as engine:
        yield engine


def tag_of(report: Any) -> str:
    """Where a build that smoked the image has left it in the engine."""
    digest: str = next(each["digest"] for each in report["images"] if each["name"] == "own")
    return f"planyard/own:{digest.removeprefix('sha256:')[:12]}"


def job_of(image: str, command: tuple[str, ...], served: Path, **limits: Any) -> SmokeJob:
    cell = Cell(
        id="own/plain/8/fp32/cpu",
        image="own",
        model="plain",
        profile="8",
        precision="fp32",
        gpu="cpu",
        sm=None,
        backend="onnxruntime-cpu",
    )
    return SmokeJob(
        cell=cell,
        image=image,
        python=PYTHON,
        served=served,
        inputs={"x": X},
        limits=SmokeLimits(
            memory=ByteSize(512 << 20), requests=5, warmup=1, timeout_seconds=120, **limits
        ),
        gpu=False,
        command=command,
    )


Run = Callable[..., tuple[SmokeRun, SmokeVerdict]]


@pytest.fixture
def run(engine_of_module: Engine, tmp_path: Path) -> Run:
    """Runs a command in an image, and judges it against what the model computes."""

    def run_command(
        image: str, *command: str, gates: Gates | None = None, model: bytes = MODEL, **limits: Any
    ) -> tuple[SmokeRun, SmokeVerdict]:
        served = tmp_path / "model" / "plain.onnx"
        served.parent.mkdir()
        served.write_bytes(model)
        (tmp_path / "scratch").mkdir()
        job = job_of(image, command, served, **limits)
        done, outputs = run_job(job, runner=engine_of_module.run, scratch=tmp_path / "scratch")
        evidence = Evidence(
            run=done,
            outputs=outputs,
            golden={"y": np.maximum(X, 0) + np.float32(0.5)},
            tolerance=Tolerance(max_abs=0, mean_abs=0),
            backend="onnxruntime-cpu",
            pins={"onnxruntime": "1.31.1"},
            needed=("onnxruntime",),
            attention_blocks=0,
            asked=series_of(job),
        )
        # Without a reference load around the run, the latency gate has nothing to say.
        gates = gates or Gates(latency=False)
        return done, judge(evidence, gates=gates, rules=load_rules())

    return run_command


def failed(verdict: SmokeVerdict) -> set[str]:
    return {name for name, found in verdict.gates.items() if found == "failed"}


def words(verdict: SmokeVerdict) -> str:
    return " ".join(finding.message for finding in verdict.findings)


def test_a_command_that_reports_everything_passes_every_gate(report: Any) -> None:
    verdicts = {each["cell"]: each for each in report["verdicts"]}
    assert {cell: each["verdict"] for cell, each in verdicts.items()} == {
        "ort-cpu/plain/8/fp32/cpu": "passed",
        "own/plain/8/fp32/cpu": "passed",
    }
    gates = verdicts["own/plain/8/fp32/cpu"]["gates"]
    assert set(gates.values()) == {"passed"}
    assert {"exit", "logs", "providers", "placement", "outputs", "latency", "versions"} <= set(
        gates
    )


def test_nothing_of_the_protocol_is_left_in_the_log(run: Run, report: Any) -> None:
    done, verdict = run(tag_of(report), PYTHON, "/opt/app/full.py")
    assert verdict.verdict == "passed", verdict.findings
    assert 'planyard":' not in done.stdout
    assert done.stdout.startswith("loading /model/plain.onnx own/plain/8/fp32/cpu\n\n\n")
    assert (done.own_command, done.problems) == (True, ())


WRONG: dict[str, tuple[set[str], str]] = {
    "says nothing": ({"providers", "placement", "outputs", "versions"}, "did not report its"),
    "on stderr": ({"providers", "placement", "outputs", "versions"}, "did not report its"),
    "no log": ({"logs"}, "printed nothing"),
    "half a line": ({"exit", "outputs"}, "stdout line 5: this is not one whole JSON object"),
    "text before a line": ({"exit", "outputs"}, "something stands before the object"),
    "twice": ({"exit"}, "providers was reported before"),
    "a negative count": ({"exit", "placement"}, "`$.memcpy_nodes`"),
    "another provider": ({"providers", "placement"}, "CUDAExecutionProvider was asked for"),
    "another version": ({"versions"}, "is 1.0.0, 1.31.1 is pinned"),
    "other numbers": ({"outputs"}, "largest difference of y"),
    "NaN": ({"outputs"}, "1 of 192 values of y are NaN or Inf"),
    "NaN ms": ({"exit"}, "this is not one whole JSON object"),
    "a short file": ({"exit", "outputs"}, "is 768 bytes, the file has 0"),
    "a file that is not there": ({"exit", "outputs"}, "z.bin: No such file"),
    "an error and 0": ({"exit"}, "reported an error: the third request was wrong"),
    "exit 3": ({"exit"}, "exit code 3"),
    "a loss in the log": ({"logs"}, "stdout line 9: "),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_command_that_goes_wrong_fails(run: Run, report: Any, wrong: str) -> None:
    gates, said = WRONG[wrong]
    _, verdict = run(tag_of(report), PYTHON, "/opt/app/full.py", wrong)
    assert verdict.verdict == "failed"
    assert failed(verdict) == gates, verdict.findings
    assert said in words(verdict)


def gates_in_page(image: str) -> Gates:
    """The gates that the page shows for an image, read as a matrix would be."""
    [shown] = [each for each in MATRICES if image in each["images"]]
    document = yaml.safe_load((REPOSITORY / "matrix.yaml").read_text())
    document["gates"] = shown["gates"]
    gates = load_matrix(yaml.safe_dump(document).encode(), name="matrix.yaml").matrix.gates
    return gates_of_cell(gates, f"{image}/plain/8/fp32/cpu")


def command_in_page(image: str) -> list[str]:
    [shown] = [each["images"][image] for each in MATRICES if image in each["images"]]
    command: list[str] = shown["smoke"]["command"]
    return command


def test_the_python_example_passes_by_the_gates_of_its_page(run: Run, report: Any) -> None:
    import msgspec

    gates = msgspec.structs.replace(gates_in_page("own"), latency=False)
    done, verdict = run(tag_of(report), *command_in_page("own"), gates=gates, concurrency=(1, 2))
    assert verdict.verdict == "passed", (verdict.findings, done.stderr)
    assert verdict.gates["outputs"] == verdict.gates["exit"] == verdict.gates["logs"] == "passed"
    assert done.report is not None
    assert [(each.concurrency, len(each.latencies_ms)) for each in done.report.series] == [
        (1, 5),
        (2, 5),
    ]


@pytest.fixture(scope="module")
def shell(engine_of_module: Engine, cache: Path) -> str:
    """A root with a shell in it."""
    spec = DebianBase(release="bookworm", packages=("libc6", "dash"))
    bases = BaseCache(cache / "bases", epoch_seconds=DEFAULT_EPOCH_SECONDS)
    base = bases.find(spec) or bases.bootstrap(spec, report=lambda _: None)
    if not engine_of_module.has_image(base.tag):
        engine_of_module.import_root(bases.verified_tar(base), tag=base.tag)
    return base.tag


@pytest.mark.parametrize(
    ("model", "passes"), [(MODEL, True), (b"", False)], ids=["a model", "none"]
)
def test_the_shell_example_does_what_its_page_says(
    run: Run, shell: str, model: bytes, passes: bool
) -> None:
    gates = gates_in_page("shell")
    done, verdict = run(shell, *command_in_page("shell"), gates=gates, model=model)
    assert (verdict.verdict == "passed") is passes, verdict.findings
    if passes:
        assert done.stdout == "own/plain/8/fp32/cpu is served\n"
    else:
        assert failed(verdict) == {"exit", "logs"}
        assert "exit code 1: no /model/plain.onnx" in words(verdict)


def test_a_command_that_is_not_there_is_said(run: Run, shell: str) -> None:
    done, verdict = run(shell, "/opt/app/none")
    assert done.exit_code == 127
    assert "exit" in failed(verdict)
    assert "/opt/app/none" in words(verdict)
