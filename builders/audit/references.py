"""What a user means by an image to audit: a digest, a channel, a name of the matrix, or a place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builders.audit.sources import ImageSource, image_in_layout, image_in_store
from planyard.core.errors import InputError, LookupMissError

if TYPE_CHECKING:
    from engines.store.store import ObjectStore
    from planyard.core.matrix import Matrix
    from planyard.core.results import ImageRecord

LAYOUT, ARCHIVE = "oci:", "docker-archive:"
_NEWEST = float("inf")


def find_image(
    asked: str, *, store: ObjectStore, root: Path, matrix: Matrix | None = None
) -> ImageSource:
    """The image that `asked` means, and where it lies.

    A channel comes before an image of the matrix with the same name; of those, the one that was
    built last. Raises InputError for what means no image, LookupMissError for one that is lost.
    """
    if asked.startswith(ARCHIVE):
        from builders.audit.archives import image_in_archive

        return image_in_archive(Path(asked.removeprefix(ARCHIVE)))
    if asked.startswith(f"{LAYOUT}//"):
        raise InputError([f"{asked}: a registry is a store: write --store {asked}, and a digest"])
    if asked.startswith(LAYOUT):
        place = asked.removeprefix(LAYOUT)
        folder, _, name = (place, "", "") if Path(place).is_dir() else place.rpartition(":")
        return image_in_layout(Path(folder or place), name=name)
    record = _last_built(store, asked) if matrix and asked in matrix.images else None
    digest = _digest(asked, store=store, root=root, record=record, matrix=matrix)
    return image_in_store(store, digest, name=_name(digest, record=record))


def _digest(
    asked: str,
    *,
    store: ObjectStore,
    root: Path,
    record: ImageRecord | None,
    matrix: Matrix | None,
) -> str:
    from builders.image_names import image_named

    try:
        return image_named(store, asked, root=root)
    except LookupMissError:
        # The start of the digest of an image without a snapshot: image build writes none.
        digest = _started(store, asked)
        if digest:
            return digest
        raise
    except InputError:
        if record:
            return record.digest
        if matrix and asked in matrix.images:
            raise LookupMissError(
                f"{store.url} has no image {asked}",
                mend=f"planyard image build --select '{asked}/*'",
            ) from None
        raise


def _started(store: ObjectStore, asked: str) -> str:
    """The one image whose digest starts like this; empty for none or several."""
    from engines.index import all_images

    digits = asked.removeprefix("sha256:")
    found = {image.digest for image in all_images(store) if image.digest[7:].startswith(digits)}
    return found.pop() if len(found) == 1 else ""


def _last_built(store: ObjectStore, name: str) -> ImageRecord | None:
    """The image of that name that was entered last, and is there."""
    from engines.index import IMAGES, all_images
    from engines.store import objects as names

    entered: dict[str, float] = {}
    for listed in store.objects.listing(f"{names.INDEX}{IMAGES}/"):
        recipe = "sha256:" + listed.name.split("/")[2]
        when = _NEWEST if listed.modified is None else listed.modified
        entered[recipe] = max(entered.get(recipe, 0.0), when)
    found = [each for each in all_images(store) if each.name == name]
    found = [each for each in found if store.has_blob(each.digest)]
    return max(found, key=lambda each: entered.get(each.recipe, 0.0), default=None)


def _name(digest: str, *, record: ImageRecord | None) -> str:
    """The name a build gave an image; empty where a label has to say it."""
    return record.name if record and record.digest == digest else ""
