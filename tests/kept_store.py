"""Releases in a store for the tests of fsck and gc: an image, a plan of a family, log, snapshot."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engines import index
from engines.keeping.marking import take_inventory
from engines.snapshot import BudgetFigures, DeviceReport, Snapshot
from engines.store.local import LocalObjects
from engines.store.memory import MemoryObjects
from engines.store.objects import Objects
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.errors import LookupMissError
from planyard.core.results import ImageRecord, Layer, PlanRecord, SmokeVerdict

FAMILY = digest_of_bytes(b"a model")
DAY_SECONDS = 86_400.0
GATES = ("placement", "providers", "logs", "outputs")


@dataclass(frozen=True)
class Release:
    """What one build put into a store."""

    image: ImageRecord
    plan: PlanRecord
    log: str
    snapshot: Snapshot


@cache
def plan_bytes(number: int) -> bytes:
    """A plan of the family: 200 kB that all share, then some of its own."""
    return random.Random(0).randbytes(200_000) + random.Random(number + 1).randbytes(90_000)


def put(store: ObjectStore, data: bytes) -> str:
    """Keep a blob whole."""
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    return digest


def record_of_plan(number: int, data: bytes = b"", *, builder: str = "") -> PlanRecord:
    """The record of a plan that may be stored or not."""
    data, inputs = data or plan_bytes(number), {"number": number, "builder_image": builder}
    return PlanRecord(
        cell=f"rtx/unet/{number}/fp16/sm89",
        recipe=digest_of_value(inputs),
        digest=digest_of_bytes(data),
        size_bytes=len(data),
        backend="tensorrt-rtx",
        version="1.7.1.116",
        sm=89,
        model="unet",
        profile=str(number),
        precision="fp16",
        compile_seconds=1.0,
        inputs=inputs,
    )


def put_plan(store: ObjectStore, number: int, *, builder: str = "") -> PlanRecord:
    """Keep a plan of the family and enter it."""
    plan = record_of_plan(number, builder=builder)
    store.put_blob(plan.digest, [plan_bytes(number)], family=FAMILY)
    index.put_plan(store, plan)
    return plan


def put_image(store: ObjectStore, name: str, *, entered: bool = True) -> ImageRecord:
    """Keep an image of one layer."""
    config, layer = put(store, f"config {name}".encode()), put(store, f"layer {name}".encode())
    named = {"config": {"digest": config, "size": 1}, "layers": [{"digest": layer, "size": 1}]}
    image = ImageRecord(
        name="rtx",
        digest=put(store, canonical_json(named)),
        recipe=digest_of_bytes(name.encode()),
        pull_bytes=1,
        unpacked_bytes=1,
        layers=(
            Layer(
                digest=layer,
                diff_id=digest_of_bytes(f"unpacked {name}".encode()),
                pull_bytes=1,
                unpacked_bytes=1,
                created_by="COPY",
            ),
        ),
    )
    if entered:
        index.put_image(store, image)
    return image


def put_release(
    store: ObjectStore, number: int, *, image: ImageRecord | None = None, builder: str = ""
) -> Release:
    """What build `number` leaves; later numbers are newer."""
    image = image or put_image(store, f"image {number}")
    plan = put_plan(store, number, builder=builder)
    log = put(store, f"log {number}".encode())
    snapshot = _snapshot(number, image=image, plan=plan, log=log)
    index.put_snapshot(store, snapshot)
    return Release(image, plan, log, snapshot)


def snapshot_of(store: ObjectStore, number: int) -> Snapshot:
    """The snapshot of build `number`, whose image has to be entered."""
    recipe = digest_of_bytes(f"image {number}".encode())
    image = index.image_of_recipe(store, recipe)
    if image is None:
        raise LookupMissError("the image is gone")
    log = digest_of_bytes(f"log {number}".encode())
    return _snapshot(number, image=image, plan=record_of_plan(number), log=log)


def _snapshot(number: int, *, image: ImageRecord, plan: PlanRecord, log: str) -> Snapshot:
    verdict = SmokeVerdict(
        cell=plan.cell, verdict="passed", gates=dict.fromkeys(GATES, "passed"), log_digest=log
    )
    return Snapshot(
        image=image.digest,
        image_name=image.name,
        image_recipe=image.recipe,
        gpu="sm89",
        sm=89,
        pins={},
        versions_found={},
        device=DeviceReport(),
        workspace_bytes=0,
        plans=(plan,),
        smoke=(verdict,),
        gates_off=(),
        budget=BudgetFigures(pull_bytes=1, unpacked_bytes=1, largest_layer_bytes=1),
        commit=None,
        matrix_digest=digest_of_bytes(b"matrix"),
        created=f"2026-11-21T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z",
        planyard_version="0.0",
    )


def old_releases(store: ObjectStore, count: int) -> list[Release]:
    """Releases 0, 1, … of a month ago."""
    releases = [put_release(store, number) for number in range(count)]
    age(store.objects, 30 * DAY_SECONDS)
    return releases


def blobs_of(release: Release) -> tuple[str, ...]:
    """All that a release needs: manifest, configuration, layer, plan, log."""
    image = release.image
    config = digest_of_bytes(f"config image {release.plan.profile}".encode())
    return (image.digest, config, image.layers[0].digest, release.plan.digest, release.log)


def age(objects: Objects, seconds: float, *, only: Iterable[str] | None = None) -> None:
    """Let objects have been written so long before."""
    wanted = list(only) if only is not None else list(all_names(objects))
    for name in wanted:
        if isinstance(objects, MemoryObjects):
            objects.modified[name] -= seconds
        elif isinstance(objects, LocalObjects):
            path = objects.root / name
            before = path.stat().st_mtime
            os.utime(path, (before - seconds, before - seconds))


def all_names(objects: Objects) -> Iterator[str]:
    """The names of all objects, sorted within their areas."""
    return iter(take_inventory(ObjectStore(objects)))


def everything_visible_is_whole(store: ObjectStore) -> int:
    """Read what every entry names; returns how many blobs were read."""
    read = set()
    for recipe in store.keys(index.PLANS):
        for plan in index._plans(store, recipe):
            read.add(plan.digest)
    for recipe in store.keys(index.IMAGES):
        for image in index._images(store, recipe):
            read |= {image.digest, *index.read_manifest(store, image.digest).digests}
    for image_digest in store.keys(index.SNAPSHOTS):
        for snapshot in index.snapshots_of_image(store, image_digest):
            read |= {snapshot.image, *(plan.digest for plan in snapshot.plans)}
            read |= {each.log_digest for each in snapshot.smoke}
    for digest in read:
        assert digest_of_bytes(b"".join(store.open_blob(digest))) == digest
    return len(read)


def swap(root: Path, one: str, other: str) -> None:
    """Exchange the bytes of two objects of a directory."""
    first, second = (root / one).read_bytes(), (root / other).read_bytes()
    overwrite(root / one, second)
    overwrite(root / other, first)


def overwrite(path: Path, data: bytes) -> None:
    """Other bytes in the place of an object."""
    path.unlink()
    path.write_bytes(data)
