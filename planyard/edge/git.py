"""The Git commit a matrix was read at."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from planyard.edge import proc

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def commit_of(folder: Path) -> tuple[str, bool] | None:
    """The commit checked out in `folder`, and whether files differ from it; None outside Git."""
    git = shutil.which("git")
    if not git:
        return None
    try:
        # Of somebody else's checkout Git refuses to speak; it is only read here.
        base = [git, "-c", "safe.directory=*", "-C", str(folder)]
        head = proc.run_unchecked([*base, "rev-parse", "HEAD"], timeout_seconds=20)
        if head.exit_code != 0 or not _COMMIT.fullmatch(head.output.strip()):
            return None
        status = proc.run_unchecked([*base, "status", "--porcelain"], timeout_seconds=60)
    except proc.ProcessError:
        return None
    return head.output.strip(), bool(status.output.strip())
