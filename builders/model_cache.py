"""The model cache on disk: entries appear whole, by a rename, and are never changed after it.

    models/<identity>/entry.json, files/…     one model with its external weights
    models/.work-<identity>/                  what is being fetched, or was when a process died
    models/.locks/<identity>                  held while it is fetched; the kernel lets it go

An entry is trusted once written: loading it asks for names and sizes and reads no model bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from planyard.core.digest import canonical_json
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.onnx_outline import OnnxOutline, ValueInfo
from planyard.edge.beneath import open_beneath
from planyard.edge.files import digest_of_file, sync_folder

MODEL_FILE = "model.onnx"
FILES = "files"
_ENTRY = "entry.json"


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`entry.json`: every file by its path in `files/`, and what the model declares."""

    schema: Literal[1] = 1
    digests: dict[str, str]
    sizes: dict[str, int]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where one model is fetched: `entry` is renamed at the end, `parts` is what can be gone on
    with after an interruption, `scratch` is never kept.
    """

    entry: Path
    parts: Path
    scratch: Path

    @property
    def files(self) -> Path:
        """The model's folder to be."""
        return self.entry / FILES


def load_entry(folder: Path, digests: Mapping[str, str]) -> Entry | None:
    """The entry in `folder`, when it is for these digests and its files are whole; else None."""
    try:
        entry = msgspec.json.decode((folder / _ENTRY).read_bytes(), type=Entry)
        is_whole = entry.digests == digests and entry.sizes.keys() == digests.keys()
        for file, size_bytes in entry.sizes.items():
            with open_beneath(folder / FILES, file) as opened:
                found = os.fstat(opened.fileno())
            is_ours = found.st_uid in {os.geteuid(), 0}
            is_whole = is_whole and is_ours and found.st_size == size_bytes
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError, InputError):
        return None
    return entry if is_whole else None


def rehash_entry(folder: Path, entry: Entry) -> None:
    """Hash every file again; on a mismatch the entry is removed and IntegrityError raised."""
    for file, expected in entry.digests.items():
        actual = digest_of_file(folder / FILES / file)
        if actual != expected:
            shutil.rmtree(folder)
            message = f"{folder / FILES / file}: expected {expected}, found {actual}"
            raise IntegrityError(message, mend="the entry was removed; fetch the model again")


def publish(work: Work, folder: Path, *, digests: Mapping[str, str], outline: OnnxOutline) -> None:
    """Make what `work` holds the entry `folder`; an entry that is there already stays."""
    sizes = {}
    for file in digests:
        with open_beneath(work.files, file) as opened:
            os.fchmod(opened.fileno(), 0o444)  # compile containers mount it, as another user
            os.fsync(opened.fileno())
            sizes[file] = os.fstat(opened.fileno()).st_size
    entry = Entry(
        digests=dict(digests), sizes=sizes, inputs=outline.inputs, outputs=outline.outputs
    )
    (work.entry / _ENTRY).write_bytes(canonical_json(msgspec.to_builtins(entry)))
    for inner in (work.entry, *(path for path in work.entry.rglob("*") if path.is_dir())):
        inner.chmod(0o755)
        sync_folder(inner)
    try:
        work.entry.rename(folder)
    except OSError as error:
        # On a file system without working locks another process may have been first.
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
    sync_folder(folder.parent)


@contextlib.contextmanager
def locked(folder: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the right to make the entry `folder`; `on_wait` is called before waiting for it."""
    locks = folder.parent / ".locks"
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    locks.mkdir(exist_ok=True, mode=0o700)
    descriptor = os.open(locks / folder.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def work_for(folder: Path) -> Iterator[Work]:
    """The place to fetch the entry `folder` in; hold the lock.

    After a StoreError it stays when there is a download to go on with; else it is gone at the end.
    """
    top = folder.with_name(f".work-{folder.name}")
    for leftover in top.glob("scratch-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Work(entry=top / "entry", parts=top / "parts", scratch=_scratch(top))
    work.files.mkdir(parents=True, exist_ok=True)
    work.parts.mkdir(exist_ok=True)
    try:
        yield work
    except StoreError:
        if not any(part.stat().st_size for part in work.parts.iterdir()):
            shutil.rmtree(top, ignore_errors=True)
        shutil.rmtree(work.scratch, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(top, ignore_errors=True)
        raise
    shutil.rmtree(top, ignore_errors=True)


def _scratch(top: Path) -> Path:
    # A new name each time: what an orphan of a killed fetch still writes must not mix in.
    top.mkdir(exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(dir=top, prefix="scratch-"))
