"""What the last complete build was made from, so that a build with nothing to do ends at once.

Only the standard library is imported here: this runs before anything else. A memo holds when the
matrix has the same bytes, every file a build reads is as it was (size and modification time), and
everything the build left is still in the store: blobs and index. A build that failed or found
something leaves none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import planyard
from planyard.edge.console import Console, forget_stdout

SCHEMA = 1
DEFAULT_MATRIX = "matrix.yaml"
_OF_NO_CONSEQUENCE = ("--json", "--no-setup")
_MORE_TO_DO = frozenset(("--refresh-bases", "--sign"))
_PACKAGES = ("planyard", "builders", "engines", "smoke")


def answer_from_memo(arguments: Sequence[str]) -> bool:
    """Answer `planyard build ARGUMENTS` when the same command built all of this before.

    Arguments are compared as they stand, not parsed: other words for the same build miss.
    """
    matrix = named_matrix(arguments)
    if matrix is None or not matrix.is_file() or not _MORE_TO_DO.isdisjoint(arguments):
        return False
    state = state_of(matrix)
    memo = read_memo(state, matrix=matrix, options=arguments)
    if memo is None:
        return False
    json = "--json" in arguments
    try:
        show_memo(memo, state=state, console=Console(quiet=json), json=json)
    except BrokenPipeError:
        forget_stdout()
    return True


def named_matrix(arguments: Sequence[str]) -> Path | None:
    """The matrix that the arguments name; None when that takes real parsing."""
    named = DEFAULT_MATRIX
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in ("--matrix", "-m"):
            named = argument
        elif argument.startswith("--matrix=") or (argument.startswith("-m") and argument != "-m"):
            return None
    return Path(named).absolute()


def state_of(matrix: Path) -> Path:
    """Where a workspace keeps the memo of its matrix."""
    return matrix.parent / ".planyard" / "state" / matrix.name


def show_memo(memo: dict[str, Any], *, state: Path, console: Console, json: bool) -> None:
    """Say that there is nothing to do, and what there is."""
    summary = memo["summary"]
    images, plans = len(summary["images"]), summary["plans"]
    console.good(f"nothing to do: {images} images and {plans} plans are up to date")
    show_not_run(summary["not_run"], console)
    console.say()
    console.table(summary["header"], summary["rows"])
    if summary["lookup"]:
        console.say(f"next:  planyard lookup {summary['lookup']}")
    if json:
        console.document(report_path(state).read_text())


def show_not_run(
    cells: Sequence[Sequence[str]], console: Console, *, required: bool = False
) -> None:
    """Cells and why nobody ran them: loudly, but one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for cell, reason in cells:
        by_reason.setdefault(reason, []).append(cell)
    show = console.error if required else console.warn
    for reason, names in by_reason.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        named = ", ".join(names[:3])
        show(f"NOT RUN: {len(names)} cells, because {reason}: {named}{more}")


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
        report_path(state).stat()
        stored = memo["stored"]
        folder = os.open(memo["store"], os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        for name in stored:
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
    store: Path,
    stored: Iterable[str],
    summary: dict[str, Any],
) -> dict[str, Any]:
    """A memo of the build that just ended well; `stored` are paths below the store's folder."""
    named = sorted({str(path) for path in inputs})
    return {
        "schema": SCHEMA,
        "key": _key(matrix, options),
        "inputs": named,
        "stamp": stamp_of(named),
        "store": str(store),
        "stored": sorted(set(stored)),
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
        os.environ.get("PLANYARD_STORE", ""),
        # A GPU that appears lets cells run that did not.
        str(Path("/dev/nvidiactl").exists()),
        *(each for each in options if each not in _OF_NO_CONSEQUENCE),
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
