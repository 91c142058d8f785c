"""Run one cell in its image the way production would, and bring back everything it said and did.

No network, read-only root, no capabilities, a memory and a time limit. What runs inside is one
script of `smoke/inside`, mounted read-only; it reports, and the gates judge on the host.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from planyard.core.results import SmokeReport, SmokeRun
from planyard.edge.docker import Container, Ended, Mount
from smoke.job import INSIDE, SCRIPTS, SmokeJob, write_job

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

_REPORT_LIMIT_BYTES = 16 << 20
_OUTPUT_LIMIT_BYTES = 4 << 30
Runner = Callable[[Container], Ended]


def run_job(job: SmokeJob, *, runner: Runner, scratch: Path) -> tuple[SmokeRun, Arrays]:
    """Run a cell to its end; returns what it said, and its outputs by name.

    Outputs that cannot be read are left out: the output gate fails without them.
    """
    work, out = scratch / "job", scratch / "out"
    work.mkdir()
    out.mkdir()
    out.chmod(0o777)  # the image's user is not this one
    write_job(job, work)
    ended = runner(_container(job, work=work, out=out))
    report = read_report(out / "report.json")
    run = SmokeRun(
        cell=job.cell.id,
        image=job.image,
        exit_code=ended.exit_code,
        timed_out=ended.timed_out,
        seconds=ended.seconds,
        stdout=ended.stdout.decode(errors="replace"),
        stderr=ended.stderr.decode(errors="replace"),
        report=report,
    )
    return run, read_outputs(report, out) if report else {}


def _container(job: SmokeJob, *, work: Path, out: Path) -> Container:
    script = INSIDE / SCRIPTS[job.cell.backend]
    return Container(
        image=job.image,
        command=(job.python, "/planyard/smoke.py", "/job/job.json"),
        mounts=(
            Mount(source=script, target="/planyard/smoke.py"),
            Mount(source=work, target="/job"),
            Mount(source=job.served.parent, target="/model"),
            Mount(source=out, target="/out", writable=True),
        ),
        # Levels that would hide the lines the log gate reads are set open.
        environment={"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "0"},
        memory_bytes=job.limits.memory,
        timeout_seconds=job.limits.timeout_seconds,
        gpu=job.gpu,
    )


def read_report(path: Path) -> SmokeReport | None:
    """What the script reported; None when it wrote nothing that can be read."""
    try:
        if _plain_size(path) > _REPORT_LIMIT_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=SmokeReport)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _plain_size(path: Path) -> int:
    """The size of a regular file; OSError for a link, a pipe that nobody writes to, a folder."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path.name} is not a regular file")
    return status.st_size


def read_outputs(report: SmokeReport, folder: Path) -> Arrays:
    """The arrays a run wrote, those whose files are what the report says.

    What is in a file is the image's word: only numbers are taken, and no more than the shape says.
    """
    import numpy as np

    found: Arrays = {}
    for output in report.outputs:
        path = folder / Path(output.file).name
        try:
            kind = np.dtype(output.dtype)
            size_bytes = math.prod(output.shape) * kind.itemsize
            if kind.kind not in "fiub" or min(output.shape, default=0) < 0:
                continue
            if size_bytes > _OUTPUT_LIMIT_BYTES or _plain_size(path) != size_bytes:
                continue
            found[output.name] = np.frombuffer(path.read_bytes(), dtype=kind).reshape(output.shape)
        except (OSError, ValueError, TypeError, SyntaxError):
            continue
    return found
