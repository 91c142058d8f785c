"""Faults at system calls: a layer that sees each call that changes files below a folder.

The layer takes the place of the functions that Python's own modules make these calls with, so what
runs above it is the code that ships. tests/integration/test_store_crash.py compares what it sees
with what strace sees.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from unittest import mock

CHANGES_ROOM = frozenset({"openat", "write", "mkdir", "rename", "link", "symlink", "fsync"})
"""The calls that a full disk fails: it never fails a removal or a change of mode."""

_WRITES = os.O_CREAT | os.O_TRUNC
_REAL: dict[str, Any] = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
_REAL_OPEN = io.open


@dataclass(frozen=True)
class Call:
    """A system call that is about to be made; `number` counts from 1."""

    number: int
    name: str
    path: str
    target: str = ""
    """Where a rename goes."""
    data: bytes = field(default=b"", repr=False)
    descriptor: int = -1


Fate = Callable[[Call], None]
"""Looks at a call before it is made; may raise OSError in its place, or end the process."""


def nothing_happens(_: Call) -> None:
    """The fate of an undisturbed run."""


class Layer:
    """Use it as `with Layer(folder, fate):`. Calls are made one at a time, in the order of `calls`.

    `sync` False leaves out what only a power cut can tell, which makes runs many times faster.
    """

    def __init__(self, below: Path, fate: Fate = nothing_happens, *, sync: bool = False) -> None:
        self._below, self._fate, self._sync = str(below), fate, sync
        self._one = threading.RLock()
        self.calls: list[Call] = []
        self.done: list[Call] = []
        """Those that did not fail."""

    def __enter__(self) -> Layer:
        self._stack = contextlib.ExitStack()
        for name in ("mkdir", "rmdir", "unlink", "remove", "chmod", "truncate", "symlink", "link"):
            self._patch(os, name, self._on_path(name))
        for name in ("fsync", "fdatasync", "fchmod", "ftruncate"):
            self._patch(os, name, self._on_descriptor(name))
        for name in ("rename", "replace"):
            self._patch(os, name, self._rename)
        self._patch(os, "open", self._open)
        self._patch(os, "write", self.write)
        self._patch(os, "fdopen", self._open_file)
        self._patch(io, "open", self._open_file)
        self._patch(builtins, "open", self._open_file)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _patch(self, where: object, name: str, made: object) -> None:
        self._stack.enter_context(mock.patch.object(where, name, made))

    def _make(self, name: str, path: str, call: Callable[[], Any], **more: Any) -> Any:
        if not path.startswith(self._below):
            return call()
        with self._one:
            seen = Call(len(self.calls) + 1, name, path, **more)
            self.calls.append(seen)
            self._fate(seen)
            left_out = not self._sync and name in ("fsync", "fdatasync")
            result = None if left_out else call()
            self.done.append(seen)
            return result

    def _on_path(self, name: str) -> Callable[..., Any]:
        known = {"remove": "unlink"}.get(name, name)

        def made(path: Any, *args: Any, **named: Any) -> Any:
            # Of a link, the first argument is what it points at, the second where it lies.
            place = args[0] if name in ("symlink", "link") else path
            full = _absolute(place, named.get("dir_fd"))
            return self._make(known, full, lambda: _REAL[name](path, *args, **named))

        return made

    def _on_descriptor(self, name: str) -> Callable[..., Any]:
        def made(descriptor: int, *args: Any) -> Any:
            path = _path_of(descriptor)
            return self._make(name, path, lambda: _REAL[name](descriptor, *args))

        return made

    def _rename(self, source: Any, target: Any, **named: Any) -> None:
        start = _absolute(source, named.get("src_dir_fd"))
        end = _absolute(target, named.get("dst_dir_fd"))
        self._make("rename", start, lambda: _REAL["rename"](source, target, **named), target=end)

    def _open(self, path: Any, flags: int, *args: Any, **named: Any) -> int:
        def call() -> int:
            opened: int = _REAL["open"](path, flags, *args, **named)
            return opened

        if not flags & _WRITES:
            return call()
        made: int = self._make("openat", _absolute(path, named.get("dir_fd")), call)
        return made

    def write(self, descriptor: int, data: Any) -> int:
        """What os.write does, and a file's write."""
        path = _path_of(descriptor)
        kept = bytes(data) if path.startswith(self._below) else b""
        written: int = self._make(
            "write",
            path,
            lambda: _REAL["write"](descriptor, data),
            data=kept,
            descriptor=descriptor,
        )
        return written

    def _open_file(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> IO[Any]:
        """What `open` does, with writes that the layer sees."""
        place = _path_of(file) if isinstance(file, int) else _absolute(file, None)
        if set(mode) <= set("rbt") or not place.startswith(self._below):
            return _REAL_OPEN(file, mode, *args, **named)
        assert "b" in mode, "planyard writes bytes"
        raw = _SeenFile(file, mode.replace("b", ""), opener=self._opener(mode))
        raw.layer = self
        return io.BufferedWriter(raw, os.fstat(raw.fileno()).st_blksize)

    def _opener(self, mode: str) -> Callable[[str, int], int]:
        return lambda path, flags: self._open(path, flags, 0o666)


class _SeenFile(io.FileIO):
    layer: Layer

    def write(self, data: Any, /) -> int:
        return self.layer.write(self.fileno(), data)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115


def _absolute(path: Any, folder: int | None) -> str:
    if isinstance(path, int):
        return _path_of(path)
    start = os.getcwd() if folder is None else _path_of(folder)  # noqa: PTH109
    return os.path.normpath(os.path.join(start, os.fsdecode(path)))  # noqa: PTH118


@dataclass(frozen=True)
class KillAt:
    """The process ends before call `number`, with `halfway` when half of a write is written."""

    number: int
    halfway: bool = False

    def __call__(self, call: Call) -> None:
        if call.number != self.number:
            return
        if self.halfway and call.name == "write":
            _REAL["write"](call.descriptor, call.data[: len(call.data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FailAt:
    """Call `number` fails with `error`, and with `onwards` all that follow, as far as `names`."""

    number: int
    error: int
    onwards: bool = False
    names: frozenset[str] = CHANGES_ROOM

    def __call__(self, call: Call) -> None:
        due = call.number >= self.number if self.onwards else call.number == self.number
        if due and call.name in self.names:
            raise OSError(self.error, os.strerror(self.error), call.path)


def survives(run: Callable[[], object], *, below: Path, fate: Fate) -> bool:
    """Run in a process of its own; whether it came to its end, and was not killed."""
    child = os.fork()
    if child == 0:
        try:
            with Layer(below, fate):
                run()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may leave this process
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "the run failed; its traceback is above"
    return True


def kills(calls: list[Call]) -> Iterator[KillAt]:
    """One kill before each call, and one in the middle of each write of several bytes."""
    for call in calls:
        yield KillAt(call.number)
        if call.name == "write" and len(call.data) > 1:
            yield KillAt(call.number, halfway=True)
