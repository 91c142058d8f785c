"""The NVIDIA GPUs of this machine, as `nvidia-smi` reports them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from planyard.edge import proc


@dataclass(frozen=True, kw_only=True)
class LocalGpu:
    """A GPU: its SM (86 is 8.6), the driver's version, and the product's name."""

    sm: int
    driver: str
    name: str = ""


def local_gpus() -> tuple[LocalGpu, ...]:
    """The GPUs that can be asked; none when there is no driver."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ()
    query = [program, "--query-gpu=compute_cap,driver_version,name", "--format=csv,noheader"]
    try:
        output = proc.run(query, timeout_seconds=30).output
    except proc.ProcessError:
        return ()
    found = []
    for line in output.splitlines():
        capability, driver, name = [part.strip() for part in f"{line},,".split(",")][:3]
        major, _, minor = capability.partition(".")
        if major.isdigit() and minor.isdigit():
            found.append(LocalGpu(sm=int(major) * 10 + int(minor), driver=driver, name=name))
    return tuple(found)
