"""Compile plans of classic TensorRT here: `engines/inside/tensorrt.py` without a container.

The job and the events are that script's; the plans stay for the items that follow.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import engines
from engines.header import HEAD_BYTES, NotAPlan, PlanHeader, read_header
from planyard.edge.docker import Ended
from tests.gpu.bench import Bench
from tests.gpu.record import PlanFound
from tests.gpu.subjects import Subject

SCRIPT = Path(engines.__file__).parent / "inside" / "tensorrt.py"
JOB_SCHEMA = 1
WORKSPACE_BYTES = 8 << 30
_SAID = 400


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a compilation left: plans by their cells, and what the compiler said of the rest."""

    version: str
    plans: Mapping[str, PlanFound] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: str = ""
    seconds: float = 0.0

    @property
    def why_not(self) -> str:
        """Why a plan is missing, in the compiler's words; empty when all are here."""
        said = [f"{cell}: {message}" for cell, message in self.refused.items()]
        return "; ".join([*said, *([self.failed] if self.failed else [])])


def compile_here(
    bench: Bench,
    subjects: Sequence[Subject],
    *,
    version: str,
    seconds: float,
    caches: Sequence[Path] = (),
    level: int | None = None,
) -> Compiled:
    """Compile one model at the profiles of `subjects`, with a version of TensorRT.

    With `caches` their timings are used; a cache is written in any case. Plans are kept under
    `work/plans`, and replace earlier ones of their names.
    """
    sm = bench.sm
    out = bench.places.work / "plans" / version
    out.mkdir(parents=True, exist_ok=True)
    cells = {subject.cell("tensorrt", sm=sm).id: subject for subject in subjects}
    names = {cell: f"{each.name}-{each.profile}.plan" for cell, each in cells.items()}
    document = {
        "schema": JOB_SCHEMA,
        "backend": "tensorrt",
        "model": str(subjects[0].path.absolute()),
        "version": version,
        "workspace_bytes": WORKSPACE_BYTES,
        "optimization_level": level,
        "out": str(out.absolute()),
        "flags": [],
        "timing_caches": [str(each.absolute()) for each in caches],
        "timing_cache_out": f"{subjects[0].name}.timings",
        "replay": False,
        "plans": [
            {
                "cell": cell,
                "sm": sm,
                "profile": msgspec.to_builtins(subject.spec.profiles[subject.profile]),
                "out": names[cell],
            }
            for cell, subject in cells.items()
        ],
    }
    with bench.scratch() as folder:
        job = folder / "job.json"
        job.write_text(json.dumps(document))
        ended = bench.program(
            (sys.executable, str(SCRIPT), str(job)),
            environment=bench.around.tensorrt(version),
            seconds=seconds,
        )
    used = "used" if caches else "written"
    return _compiled(ended, out, cells=cells, version=version, cache=used)


def _compiled(
    ended: Ended, out: Path, *, cells: Mapping[str, Subject], version: str, cache: Any
) -> Compiled:
    events = list(_events(ended.stdout))
    named = {each["cell"]: each for each in events if each.get("event") == "compiled"}
    refused = {each["cell"]: each["message"] for each in events if each.get("event") == "refused"}
    written = [each["out"] for each in events if each.get("event") == "cache"]
    failed = next((each["message"] for each in events if each.get("event") == "failed"), "")
    if not failed and len(named) + len(refused) < len(cells):
        last = ended.stderr.decode(errors="replace").strip()[-_SAID:]
        how = "it ran out of time" if ended.timed_out else f"it ended with {ended.exit_code}"
        failed = f"the compiler said nothing of some plans, {how}: {last}"
    return Compiled(
        version=version,
        plans={
            cell: plan_found(out / event["out"], event, version=version, what=cell, cache=cache)
            for cell, event in named.items()
        },
        paths={cell: out / event["out"] for cell, event in named.items()},
        cache=out / written[0] if written else None,
        refused=refused,
        failed=failed,
        seconds=ended.seconds,
    )


def plan_found(
    path: Path, event: Mapping[str, Any], *, version: str, what: str, cache: Any
) -> PlanFound:
    """A plan for the record: what the compiler said, and what its first bytes say."""
    inspector = path.with_suffix(".inspector.json")
    layers = None
    if event.get("inspector") and inspector.is_file():
        layers = len(json.loads(inspector.read_bytes())["Layers"])
    return PlanFound(
        what=what,
        version=version,
        compile_seconds=event["seconds"],
        size_bytes=event["size_bytes"],
        digest=f"sha256:{event['sha256']}",
        header=msgspec.to_builtins(header_of(path)),
        timing_cache=cache,
        layers=layers,
    )


def header_of(path: Path) -> PlanHeader | NotAPlan:
    """What a plan's first bytes say, read without TensorRT."""
    with path.open("rb") as file:
        return read_header(file.read(HEAD_BYTES), size_bytes=path.stat().st_size)


def kept_plan(bench: Bench, subject: Subject, *, version: str) -> Path | None:
    """The plan of a subject that an item before this one has compiled; None where there is none."""
    folder = bench.places.work / "plans" / version
    path = folder / f"{subject.name}-{subject.profile}.plan"
    return path if path.is_file() else None


def copy_with_version(path: Path, target: Path, version: str) -> Path:
    """The same plan with another version in its header: bytes 24 to 27."""
    shutil.copyfile(path, target)
    with target.open("r+b") as file:
        file.seek(24)
        file.write(bytes(int(part) for part in version.split(".")))
    return target


def _events(stdout: bytes) -> list[dict[str, Any]]:
    """The events of the script; a line that was cut off by the end of time is none."""
    found = []
    for line in stdout.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            found.append(event)
    return found
