"""Workspaces for tests: a folder with a matrix and what it names, and planyard run there for real.

planyard is always the command line in a process of its own, as a person would start it. Stores are
shared by hard links: a test that damages a blob puts a new file in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from engines.store.local_store import LocalStore
from engines.store.objects import pack_name

REPOSITORY = Path(__file__).resolve().parents[1]
NO_ENGINE = "unix:///nonexistent/docker.sock"
WITHOUT_DOCKER = {"DOCKER_HOST": NO_ENGINE, "PATH": "/nonexistent"}
"""What a build with nothing to do, and every verb that looks, must work with."""

# What a CI runner or a person may have set, and would change what planyard prints or where it goes.
_FOREIGN = ("CI", "DOCKER_HOST", "FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")
_FOREIGN += ("SOURCE_DATE_EPOCH", "PLANYARD_CACHE")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A planyard command that ended. Times are seconds."""

    args: tuple[str, ...]
    exit_code: int
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)
    seconds: float

    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)

    def expect(self, exit_code: int) -> Ran:
        """Itself; fails with everything that was said when it ended with another code."""
        said = f"{self.args} ended with {self.exit_code}\n{self.stderr}\n{self.stdout[-4000:]}"
        assert self.exit_code == exit_code, said
        return self


@dataclass(frozen=True, kw_only=True)
class Running:
    """A planyard command that runs."""

    args: tuple[str, ...]
    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    started: float = field(default_factory=time.monotonic)

    def said(self) -> str:
        """What it has said to people up to now."""
        return _text(self.stderr)

    def wait_until(self, holds: Callable[[], object], *, timeout_seconds: float = 300) -> None:
        """Wait until something holds; fails when it ends before, or takes too long."""
        deadline = time.monotonic() + timeout_seconds
        while not holds():
            assert self.process.poll() is None, f"{self.args} ended too early:\n{self.said()}"
            assert time.monotonic() < deadline, f"{self.args} did not come to it:\n{self.said()}"
            time.sleep(0.05)

    def wait_for(self, text: str, *, timeout_seconds: float = 300) -> None:
        """Wait until it has said `text`."""
        self.wait_until(lambda: text in self.said(), timeout_seconds=timeout_seconds)

    def ended(self, *, timeout_seconds: float = 120) -> Ran:
        """Wait for its end."""
        self.process.wait(timeout=timeout_seconds)
        return Ran(
            args=self.args,
            exit_code=self.process.returncode,
            stdout=_text(self.stdout),
            stderr=_text(self.stderr),
            seconds=time.monotonic() - self.started,
        )


@dataclass(frozen=True, kw_only=True)
class Site:
    """A workspace on disk, and the environment planyard is given there."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def matrix(self) -> Path:
        """The default matrix."""
        return self.root / "matrix.yaml"

    @property
    def state(self) -> Path:
        """What planyard keeps."""
        return self.root / ".planyard"

    @property
    def store(self) -> LocalStore:
        """The store beside the matrix."""
        return LocalStore(self.state / "store")

    def variables(self, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """The whole environment; a change to None takes a variable away."""
        kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        kept |= {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", **self.environment}
        for name, value in (changes or {}).items():
            kept.pop(name, None)
            if value is not None:
                kept[name] = value
        return kept

    def planyard(
        self,
        *args: str,
        env: Mapping[str, str | None] | None = None,
        before: Sequence[str] = (),
        timeout_seconds: float = 900,
    ) -> Ran:
        """Run `planyard ARGS` here to its end; `before` is a command that runs it."""
        with self.running(*args, env=env, before=before) as running:
            return running.ended(timeout_seconds=timeout_seconds)

    @contextlib.contextmanager
    def running(
        self,
        *args: str,
        env: Mapping[str, str | None] | None = None,
        before: Sequence[str] = (),
    ) -> Iterator[Running]:
        """Start `planyard ARGS` here; what still runs when the block ends is asked to end."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "builders", *args],
                cwd=self.root,
                env=self.variables(env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
            try:
                yield Running(args=args, process=process, stdout=stdout, stderr=stderr)
            finally:
                end(process)

    def edit(self, old: str, new: str, *, file: str = "matrix.yaml") -> None:
        """Replace the one `old` of a file."""
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
        path.write_text(text.replace(old, new))

    def write(self, file: str, content: str | bytes) -> Path:
        """Write a file of the workspace."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def leftovers(self) -> list[str]:
        """What an interrupted build should have removed: scratch, half files, mounts, engines."""
        scratch = self.state / "scratch"
        found = [str(path) for path in scratch.iterdir()] if scratch.exists() else []
        store = self.state / "store"
        found += [str(path) for path in store.rglob(".*") if path.name != ".lock"]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [line for line in mounts if f" {self.root}/" in line]
        return found + [f"dockerd {pid}" for pid in engines_of(self.root)]


def end(process: subprocess.Popen[bytes], *, grace_seconds: float = 90) -> None:
    """End a planyard that still runs the way CI would: it stops its engine itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _text(file: IO[bytes]) -> str:
    """The whole of a file that a process writes to; its own place in it stays as it is."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def engines_of(folder: Path) -> list[int]:
    """The processes of every dockerd whose data lies below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if any(part.startswith(f"--data-root={folder}/".encode()) for part in command):
                    found.append(int(entry.name))
    return found


def lay_out(root: Path, *, environment: Mapping[str, str]) -> Site:
    """A workspace with the default matrix and everything it names; nothing is built."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("matrix.yaml", "matrix.sd15.yaml"):
        shutil.copyfile(REPOSITORY / name, root / name)
    for name in ("images", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored, dirs_exist_ok=True)
    return Site(root=root, environment=environment)


def share_store(source: Path, target: Path) -> None:
    """A store with the same contents: index entries copied, all else as hard links."""
    shutil.copytree(source / "index", target / "index")
    shutil.copyfile(source / "oci-layout", target / "oci-layout")
    for area in ("blobs", "packs", "maps"):
        shutil.copytree(source / area, target / area, copy_function=os.link)


def damage(store: LocalStore, digest: str) -> None:
    """Turn one bit of a blob that no other blob uses; the file other stores share stays."""
    name, at = _place_of_its_own(store, digest)
    path = store.root / name
    data = bytearray(path.read_bytes())
    data[at if at is not None else len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def _place_of_its_own(store: LocalStore, digest: str) -> tuple[str, int | None]:
    """The object to damage, and where; None is its middle."""
    parts = store.objects_of_blob(digest)
    if len(parts) == 1:
        return parts[0], None
    (mapped,) = store.maps_of(digest)
    others = {
        chunk.digest
        for each in store.objects.listing("maps/")
        if each.name != mapped.name
        for other in store.maps_of("sha256:" + each.name.split("/")[1])
        for chunk in other
    }
    mine = next(chunk for chunk in mapped if chunk.digest not in others)
    return pack_name(mapped.family, mapped.packs[mine.pack]), mine.offset
