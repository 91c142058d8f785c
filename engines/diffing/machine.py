"""What the image is and holds, and the devices it saw: versions, devices, budgets, digests."""

from __future__ import annotations

from collections.abc import Iterator

from engines.diffing import changes
from engines.diffing.changes import Change, ChangeSeverity
from engines.diffing.plans import Pair
from engines.diffing.views import ABSENT
from engines.snapshot import DeviceReport, Snapshot
from planyard.core.digest import short
from planyard.core.units import format_bytes

NEAR_LIMIT = 0.95
"""From this share of a budget on, it is worth a look."""
_SIZES = {
    "pull": ("pull_bytes", "pull_limit_bytes"),
    "unpacked": ("unpacked_bytes", "unpacked_limit_bytes"),
    "largest layer": ("largest_layer_bytes", "largest_layer_limit_bytes"),
}


def machine_changes(pair: Pair) -> list[Change]:
    """All of them; the same on several GPUs is one change."""
    found: list[Change] = []
    for gpu in pair.gpus:
        before, after = pair.before.gpus[gpu], pair.after.gpus[gpu]
        found += _version_changes(before, after)
        found += _device_changes(before, after)
        found += _budget_changes(before, after)
    return [*changes.merged(found), *_image_changes(pair)]


def fits_pin(pin: str, found: str) -> bool:
    """Whether a version is the pinned one, as far as both are written: 9.28.0 is 9.28.0.42."""
    pairs = zip(pin.split("."), found.split("."), strict=False)
    return all(one == other for one, other in pairs)


def _change(
    snapshot: Snapshot,
    kind: str,
    subject: str,
    values: tuple[str, str],
    consequence: str,
    severity: ChangeSeverity,
) -> Change:
    return Change(
        kind=kind,  # type: ignore[arg-type]
        subject=subject,
        before=values[0],
        after=values[1],
        consequence=consequence,
        severity=severity,
        gpus=(snapshot.gpu,),
    )


def _version_changes(before: Snapshot, after: Snapshot) -> Iterator[Change]:
    """Versions found inside that are others now, or do not fit their pin any more."""
    for name in changes.union(before.versions_found, after.versions_found):
        here, there = (
            side.versions_found[name].version if name in side.versions_found else ABSENT
            for side in (before, after)
        )
        fitted, fits = (_fits(side, name) for side in (before, after))
        if here == there and fitted == fits:
            continue
        pin = after.pins.get(name, "")
        severity: ChangeSeverity = "none"
        text = "as pinned" if pin else "found in the image"
        if there == ABSENT:
            severity, text = "attention", "not found in the image any more"
        elif not fits:
            severity, text = "breaks", f"the image holds {there}, and {pin} is pinned"
        values = (here, there)
        if here == there:  # the pin moved
            values = (
                f"{here}{', not' * (not fitted)} as pinned",
                f"{there}{', not' * (not fits)} as pinned",
            )
        yield _change(after, "version", f"{name} in the image", values, text, severity)


def _fits(snapshot: Snapshot, name: str) -> bool:
    found, pin = snapshot.versions_found.get(name), snapshot.pins.get(name)
    return not found or not pin or fits_pin(pin, found.version)


def _device_changes(before: Snapshot, after: Snapshot) -> Iterator[Change]:
    here, there = before.device, after.device
    if here.driver != there.driver:
        pin = after.pins.get("driver", "")
        branch = (there.driver or "").partition(".")[0]
        severity: ChangeSeverity = "none"
        text = "what was proved, was proved on it"
        if there.driver is None:
            severity, text = "attention", "no driver answered"
        elif pin.isdigit() and branch.isdigit() and int(branch) < int(pin):
            severity, text = "breaks", f"older than the pinned branch {pin}"
        values = (here.driver or ABSENT, there.driver or ABSENT)
        yield _change(after, "device", "driver of the device", values, text, severity)
    if here.count != there.count:
        fewer = (there.count or 0) < (here.count or 0)
        values = (_known(here.count), _known(there.count))
        text = "fewer devices were seen" if fewer else "devices were seen"
        yield _change(after, "device", "devices", values, text, "attention" if fewer else "none")
    yield from _precision_changes(here, there, after)


