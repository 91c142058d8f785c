"""`store fsck`: what is wrong in a store, and which plans and images that breaks.

Objects are looked at in engines/store/fsck.py; here come the entries of the index, the images and
channels, and what lies in a directory without being an object.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from engines.channels.history import read_head
from engines.index import IMAGES, read_manifest
from engines.keeping.reach import Said, said_by
from engines.store import claims
from engines.store import objects as names
from engines.store.fsck import Damage, ObjectCheck, Slice, check_objects
from engines.store.local import LocalObjects
from engines.store.objects import Listed
from engines.store.protocol import ENTRY_LIMIT_BYTES, verified
from engines.store.store import ObjectStore
from planyard.core.digest import short
from planyard.core.errors import InputError, IntegrityError, LookupMissError

FSCK_SCHEMA = 1

_TEMPORARY = re.compile(r"\..{1,40}\.[a-z0-9_]{8}")  # what files.atomic_write makes
_BESIDE_OBJECTS = ("oci-layout", "images", "channels", "leases")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something wrong. `breaks` names plans, images and channels; `repair` what came of it.

    A `note` breaks nothing: a file that is not planyard's.
    """

    object: str
    problem: str
    severity: Literal["damage", "note"] = "damage"
    missing: bool = False
    breaks: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    """Digests that cannot be read because of it."""
    repair: Literal["", "repaired", "removed", "not repaired"] = ""
    why_not: str = ""


class FsckReport(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard store fsck --json`. Of the blobs and packs, part `part` of `parts` was read."""

    schema: int = FSCK_SCHEMA
    store: str
    objects: int
    read_bytes: int
    part: int
    parts: int
    problems: tuple[Problem, ...]
    temporary_files: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, or all of it was mended."""
        return all(
            each.severity == "note" or each.repair in ("repaired", "removed")
            for each in self.problems
        )


def check_store(
    store: ObjectStore, *, part: Slice, progress: Callable[[str], None] = lambda _: None
) -> FsckReport:
    """Look at a store; changes nothing. Raises StoreError when it cannot be read."""
    found = check_objects(store.objects, part=part, progress=progress)
    _IndexCheck(store, found).check()
    foreign, temporary = _files_of_others(store)
    problems = [_problem(each) for each in found.damage.values()]
    return FsckReport(
        store=store.url,
        objects=found.objects,
        read_bytes=found.read_bytes,
        part=part.number % part.of + 1,
        parts=part.of,
        problems=(*sorted(problems, key=lambda each: each.object), *foreign),
        temporary_files=temporary,
    )


def _problem(damage: Damage) -> Problem:
    return Problem(
        object=damage.name,
        problem=damage.problem,
        missing=damage.is_missing,
        breaks=tuple(sorted(damage.breaks)),
        blobs=tuple(sorted(damage.blobs)),
    )


class _IndexCheck:
    """Entries, the images they name, and channels."""

    def __init__(self, store: ObjectStore, found: ObjectCheck) -> None:
        self._store, self._found = store, found
        self._images: dict[str, tuple[str, ...]] = {}

    def check(self) -> None:
        """Look at all of them."""
        try:
            for listed in self._store.objects.listing(names.INDEX):
                self._entry(listed)
        except IntegrityError as error:
            self._found.add(names.INDEX, f"{error.message}: what lies behind it is not known")
        for channel in self._store.objects.pointers():
            self._channel(channel)

    def _entry(self, listed: Listed) -> None:
        _, kind, key, _ = listed.name.split("/")
        if kind in (claims.CLAIMS, claims.SWEEPS):
            return
        self._found.objects += 1
        self._found.read_bytes += listed.size_bytes
        try:
            said = said_by(kind, f"sha256:{key}", self._read(listed))
        except FileNotFoundError:
            return
        except IntegrityError as error:
            self._found.add(listed.name, error.message).breaks.add(f"an entry of {kind}")
            return
        if said.key not in (None, f"sha256:{key}"):
            said_key = f"it belongs under {said.key}, and lies under another key"
            self._found.add(listed.name, said_key).breaks.add(said.title)
        self._blobs(kind, said, said.blobs)
        if kind == IMAGES or said.snapshot:
            self._blobs(kind, said, self._image(said.subject or ""))

    def _blobs(self, kind: str, said: Said, blobs: Iterable[str]) -> None:
        """Note for each blob that cannot be read that an entry needs it."""
        for digest in blobs:
            if self._found.has(digest):
                continue
            if digest in self._found.lost:
                for name in self._found.lost[digest]:
                    self._found.damage[name].breaks.add(said.title)
                continue
            lost = f"it is missing, and {kind} name it"
            damage = self._found.add(names.blob_name(digest), lost, is_missing=True)
            damage.blobs.add(digest)
            damage.breaks.add(said.title)

    def _image(self, digest: str) -> tuple[str, ...]:
        """What an image needs beside its manifest; nothing when that cannot be read."""
        if digest not in self._images:
            self._images[digest] = ()
            if self._found.has(digest):
                with suppress(LookupMissError, IntegrityError):
                    try:
                        self._images[digest] = read_manifest(self._store, digest).digests
                    except InputError as error:
                        said = f"it should be the manifest of an image: {error.message}"
                        self._found.add(names.blob_name(digest), said).blobs.add(digest)
        return self._images[digest]

    def _channel(self, channel: str) -> None:
        where, title = f"channels/{channel}", f"channel {channel}"
        try:
            head = read_head(self._store, channel)
        except (IntegrityError, InputError) as error:
            self._found.add(where, error.message).breaks.add(title)
            return
        if head:
            image = head.state.image
            said = Said(title=f"{title} at {short(image)}")
            self._blobs("channels", said, (image, *self._image(image)))

    def _read(self, listed: Listed) -> bytes:
        if listed.size_bytes > ENTRY_LIMIT_BYTES:
            raise IntegrityError(f"too large to be an entry: {listed.size_bytes} bytes")
        pieces = self._store.objects.read(listed.name, length=ENTRY_LIMIT_BYTES + 1)
        digest = names.digest_of_name(listed.name)
        return b"".join(verified(digest, pieces, where=listed.name))


def _files_of_others(store: ObjectStore) -> tuple[list[Problem], int]:
    """What lies in a directory and is no object, and how many temporary files there are."""
    if not isinstance(store.objects, LocalObjects):
        return [], 0
    foreign, temporary = [], 0
    for path in _files(store.objects.root):
        name = str(path.relative_to(store.objects.root))
        if _TEMPORARY.fullmatch(path.name):
            temporary += 1
        elif not names.is_name(name) and name.partition("/")[0] not in _BESIDE_OBJECTS:
            kind = "a link" if path.is_symlink() else "a file"
            said = f"{kind} that is not planyard's: nobody reads it"
            foreign.append(Problem(object=name, problem=said, severity="note"))
    return foreign, temporary


def _files(root: Path) -> Iterator[Path]:
    """Files and links below a folder, no link followed, sorted."""
    for folder, below, found in os.walk(root):
        below.sort()
        links = [each for each in below if (Path(folder) / each).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*found, *links]))
