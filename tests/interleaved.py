"""Objects that do something else before a chosen operation: a race that happens every time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from engines.store.memory import MemoryObjects
from engines.store.objects import Listed
from engines.store.store import ObjectStore
from tests.kept_store import old_releases
from tests.object_places import MemoryStore


class Interleaved(MemoryObjects):
    """Does something else before one of its operations, once."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, str]] = []
        self._before: Callable[[int, str, str], bool] = lambda *_: False
        self._act: Callable[[], Any] = lambda: None

    def at(self, number: int, act: Callable[[], Any]) -> None:
        """Call `act` before the operation of that number, counted from now."""
        self.operations.clear()
        self.before(lambda count, _, __: count == number, act)

    def before(self, matches: Callable[[int, str, str], bool], act: Callable[[], Any]) -> None:
        """Call `act` before the first operation that matches (number, operation, name)."""
        self._before, self._act = matches, act

    def _step(self, operation: str, name: str) -> None:
        self.operations.append((operation, name))
        if self._before(len(self.operations) - 1, operation, name):
            self._before = lambda *_: False
            self._act()

    def listing(self, prefix: str) -> Iterator[Listed]:
        self._step("list", prefix)
        return super().listing(prefix)

    def write(self, name: str, source: Any, *, proved: bool = False) -> None:
        self._step("write", name)
        super().write(name, source, proved=proved)

    def remove(self, name: str) -> None:
        self._step("remove", name)
        super().remove(name)

    def size(self, name: str) -> int | None:
        self._step("size", name)
        return super().size(name)

    def read(self, name: str, **where: Any) -> Iterator[bytes]:
        self._step("read", name)
        return super().read(name, **where)


@functools.cache
def _three_old_releases() -> MemoryObjects:
    store = MemoryStore()
    old_releases(store, 3)
    return store.objects


def garbage_and_one_release() -> tuple[Interleaved, ObjectStore]:
    """Plans 0 and 1 are garbage, and old; release 2 is kept. All share a pack of their family."""
    objects = Interleaved()
    objects.held.update(_three_old_releases().held)
    objects.modified.update(_three_old_releases().modified)
    return objects, ObjectStore(objects)
