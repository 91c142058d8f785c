"""Mending what `store fsck` found, from another store: an object has the same bytes in every store.

What the other store has in another form (a blob in other packs) is copied as a blob, after the
damaged objects have gone. Nothing that cannot be replaced is removed, unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from engines.keeping.checking import FsckReport, Problem
from engines.store import objects as names
from engines.store.copying import copy_blob
from engines.store.mending import is_damaged
from engines.store.store import ObjectStore
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError

Progress = Callable[[str], None]


def repair(
    store: ObjectStore,
    report: FsckReport,
    *,
    source: ObjectStore,
    progress: Progress = lambda _: None,
) -> FsckReport:
    """Replace what is damaged or missing by what `source` has; says of each what came of it."""
    mended = []
    for problem in report.problems:
        if problem.severity == "damage":
            progress(problem.object)
            problem = _repaired(store, problem, source=source)  # noqa: PLW2901
        mended.append(problem)
    return msgspec.structs.replace(report, problems=tuple(mended))


def remove_damaged_objects(store: ObjectStore, report: FsckReport) -> FsckReport:
    """Remove what is damaged and was not repaired, so that a build makes it anew."""
    left = []
    for problem in report.problems:
        done = problem.severity == "note" or problem.missing or problem.repair == "repaired"
        if not done and names.is_name(problem.object):
            store.objects.remove(problem.object)
            problem = msgspec.structs.replace(problem, repair="removed", why_not="")  # noqa: PLW2901
        left.append(problem)
    return msgspec.structs.replace(report, problems=tuple(left))


def _repaired(store: ObjectStore, problem: Problem, *, source: ObjectStore) -> Problem:
    try:
        why_not = _mend(store, problem, source=source)
    except (IntegrityError, LookupMissError, InputError) as error:
        why_not = error.message
    state = "not repaired" if why_not else "repaired"
    return msgspec.structs.replace(problem, repair=state, why_not=why_not)


def _mend(store: ObjectStore, problem: Problem, *, source: ObjectStore) -> str:
    """Why it could not be mended; empty when it was."""
    name = problem.object
    if not names.is_name(name):
        return "this cannot be fetched: look at it yourself"
    if not _is_there(store, name) and not _fetch(store, name, source=source):
        if not problem.blobs:
            return f"{source.url} has not got it"
        for digest in problem.blobs:
            if not source.has_blob(digest):
                return f"{source.url} has neither it nor {digest}"
        store.objects.remove(name)
        for digest in problem.blobs:
            copy_blob(digest, source=source, target=store)
            _drop_incomplete_maps(store, digest)
    lost = [digest for digest in problem.blobs if not store.has_blob(digest)]
    return f"{lost[0]} needs something else as well" if lost else ""


def _is_there(store: ObjectStore, name: str) -> bool:
    """Whether an object is right by now: a blob copied for another's sake may have mended it."""
    return store.objects.size(name) is not None and not is_damaged(store.objects, name)


def _fetch(store: ObjectStore, name: str, *, source: ObjectStore) -> bool:
    """Replace an object by the other store's; False when that has none of this name."""
    try:
        pieces = source.objects.read(name)
    except FileNotFoundError:
        return False
    try:
        store.objects.write(name, pieces)
    except IntegrityError as error:
        raise IntegrityError(f"it is damaged in {source.url} too: {error.message}") from error
    return True


def _drop_incomplete_maps(store: ObjectStore, digest: str) -> None:
    """Once a blob is there, its maps that name missing packs are of no use."""
    if not store.has_blob(digest):
        raise StoreError(f"{store.url} still lacks {digest}", mend="run fsck again")
    for found in list(store.maps_of(digest)):
        packs = {names.pack_name(found.family, pack) for pack in found.packs}
        if any(store.objects.size(pack) is None for pack in packs):
            store.objects.remove(found.name)
