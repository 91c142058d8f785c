"""What a power cut may leave of a folder, given the calls that were made below it.

A file's bytes are there for certain once it was synced, a folder's entries once it was; of the rest
any part may be there. After "All File Systems Are Not Created Equal", Pillai and others, OSDI 2014.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import Call


@dataclass
class _File:
    data: bytes = b""
    synced: bytes = b""
    modified: float | None = None


@dataclass
class _Folder:
    entries: dict[str, _Node] = field(default_factory=dict)
    synced: dict[str, _Node] = field(default_factory=dict)
    pending: list[tuple[str, _Node | None]] = field(default_factory=list)
    """Changes since it was synced: a name and what it now stands for, None for nothing."""

    def change(self, name: str, node: _Node | None) -> None:
        _change(self.entries, name, node)
        self.pending.append((name, node))


_Node = _File | _Folder


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How much of what was not synced is gone: shares from 0 to 1, of names and of bytes."""

    names: float
    data: float


EVERYTHING = Loss(names=1, data=1)
LOSSES = (
    EVERYTHING,
    Loss(names=0, data=1),
    Loss(names=0.5, data=0.5),
)


class Disk:
    """A model of the folder `root`, which is synced when this begins."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _read_folder(root)

    def apply(self, calls: Iterable[Call]) -> None:
        """Follow calls that were made."""
        for call in calls:
            getattr(self, f"_{call.name}")(call)

    def write_out(self, folder: Path, loss: Loss | None) -> None:
        """Make `folder` what a power cut leaves; None: what a killed process leaves."""
        shutil.rmtree(folder, ignore_errors=True)
        _write_folder(self._top, folder, loss, random.Random(4))

    def copy(self) -> Disk:
        """Another, to go on from here."""
        return copy.deepcopy(self)

    def _place(self, path: str) -> tuple[_Folder, str]:
        parts = Path(path).relative_to(self._root).parts
        folder = self._top
        for part in parts[:-1]:
            below = folder.entries[part]
            assert isinstance(below, _Folder)
            folder = below
        return folder, parts[-1]

    def _node(self, path: str) -> _Node:
        if Path(path) == self._root:
            return self._top
        folder, name = self._place(path)
        return folder.entries[name]

    def _openat(self, call: Call) -> None:
        folder, name = self._place(call.path)
        if name not in folder.entries:
            folder.change(name, _File())

    def _write(self, call: Call) -> None:
        node = self._node(call.path)
        assert isinstance(node, _File)
        node.data += call.data

    def _fsync(self, call: Call) -> None:
        node = self._node(call.path)
        if isinstance(node, _File):
            node.synced = node.data
        else:
            node.synced, node.pending = dict(node.entries), []

    def _mkdir(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.change(name, _Folder())

    def _rename(self, call: Call) -> None:
        (start, name), (end, target) = self._place(call.path), self._place(call.target)
        node = start.entries[name]
        end.change(target, node)
        start.change(name, None)

    def _unlink(self, call: Call) -> None:
        folder, name = self._place(call.path)
        folder.change(name, None)

    _rmdir = _unlink

    def _chmod(self, _: Call) -> None:
        pass

    _fchmod = _chmod


def _change(entries: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node


def _read_folder(path: Path) -> _Folder:
    found: dict[str, _Node] = {}
    for each in path.iterdir():
        if each.is_dir():
            found[each.name] = _read_folder(each)
        else:
            data = each.read_bytes()
            found[each.name] = _File(data, data, each.stat().st_mtime)
    return _Folder(found, dict(found))


def _write_folder(node: _Folder, path: Path, loss: Loss | None, chance: random.Random) -> None:
    path.mkdir()
    for name, below in _left_of(node, loss, chance):
        if isinstance(below, _Folder):
            _write_folder(below, path / name, loss, chance)
            continue
        data = below.data
        if loss and data != below.synced:
            lost = chance.random() < loss.data
            data = below.synced + b"" if lost else data[: chance.randint(0, len(data))]
        (path / name).write_bytes(data)
        if below.modified is not None:
            os.utime(path / name, (below.modified, below.modified))


def _left_of(
    node: _Folder, loss: Loss | None, chance: random.Random
) -> Iterator[tuple[str, _Node]]:
    if loss is None:
        yield from node.entries.items()
        return
    entries = dict(node.synced)
    for name, below in node.pending:
        if chance.random() >= loss.names:
            _change(entries, name, below)
    yield from entries.items()
