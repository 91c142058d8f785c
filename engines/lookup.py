"""From an image digest to its snapshots and plans, and out of the store as verified files.

Of several snapshots the newest that names a cell decides its plan. A plan whose bytes are not in
the store is not a hit. A plan runs only on the SM it was built for: neither backend is asked for
plans that are portable between SMs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engines.index import SNAPSHOTS, snapshots_of_image
from engines.lookup_miss import FieldDifference, NearRecipe, explain_miss, nearest_recipes
from engines.snapshot import Snapshot, any_json
from engines.store.counted import Traffic
from engines.store.fetching import fetch_blob, is_far, remove_partials
from engines.store.local import open_regular
from engines.store.protocol import Store
from engines.store.seeds import Seeds
from planyard.core.digest import canonical_json, short
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.results import PlanRecord
from planyard.edge import files

__all__ = [
    "FieldDifference",
    "LookupResult",
    "NearRecipe",
    "PlanFound",
    "PlanNotFitting",
    "lookup",
    "lookup_json_schema",
    "lookup_to_json",
    "nearest_recipes",
    "plan_file_names",
    "pull",
    "resolve_image",
]

LOOKUP_SCHEMA = 1
SNAPSHOT_FILE = "snapshot.json"
_BEFORE = ".snapshot.json.before"
_SUMMARY_LIMIT_BYTES = 64 << 20

_ASKED = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class PlanFound(msgspec.Struct, frozen=True, kw_only=True):
    """A plan of the image that is in the store."""

    recipe: str
    digest: str
    cell: str
    size_bytes: int
    sm: int
    backend: str
    version: str
    model: str
    profile: str
    precision: str
    inspector: str = ""
    """The digest of what TensorRT's engine inspector says of it, where that is stored."""


class PlanNotFitting(msgspec.Struct, frozen=True, kw_only=True):
    """A plan of the image that was left out, and why."""

    cell: str
    digest: str
    why: str


class LookupResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a store knows about an image: `planyard lookup --json`. Snapshots are newest first."""

    schema: int = LOOKUP_SCHEMA
    image: str
    snapshots: tuple[Snapshot, ...]
    plans: tuple[PlanFound, ...]
    not_fitting: tuple[PlanNotFitting, ...]


def lookup(store: Store, image_digest: str, *, sm: int | None = None) -> LookupResult:
    """What the store knows about an image, given by its digest or 12 or more of its hex digits.

    With `sm`, plans for other SMs are in `not_fitting`. Raises InputError for text that is no
    digest or a prefix of several, LookupMissError with the nearest digests for an unknown one.
    """
    digest = resolve_image(store, image_digest)
    snapshots = snapshots_of_image(store, digest)
    if not snapshots:
        raise explain_miss(store, digest.removeprefix("sha256:"))
    found: list[PlanFound] = []
    left_out: list[PlanNotFitting] = []
    for plan in _plans_of(store, snapshots):
        why = _why_not(store, plan, sm=sm)
        if why:
            left_out.append(PlanNotFitting(cell=plan.cell, digest=plan.digest, why=why))
        else:
            found.append(_found(store, plan))
    return LookupResult(
        image=digest, snapshots=snapshots, plans=tuple(found), not_fitting=tuple(left_out)
    )


def pull(
    store: Store,
    result: LookupResult,
    folder: Path,
    *,
    seeds: Sequence[Path] = (),
    traffic: Traffic | None = None,
) -> tuple[Path, ...]:
    """Write the plans of `result` and `snapshot.json`, the result itself, into `folder`.

    What the engine inspector says of NAME.plan becomes NAME.inspector.json.
    Every plan is verified, also one that was here before, and only what differs is written.
    `snapshot.json` is there only while everything it names is: it goes first and comes last.

    From a store elsewhere only chunks are fetched that no file of an earlier pull has, into
    `folder` or into one of `seeds`; `traffic` counts what was reused.
    """
    wanted = _files_of(result, folder)
    summary, document = folder / SNAPSHOT_FILE, lookup_to_json(result)
    try:
        differing = [path for path, (digest, _) in wanted.items() if not _is(path, digest)]
        current = not summary.is_symlink() and summary.is_file() and summary.read_bytes()
        if differing or current != document:
            with Seeds(store, traffic=traffic) as held:
                if is_far(store):
                    for path in wanted.keys() - set(differing):
                        held.add(path, wanted[path][0], group=wanted[path][1])
                    _add_seeds(held, folders=(folder, *seeds))
                _put_aside(summary, keep=is_far(store))
                for path in differing:
                    digest, model = wanted[path]
                    fetch_blob(store, digest, path, seeds=held, group=model)
            files.write_bytes(summary, document)
            remove_partials(folder)
            (folder / _BEFORE).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} could not be written: {error.strerror}") from error
    return (*wanted, summary)


def _files_of(result: LookupResult, folder: Path) -> dict[Path, tuple[str, str]]:
    """The digest and the model of each file that a pull writes, but the summary."""
    wanted: dict[Path, tuple[str, str]] = {}
    for name, plan in zip(plan_file_names(result.plans), result.plans, strict=True):
        path = folder / name
        if wanted.setdefault(path, (plan.digest, plan.model))[0] != plan.digest:
            raise IntegrityError(f"{result.image} has two plans for one file: {name}")
        if plan.inspector:
            wanted[path.with_suffix(".inspector.json")] = (plan.inspector, plan.model)
    return wanted


def _put_aside(summary: Path, *, keep: bool) -> None:
    """Take `snapshot.json` away; kept, it names the seeds of the pull after one that is cut."""
    if not keep:
        summary.unlink(missing_ok=True)
    elif summary.is_symlink() or summary.exists():
        summary.replace(summary.with_name(_BEFORE))


def _add_seeds(seeds: Seeds, *, folders: Sequence[Path]) -> None:
    """The plans that earlier pulls wrote into `folders`; what cannot be read is no seed."""
    for path in [folder / name for folder in folders for name in (SNAPSHOT_FILE, _BEFORE)]:
        try:
            with open_regular(path) as file:
                document = file.read(_SUMMARY_LIMIT_BYTES) or b""
            plans = msgspec.json.decode(document, type=LookupResult).plans
        except (OSError, IntegrityError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        for name, plan in zip(plan_file_names(plans), plans, strict=True):
            seeds.add(path.parent / name, plan.digest, group=plan.model)


def plan_file_names(plans: Sequence[PlanFound]) -> tuple[str, ...]:
    """A file name for each plan: `ocr-det-640-fp16-sm89.plan`, the cell without its image.

    Other plans that would have the same name get the start of their digest into it.
    """
    digests: dict[str, set[str]] = defaultdict(set)
    for plan in plans:
        digests[_stem(plan)].add(plan.digest)
    return tuple(
        f"{_stem(plan)}.plan"
        if len(digests[_stem(plan)]) == 1
        else f"{_stem(plan)}-{short(plan.digest)}.plan"
        for plan in plans
    )


def lookup_to_json(result: LookupResult) -> bytes:
    """The one encoding of a result."""
    return canonical_json(msgspec.to_builtins(result))


def lookup_json_schema() -> dict[str, object]:
    """The JSON Schema of a result, made from the types."""
    return msgspec.json.schema(LookupResult, schema_hook=any_json)


def resolve_image(store: Store, asked: str) -> str:
    """The whole digest that `asked` is, or is the start of; errors as of `lookup`."""
    match = _ASKED.fullmatch(asked)
    if not match:
        wanted = "write sha256: and 12 to 64 lower-case hex digits"
        raise InputError([f"{asked[:80]!r} is not an image digest: {wanted}"])
    digits = match[1]
    if len(digits) == 64:
        return "sha256:" + digits
    matches = [key for key in store.keys(SNAPSHOTS) if key[7:].startswith(digits)]
    if len(matches) > 1:
        raise InputError([f"{asked} is the start of several images: {', '.join(matches)}"])
    if not matches:
        raise explain_miss(store, digits)
    return matches[0]


def _plans_of(store: Store, snapshots: Sequence[Snapshot]) -> list[PlanRecord]:
    """One plan a cell, in the order of the cells: the newest whose bytes are stored, if any."""
    chosen: dict[str, PlanRecord] = {}
    lost: dict[str, PlanRecord] = {}
    for snapshot in snapshots:
        for plan in snapshot.plans:
            kept = chosen if store.has_blob(plan.digest) else lost
            kept.setdefault(plan.cell, plan)
    return [plan for _, plan in sorted((lost | chosen).items())]


def _why_not(store: Store, plan: PlanRecord, *, sm: int | None) -> str:
    """Why a plan is no hit; empty when it is one."""
    if sm is not None and plan.sm != sm:
        return f"built for SM {_sm(plan.sm)}, not {_sm(sm)}: a plan runs only on its own SM"
    if not store.has_blob(plan.digest):
        return f"its bytes are not in {store.url}"
    return ""


def _sm(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"


def _found(store: Store, plan: PlanRecord) -> PlanFound:
    fields = {field: getattr(plan, field) for field in PlanFound.__struct_fields__}
    if plan.inspector and not store.has_blob(plan.inspector):
        fields["inspector"] = ""  # the plan is good without
    return PlanFound(**fields)


def _stem(plan: PlanFound) -> str:
    """The cell without its image as a file name that cannot leave its folder or hide in it."""
    name = _UNSAFE.sub("_", "-".join(plan.cell.split("/")[1:]))
    return name.lstrip(".-")[:160] or short(plan.digest)


def _is(path: Path, digest: str) -> bool:
    """Whether a regular file with these bytes is at `path`."""
    if path.is_symlink() or not path.is_file():
        return False
    return files.digest_of_file(path) == digest
