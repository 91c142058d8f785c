"""Run one cell in its image the way production would, and bring back everything it said and did.

No network, read-only root, no capabilities, a memory and a time limit. What runs inside is one
script of `smoke/inside`, mounted read-only, or the image's own command; it reports, and the gates
judge on the host. What was reported and cannot be read is a problem of the run, never left out.
"""

from __future__ import annotations

import math
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from planyard.core.results import SmokeReport, SmokeRun, TensorEvidence
from planyard.core.units import format_bytes
from planyard.edge.docker import Container, Ended, Mount
from smoke.job import INSIDE, SCRIPTS, Places, SmokeJob, write_job
from smoke.own_command import read_lines
from smoke.own_lines import PROTOCOL

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

_REPORT_LIMIT_BYTES = 16 << 20
_OUTPUTS_LIMIT_BYTES = 4 << 30
_MAX_PROBLEMS = 20
_SHOWN = 300
# Levels that would hide the lines the log gate reads are set open.
_ENVIRONMENT: Mapping[str, str] = {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "0"}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
Runner = Callable[[Container], Ended]
_IN_CONTAINER = Places()


class UnreadableError(ValueError):
    """A file that a run left is not what it has to be: what it is instead, and how to mend it."""


@dataclass(frozen=True, kw_only=True)
class _Reported:
    """What a run reported, its stdout without that, and what of it cannot be read."""

    report: SmokeReport | None
    stdout: bytes
    problems: tuple[str, ...] = ()


def run_job(
    job: SmokeJob,
    *,
    runner: Runner,
    scratch: Path,
    clock: Callable[[], float] = time.time,
    places: Places = _IN_CONTAINER,
) -> tuple[SmokeRun, Arrays]:
    """Run a cell to its end; returns what it said, and its outputs by name.

    Outputs that cannot be read are left out, and named among the run's problems. `clock` says the
    seconds of the epoch. `places` are the paths the script is told: other ones than a container's
    only where `runner` needs no container.
    """
    work, out = scratch / "job", scratch / "out"
    work.mkdir()
    out.mkdir()
    out.chmod(0o777)  # the image's user is not this one
    write_job(job, work, places=places)
    began_seconds = clock()
    ended = runner(_container(job, work=work, out=out))
    said = _own_report(ended) if job.command else _script_report(ended, out / "report.json")
    problems = list(said.problems)
    outputs = read_outputs(said.report, out, on_problem=problems.append) if said.report else {}
    run = SmokeRun(
        cell=job.cell.id,
        image=job.image,
        exit_code=ended.exit_code,
        timed_out=ended.timed_out,
        out_of_memory=ended.out_of_memory,
        flooded=ended.flooded,
        memory_limit_bytes=job.limits.memory,
        began_seconds=began_seconds,
        seconds=ended.seconds,
        stdout=said.stdout.decode(errors="replace"),
        stderr=ended.stderr.decode(errors="replace"),
        report=said.report,
        own_command=bool(job.command),
        problems=tuple(problems[:_MAX_PROBLEMS]),
    )
    return run, outputs


def _container(job: SmokeJob, *, work: Path, out: Path) -> Container:
    command, environment = job.command, dict(_ENVIRONMENT)
    mounts = [
        Mount(source=work, target="/job"),
        Mount(source=job.served.parent, target="/model"),
        Mount(source=out, target="/out", writable=True),
    ]
    if command:
        environment |= _own_environment(job)
    else:
        command = (job.python, "/planyard/smoke.py", "/job/job.json")
        if job.source:  # its weights may lie in other files of that folder
            mounts.append(Mount(source=job.source.parent, target="/source"))
        script = INSIDE / SCRIPTS[job.cell.backend]
        mounts.append(Mount(source=script, target="/planyard/smoke.py"))
    return Container(
        image=job.image,
        command=command,
        mounts=tuple(mounts),
        environment=environment,
        memory_bytes=job.limits.memory,
        timeout_seconds=job.limits.timeout_seconds,
        gpu=job.gpu,
    )


