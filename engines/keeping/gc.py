"""Collecting garbage: what nothing leads to any more, and is older than the grace period, goes.

The order is the whole safety (docs/keeping-a-store.md): a first look finds what could go; a notice
is put up; a second look, behind it, decides; entries go before maps, and maps before blobs and
packs.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from engines.keeping.marking import Inventory, Marker, Policy, take_inventory
from engines.store import claims
from engines.store import objects as names
from engines.store.chunk_map import map_from_bytes
from engines.store.fsck import pack_header
from engines.store.local import DAY_SECONDS, LocalObjects
from engines.store.objects import Listed
from engines.store.store import ObjectStore

GC_SCHEMA = 1
Progress = Callable[[str], None]

_ORDER = (names.INDEX, names.MAPS, names.BLOBS, names.PACKS)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How many objects, and their bytes."""

    objects: int = 0
    size_bytes: int = 0


class GcReport(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard store gc --json`. With `dry_run`, what would be freed.

    `freed` is by area (`blobs`, `packs`, `maps`, `index`), `kept` by reason. Dead bytes lie in
    packs of which another part is in use: they stay.
    """

    schema: int = GC_SCHEMA
    store: str
    dry_run: bool
    keep_snapshots: int
    keep_history: int
    grace_seconds: float
    freed_bytes: int
    freed: dict[str, Tally]
    kept: dict[str, Tally]
    dead_bytes: int
    packs_with_dead_bytes: int
    temporary_files: int = 0
    image_layouts: int = 0


def collect(
    store: ObjectStore,
    policy: Policy,
    *,
    dry_run: bool = False,
    progress: Progress = lambda _: None,
) -> GcReport:
    """Remove what nothing leads to; with `dry_run`, only say what that is.

    Raises StoreError for a place that does not say how old its objects are, IntegrityError when
    something that could lead to others is damaged: then nothing is removed.
    """
    if not claims.is_collected(store.objects):
        raise claims.no_times(store.objects)
    marker = Marker(store, policy)
    progress("looking at what is there")
    first = take_inventory(store)
    if any(each.modified is None for each in first.values()):
        raise claims.no_times(store.objects)
    oldest_young = time.time() - policy.grace_seconds
    kept = marker.mark(first, oldest_young=oldest_young)
    doomed = _doomed(first, kept, oldest_young=oldest_young)
    if dry_run:
        return _report(store, policy, first, kept, doomed, dry_run=True)
    if doomed:
        with claims.sweeping(store.objects) as notice:
            oldest_young = notice.modified - policy.grace_seconds
            second = take_inventory(store)
            kept = marker.mark(second, oldest_young=oldest_young)
            doomed = _doomed(second, kept, oldest_young=oldest_young)
            for number, name in enumerate(doomed):
                notice.renew()
                store.objects.remove(name)
                progress(f"{number + 1} of {len(doomed)} removed")
            first = second
    report = _report(store, policy, first, kept, doomed, dry_run=False)
    if isinstance(store.objects, LocalObjects):
        swept = store.objects.sweep(older_than_seconds=max(policy.grace_seconds, DAY_SECONDS))
        layouts = _remove_layouts(store.objects)
        return msgspec.structs.replace(report, temporary_files=swept, image_layouts=layouts)
    return report


def _doomed(
    inventory: Inventory, kept: Mapping[str, str], *, oldest_young: float
) -> dict[str, Listed]:
    """What goes, in the order in which it goes."""
    found = {
        name: each
        for name, each in inventory.items()
        if name not in kept
        and each.modified is not None
        and each.modified <= oldest_young
        and not name.startswith(f"{names.INDEX}{claims.SWEEPS}/")
    }
    order = {area: number for number, area in enumerate(_ORDER)}
    return dict(sorted(found.items(), key=lambda item: (order[_area(item[0])], item[0])))


def _report(
    store: ObjectStore,
    policy: Policy,
    inventory: Inventory,
    kept: Mapping[str, str],
    doomed: Mapping[str, Listed],
    *,
    dry_run: bool,
) -> GcReport:
    freed = {area.split("/")[0]: Tally() for area in _ORDER}
    reasons: dict[str, Tally] = {}
    for name, listed in inventory.items():
        if name in doomed:
            _count(freed, name.split("/")[0], listed)
        else:
            _count(reasons, kept.get(name, "young"), listed)
    left = [inventory[name] for name in kept if name in inventory]
    dead_bytes, packs = dead_in_packs(store, left)
    return GcReport(
        store=store.url,
        dry_run=dry_run,
        keep_snapshots=policy.snapshots,
        keep_history=policy.channel_records,
        grace_seconds=policy.grace_seconds,
        freed_bytes=sum(each.size_bytes for each in freed.values()),
        freed=freed,
        kept=dict(sorted(reasons.items())),
        dead_bytes=dead_bytes,
        packs_with_dead_bytes=packs,
    )


def dead_in_packs(store: ObjectStore, kept: Iterable[Listed]) -> tuple[int, int]:
    """Bytes of chunks that no kept map names, in kept packs; and how many packs have such."""
    used: defaultdict[str, dict[int, int]] = defaultdict(dict)
    packs = {}
    for listed in kept:
        if listed.name.startswith(names.PACKS):
            packs[listed.name] = listed
        elif listed.name.startswith(names.MAPS):
            data = b"".join(store.objects.read(listed.name))
            blob = f"sha256:{listed.name.split('/')[1]}"
            found = map_from_bytes(data, blob=blob, name=listed.name, where=store.url)
            pack_names = [names.pack_name(found.family, pack) for pack in found.packs]
            for _, pack, offset, length in found:
                used[pack_names[pack]][offset] = length
    dead = [
        sum(chunk.length for chunk in pack_header(store.objects, name)) - sum(used[name].values())
        for name in packs
        if name in used
    ]
    return sum(dead), sum(each > 0 for each in dead)


def _count(tallies: dict[str, Tally], of: str, listed: Listed) -> None:
    before = tallies.get(of, Tally())
    tallies[of] = Tally(
        objects=before.objects + 1, size_bytes=before.size_bytes + listed.size_bytes
    )


def _area(name: str) -> str:
    return next(area for area in names.AREAS if name.startswith(area))


def _remove_layouts(objects: LocalObjects) -> int:
    """Remove OCI layouts of images that are not here any more; they hold links, no bytes."""
    folder, removed = objects.root / "images", 0
    if folder.is_symlink() or not folder.is_dir():
        return 0
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, not paths
        blob = f"{names.BLOBS}{name}"
        layout = folder / name
        if names.is_name(blob) and objects.size(blob) is None and not layout.is_symlink():
            shutil.rmtree(layout, ignore_errors=True)
            removed += 1
    return removed
