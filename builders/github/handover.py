"""What jobs hand each other: files that name images and snapshots by digest, never by a tag.

A file says little; the store has the bytes, and whoever takes a file asks the store for them. Jobs
of one run write their own files, so that nothing is lost when several end at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from engines import index
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_value
from planyard.core.errors import InputError, IntegrityError, SmokeNotRunError
from planyard.core.findings import Finding
from planyard.core.report import SnapshotWritten
from planyard.core.results import ImageRecord, Verdict
from planyard.edge import files

LIMIT_BYTES = 16 << 20
"""No file of a run is larger: the records of an image are some hundred KB."""


class HandedImage(msgspec.Struct, frozen=True, kw_only=True, tag="image", tag_field="kind"):
    """An image that was built, or found, in this run; the compiler that belongs to it, if any."""

    schema: Literal[1] = 1
    image: ImageRecord
    compiler: ImageRecord | None = None
    findings: tuple[Finding, ...] = ()
    """What is wrong with it, by the audit of the job that made it."""

    @property
    def name(self) -> str:
        """Its name in the matrix."""
        return self.image.name


class HandedSmoke(msgspec.Struct, frozen=True, kw_only=True, tag="smoke", tag_field="kind"):
    """What a smoke job came to: a verdict for each of its cells, and the snapshots it wrote."""

    schema: Literal[1] = 1
    verdicts: dict[str, Verdict]
    snapshots: tuple[SnapshotWritten, ...]


Handed = HandedImage | HandedSmoke


def write(folder: Path, handed: Handed) -> Path:
    """Write one file, named by what it is about and by its own digest."""
    document = msgspec.to_builtins(handed)
    about = handed.name if isinstance(handed, HandedImage) else "cells"
    digest = digest_of_value(document).removeprefix("sha256:")
    kind = "image" if isinstance(handed, HandedImage) else "smoke"
    path = folder / f"{kind}-{about}-{digest[:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, canonical_json(document))
    return path


def read_all(folder: Path) -> tuple[Handed, ...]:
    """Everything that was handed over; none where the folder is not there.

    Raises InputError for a file that is something else: it is never passed over.
    """
    decoder = msgspec.json.Decoder(Handed)
    found: list[Handed] = []
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else ():
        try:
            if path.stat().st_size > LIMIT_BYTES:
                raise InputError([f"{path.name}: larger than {LIMIT_BYTES} bytes"])
            found.append(decoder.decode(path.read_bytes()))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(
                [f"{path.name}: is not what a job of this workflow hands over: {error}"],
                mend="have nothing else in the folder of --handed",
            ) from error
    return tuple(found)


def images_handed(handed: tuple[Handed, ...]) -> dict[str, HandedImage]:
    """The images by name; raises IntegrityError where two jobs name different ones."""
    found: dict[str, HandedImage] = {}
    for each in handed:
        if isinstance(each, HandedImage):
            before = found.setdefault(each.name, each)
            if before.image.digest != each.image.digest:
                raise IntegrityError(
                    f"two jobs handed over different images {each.name}: "
                    f"{before.image.digest} and {each.image.digest}",
                    mend="run the whole workflow again, not single jobs of it",
                )
    return found


def smoke_handed(handed: tuple[Handed, ...]) -> Iterator[HandedSmoke]:
    """What the smoke jobs came to."""
    return (each for each in handed if isinstance(each, HandedSmoke))


def take_image(images: dict[str, HandedImage], name: str, *, store: Store) -> HandedImage:
    """An image that was handed over, when the store has all of it.

    Raises SmokeNotRunError where no job handed it over, LookupMissError or IntegrityError for what
    the store has not, or has wrong.
    """
    if name not in images:
        raise SmokeNotRunError(
            f"no job of this run handed over the image {name}",
            mend="look at the job that builds it: it failed, or did not come to its end",
        )
    found = images[name]
    for record in filter(None, (found.image, found.compiler)):
        lost = [
            digest
            for digest in index.read_manifest(store, record.digest).digests
            if not store.has_blob(digest)
        ]
        if lost:
            raise IntegrityError(
                f"{store.url} lacks {len(lost)} parts of {record.name} {record.digest}",
                mend="planyard store fsck says what is damaged",
            )
    return found
