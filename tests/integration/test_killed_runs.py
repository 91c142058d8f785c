"""Runs that do not end well, in real containers: each fails with a finding that says why.

The image is the slim base alone. What runs in it instead of planyard's script is written here: it
is killed by memory, time or a signal, says nothing, or leaves a report that is none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smoke.run
from builders.base import BaseCache
from builders.layers import DEFAULT_EPOCH_SECONDS
from builders.loading import load
from planyard.core.cells import Cell
from planyard.core.findings import Finding
from planyard.core.matrix import Tolerance
from planyard.core.matrix_smoke import Gates, SmokeLimits
from planyard.core.results import SmokeRun, SmokeVerdict
from planyard.core.units import ByteSize
from planyard.edge import docker_streams
from planyard.edge.docker import Container, Ended, Engine
from smoke.job import SmokeJob, series_of
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from smoke.run import run_job
from tests.workspaces import REPOSITORY

pytestmark = pytest.mark.docker

MIB = 1 << 20
X = np.arange(6, dtype="float32").reshape(2, 3)
PYTHON = "/usr/bin/python3.11"
# The gates without evidence from a script that is not planyard's are another test's.
GATES = Gates(attention=False, latency=False, utilization=False, versions=False)
REPORTED = """
import json, os, pathlib, struct
out = pathlib.Path("/out")
cpu = "CPUExecutionProvider"
report = {
    "providers_asked": [cpu], "providers_active": [cpu], "latencies_ms": [1.0],
    "session": {},
    "placement": [{"provider": cpu, "operator": "Relu", "count": 2}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [2, 3], "file": "y.bin"}],
}
print("ready", flush=True)
(out / "y.bin").write_bytes(struct.pack("<6f", 0, 1, 2, 3, 4, 5))
(out / "report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def engine_of_module(engine_host: str) -> Iterator[Engine]:
    with contextlib.closing(Engine(engine_host)) as engine:
        yield engine


@pytest.fixture(scope="module")
def image(engine_of_module: Engine, cache: Path) -> str:
    """Python and its library, as the default matrix's images start."""
    spec = load(REPOSITORY / "matrix.yaml").matrix.bases["slim"].debian
    assert spec
    bases = BaseCache(cache / "bases", epoch_seconds=DEFAULT_EPOCH_SECONDS)
    base = bases.find(spec) or bases.bootstrap(spec, report=lambda _: None)
    if not engine_of_module.has_image(base.tag):
        engine_of_module.import_root(bases.verified_tar(base), tag=base.tag)
    return base.tag


Run = Callable[..., tuple[SmokeRun, SmokeVerdict]]


@pytest.fixture
def run(
    image: str, engine_of_module: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs a script where planyard's would, and judges what came of it."""

    def run_script(
        script: str,
        *,
        memory_bytes: int = 256 * MIB,
        timeout_seconds: int = 60,
        runner: Callable[[Container], Ended] = engine_of_module.run,
    ) -> tuple[SmokeRun, SmokeVerdict]:
        inside, scratch, served = (tmp_path / name for name in ("inside", "scratch", "served"))
        for folder in (inside, scratch, served):
            folder.mkdir()
        (inside / "ort.py").write_text(script)
        (served / "model.onnx").write_bytes(b"onnx")
        monkeypatch.setattr(smoke.run, "INSIDE", inside)
        limits = SmokeLimits(memory=ByteSize(memory_bytes), timeout_seconds=timeout_seconds)
        job = job_of(image, served=served / "model.onnx", limits=limits)
        done, outputs = run_job(job, runner=runner, scratch=scratch)
        evidence = Evidence(
            run=done,
            outputs=outputs,
            golden={"y": X},
            tolerance=Tolerance(max_abs=0, mean_abs=0),
            backend="onnxruntime-cpu",
            pins={},
            needed=(),
            attention_blocks=0,
            asked=series_of(job),
        )
        return done, judge(evidence, gates=GATES, rules=load_rules())

    return run_script


def job_of(image: str, **fields: Any) -> SmokeJob:
    cell = Cell(
        id="own/ocr/640/fp32/cpu",
        image="own",
        model="ocr",
        profile="640",
        precision="fp32",
        gpu="cpu",
        sm=None,
        backend="onnxruntime-cpu",
    )
    return SmokeJob(cell=cell, image=image, python=PYTHON, inputs={"x": X}, gpu=False, **fields)


def exits(verdict: SmokeVerdict) -> list[Finding]:
    """What the end of a run was found to be; a run that did not end well has failed."""
    assert verdict.verdict == verdict.gates["exit"] == "failed"
    return [finding for finding in verdict.findings if finding.gate == "exit"]


def said(verdict: SmokeVerdict) -> str:
    return " ".join(finding.message for finding in exits(verdict))


def nothing_is_left(engine: Engine) -> bool:
    return engine.client.containers.list(all=True, filters={"label": "io.planyard.run"}) == []


def test_what_fails_below_passes_when_it_ends_well(run: Run) -> None:
    _, verdict = run(REPORTED)
    assert verdict.findings == ()
    assert verdict.verdict == "passed"


# Killed by memory, by time, by a signal

GROW = """
print("growing", flush=True)
held = []
while True:
    held.append(bytearray(b"x") * (1 << 20))
"""


def test_killed_by_memory(run: Run) -> None:
    done, verdict = run(REPORTED + GROW, memory_bytes=64 * MIB)
    assert (done.out_of_memory, done.exit_code, done.timed_out) == (True, 137, False)
    [finding] = exits(verdict)
    assert finding.rule == "exit.out-of-memory"
    assert "killed by SIGKILL (out of memory: the limit is 64 MiB)" in finding.message


def test_a_worker_killed_by_memory_is_seen_though_the_rest_ends_with_0(run: Run) -> None:
    worker = f"""{REPORTED}
if os.fork() == 0:
    held = []
    while True:
        held.append(bytearray(b"x") * (1 << 20))
os.wait()
"""
    done, verdict = run(worker, memory_bytes=64 * MIB)
    assert done.exit_code == 0
    [finding] = exits(verdict)
    assert finding.rule == "exit.out-of-memory"
    assert "the rest ended with 0" in finding.message


@pytest.mark.parametrize("ignoring", ["", "import signal; signal.signal(signal.SIGTERM, print)"])
def test_killed_by_time(run: Run, ignoring: str) -> None:
    started = time.monotonic()
    done, verdict = run(f"{REPORTED}\n{ignoring}\nimport time; time.sleep(600)", timeout_seconds=2)
    assert time.monotonic() - started < 60
    assert (done.timed_out, done.exit_code) == (True, None)
    assert "did not end within its time limit" in said(verdict)


def test_killed_by_its_own_fault(run: Run) -> None:
    done, verdict = run(REPORTED + "\nimport ctypes\nctypes.string_at(0)\n")
    assert done.exit_code == 139
    assert "killed by SIGSEGV (it used memory that is not its own)" in said(verdict)


def test_a_server_killed_by_a_signal_below_its_start_script(run: Run) -> None:
    """The first process of a container cannot kill itself; what it starts can, as in a shell."""
    child = "\nif os.fork() == 0:\n    os.kill(os.getpid(), 9)\nos._exit(128 + os.wait()[1])\n"
    done, verdict = run(REPORTED + child)
    assert (done.exit_code, done.out_of_memory) == (137, False)
    assert "killed by SIGKILL" in said(verdict)
    assert "exit code 137: ready" in said(verdict)


@pytest.mark.parametrize(("signal", "code"), [("SIGKILL", 137), ("SIGTERM", 143)])
def test_killed_from_outside(run: Run, engine_of_module: Engine, signal: str, code: int) -> None:
    """By the host's own hand; the default action of SIGTERM is given back to it first."""
    script = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
print("waiting", flush=True)
time.sleep(600)
"""

    killers: list[threading.Thread] = []

    def kill_when_it_waits(container: Container) -> Ended:
        def kill(_: bytes) -> None:
            if not killers:  # a second one would find that it is not running
                [it] = engine_of_module.client.containers.list(filters={"label": "io.planyard.run"})
                killers.append(threading.Thread(target=it.kill, args=[signal]))
                killers[0].start()

        return engine_of_module.run(container, on_output=kill)

    done, verdict = run(script, runner=kill_when_it_waits)
    killers[0].join()
    assert done.exit_code == code
    assert f"killed by {signal}" in said(verdict)


# Output: none, and too much

FLOOD = """
import sys
while True:
    sys.{stream}.write("x" * 8000 + "\\n")
"""


def test_an_empty_log(run: Run) -> None:
    _, verdict = run(REPORTED.replace('print("ready", flush=True)', ""))
    assert verdict.verdict == "failed"
    assert [finding.rule for finding in verdict.findings] == ["logs.no-evidence"]


def test_nothing_at_all(run: Run) -> None:
    done, verdict = run("")
    assert (done.exit_code, done.stdout, done.stderr, done.report) == (0, "", "", None)
    assert said(verdict) == "the script ended with 0 and left no report.json"
    assert {name for name, found in verdict.gates.items() if found == "passed"} == set()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_of_output_is_stopped(
    run: Run, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of a quarter of a gigabyte is lowered, so that the test is quick."""
    lower = {"limit_bytes": 8 * MIB}
    monkeypatch.setattr(docker_streams.BoundedStreams.__init__, "__kwdefaults__", lower)
    done, verdict = run(REPORTED + FLOOD.format(stream=stream))
    assert (done.flooded, done.exit_code, done.timed_out) == (stream, None, False)
    assert len(done.stdout) + len(done.stderr) <= 2 * docker_streams.KEPT_OF_A_FLOOD_BYTES
    [finding] = exits(verdict)
    assert finding.rule == "exit.flooded"
    assert f"wrote more to {stream} than a run may" in finding.message


def test_whoever_stops_looking_leaves_no_flood_behind(run: Run, engine_of_module: Engine) -> None:
    """As by Ctrl-C: an engine waits for output to be taken before it removes a container."""

    def interrupted(container: Container) -> Ended:
        def interrupt(_: bytes) -> None:
            raise KeyboardInterrupt

        return engine_of_module.run(container, on_output=interrupt)

    with pytest.raises(KeyboardInterrupt):
        run(FLOOD.format(stream="stdout"), runner=interrupted)
    assert nothing_is_left(engine_of_module)


# A report that is none

HALF = 'path = out / "report.json"; path.write_bytes(path.read_bytes()[:-40])'
REPLACE = 'os.rename("/out/report.json", "/out/r"); '
LEFT = {
    "cut off": (HALF, "report.json is no whole report (Input data was truncated)"),
    "a folder": (REPLACE + 'os.mkdir("/out/report.json")', "is a folder"),
    "a link outside": (REPLACE + 'os.symlink("/etc/passwd", "/out/report.json")', "is a link"),
    "a pipe": (REPLACE + 'os.mkfifo("/out/report.json")', "is a pipe"),
    "a gigabyte": ('os.truncate("/out/report.json", 1 << 30)', "1.1 GB, the limit is 16.8 MB"),
    "zeros after it": ('os.truncate("/out/report.json", 1 << 20)', "malformed"),
}


@pytest.mark.parametrize(("left", "words"), LEFT.values(), ids=LEFT.keys())
def test_a_report_that_cannot_be_read(run: Run, left: str, words: str) -> None:
    done, verdict = run(f"{REPORTED}\n{left}\n")
    assert (done.exit_code, done.report) == (0, None)
    [finding] = exits(verdict)
    assert finding.rule == "exit.report"
    assert words in finding.message
    assert {"providers", "placement", "outputs"} <= {
        name for name, found in verdict.gates.items() if found == "failed"
    }


OUTPUTS = {
    "shorter than its shape": ('os.truncate("/out/y.bin", 23)', "24 bytes, the file has 23"),
    "longer": ('os.truncate("/out/y.bin", 1 << 40)', "the file has 1099511627776"),
    "a pipe": ('os.remove("/out/y.bin"); os.mkfifo("/out/y.bin")', "y.bin is a pipe"),
    "a link": ('os.remove("/out/y.bin"); os.symlink("/job/input-0.bin", "/out/y.bin")', "a link"),
}


@pytest.mark.parametrize(("left", "words"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_an_output_that_cannot_be_read(run: Run, left: str, words: str) -> None:
    done, verdict = run(f"{REPORTED}\n{left}\n")
    assert done.exit_code == 0
    assert done.report is not None
    [finding] = exits(verdict)
    assert finding.rule == "exit.report"
    assert "output 'y' cannot be read" in finding.message
    assert words in finding.message
    assert verdict.gates["outputs"] == "failed"


def test_no_container_is_left(run: Run, engine_of_module: Engine) -> None:
    run(REPORTED, timeout_seconds=60)
    assert nothing_is_left(engine_of_module)
