"""The folder of a report: whole or not at all, and nothing in it that is not the report's.

Pages of cells and logs lie in `evidence-<digest>/`, named by what is in it; `index.html` is put in
its place last, in one step, and only then is the folder of the report before removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from planyard.core.errors import InputError
from planyard.edge import files

INDEX, MARK = "index.html", "report.json"
_EVIDENCE = re.compile(r"evidence-[0-9a-f]{12}")
_SCRATCH = ".report-"
_MARK_LIMIT_BYTES = 1 << 20


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`: this folder is a report, and `evidence` the folder that belongs to it."""

    schema: int = 1
    kind: str
    planyard: str
    made: str
    evidence: str


KIND = "planyard report"


@dataclass(kw_only=True)
class Draft:
    """The files of a report before they are in their place."""

    folder: Path
    seen: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, name: str, text: str) -> None:
        """Write a file below the folder of evidence; `name` is ours, never the store's."""
        data = text.encode("utf-8", "replace")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.seen[name] = hashlib.sha256(data).hexdigest()
        self.size_bytes += len(data)

    @property
    def name(self) -> str:
        """The name of the folder of evidence: the start of the digest of all in it."""
        whole = "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.seen.items()))
        return f"evidence-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def check_place(folder: Path) -> None:
    """Refuse a folder that a report may not be written into. Raises InputError that says why."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise InputError([f"{folder} is no folder"], mend="name a folder: --html report/")
    if read_mark(folder) is None:
        foreign = sorted(e.name for e in folder.iterdir() if not e.name.startswith(_SCRATCH))
        if foreign:
            named = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
            raise InputError(
                [f"{folder} holds files that are no report's: {named}"],
                mend="name a folder that is new, empty, or holds a report of planyard",
            )


def read_mark(folder: Path) -> Mark | None:
    """What a folder says of itself; None when it is no report."""
    path = folder / MARK
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MARK_LIMIT_BYTES:
        return None
    try:
        mark = msgspec.json.decode(path.read_bytes(), type=Mark)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return mark if mark.kind == KIND else None


@contextlib.contextmanager
def drafting(folder: Path) -> Iterator[Draft]:
    """A draft inside `folder`, gone when the block ends; a folder made for it goes too if empty."""
    check_place(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for left in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        with files.scratch_folder(folder, prefix=_SCRATCH) as scratch:
            yield Draft(folder=scratch / "evidence")
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def publish(draft: Draft, folder: Path, *, index: str, mark: Mark) -> None:
    """Put a finished draft in its place, and take the report away that was there before."""
    before = read_mark(folder)
    place = folder / draft.name
    if draft.seen and not _is_whole(place, draft):
        shutil.rmtree(place, ignore_errors=True)
        draft.folder.rename(place)
    if before is None:
        files.write_bytes(folder / MARK, msgspec.json.encode(mark))
    files.write_bytes(folder / INDEX, index.encode("utf-8", "replace"))
    files.write_bytes(folder / MARK, msgspec.json.encode(mark))
    old = before.evidence if before else ""
    if old != draft.name and _EVIDENCE.fullmatch(old):  # a link in its place is not followed
        shutil.rmtree(folder / old, ignore_errors=True)


def _is_whole(place: Path, draft: Draft) -> bool:
    """Whether a folder holds the very files of a draft already."""
    if place.is_symlink() or not place.is_dir():
        return False
    found = {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    return found == draft.seen
