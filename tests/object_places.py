"""Where objects can lie in tests: each place with a way to damage an object behind its back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.store.local import LocalObjects
from engines.store.memory import MemoryObjects
from engines.store.objects import Objects
from engines.store.store import ObjectStore
from planyard.core.errors import IntegrityError, LookupMissError, StoreError


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
    mends_by_rewriting: bool = True
    """Whether writing an object again replaces damaged bytes."""
    hides_damage: bool = False
    """Whether damaged bytes are missing there, because the place itself looks."""

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """How damage is met: a place that looks itself has no such object any more."""
        if self.hides_damage:
            return (IntegrityError, LookupMissError, StoreError)
        return (IntegrityError,)


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
    "oci": lambda folder: importlib.import_module("tests.places_oci").oci_place(folder),
    "oci-referrers": lambda folder: importlib.import_module("tests.places_oci").oci_referrers_place(
        folder
    ),
    "s3": lambda folder: importlib.import_module("tests.places_s3").s3_place(folder),
}
MARKS = {"oci": pytest.mark.registry, "oci-referrers": pytest.mark.registry, "s3": pytest.mark.s3}
"""What a test over a place needs."""