def _own_environment(job: SmokeJob) -> dict[str, str]:
    """How an image's own command knows what it is asked; docs/smoke-command.md."""
    return {
        "PLANYARD_JOB": "/job/job.json",
        "PLANYARD_MODEL": f"/model/{job.served.name}",
        "PLANYARD_OUT": "/out",
        "PLANYARD_CELL": job.cell.id,
        "PLANYARD_PROTOCOL": str(PROTOCOL),
    }


def _own_report(ended: Ended) -> _Reported:
    own = read_lines(ended.stdout)
    return _Reported(report=own.report, stdout=own.log, problems=tuple(map(str, own.problems)))


def _script_report(ended: Ended, path: Path) -> _Reported:
    try:
        return _Reported(report=read_report(path), stdout=ended.stdout)
    except FileNotFoundError:
        # A run that was stopped could not write one; that it was stopped is said elsewhere.
        said = [f"the script ended with 0 and left no {path.name}"] if ended.exit_code == 0 else []
    except (UnreadableError, OSError) as error:
        said = [f"{_why(error)}: nothing but the script may write to /out"]
    return _Reported(report=None, stdout=ended.stdout, problems=tuple(said))


def read_report(path: Path) -> SmokeReport:
    """What the script reported.

    Raises UnreadableError for anything else than a plain file with a whole report of a sane size,
    FileNotFoundError when there is none.
    """
    if (size_bytes := _plain_size(path)) > _REPORT_LIMIT_BYTES:
        limit = format_bytes(_REPORT_LIMIT_BYTES)
        raise UnreadableError(f"{path.name} has {format_bytes(size_bytes)}, the limit is {limit}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=SmokeReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(f"{path.name} is no whole report ({error})") from error


def _plain_size(path: Path) -> int:
    """The size of a regular file; UnreadableError for a link, a pipe nobody writes to, a folder."""
    mode = (status := path.lstat()).st_mode
    if not stat.S_ISREG(mode):
        kind = next((words for holds, words in _KINDS if holds(mode)), "a device")
        raise UnreadableError(f"{path.name} is {kind}, not a file")
    return status.st_size


def read_outputs(
    report: SmokeReport, folder: Path, *, on_problem: Callable[[str], None] = lambda _: None
) -> Arrays:
    """The arrays a run wrote, those whose files are what the report says; the rest is a problem.

    What is in a file is the image's word: only numbers are taken, no more than the shape says, and
    no more in all than memory has room for.
    """
    found: Arrays = {}
    left_bytes = _OUTPUTS_LIMIT_BYTES
    for output in report.outputs:
        try:
            if output.name in found:
                raise UnreadableError("it was reported before")
            found[output.name] = _read_output(output, folder, limit_bytes=left_bytes)
            left_bytes -= found[output.name].nbytes
        except (OSError, ValueError, TypeError, SyntaxError) as error:
            on_problem(f"output {output.name[:80]!r} cannot be read: {_why(error)}")
    return found


def _why(error: Exception) -> str:
    """The words of an error, without a path of this machine."""
    if isinstance(error, OSError):
        return f"{Path(str(error.filename)).name[:80]}: {error.strerror}"
    return str(error)[:_SHOWN]


def _read_output(
    output: TensorEvidence, folder: Path, *, limit_bytes: int
) -> npt.NDArray[np.generic]:
    import numpy as np

    path, kind = folder / Path(output.file).name, np.dtype(output.dtype)
    if kind.kind not in "fiub" or min(output.shape, default=0) < 0:
        raise UnreadableError(f"{kind} of shape {output.shape} is no tensor of numbers")
    size_bytes = math.prod(output.shape) * kind.itemsize
    if size_bytes > limit_bytes:
        limit = format_bytes(_OUTPUTS_LIMIT_BYTES)
        raise UnreadableError(f"the outputs of a run may have {limit} in all")
    if (found_bytes := _plain_size(path)) != size_bytes:
        said = f"{kind} of shape {output.shape} is {size_bytes} bytes"
        raise UnreadableError(f"{said}, the file has {found_bytes}")
    return np.frombuffer(path.read_bytes(), dtype=kind).reshape(output.shape)
