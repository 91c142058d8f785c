"""Whole planyard commands whose engine is made up: real recipes, stores and leases, no Docker.

`python -m tests.fake_builds ARGUMENTS` is `planyard ARGUMENTS` with that engine. Every image that
is built, plan compiled and model converted is a line of the file FAKE_BUILDS_LOG, written when it
begins and when it is done. FAKE_BUILDS_HANG names what this command never ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from planyard.core.digest import digest_of_bytes
from planyard.edge import proc
from planyard.edge.docker import Container, Ended
from tests import small_site, tars
from tests.smoke_runs import InProcess, ended, host_path, no_reference_load

REPOSITORY = Path(__file__).resolve().parents[1]
LOG, HANG, GATE = "FAKE_BUILDS_LOG", "FAKE_BUILDS_HANG", "FAKE_BUILDS_GATE"
BUSY_SECONDS = 0.2

MATRIX = (
    small_site.MATRIX.replace("precisions: [fp32]", "precisions: [fp32, fp16]")
    .replace(
        "fp32: {max_abs: 0.001, mean_abs: 0.0001}",
        "fp32: {max_abs: 0.001, mean_abs: 0.0001}\n      fp16: {max_abs: 0.1, mean_abs: 0.01}",
    )
    .replace("context: ours}", "context: ours, compiler: compiler}")
)
"""Three images and a compiler that they share; fp16 needs a conversion of the one model."""

_HEAD = (Path(__file__).parent / "data/plans/rtx-1.7.1.116-sm89.head").read_bytes()
_PROBE = {
    "schema": 1,
    "versions": {"onnxruntime": {"version": "1.31.1", "how": "imported from /x"}},
    "device": {"count": 0, "driver": None, "fp16": None, "int8": None},
}


def note(what: str) -> None:
    """Add a line to the log that all commands share."""
    line = f"{what} by {os.getpid()}\n".encode()
    with open(os.environ[LOG], "ab") as file:  # noqa: PTH123 - one write, appended whole
        os.write(file.fileno(), line)


def work_on(what: str) -> None:
    """Take some time, or all of it."""
    note(f"began {what}")
    if what == os.environ.get(HANG):
        threading.Event().wait()
    time.sleep(BUSY_SECONDS)


@dataclass
class FakeEngine:
    """Has every image, builds in no time, and answers as each script would."""

    host: str = "fake"
    built: dict[str, str] = field(default_factory=dict)
    smoke: InProcess = field(default_factory=lambda: InProcess(serve=small_site.plain))

    def has_image(self, reference: str) -> bool:
        return reference.startswith("planyard/")

    def has_gpu_runtime(self) -> bool:
        return False

    def close(self) -> None:
        return

    def remove_image(self, reference: str) -> None:
        return

    def build(self, args: Sequence[str], *, on_line: Callable[[str], None]) -> None:
        target = args[args.index("--target") + 1]
        work_on(f"image {target}")
        identifier = digest_of_bytes(target.encode())
        self.built[identifier] = target
        Path(args[args.index("--iidfile") + 1]).write_text(identifier)
        note(f"made image {target}")

    def save(self, reference: str, path: Path) -> None:
        data = self.built[reference].encode() * 1000
        tars.docker_archive(path, [tars.tar([tars.file("who", data)])])

    def run(self, container: Container, *, on_output: object = None) -> Ended:
        script = host_path(container, container.command[1]).name
        if script == "probe.py":
            return ended(stdout=json.dumps(_PROBE).encode())
        if container.command[1].endswith("/smoke.py"):
            return self.smoke(container)
        job = json.loads(host_path(container, "/job/job.json").read_bytes())
        out = host_path(container, "/out")
        answers = {"tensorrt_rtx.py": _compile, "to_fp16.py": _convert, "fp16_range.py": _look}
        events = answers[script](job, out)
        return ended(stdout=b"".join(json.dumps(each).encode() + b"\n" for each in events))


def _compile(job: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for plan in job["plans"]:
        cell = plan["cell"]
        work_on(f"plan {cell}")
        data = bytearray(_HEAD + cell.encode() + os.urandom(2 << 20) + bytes(4))
        struct.pack_into("<Q", data, 16, len(data))
        struct.pack_into("<QQ", data, 96, len(_HEAD), len(data) - 4 - len(_HEAD))  # the weights
        (out / plan["out"]).write_bytes(data)
        found = {"seconds": 0.5, "size_bytes": len(data), "sha256": digest_of_bytes(data)[7:]}
        events.append({"event": "compiled", "cell": cell, **found})
        note(f"made plan {cell}")
    return events


def _convert(_: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    work_on("fp16")
    data = os.urandom(2 << 20)  # no two conversions are alike: another one would be seen
    (out / "model.onnx").write_bytes(data)
    file = {"name": "model.onnx", "sha256": digest_of_bytes(data)[7:], "size_bytes": len(data)}
    output = {"name": "y", "max_abs": 0.001, "mean_abs": 0.0001, "nan": 0, "inf": 0}
    compared = [{"inputs": "noise", "outputs": [output]}]
    note("made fp16")
    event = {"event": "converted", "model": "model.onnx", "files": [file], "comparisons": compared}
    return [event]


def _look(_: dict[str, Any], __: Path) -> list[dict[str, Any]]:
    return [{"event": "checked", "tensors": 5, "count": 0, "overflows": []}]


@dataclass(frozen=True, kw_only=True)
class Builds:
    """Workspaces below a folder, and commands in them, all on one store."""

    folder: Path
    store: str
    environment: dict[str, str]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def lay_out(self, name: str, *, matrix: str = MATRIX) -> Path:
        root = self.folder / name
        small_site.lay_out(root, matrix=matrix)
        return root

    def start(self, name: str, *arguments: str, **changes: str) -> Command:
        """A command in the workspace of that name, which is laid out if need be."""
        root = self.folder / name
        if not root.exists():
            self.lay_out(name)
        said = (root / "said").open("wb+")
        args = [sys.executable, "-m", "tests.fake_builds", *arguments]
        args += ["--matrix", str(root / "matrix.yaml"), "--store", self.store]
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "NO_COLOR": "1",
            **self.environment,
            LOG: str(self.log),
            **changes,
        }
        for foreign in ("PLANYARD_CACHE", "PLANYARD_STORE", "GITHUB_STEP_SUMMARY"):
            environment.pop(foreign, None)
        started = proc.start(args, cwd=REPOSITORY, env=environment, log=root / "said")
        said.close()
        return Command(name=name, process=started, text=root / "said", made=self.made)

    def made(self, began: str = "made") -> Counter[str]:
        """How often each thing was made, or `began`; in the log of all commands."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = (line.partition(" by ")[0].partition(" ") for line in lines)
        return Counter(what for how, _, what in found if how == began)

    def made_by(self, number: int) -> set[str]:
        """What the command with that process number made."""
        lines = [line.split(" by ") for line in self.log.read_text().splitlines()]
        return {
            what.removeprefix("made ")
            for what, who in lines
            if who == str(number) and what.startswith("made ")
        }


