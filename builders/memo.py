"""What the last complete build was made from, so that a build with nothing to do ends at once.

Only the standard library is imported here: this runs before anything else. A memo holds when the
matrix has the same bytes, every file a build reads is as it was (size and modification time), and
every blob the build left is still in the store. A build that failed or found something leaves none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import planyard

SCHEMA = 1
_PACKAGES = ("planyard", "builders", "engines", "smoke")


def memo_path(state: Path) -> Path:
    """Where the memo of a workspace lies; the whole report lies beside it."""
    return state / "last-build.json"


def report_path(state: Path) -> Path:
    """Where the report of the last complete build lies."""
    return state / "last-build-report.json"


def read_memo(state: Path, *, matrix: Path, options: Sequence[str]) -> dict[str, Any] | None:
    """The memo of the last build when it still holds, else None."""
    try:
        memo = json.loads(memo_path(state).read_bytes())
        if memo["key"] != _key(matrix, options) or memo["stamp"] != stamp_of(memo["inputs"]):
            return None
        folder = os.open(memo["blobs_in"], os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        for name in memo["blobs"]:
            os.stat(name, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)
    return dict(memo)


def memo_of(
    *,
    matrix: Path,
    options: Sequence[str],
    inputs: Iterable[Path],
    blobs_in: Path,
    blobs: Iterable[str],
    summary: dict[str, Any],
) -> dict[str, Any]:
    """A memo of the build that just ended well."""
    named = sorted({str(path) for path in inputs})
    return {
        "schema": SCHEMA,
        "key": _key(matrix, options),
        "inputs": named,
        "stamp": stamp_of(named),
        "blobs_in": str(blobs_in),
        "blobs": sorted({digest.removeprefix("sha256:") for digest in blobs if digest}),
        "summary": summary,
    }


def stamp_of(paths: Sequence[str]) -> str:
    """One digest over names, sizes and modification times of files, and of all files in folders."""
    seen = hashlib.sha256()
    for path in paths:
        for name, status in _statuses(path):
            seen.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return seen.hexdigest()


def own_files() -> list[Path]:
    """Planyard's own packages: another version may build otherwise."""
    home = Path(planyard.__file__).parent.parent
    return [home / package for package in _PACKAGES]


def _key(matrix: Path, options: Sequence[str]) -> str:
    parts = [
        str(SCHEMA),
        planyard.__version__,
        str(matrix),
        hashlib.sha256(matrix.read_bytes()).hexdigest(),
        os.environ.get("SOURCE_DATE_EPOCH", ""),
        # A GPU that appears lets cells run that did not.
        str(Path("/dev/nvidiactl").exists()),
        *options,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _statuses(path: str) -> Iterable[tuple[str, os.stat_result]]:
    if not Path(path).is_dir():
        yield path, Path(path).stat()
        return
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in ("__pycache__", ".planyard", ".git"):
                        folders.append(entry.path)
                else:
                    yield entry.path, entry.stat(follow_symlinks=False)
