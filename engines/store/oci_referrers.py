"""What refers to an image, for other programs to find: the referrers API, or the fallback tag.

A registry without the API has an index under the tag `sha256-<hex>` instead, which every writer
reads, changes and puts back: two at once may lose one another's line. So the index is made from the
tags of our entries, which nobody loses, and compared with them again after it was put: whoever puts
it last has seen all of them. Planyard itself never reads it.
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-manifests-with-subject
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from engines.store import objects, oci_names
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import StoreError
from planyard.edge.registry import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MANIFEST_LIMIT_BYTES,
    REFERRERS_LIMIT,
    Registry,
)

_ROUNDS = 20


class Referrers:
    """The artifacts that refer to the images of one repository.

    `tags_from(start)` gives the tags of the repository that start with `start`.
    """

    def __init__(self, registry: Registry, tags_from: Callable[[str], Iterator[str]]) -> None:
        self._registry = registry
        self._tags_from = tags_from
        self._wanted: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._changing = threading.Lock()

    def listed(self, image: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to an image, by the API or else by the fallback tag.

        Raises StoreError when there are more than 10,000.
        """
        found = self._registry.referrers(image)
        return self._under_tag(image) if found is None else found

    def settle(self, image: str) -> None:
        """Make the index under the fallback tag agree with the tags of our entries.

        Does nothing where there is neither an index nor an entry; gives up after 20 rounds.
        """
        with self._lock:
            ticket = self._wanted[image] = self._wanted.get(image, 0) + 1
        with self._changing:
            if self._done.get(image, 0) >= ticket:
                return  # another thread began after our tag was there, and is done
            with self._lock:
                covered = self._wanted[image]
            self._settle(image)
            self._done[image] = covered

    def _settle(self, image: str) -> None:
        others: set[str] = set()  # entries that were written before the image was there
        for _ in range(_ROUNDS):
            tags = self._tags_of_entries(image)
            there = self._under_tag(image)
            ours = {name: each for each in there if (name := _name_in(each))}
            missing = [name for name in tags if name not in ours and name not in others]
            if not missing and ours.keys() <= tags.keys():
                return
            added = {name: self._descriptor(tags[name], name, image=image) for name in missing}
            others |= {name for name, each in added.items() if each is None}
            kept = [each for each in there if _name_in(each) in {None, *tags}]
            manifests = kept + [each for each in added.values() if each]
            if manifests == there:
                continue
            data = canonical_json(
                {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests}
            )
            if len(data) > MANIFEST_LIMIT_BYTES:
                return
            self._registry.put_manifest(fallback_tag(image), data, media_type=IMAGE_INDEX)

    def _tags_of_entries(self, image: str) -> dict[str, str]:
        """The tags of all entries about an image, by the names of the entries."""
        found = {}
        for kind in oci_names.REFERRING_KINDS:
            start = oci_names.tag_prefix_of(f"{objects.INDEX}{kind}/{image[7:]}/")
            for tag in self._tags_from(start):
                if named := oci_names.name_and_size(tag):
                    found[named[0]] = tag
        return found

    def _descriptor(self, tag: str, name: str, *, image: str) -> dict[str, Any] | None:
        """The line of an entry; None when its manifest does not refer to the image."""
        data = self._registry.manifest(tag)
        try:
            subject = json.loads(data or b"{}").get("subject") or {}
            is_referring = subject.get("digest") == image
        except (ValueError, AttributeError, RecursionError):
            is_referring = False
        if data is None or not is_referring:
            return None
        return {
            "mediaType": IMAGE_MANIFEST,
            "digest": digest_of_bytes(data),
            "size": len(data),
            "artifactType": oci_names.artifact_type_of(name),
            "annotations": {oci_names.NAME_ANNOTATION: name},
        }

    def _under_tag(self, image: str) -> list[dict[str, Any]]:
        data = self._registry.manifest(fallback_tag(image))
        if data is None:
            return []
        try:
            found = json.loads(data)["manifests"]
            is_good = isinstance(found, list) and all(isinstance(each, dict) for each in found)
        except (ValueError, KeyError, TypeError, RecursionError):
            is_good = False
        if not is_good or len(found) > REFERRERS_LIMIT:
            message = f"{self._registry.address.url} has no index under {fallback_tag(image)}"
            raise StoreError(message, mend="delete that tag: nothing depends on it")
        return list(found)


def _name_in(descriptor: dict[str, Any]) -> str | None:
    """The entry that a line is about; None for a line of another program."""
    annotations = descriptor.get("annotations")
    name = annotations.get(oci_names.NAME_ANNOTATION) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def fallback_tag(image: str) -> str:
    """`sha256-<hex>`: the tag that takes the place of the referrers API."""
    return image.replace(":", "-")
