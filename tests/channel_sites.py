"""Images that may be promoted, in any store; and objects that watch, or meet before they move."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from engines import index
from engines.channels.moves import Move, Mover, promote, rollback
from engines.store.manifest import OCI_MANIFEST
from engines.store.objects import Objects, Pointer
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.results import ImageRecord
from tests.signed_evidence import a_plan, a_site, a_snapshot, a_verdict, put

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
ANN = Mover(by="ann@desk", now="2026-11-21T18:00:00Z")
CHANNEL = "stable"


def images(store: ObjectStore, count: int) -> list[str]:
    """The digests of so many images that passed on both their GPUs."""
    return [a_site(store, name=f"rtx{number}").digest for number in range(count)]


def moved(store: ObjectStore, *digests: str) -> list[Move]:
    """Promote each in turn; all of them move."""
    moves = [promote(store, CHANNEL, digest, mover=ANN) for digest in digests]
    assert [move.objections for move in moves if not move.moved] == []
    return moves


def backwards(store: ObjectStore, **options: Any) -> Move:
    """Roll the channel back."""
    return rollback(store, CHANNEL, mover=options.pop("mover", ANN), **options)


def small_image(store: ObjectStore, name: str, *, plan: bytes) -> tuple[ImageRecord, str]:
    """An image of one layer with one large plan in chunks; the digest of the plan too."""
    digest = digest_of_bytes(plan)
    store.put_blob(digest, [plan], family=digest_of_bytes(b"model"))
    return image_with_plan(store, name, digest), digest


def image_with_plan(store: ObjectStore, name: str, digest: str) -> ImageRecord:
    """An image of one layer, with a plan that is stored, in a snapshot that passed."""
    config, layer = put(store, f"config {name}".encode()), put(store, f"layer {name}".encode())
    kinds = {"config": "application/vnd.oci.image.config.v1+json", "layer": f"{OCI_LAYER}+gzip"}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": kinds["config"], "digest": config, "size": len(f"config {name}")},
        "layers": [{"mediaType": kinds["layer"], "digest": layer, "size": len(f"layer {name}")}],
    }
    image = ImageRecord(
        name=name,
        digest=put(store, canonical_json(document)),
        recipe=digest_of_bytes(f"recipe {name}".encode()),
        pull_bytes=1,
        unpacked_bytes=1,
        layers=(),
    )
    index.put_image(store, image)
    record = a_plan(store)
    record = type(record)(
        **{each: getattr(record, each) for each in record.__struct_fields__} | {"digest": digest}
    )
    smoke = (a_verdict(record.cell, "passed", exit="passed"),)
    index.put_snapshot(store, a_snapshot(image, plans=(record,), smoke=smoke))
    return image


class Watched:
    """Objects that note every name they are asked to read, write or remove."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.read_names: list[str] = []
        self.written: list[str] = []
        self.before_move: Callable[[], object] = lambda: None
        self.before_write: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def read(self, name: str, **span: Any) -> Any:
        self.read_names.append(name)
        return self._objects.read(name, **span)

    def write(self, name: str, *args: Any, **options: Any) -> None:
        self.written.append(name)
        self.before_write()
        self._objects.write(name, *args, **options)

    def adopt(self, *_: Any) -> bool:
        raise AssertionError("nothing is adopted")

    def remove(self, name: str) -> None:
        raise AssertionError(f"nothing is removed: {name}")

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        self.before_move()
        return self._objects.move_pointer(name, data, expected=expected)


class Gathered:
    """Objects of which every thread has read the pointer before any thread moves it."""

    def __init__(self, objects: Objects, barrier: threading.Barrier) -> None:
        self._objects = objects
        self._barrier = barrier
        self._met = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def pointer(self, name: str) -> Pointer | None:
        found = self._objects.pointer(name)
        if not getattr(self._met, "done", False):
            self._met.done = True
            self._barrier.wait(timeout=120)
        return found
