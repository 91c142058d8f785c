"""The build context of an image: which of its files a build may see, and a copy to lay more into.

What planyard adds (wheels, the files of admission) goes into a copy: the repository stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from builders.expectation import ADMISSION_FOLDER
from planyard.core.digest import digest_of_value
from planyard.core.errors import InputError
from planyard.edge import files
from planyard.edge.docker import files_of_context


def context_digests(context: Path) -> dict[str, str]:
    """The digest of each file of a build context, as .dockerignore lets it in."""
    if not context.is_dir():
        raise InputError([f"{context}: the build context is not a folder"])
    ignore = context / ".dockerignore"
    patterns = ignore.read_text().splitlines() if ignore.exists() else []
    patterns = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    patterns.append(".planyard")  # what a build keeps is never part of a build
    found = {}
    for name in files_of_context(context, patterns):
        path = context / name
        if path.is_symlink():
            found[name] = digest_of_value({"link": str(path.readlink())})
        elif path.is_file():
            found[name] = f"{files.digest_of_file(path)} {path.stat().st_mode & 0o777:o}"
    return found


def copy_context(context: Path, staged: Path, *, names: Iterable[str]) -> None:
    """Lay the files a build may see beside its wheels; nothing else travels.

    What planyard makes itself for admission is no file of the context, and is laid there later.
    """
    staged.mkdir()
    for name in names:
        if name.startswith(f"{ADMISSION_FOLDER}/"):
            continue
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(context / name, target, follow_symlinks=False)
