"""The index of a store: recipe → plans, recipe → image, image digest → snapshots.

An entry is added only after everything it names is stored, and a hit implies that the bytes are
there: records whose blobs are gone are not answered. An entry under a key that is not its own is
damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from engines.entries import decode_entry
from engines.snapshot import Snapshot, from_json, to_json
from engines.store.manifest import MANIFEST_LIMIT_BYTES, Manifest, manifest_from_bytes
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_value
from planyard.core.errors import IntegrityError, StoreError
from planyard.core.results import ImageRecord, PlanRecord

PLANS = "plans"
IMAGES = "images"
SNAPSHOTS = "snapshots"

_PLAN = msgspec.json.Decoder(PlanRecord)
_IMAGE = msgspec.json.Decoder(ImageRecord)


def put_plan(store: Store, plan: PlanRecord) -> str:
    """Enter a plan whose bytes are stored; returns the entry's digest.

    Raises StoreError when they are not, IntegrityError when `recipe` is not its inputs' digest.
    """
    found = digest_of_value(plan.inputs)
    if found != plan.recipe:
        raise IntegrityError(f"{plan.cell}: the recipe is {plan.recipe}, its inputs are {found}")
    _require_blobs(store, blobs_of_plan(plan), of=f"the plan of {plan.cell}")
    return store.put_entry(PLANS, plan.recipe, canonical_json(msgspec.to_builtins(plan)))


def plans_of_recipe(store: Store, recipe: str) -> tuple[PlanRecord, ...]:
    """The plans of a recipe that are stored with all that belongs to them, by their digests."""
    plans = (
        plan for plan in _plans(store, recipe) if all(map(store.has_blob, blobs_of_plan(plan)))
    )
    return tuple(sorted(plans, key=lambda plan: (plan.digest, plan.cell)))


def blobs_of_plan(plan: PlanRecord) -> tuple[str, ...]:
    """The plan's bytes, what the inspector says of it, and the timing cache it was built with."""
    return tuple(filter(None, (plan.digest, plan.inspector, plan.timing_cache)))


def all_plans(store: Store) -> Iterator[PlanRecord]:
    """Every plan ever entered, stored or not. Slow: only for explaining a miss."""
    for recipe in store.keys(PLANS):
        yield from _plans(store, recipe)


def put_image(store: Store, image: ImageRecord) -> str:
    """Enter an image whose manifest, configuration and layers are stored."""
    store.claim((image.digest,))
    manifest = read_manifest(store, image.digest)
    _require_blobs(store, manifest.digests, of=f"the image {image.name}")
    return store.put_entry(IMAGES, image.recipe, canonical_json(msgspec.to_builtins(image)))


def image_of_recipe(store: Store, recipe: str) -> ImageRecord | None:
    """The image of a recipe that is stored whole; of several, the one with the first digest."""
    images = sorted(_images(store, recipe), key=lambda image: image.digest)
    return next((image for image in images if _is_whole(store, image)), None)


def all_images(store: Store) -> Iterator[ImageRecord]:
    """Every image ever entered, stored or not. Slow: only for explaining a miss."""
    for recipe in store.keys(IMAGES):
        yield from _images(store, recipe)


def read_manifest(store: Store, image_digest: str) -> Manifest:
    """The manifest of an image, verified; raises LookupMissError when it is not stored."""
    data = store.read_blob(image_digest, limit_bytes=MANIFEST_LIMIT_BYTES)
    return manifest_from_bytes(data, digest=image_digest)


def put_snapshot(store: Store, snapshot: Snapshot) -> str:
    """Enter a snapshot whose image, plans and logs are stored; returns the snapshot's digest."""
    logs = (verdict.log_digest for verdict in snapshot.smoke if verdict.log_digest)
    plans = (digest for plan in snapshot.plans for digest in blobs_of_plan(plan))
    of = f"the snapshot of {snapshot.image_name} on {snapshot.gpu}"
    _require_blobs(store, (snapshot.image, *plans, *logs), of=of)
    return store.put_entry(SNAPSHOTS, snapshot.image, to_json(snapshot))


def snapshots_of_image(store: Store, image_digest: str) -> tuple[Snapshot, ...]:
    """The snapshots of an image, newest first; its GPUs in the order of their names."""
    snapshots = [from_json(document) for document in store.entries(SNAPSHOTS, image_digest)]
    for snapshot in snapshots:
        _require_key(snapshot.image, image_digest, kind=SNAPSHOTS)
    snapshots.sort(key=lambda snapshot: snapshot.gpu)
    return tuple(sorted(snapshots, key=lambda snapshot: snapshot.created, reverse=True))


def _plans(store: Store, recipe: str) -> Iterator[PlanRecord]:
    for document in store.entries(PLANS, recipe):
        plan = decode_entry(_PLAN, document, kind=PLANS)
        _require_key(plan.recipe, recipe, kind=PLANS)
        yield plan


def _images(store: Store, recipe: str) -> Iterator[ImageRecord]:
    for document in store.entries(IMAGES, recipe):
        image = decode_entry(_IMAGE, document, kind=IMAGES)
        _require_key(image.recipe, recipe, kind=IMAGES)
        yield image


def _is_whole(store: Store, image: ImageRecord) -> bool:
    if not store.has_blob(image.digest):
        return False
    return all(store.has_blob(digest) for digest in read_manifest(store, image.digest).digests)


def _require_blobs(store: Store, digests: Iterable[str], *, of: str) -> None:
    wanted = tuple(digests)
    store.claim(wanted)
    lost = [digest for digest in wanted if not store.has_blob(digest)]
    if lost:
        raise StoreError(f"{of} was not entered: {store.url} has no {', '.join(lost)}")


def _require_key(found: str, key: str, *, kind: str) -> None:
    if found != key:
        raise IntegrityError(f"an entry of {found} lies under {key} in the index of {kind}")
