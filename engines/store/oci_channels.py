"""Channels in a registry: tags `channel.NAME`, each an artifact with the document as its layer.

A registry has no compare-and-swap for tags: of two jobs that move a channel at once, both would
believe they won. So channels do not move here, unless the user says that only one job ever does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from engines.store import objects, oci_names
from engines.store.objects import NoCompareAndSwapError, Pointer
from engines.store.protocol import verified
from planyard.core.digest import digest_of_bytes, is_digest
from planyard.core.errors import StoreError
from planyard.edge.registry import IMAGE_MANIFEST, Registry

_TYPE = "application/vnd.planyard.channel.v1"


class Channels:
    """The channels of one repository."""

    def __init__(
        self, registry: Registry, *, url: str, single_writer: bool, prepare: Callable[[], None]
    ) -> None:
        self._registry = registry
        self._url = url
        self._single_writer = single_writer
        self._prepare = prepare
        self._lock = threading.Lock()

    def pointer(self, name: str) -> Pointer | None:
        """A channel as it is now; None when there is none."""
        tag = self._tag(name)
        manifest = self._registry.manifest(tag)
        if manifest is None:
            return None
        digest, size_bytes = self._layer(manifest, tag=tag)
        try:
            pieces = self._registry.open_blob(digest, start=0, stop=size_bytes)
            data = b"".join(verified(digest, pieces, where=f"{self._url}: {tag}"))
        except FileNotFoundError as error:
            raise StoreError(f"{self._url}: {tag} names {digest}, which is not there") from error
        return Pointer(data=data, token=digest_of_bytes(manifest))

    def move(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Read, compare, put, read back; StoreError unless there is only one writer."""
        tag = self._tag(name)
        digest = digest_of_bytes(objects.checked_pointer_data(data))
        if not self._single_writer:
            message = f"{self._url}: two jobs that move {name} in a registry could both win"
            mend = "keep channels in an S3 or file store, or add ?single-writer=yes to the address"
            raise NoCompareAndSwapError(message, mend=f"{mend} if only one job ever promotes")
        manifest = oci_names.artifact_manifest(
            tag, layer=oci_names.layer_of(digest, len(data)), artifact_type=_TYPE
        )
        with self._lock:
            now = self.pointer(name)
            if (now.token if now else None) != expected:
                return False
            self._prepare()
            if self._registry.blob_size(digest) != len(data):
                self._registry.upload_blob(digest, size_bytes=len(data), body=data)
            self._registry.put_manifest(tag, manifest, media_type=IMAGE_MANIFEST)
            return self._registry.manifest(tag) == manifest

    def _tag(self, name: str) -> str:
        """The tag of a channel. Leases are for many writers, whatever the address says."""
        if objects.is_lease_table(name):
            raise NoCompareAndSwapError(f"{self._url}: a registry cannot compare and swap")
        return oci_names.CHANNEL + objects.checked_pointer_name(name)

    def _layer(self, manifest: bytes, *, tag: str) -> tuple[str, int]:
        """The digest and size of a channel's document."""
        try:
            layer = json.loads(manifest)["layers"][0]
            digest, size_bytes = str(layer["digest"]), int(layer["size"])
        except (ValueError, LookupError, TypeError, RecursionError):
            digest, size_bytes = "", 0
        if not is_digest(digest) or not 0 <= size_bytes <= objects.POINTER_LIMIT_BYTES:
            message = f"{self._url}: the tag {tag} is not a channel of Planyard"
            raise StoreError(message, mend="use another repository for the store")
        return digest, size_bytes
