"""Programs from Debian that tests need: the one on the PATH, else unpacked from its package.

A package is only unpacked, below a folder that is gone at the end: installing docker-registry would
start a service on the machine.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def find_or_unpack(program: str, package: str) -> str | None:
    """Where a program is; None when it is not here and its package cannot be had."""
    if found := shutil.which(program):
        return found
    if not shutil.which("apt-get"):
        return None
    kept = tempfile.TemporaryDirectory(prefix="planyard-debian-", ignore_cleanup_errors=True)
    atexit.register(kept.cleanup)
    folder = Path(kept.name)
    download = ["apt-get", "download", "--quiet", package]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, check=False)
        subprocess.run(download, cwd=folder, capture_output=True, check=False)
    packages = list(folder.glob("*.deb"))
    if not packages:
        return None
    subprocess.run(["dpkg-deb", "--extract", packages[0], folder / "root"], check=True)
    return next((str(path) for path in (folder / "root").rglob(f"bin/{program}")), None)
