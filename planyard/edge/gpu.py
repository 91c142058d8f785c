"""The NVIDIA GPUs of this machine, as `nvidia-smi` reports them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from planyard.edge import proc


@dataclass(frozen=True, kw_only=True)
class LocalGpu:
    """A GPU: its SM (86 is 8.6) and the driver's version."""

    sm: int
    driver: str


def local_gpus() -> tuple[LocalGpu, ...]:
    """The GPUs that can be asked; none when there is no driver."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ()
    query = [program, "--query-gpu=compute_cap,driver_version", "--format=csv,noheader"]
    try:
        output = proc.run(query, timeout_seconds=30).output
    except proc.ProcessError:
        return ()
    found = []
    for line in output.splitlines():
        capability, _, driver = (part.strip() for part in line.partition(","))
        major, _, minor = capability.partition(".")
        if major.isdigit() and minor.isdigit():
            found.append(LocalGpu(sm=int(major) * 10 + int(minor), driver=driver))
    return tuple(found)
