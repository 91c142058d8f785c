"""A file system of a few megabytes, for what happens when there is no room."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_file_system(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """Mount a file system of this size at `folder`; skips the test where that is not possible."""
    mount = shutil.which("mount")
    if not mount or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes}"
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", options, "planyard-test", folder], check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def resize(folder: Path, *, size_bytes: int) -> None:
    """Give a file system of `small_file_system` another size."""
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", folder], check=True)
