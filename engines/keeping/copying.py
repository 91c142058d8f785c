"""Copying images between stores: what their snapshots name, blobs first, only what is missing.

An entry is written after all it names: image and plans, then the logs, then the records, the
snapshots, and the evidence, which speaks of them. A copy that was killed goes on where it ended.

Not copied are goldens, verdicts and probes, nor the entries by which builds find timing caches: a
build keeps them to save its own time, under keys that no snapshot names, and makes them again.
Channels stay where they are: `promote` decides there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from engines.evidence.entries import EVIDENCE
from engines.index import IMAGES, PLANS, SNAPSHOTS, blobs_of_plan, read_manifest
from engines.loads import LOADS
from engines.sbom import SBOMS, sbom_from_bytes
from engines.snapshot import Snapshot, from_json
from engines.store import objects as names
from engines.store.copying import copy_blob
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, LookupMissError

COPY_SCHEMA = 1
LISTED_FROM = 20
"""From this many blobs on, a store elsewhere is asked for the list of its blobs, once."""


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Something that could not be copied because the source has not all of it, and why."""

    image: str
    what: str
    why: str


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy did. Blobs and entries are counted once; what was there already is skipped."""

    schema: int = COPY_SCHEMA
    source: str
    target: str
    images: tuple[str, ...]
    blobs_moved: int
    blobs_skipped: int
    entries_moved: int
    entries_skipped: int
    moved_bytes: int
    skipped_bytes: int
    """Bytes of blobs that the target had: whole blobs and chunks."""
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CopyProgress:
    """How far a copy is: `number` of `count` images is at work; bytes are sums so far."""

    image: str
    number: int
    count: int
    moved_bytes: int
    skipped_bytes: int


def copy_images(
    source: ObjectStore,
    target: ObjectStore,
    *,
    images: Iterable[str] | None = None,
    report: Callable[[CopyProgress], None] = lambda _: None,
) -> CopyReport:
    """Copy images, all that have a snapshot by default, with everything their snapshots name.

    Raises LookupMissError for an image without a snapshot, IntegrityError for damage. A snapshot
    that the source has not all of is left out, and the report says so.
    """
    chosen = list(dict.fromkeys(source.keys(SNAPSHOTS) if images is None else images))
    copying = _Copying(source, target)
    for number, image in enumerate(chosen, 1):

        def tell(image: str = image, number: int = number) -> None:
            report(
                CopyProgress(
                    image=image,
                    number=number,
                    count=len(chosen),
                    moved_bytes=copying.moved_bytes,
                    skipped_bytes=copying.skipped_bytes,
                )
            )

        copying.image(image, tell=tell)
    return CopyReport(
        source=source.url,
        target=target.url,
        images=tuple(chosen),
        blobs_moved=copying.blobs_moved,
        blobs_skipped=copying.blobs_skipped,
        entries_moved=copying.entries_moved,
        entries_skipped=copying.entries_skipped,
        moved_bytes=copying.moved_bytes,
        skipped_bytes=copying.skipped_bytes,
        left_out=tuple(copying.left_out),
    )


class _Copying:
    """One copy: what the target is known to have, and the sums."""

    def __init__(self, source: ObjectStore, target: ObjectStore) -> None:
        self.source, self.target = source, target
        self.blobs_moved = self.blobs_skipped = 0
        self.entries_moved = self.entries_skipped = 0
        self.moved_bytes = self.skipped_bytes = 0
        self.left_out: list[LeftOut] = []
        self._done: set[str] = set()
        self._listed: set[str] | None = None
        self._asked = 0

    def image(self, image: str, *, tell: Callable[[], None]) -> None:
        """Copy one image; what it shares with those before it is not asked for again."""
        tell()
        documents = list(self.source.entries(SNAPSHOTS, image))
        if not documents:
            raise LookupMissError(
                f"{self.source.url} has no snapshot of {image}",
                mend=f"planyard lookup --store {self.source.url} {image}",
            )
        for document in documents:
            snapshot = from_json(document)
            if snapshot.image != image:
                raise IntegrityError(f"a snapshot of {snapshot.image} lies under {image}")
            try:
                self._blobs(snapshot, tell=tell)
            except LookupMissError as error:
                what = f"the snapshot for {snapshot.gpu} of {snapshot.created}"
                self.left_out.append(LeftOut(image=image, what=what, why=error.message))
                continue
            self._records(snapshot)
            self._entry(SNAPSHOTS, image, document)
        for document in self.source.entries(SBOMS, image):
            self._bill(image, document)
        for kind in (EVIDENCE, LOADS):
            for document in self.source.entries(kind, image):
                self._entry(kind, image, document)
        tell()

    def _blobs(self, snapshot: Snapshot, *, tell: Callable[[], None]) -> None:
        for digest, size_bytes in _blobs_of(self.source, snapshot):
            if digest not in self._done:
                self._blob(digest, size_bytes=size_bytes)
                self._done.add(digest)
                tell()

    def _blob(self, digest: str, *, size_bytes: int) -> None:
        self._asked += 1
        if self._asked > LISTED_FROM and self._listed is None and not self.target.objects.is_near:
            listed = self.target.objects.listing(names.BLOBS)
            self._listed = {names.digest_of_name(each.name) for each in listed}
        if digest in (self._listed or ()):
            moved_bytes = 0
        else:
            moved_bytes = copy_blob(digest, source=self.source, target=self.target)
        self.moved_bytes += moved_bytes
        self.skipped_bytes += max(size_bytes - moved_bytes, 0)
        if moved_bytes:
            self.blobs_moved += 1
        else:
            self.blobs_skipped += 1

    def _records(self, snapshot: Snapshot) -> None:
        """The records of a snapshot's image and plans, as the source has them."""
        mine = {snapshot.image, *(plan.digest for plan in snapshot.plans)}
        keys = [(IMAGES, snapshot.image_recipe)]
        keys += [(PLANS, plan.recipe) for plan in snapshot.plans]
        for kind, key in dict.fromkeys(keys):
            for document in self.source.entries(kind, key):
                if _digest_of_record(document) in mine:
                    self._entry(kind, key, document)

    def _bill(self, image: str, document: bytes) -> None:
        """A bill of materials: its documents, then the entry that names them."""
        try:
            for each in sbom_from_bytes(document, image=image).documents.values():
                self._blob(each.digest, size_bytes=each.size_bytes)
        except LookupMissError as error:
            why = error.message
            self.left_out.append(LeftOut(image=image, what="a bill of materials", why=why))
        else:
            self._entry(SBOMS, image, document)

    def _entry(self, kind: str, key: str, document: bytes) -> None:
        folder = f"{names.INDEX}{kind}/{key[7:]}/"
        if folder not in self._done:  # one listing instead of a question for each entry
            self._done.add(folder)
            self._done |= {each.name for each in self.target.objects.listing(folder)}
        name = names.entry_name(kind, key, digest_of_bytes(document))
        if name in self._done:
            self.entries_skipped += 1
            return
        self.target.put_entry(kind, key, document)
        self._done.add(name)
        self.entries_moved += 1


def _blobs_of(source: ObjectStore, snapshot: Snapshot) -> Iterator[tuple[str, int]]:
    """Digest and size of all that a snapshot names, the manifest after what it names itself."""
    manifest = read_manifest(source, snapshot.image)
    for each in (manifest.config, *manifest.layers):
        yield each.digest, each.size
    yield snapshot.image, 0
    for plan in snapshot.plans:
        yield plan.digest, plan.size_bytes
        yield from ((digest, 0) for digest in blobs_of_plan(plan)[1:])
    for verdict in snapshot.smoke:
        if verdict.log_digest:
            yield verdict.log_digest, 0


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    digest: str


def _digest_of_record(document: bytes) -> str:
    """What a record of an image or a plan is about."""
    try:
        return msgspec.json.decode(document, type=_Record).digest
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"a record cannot be read: {error}") from error
