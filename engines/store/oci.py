"""Objects in a repository of an OCI registry: `oci://host[:port]/name`.

An object's bytes are a blob of the registry under their own digest; its tag (`oci_names.py`) names
an artifact manifest with that blob as its layer, so that the registry keeps it. An object is there
when its tag and its bytes are. An image manifest is kept as itself: `docker pull host/name@DIGEST`
works. What `snapshots` and `evidence` say of an image refers to it, for other programs to find.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from engines.store import objects, oci_names
from engines.store.objects import Listed, Pointer
from engines.store.oci_bodies import verified_body
from engines.store.oci_channels import Channels
from engines.store.oci_referrers import Referrers
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, StoreError
from planyard.core.registry_address import parse_address
from planyard.edge import files
from planyard.edge.registry import IMAGE_MANIFEST, MANIFEST_LIMIT_BYTES, Registry

_SINGLE_WRITER = "single-writer=yes"
_KNOWN_LIMIT = 100_000


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An object that is there; an image manifest is kept as a manifest, not as a blob."""

    tag: str
    size_bytes: int
    is_manifest: bool = False


class OCIObjects:
    """Objects in one repository, through `registry`."""

    is_near = False
    is_collected = False

    def __init__(self, registry: Registry, *, url: str, single_writer: bool = False) -> None:
        self.url = url
        self._registry = registry
        self._referrers = Referrers(registry, self._tags)
        self._channels = Channels(
            registry, url=url, single_writer=single_writer, prepare=self._put_empty
        )
        self._known: dict[str, _Found] = {}
        self._has_empty = False
        self._lock = threading.Lock()

    @classmethod
    def from_url(cls, url: str) -> OCIObjects:
        """Objects at `oci://host[:port]/name`; raises InputError for what is no such address.

        `?single-writer=yes` says that only one job at a time ever moves a channel there.
        """
        bare, _, query = url.partition("?")
        if query not in ("", _SINGLE_WRITER):
            problem = f"{url[:200]!r}: ?{query[:80]} is unknown"
            raise InputError([problem], mend=f"leave it out, or write ?{_SINGLE_WRITER}")
        registry = Registry(parse_address(bare))
        return cls(registry, url=url, single_writer=bool(query))

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None when its tag or its bytes are not there."""
        found = self._find(name)
        return found.size_bytes if found else None

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range in pieces; FileNotFoundError at once for what is not there."""
        digest = objects.digest_of_name(name)
        found = self._known.get(name) or self._find(name)
        if found is None:
            raise FileNotFoundError(name)
        stop = found.size_bytes if length is None else min(found.size_bytes, start + length)
        if start >= stop:
            return iter(())
        if not found.is_manifest:
            try:
                return self._registry.open_blob(digest, start=start, stop=stop)
            except FileNotFoundError:
                self._known.pop(name, None)
                raise FileNotFoundError(name) from None
        data = self._registry.manifest(digest)
        if data is None:
            raise FileNotFoundError(name)
        step = files.CHUNK_BYTES
        return (data[at : min(at + step, stop)] for at in range(start, min(stop, len(data)), step))

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        """Keep an object: its bytes first, verified, and then its tag.

        Bytes that the registry has are not sent again. It never replaces them: StoreError where
        those have another size than they should.
        """
        digest = objects.digest_of_name(name)
        with verified_body(digest, source, proved=proved) as (size_bytes, body):
            if self._put_image(name, size_bytes, body):
                return
            self._put_blob(digest, size_bytes=size_bytes, body=body)
        self._put_artifact(name, size_bytes)
        self._remember(name, _Found(tag=oci_names.tag_of(name, size_bytes), size_bytes=size_bytes))

    def adopt(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """A file is never moved into a registry."""
        objects.digest_of_name(name)
        return False

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names start with `prefix`, sorted; from their tags alone."""
        start = oci_names.tag_prefix_of(prefix)
        found: dict[str, int] = {}
        for tag in self._tags(start):
            if named := oci_names.name_and_size(tag):
                name, size_bytes = named
                found[name] = size_bytes
                self._remember(name, _Found(tag=tag, size_bytes=size_bytes))
        for name in sorted(found):
            yield Listed(name=name, size_bytes=found[name])

    def remove(self, name: str) -> None:
        """Remove an object's tag; the registry collects the bytes in its own time."""
        digest = objects.digest_of_name(name)
        self._known.pop(name, None)
        found = self._find(name)
        # Bytes that are gone may have left their tag behind.
        tag = found.tag if found else next(self._tags(oci_names.stem_of(name) + "."), None)
        described = self._registry.describe(tag) if tag else None
        if tag is None or described is None:
            return
        is_artifact = described.digest != digest
        self._delete(tag, described.digest, is_artifact=is_artifact)
        if image := oci_names.image_of(name):
            self._referrers.settle(image)

    def pointer(self, name: str) -> Pointer | None:
        """A channel as it is now, never from a cache; None when there is none."""
        return self._channels.pointer(name)

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Move a channel; StoreError unless the address says `?single-writer=yes`."""
        return self._channels.move(name, data, expected=expected)

    def pointers(self) -> Iterator[str]:
        """The names of all channels, sorted."""
        found = (tag.removeprefix(oci_names.CHANNEL) for tag in self._tags(oci_names.CHANNEL))
        return iter(sorted({each for each in found if objects.is_channel_name(each)}))

    def referrers(self, image: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to an image: what oras or cosign would find."""
        return self._referrers.listed(image)

    def _tags(self, start: str) -> Iterator[str]:
        """The tags that start with `start`; ends early where the registry keeps them in order."""
        after = start
        for page in self._registry.tag_pages(after=start):
            yield from (tag for tag in page if tag.startswith(start))
            # A registry may sort otherwise, or know no `last`: then all pages are read.
            is_in_order = bool(page) and page[0] > after and page == sorted(page)
            if is_in_order and page[-1] > start and not page[-1].startswith(start):
                return
            after = page[-1] if page else after

    def _find(self, name: str) -> _Found | None:
        """Ask for the bytes, whose size is in the tag, and for the tag."""
        digest = objects.digest_of_name(name)
        size_bytes, is_manifest = self._registry.blob_size(digest), False
        if size_bytes is None and name.startswith(objects.BLOBS):
            described, is_manifest = self._registry.describe(digest), True
            size_bytes = described.size_bytes if described else None
        if size_bytes is None:
            return None
        tag: str | None = oci_names.tag_of(name, size_bytes)
        if self._registry.describe(cast("str", tag)) is None:
            # A blob that was damaged may have another size than its tag says.
            tag = next(self._tags(oci_names.stem_of(name) + "."), None)
            if tag is None:
                return None
        found = _Found(tag=cast("str", tag), size_bytes=size_bytes, is_manifest=is_manifest)
        self._remember(name, found)
        return found

    def _remember(self, name: str, found: _Found) -> None:
        """Spare later reads the question whether the tag is there. Blobs are read once, whole."""
        if name.startswith(objects.BLOBS):
            return
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[name] = found

    def _put_blob(self, digest: str, *, size_bytes: int, body: bytes | BinaryIO) -> None:
        there = self._registry.blob_size(digest)
        if there == size_bytes:
            return
        self._registry.upload_blob(digest, size_bytes=size_bytes, body=body)
        if there is not None and self._registry.blob_size(digest) != size_bytes:
            message = (
                f"{self.url}: the registry's blob {digest} has {there} bytes, not {size_bytes}"
            )
            mend = "a registry does not replace blobs: use another repository, or have it repaired"
            raise StoreError(message, mend=mend)

    def _put_image(self, name: str, size_bytes: int, body: bytes | BinaryIO) -> bool:
        """Keep an image manifest as what it is; False for other objects, or if it is not taken."""
        if not name.startswith(objects.BLOBS) or size_bytes > MANIFEST_LIMIT_BYTES:
            return False
        data = body if isinstance(body, bytes) else body.read()
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        media_type = oci_names.image_type_of(document)
        if media_type is None:
            return False
        parts = oci_names.parts_of(document)
        if any(self._registry.blob_size(each) is None for each in parts):
            return False  # a registry would not take it: it is kept as any other bytes
        tag = oci_names.tag_of(name, size_bytes)
        described = self._registry.describe(tag)
        if not described or described.digest != objects.digest_of_name(name):
            self._registry.put_manifest(tag, data, media_type=media_type)
        return True

    def _put_artifact(self, name: str, size_bytes: int) -> None:
        """Put the tag of an object whose bytes are there."""
        image = oci_names.image_of(name)
        described = self._registry.describe(image) if image else None
        subject = None
        if described:
            subject = {
                "mediaType": described.media_type,
                "digest": described.digest,
                "size": described.size_bytes,
            }
        layer = oci_names.layer_of(objects.digest_of_name(name), size_bytes)
        artifact_type = oci_names.artifact_type_of(name)
        data = oci_names.artifact_manifest(
            name, layer=layer, artifact_type=artifact_type, subject=subject
        )
        self._put_empty()
        tag = oci_names.tag_of(name, size_bytes)
        there = self._registry.describe(tag)
        if there and there.digest == digest_of_bytes(data):
            # Whoever put it may have been killed before it was in the index.
            is_noted = not image or self._registry.referrers(image) is not None
        else:
            is_noted = self._registry.put_manifest(tag, data, media_type=IMAGE_MANIFEST)
        if image and subject and not is_noted:
            self._referrers.settle(image)

    def _put_empty(self) -> None:
        """The configuration of every artifact."""
        with self._lock:
            if not self._has_empty:
                empty = oci_names.EMPTY
                digest = digest_of_bytes(empty)
                self._put_blob(digest, size_bytes=len(empty), body=empty)
                self._has_empty = True

    def _delete(self, tag: str, manifest: str, *, is_artifact: bool) -> None:
        """Delete a tag; where only manifests can be deleted, that, with all its tags."""
        is_gone = self._registry.delete_manifest(tag) and self._registry.describe(tag) is None
        if is_artifact or not is_gone:
            # Without its tag an artifact would still be listed as referring to its image.
            self._registry.delete_manifest(manifest)
        if not is_gone and self._registry.describe(tag) is not None:
            message = f"{self.url}: the registry does not delete"
            mend = "allow it (REGISTRY_STORAGE_DELETE_ENABLED=true in distribution's registry)"
            raise StoreError(message, mend=mend)