@dataclass(frozen=True, kw_only=True)
class Command:
    """A planyard command that runs, or ran."""

    name: str
    process: subprocess.Popen[bytes]
    text: Path
    made: Callable[..., Counter[str]]

    def said(self) -> str:
        return self.text.read_text(errors="replace")

    def wait_until(self, holds: Callable[[], object], *, limit_seconds: float = 120) -> None:
        """Wait until something holds; fails when the command ends before."""
        deadline = time.monotonic() + limit_seconds
        while not holds():
            assert self.process.poll() is None, f"{self.name} ended too early:\n{self.said()}"
            assert time.monotonic() < deadline, f"{self.name} did not come to it:\n{self.said()}"
            time.sleep(0.05)

    def report(self, *, exit_code: int = 0, limit_seconds: float = 240) -> Any:
        """Wait for its end; gives the document of `--json`."""
        assert self.process.wait(limit_seconds) == exit_code, f"{self.name}:\n{self.said()}"
        documents = [line for line in self.said().splitlines() if line.startswith('{"schema"')]
        return json.loads(documents[-1]) if documents else None


def main() -> None:
    """`planyard`, with the engine above, once the gate is open."""
    from builders import setup
    from builders.cli import main as command_line
    from planyard.edge import console, docker

    # With --json too: tests read what a person would see, and the document.
    console.Console.quiet = property(lambda _: False, lambda _, __: None)  # type: ignore[assignment]
    engine: Any = FakeEngine()
    docker.find_engine = lambda: engine  # type: ignore[assignment]
    setup.missing_tools = lambda **_: ()  # type: ignore[assignment]
    no_reference_load(pytest.MonkeyPatch())
    if gate := os.environ.get(GATE):
        print("ready", flush=True)
        with open(gate, "rb") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_SH)
    command_line()


if __name__ == "__main__":
    main()
