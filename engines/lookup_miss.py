"""Why a store does not know something: what else it is, and what is nearest to it.

Reads whole indexes, so it is only for the answer to a miss. A digest is near when one or two
slips of a hand lead to it: a long start or end in common, or a small edit distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from engines.index import (
    SNAPSHOTS,
    all_images,
    all_plans,
    read_manifest,
    snapshots_of_image,
)
from engines.snapshot import Snapshot
from engines.store.protocol import Store
from planyard.core.digest import canonical_json
from planyard.core.errors import LookupMissError

NEAREST = 3
_EDITS = 4
_ENDS = 8
"""Hex digits in common at the start or the end: 1 in 2 billion by chance."""

_ABSENT = "absent"


class FieldDifference(msgspec.Struct, frozen=True, kw_only=True):
    """A field of a recipe, dotted, and its values as JSON (`absent` when there is none)."""

    field: str
    asked: str
    stored: str


class NearRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe in the store and where it differs from the one asked for."""

    recipe: str
    cell: str
    differs: tuple[FieldDifference, ...]


class _Known(NamedTuple):
    """Something the store knows that is not an image with a snapshot; `image` may be empty."""

    digest: str
    what: str
    image: str = ""
    name: str = ""


def explain_miss(store: Store, asked: str) -> LookupMissError:
    """The error for an image nobody knows; `asked` is 12 to 64 hex digits."""
    known = [known for known in _everything(store) if known.digest[7:].startswith(asked)]
    if known:
        return _known_otherwise(known)
    images = list(store.keys(SNAPSHOTS))
    near = nearest_keys(asked, images)
    said = f"nearest: {', '.join(near)}" if near else f"none of its {len(images)} images is near"
    return LookupMissError(
        f"{store.url} has no image sha256:{asked}; {said}",
        mend="`planyard build` prints the digests of its images; --store names another store",
    )


def nearest_keys(asked: str, keys: Iterable[str]) -> tuple[str, ...]:
    """The digests of `keys` that `asked` (hex digits) may have been meant to be, nearest first."""
    scored: list[tuple[int, str]] = []
    for key in keys:
        digits = key.removeprefix("sha256:")
        edits = edit_distance(asked, digits[: len(asked)], limit=_EDITS)
        ends = max(_in_common(asked, digits), _in_common(asked[::-1], digits[::-1]))
        if edits <= _EDITS or ends >= _ENDS:
            scored.append((edits * 64 - ends, key))
    return tuple(key for _, key in sorted(scored)[:NEAREST])


def edit_distance(left: str, right: str, *, limit: int) -> int:
    """How many insertions, deletions and replacements lie between two texts; `limit` + 1 if more.

    Only the diagonal band that can stay within the limit is looked at.
    """
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    above = {column: column for column in range(min(limit, len(right)) + 1)}
    for row, letter in enumerate(left, start=1):
        here: dict[int, int] = {}
        for column in range(max(0, row - limit), min(len(right), row + limit) + 1):
            best = above.get(column, limit) + 1
            if column:
                same = letter == right[column - 1]
                best = min(best, above.get(column - 1, limit + 1) + (not same))
                best = min(best, here.get(column - 1, limit) + 1)
            here[column] = best
        if min(here.values()) > limit:
            return limit + 1
        above = here
    return min(above[len(right)], limit + 1)


def nearest_recipes(
    store: Store, inputs: Mapping[str, object], *, limit: int = NEAREST
) -> tuple[NearRecipe, ...]:
    """The plan recipes of the store that differ in the fewest fields from `inputs`, and where."""
    asked = dict(_fields(inputs))
    near: dict[str, NearRecipe] = {}
    for plan in all_plans(store):
        if plan.recipe not in near:
            differs = tuple(_differences(asked, dict(_fields(plan.inputs))))
            near[plan.recipe] = NearRecipe(recipe=plan.recipe, cell=plan.cell, differs=differs)
    return tuple(sorted(near.values(), key=lambda one: (len(one.differs), one.recipe))[:limit])


def _known_otherwise(known: list[_Known]) -> LookupMissError:
    first = known[0]
    images = sorted({(one.name, one.image) for one in known if one[:2] == first[:2] and one.image})
    if not images:
        message = f"{first.digest} is {first.what}, but no snapshot names it"
        return LookupMissError(message, mend="`planyard build` writes the snapshots")
    named = ", ".join(f"{name} {image}" for name, image in images)
    return LookupMissError(
        f"{first.digest} is {first.what} of image {named}; images are found by manifest digest",
        mend=f"planyard lookup {images[0][1]}",
    )


def _everything(store: Store) -> Iterator[_Known]:
    """All digests of the store that are not an image with a snapshot, the likeliest first."""
    records = {record.digest: record for record in all_images(store)}
    proven = {key: snapshots_of_image(store, key) for key in store.keys(SNAPSHOTS)}
    names = {digest: record.name for digest, record in records.items()}
    names |= {key: found[0].image_name for key, found in proven.items() if found}
    for digest, name in sorted(names.items()):
        if not proven.get(digest):
            yield _Known(digest, f"the image {name}")
        for known, what in _in_manifest(store, digest):
            yield _Known(known, what, digest, name)
        for snapshot in proven.get(digest, ()):
            for known, what in _in_snapshot(snapshot):
                yield _Known(known, what, digest, name)
    for record in records.values():
        yield _Known(record.recipe, "the recipe", record.digest, record.name)
        for layer in record.layers:
            yield _Known(layer.diff_id, "an unpacked layer", record.digest, record.name)
    for plan in all_plans(store):
        yield _Known(plan.digest, f"a plan of the cell {plan.cell}")
        yield _Known(plan.recipe, f"the recipe of a plan of the cell {plan.cell}")


def _in_manifest(store: Store, digest: str) -> Iterator[tuple[str, str]]:
    if store.has_blob(digest):
        manifest = read_manifest(store, digest)
        yield manifest.config.digest, "the Docker image id (the configuration)"
        for layer in manifest.layers:
            yield layer.digest, "a layer"


def _in_snapshot(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    yield snapshot.image_recipe, "the recipe"
    for plan in snapshot.plans:
        yield plan.digest, "a plan"
        yield plan.recipe, "the recipe of a plan"


def _in_common(left: str, right: str) -> int:
    """How many characters two texts share at their start."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _fields(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested objects by dotted name, each as JSON."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _fields(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, canonical_json(value).decode()


def _differences(asked: Mapping[str, str], stored: Mapping[str, str]) -> Iterator[FieldDifference]:
    for field in sorted(asked.keys() | stored.keys()):
        here, there = asked.get(field, _ABSENT), stored.get(field, _ABSENT)
        if here != there:
            yield FieldDifference(field=field, asked=here, stored=there)