def _precision_changes(
    before: DeviceReport, after: DeviceReport, snapshot: Snapshot
) -> Iterator[Change]:
    for name in ("fp16", "int8"):
        here, there = getattr(before, name), getattr(after, name)
        if here != there:
            severity: ChangeSeverity = "breaks" if there is False else "attention"
            text = {True: "the device has it", False: "the device has it not"}.get(
                there, "no device was asked"
            )
            values = (_known(here), _known(there))
            yield _change(
                snapshot,
                "device",
                f"{name} of the device",
                values,
                text,
                "none" if there else severity,
            )


def _known(value: object) -> str:
    if value is None:
        return "not asked"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _budget_changes(before: Snapshot, after: Snapshot) -> Iterator[Change]:
    """Sizes and limits: over the limit breaks, close to it or without one is worth a look."""
    for what, (size_field, limit_field) in _SIZES.items():
        sizes = [getattr(side.budget, size_field) for side in (before, after)]
        limits = [getattr(side.budget, limit_field) for side in (before, after)]
        if sizes[0] == sizes[1] and limits[0] == limits[1]:
            continue
        severity, text = _against(sizes[1], limits[1], was_limit=limits[0])
        values = (_weight(sizes[0], limits[0]), _weight(sizes[1], limits[1]))
        if values[0] == values[1]:  # rounding hides the difference
            values = (f"{sizes[0]} B of {limits[0]} B", f"{sizes[1]} B of {limits[1]} B")
        yield _change(after, "budget", what, values, text, severity)


def _against(
    size_bytes: int, limit_bytes: int | None, *, was_limit: int | None
) -> tuple[ChangeSeverity, str]:
    if limit_bytes is None:
        return (
            ("breaks", "has no limit any more") if was_limit is not None else ("none", "no limit")
        )
    share = size_bytes / limit_bytes if limit_bytes else float("inf")
    if share > 1:
        return "breaks", "over its budget"
    if was_limit is not None and limit_bytes > was_limit:
        return "attention", f"{share:.0%} of its budget, and the budget was raised"
    if share >= NEAR_LIMIT:
        return "attention", f"{share:.0%} of its budget"
    return "none", f"{share:.0%} of its budget"


def _weight(size_bytes: int, limit_bytes: int | None) -> str:
    """`133.4 MB of 140.0 MB`."""
    limit = "" if limit_bytes is None else f" of {format_bytes(limit_bytes)}"
    return f"{format_bytes(size_bytes)}{limit}"


def _image_changes(pair: Pair) -> list[Change]:
    """Another image: by its name, its recipe, or only its bytes; and the plans that carry over."""
    before, after = pair.before.newest, pair.after.newest
    backends = _backend_change(pair)
    same = (before.image, before.image_recipe, before.image_name) == (
        after.image,
        after.image_recipe,
        after.image_name,
    )
    if same:
        return backends
    carried, plans = len(pair.carried), len(pair.after.plans)
    text = f"{carried} of {changes.count(plans, 'plan')} carry over unchanged" if plans else ""
    if not text:
        text = f"{format_bytes(after.budget.pull_bytes)} to pull, less the layers a node has"
    if before.image_recipe == after.image_recipe:
        text += "; the recipe is the same"
    values = [f"{each.image_name} {short(each.image)}" for each in (before, after)]
    if values[0] == values[1]:
        values = [f"of the recipe {short(each.image_recipe)}" for each in (before, after)]
    return [
        *backends,
        Change(
            kind="image",
            subject="image",
            before=values[0],
            after=values[1],
            consequence=text,
            severity="none",
            gpus=pair.gpus,
        ),
    ]


def _backend_change(pair: Pair) -> list[Change]:
    """Another backend serves: nothing that was proved or compiled counts for it."""
    if not pair.other_backend:
        return []
    plans = [cell for cell in pair.before.plans if cell not in pair.carried]
    parts = [f"{changes.count(len(plans), 'plan')} nobody needs"] if plans else []
    parts += [f"{changes.count(len(pair.cells), 'cell')} to run again"]
    return [
        Change(
            kind="image",
            subject="backend",
            before=str(pair.before.backend),
            after=str(pair.backend),
            consequence=", ".join(parts),
            severity="attention",
            gpus=pair.gpus,
            cells=pair.ids(pair.cells),
            validate=pair.ids(pair.cells),
        )
    ]
