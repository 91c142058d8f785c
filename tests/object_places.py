"""Where objects can lie in tests: each place with a way to damage an object behind its back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.store.local import LocalObjects
from engines.store.memory import MemoryObjects
from engines.store.objects import Objects
from engines.store.store import ObjectStore


class MemoryStore(ObjectStore):
    """A store in memory."""

    objects: MemoryObjects

    def __init__(self) -> None:
        super().__init__(MemoryObjects())


@dataclass(frozen=True)
class ObjectPlace:
    """Empty objects; `again` opens the same place anew, as another program would."""

    objects: Objects
    damage: Callable[[str, bytes], object]
    """Put other bytes under a name, past the backend and its checks."""
    again: Callable[[], Objects]
    has_compare_and_swap: bool = True


@contextmanager
def memory_place(_: Path) -> Iterator[ObjectPlace]:
    """Objects in memory."""
    held = MemoryObjects()
    yield ObjectPlace(held, lambda name, data: held.held.update({name: data}), lambda: held)


@contextmanager
def local_place(folder: Path) -> Iterator[ObjectPlace]:
    """Objects in a directory."""
    held = LocalObjects(folder / "store")

    def damage(name: str, data: bytes) -> None:
        path = held.root / name
        path.unlink()
        path.write_bytes(data)

    yield ObjectPlace(held, damage, lambda: LocalObjects(folder / "store"))


PLACES: dict[str, Callable[[Path], AbstractContextManager[ObjectPlace]]] = {
    "memory": memory_place,
    "local": local_place,
}
