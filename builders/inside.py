"""Run a script of `engines/inside` in a container: a JSON job in, one JSON event a line out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.workspace import Workspace
from planyard.core.errors import PlanCompileError
from planyard.core.units import format_bytes
from planyard.edge.console import Step
from planyard.edge.docker import Container, Mount

Event = dict[str, Any]
_TAIL_LINES = 40


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a script runs: image and interpreter, the model's folder, the folder it may write.

    `inputs` is a folder it may read as /inputs; with `gpu` it sees this machine's GPUs.
    """

    image: str
    python: str
    model: Path
    out: Path
    inputs: Path | None = None
    gpu: bool = False
    memory_bytes: int
    timeout_seconds: float


def run_inside(
    script: Path,
    document: Mapping[str, Any],
    *,
    place: Place,
    workspace: Workspace,
    step: Step | None = None,
) -> tuple[list[Event], tuple[str, ...]]:
    """Run `script` on a job; returns its events and the tail of everything else it said.

    Raises PlanCompileError when it ran out of time, or of memory before its first event.
    """
    folder = place.out.parent / f"{place.out.name}-job"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(document))
    inputs = [Mount(source=place.inputs, target="/inputs")] if place.inputs else []
    container = Container(
        image=place.image,
        command=(place.python, "/planyard/inside.py", "/job/job.json"),
        mounts=(
            Mount(source=script, target="/planyard/inside.py"),
            Mount(source=folder, target="/job"),
            Mount(source=place.model, target="/model"),
            Mount(source=place.out, target="/out", writable=True),
            *inputs,
        ),
        gpu=place.gpu,
        memory_bytes=place.memory_bytes,
        timeout_seconds=place.timeout_seconds,
    )
    engine = workspace.engine()
    with workspace.outside.running():
        ended = engine.run(container, on_output=_progress(step) if step else None)
    events = list(_events(ended.stdout))
    tail = tuple(ended.stderr.decode(errors="replace").splitlines()[-_TAIL_LINES:])
    if ended.timed_out:
        raise PlanCompileError(f"no end within {place.timeout_seconds:g} s", log_tail=tail)
    if ended.out_of_memory and not events:
        limit = format_bytes(place.memory_bytes)
        raise PlanCompileError(f"out of memory: the limit is {limit}", log_tail=tail)
    return events, tail


def _progress(step: Step) -> Callable[[bytes], None]:
    def show(data: bytes) -> None:
        for event in _events(data):
            if "cell" in event:
                step.update(f"{event['event']} {event['cell']}")

    return show


def _events(data: bytes) -> Iterator[Event]:
    """The events in what a script printed; other lines are not its protocol."""
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event


def out_folder(scratch: Path, name: str) -> Path:
    """A folder that the image's user, whoever it is, can write to."""
    folder = scratch / name
    folder.mkdir()
    folder.chmod(0o777)
    return folder
