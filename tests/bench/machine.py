"""The machine of a run, as far as its figures depend on it; no host name, no path."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import planyard


def describe() -> str:
    """One line: the day, cores, memory, CPU, system, Python, and how busy it was already."""
    cpu = _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.machine()
    memory = int(_first(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0) / 2**20
    system = _first(r'PRETTY_NAME="?([^"\n]+)', "/etc/os-release") or platform.system()
    cores = len(os.sched_getaffinity(0))
    busy = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {cores} cores of {cpu.strip()}, {memory:.0f} GiB of memory "
        f"(load {busy:.1f} at the start); {system}; Python {platform.python_version()}; "
        f"planyard {planyard.__version__} with typer {metadata.version('typer')}"
    )


def _first(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return ""
    return found[1] if found else ""
