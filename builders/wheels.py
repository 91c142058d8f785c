"""Wheels, fetched outside the build by hash and kept by content.

A lock file is pip requirements with one `name==version` and its `--hash=sha256:…` a line. Wheels
are fetched for the image's platform and Python, not for this machine's. Their bytes are checked
here once more, then kept under their sha256: a lock seen before asks no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from planyard.core.digest import digest_of_value
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.edge import files, proc
from planyard.edge.console import Report

# pip matches each glibc version exactly; 2.36 is Debian 12's.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)),
    "manylinux2014_x86_64",
    "manylinux_2_12_x86_64",
    "manylinux2010_x86_64",
    "manylinux_2_5_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
)
_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)((?:\s+--hash=\S+)+)$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)")


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a lock: a project at a version, and the wheels it may be."""

    name: str
    version: str
    sha256: tuple[str, ...]


class Wheel(msgspec.Struct, frozen=True, kw_only=True):
    """A wheel in the cache."""

    file_name: str
    sha256: str


def read_lock(text: str, *, name: str) -> tuple[Requirement, ...]:
    """Parse a lock file; every line that is not pinned and hashed is a problem, all at once."""
    found, problems = [], []
    for number, line in _logical_lines(text):
        match = _REQUIREMENT.match(line)
        hashes = tuple(_HASH.findall(line))
        if match and len(hashes) == line.count("--hash="):
            found.append(Requirement(name=match[1], version=match[2], sha256=hashes))
        else:
            problems.append(
                f"{name}:{number}: {line[:80]!r} is not `name==version --hash=sha256:…`; "
                "write the lock anew with `planyard lock`"
            )
    if problems:
        raise InputError(problems)
    return tuple(found)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Requirement lines with their number; comments go, continued lines are joined."""
    pending, first = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        first = first or number
        pending = f"{pending} {line.removesuffix(chr(92)).strip()}".strip()
        if line.endswith("\\"):
            continue
        if pending:
            yield first, pending
        pending, first = "", 0
    if pending:
        yield first, pending


class WheelCache:
    """Wheels in a folder, each below its own sha256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, wheel: Wheel) -> Path:
        """Where a wheel lies."""
        return self.folder / "files" / wheel.sha256 / wheel.file_name

    def find(
        self, requirements: tuple[Requirement, ...], *, python: str
    ) -> tuple[Wheel, ...] | None:
        """The wheels of a lock that was fetched before, or None."""
        record = self._record_path(requirements, python=python)
        if not record.exists():
            return None
        try:
            wheels = msgspec.json.decode(record.read_bytes(), type=tuple[Wheel, ...])
        except msgspec.DecodeError:
            return None
        allowed = _allowed(requirements)
        named = all(wheel.sha256 in allowed and _is_wheel_name(wheel.file_name) for wheel in wheels)
        return wheels if named and all(self.path(wheel).exists() for wheel in wheels) else None

    def fetch(
        self, requirements: tuple[Requirement, ...], *, python: str, report: Report
    ) -> tuple[Wheel, ...]:
        """Download what a lock names, checked against its hashes twice: by pip and here."""
        allowed = _allowed(requirements)
        with files.scratch_folder(self.folder, prefix=".fetch-") as scratch:
            lock = scratch / "lock.txt"
            lock.write_text("".join(_line(requirement) for requirement in requirements))
            _download(["--require-hashes", "-r", str(lock)], scratch, python=python, report=report)
            wheels = tuple(self._keep(path, allowed) for path in sorted(scratch.glob("*.whl")))
        record = self._record_path(requirements, python=python)
        files.write_bytes(record, msgspec.json.encode(wheels))
        return wheels

    def stage(self, wheels: tuple[Wheel, ...], folder: Path) -> None:
        """Lay the wheels into a folder, as hard links where the file system allows.

        Their bytes are checked there: raises IntegrityError for one that changed in the cache.
        """
        folder.mkdir(parents=True)
        for wheel in wheels:
            source, target = self.path(wheel), folder / wheel.file_name
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
            found = files.digest_of_file(target).removeprefix("sha256:")
            if found != wheel.sha256:
                raise IntegrityError(
                    f"{source} is damaged: it should have sha256 {wheel.sha256} and has {found}",
                    mend=f"remove {source.parent} and build again",
                )

    def _keep(self, path: Path, allowed: set[str]) -> Wheel:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 not in allowed:
            raise IntegrityError(f"{path.name} has sha256 {sha256}, which the lock does not name")
        wheel = Wheel(file_name=path.name, sha256=sha256)
        target = self.path(wheel)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        return wheel

    def _record_path(self, requirements: tuple[Requirement, ...], *, python: str) -> Path:
        asked = {"requirements": msgspec.to_builtins(requirements), "python": python}
        return self.folder / "locks" / f"{digest_of_value(asked).removeprefix('sha256:')}.json"


def write_lock(names: tuple[str, ...], *, python: str, scratch: Path, report: Report) -> str:
    """The text of a lock for exactly these `name==version` requirements, hashed as downloaded."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        _download(list(names), Path(folder), python=python, report=report)
        lines = []
        for path in sorted(Path(folder).glob("*.whl")):
            name, version = path.name.split("-")[:2]
            sha256 = files.digest_of_file(path).removeprefix("sha256:")
            lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{sha256}\n")
    return "".join(lines)


def _allowed(requirements: tuple[Requirement, ...]) -> set[str]:
    return {digest for each in requirements for digest in each.sha256}


def _is_wheel_name(name: str) -> bool:
    return name.endswith(".whl") and Path(name).name == name


def _line(requirement: Requirement) -> str:
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in requirement.sha256)
    return f"{requirement.name}=={requirement.version} {hashes}\n"


def _download(what: list[str], folder: Path, *, python: str, report: Report) -> None:
    args = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    args += ["--disable-pip-version-check", "--progress-bar=off", "--no-input", "--no-cache-dir"]
    args += ["--implementation=cp", f"--python-version={python}", f"--dest={folder}"]
    args += [f"--platform={platform}" for platform in _PLATFORMS]
    try:
        proc.run([*args, *what], timeout_seconds=1800, on_line=report)
    except proc.ProcessError as error:
        raise StoreError(
            f"the wheels could not be fetched: {error}",
            mend="check the lock file, and that the package index pip is set up with answers",
            log_tail=error.tail,
        ) from error
