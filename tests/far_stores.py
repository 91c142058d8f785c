"""Stores of tests: one that pretends to be far away and counts; images with plans of a family."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines import index
from engines.snapshot import BudgetFigures, DeviceReport, Snapshot
from engines.store.memory import MemoryObjects
from engines.store.objects import Listed, Objects
from engines.store.protocol import Store
from engines.store.wrapped import WrappedObjects
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.errors import StoreError
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict

MIB = 1 << 20


@dataclass(frozen=True)
class ReadSeen:
    """A read of an object, and how many bytes of it were taken."""

    name: str
    start: int
    size_bytes: int


class FarObjects(WrappedObjects):
    """Objects behind a wire: reads, writes and questions are recorded, and may break."""

    is_near = False

    def __init__(self, inner: Objects | None = None) -> None:
        super().__init__(inner or MemoryObjects())
        self.reads: list[ReadSeen] = []
        self.written: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self.writes_left: int | None = None
        self.read_bytes_left: int | None = None

    def size(self, name: str) -> int | None:
        self.asked.append(name)
        return super().size(name)

    def listing(self, prefix: str) -> Iterator[Listed]:
        self.asked.append(prefix)
        return super().listing(prefix)

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._recorded(name, start, super().read(name, start=start, length=length))

    def _recorded(self, name: str, start: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        size_bytes = 0
        try:
            for piece in pieces:
                if self.read_bytes_left is not None:
                    self.read_bytes_left -= len(piece)
                    if self.read_bytes_left < 0:
                        raise StoreError("the wire was cut")
                size_bytes += len(piece)
                yield piece
        finally:
            self.reads.append(ReadSeen(name, start, size_bytes))

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise StoreError("the wire was cut")
        super().write(name, source, proved=proved)
        self.written.append((name, self.inner.size(name) or 0))

    def bytes_of(self, *kinds: str) -> int:
        """How many bytes were read of names that start so; of all without arguments."""
        return sum(each.size_bytes for each in self.reads if each.name.startswith(kinds or ""))

    def forget(self) -> None:
        """Count from nothing again."""
        self.reads.clear()
        self.written.clear()
        self.asked.clear()


@dataclass
class Family:
    """Blobs that share most of their bytes."""

    size_bytes: int = 8 * MIB
    seed: int = 1
    base: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.base = random.Random(self.seed).randbytes(self.size_bytes)

    def member(self, number: int, *, changes: int = 3) -> bytes:
        """Blob `number`; 0 is the base, others differ in regions of 1000 bytes."""
        data, chance = bytearray(self.base), random.Random(1000 * self.seed + number)
        for _ in range(changes if number else 0):
            at = chance.randrange(len(data) - 1000)
            data[at : at + 1000] = chance.randbytes(1000)
        return bytes(data)


def store_image(
    store: Store,
    plans: Mapping[str, bytes],
    *,
    name: str = "rtx",
    layers: Iterable[bytes] = (b"a layer",),
    created: str = "2026-11-21T00:00:00Z",
    log: bytes = b"",
) -> str:
    """Store an image with a snapshot and plans (by profile, one family); returns its digest."""
    config = _put(store, f"config {name}".encode())
    named = {
        "config": {"digest": config, "size": 1},
        "layers": [{"digest": _put(store, each), "size": len(each)} for each in layers],
    }
    manifest = _put(store, canonical_json(named))
    record = ImageRecord(
        name=name,
        digest=manifest,
        recipe=digest_of_bytes(name.encode()),
        pull_bytes=1,
        unpacked_bytes=1,
        layers=(),
    )
    index.put_image(store, record)
    records = tuple(_plan(store, name, profile, data) for profile, data in plans.items())
    cell = f"{name}/sd15/512/fp16/sm89"
    smoke = SmokeVerdict(cell=cell, verdict="passed", log_digest=_put(store, log) if log else "")
    snapshot = Snapshot(
        image=manifest,
        image_name=name,
        image_recipe=record.recipe,
        gpu="sm89",
        sm=89,
        pins={},
        versions_found={},
        device=DeviceReport(),
        workspace_bytes=1,
        plans=records,
        smoke=(smoke,),
        gates_off=(),
        budget=BudgetFigures(pull_bytes=1, unpacked_bytes=1, largest_layer_bytes=1),
        commit=None,
        matrix_digest=digest_of_bytes(b"matrix"),
        created=created,
        planyard_version="0",
    )
    index.put_snapshot(store, snapshot)
    return manifest


def _put(store: Store, data: bytes) -> str:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    return digest


def _plan(store: Store, image: str, profile: str, data: bytes) -> PlanRecord:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data], family=digest_of_bytes(b"sd15"))
    inputs: dict[str, object] = {"profile": profile, "image": image}
    plan = PlanRecord(
        cell=f"{image}/sd15/{profile}/fp16/sm89",
        recipe=digest_of_value(inputs),
        digest=digest,
        size_bytes=len(data),
        backend="tensorrt-rtx",
        version="1.7.1.116",
        sm=89,
        model="sd15",
        profile=profile,
        precision="fp16",
        compile_seconds=1.0,
        inputs=inputs,
    )
    index.put_plan(store, plan)
    return plan
