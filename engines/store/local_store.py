"""A store in a directory, and its images as OCI layouts for other programs."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engines.store import manifest
from engines.store.local import DAY_SECONDS, LAYOUT, LocalObjects
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json
from planyard.core.errors import IntegrityError, StoreError
from planyard.edge import files


class LocalStore(ObjectStore):
    """The store in the directory `root`, made on the first write."""

    objects: LocalObjects

    def __init__(self, root: Path) -> None:
        super().__init__(LocalObjects(root))

    @property
    def root(self) -> Path:
        """The directory."""
        return self.objects.root

    def publish_image_layout(self, manifest_digest: str) -> Path:
        """Make `images/<hex>`, an OCI layout of one image of this store, and return its path.

        It holds no bytes: its `blobs` is a link to the store's. Raises StoreError when the image
        is not complete, LookupMissError when its manifest is not here.
        """
        data = self.read_blob(manifest_digest, limit_bytes=manifest.MANIFEST_LIMIT_BYTES)
        image = manifest.manifest_from_bytes(data, digest=manifest_digest)
        for digest in image.digests:
            if not self.has_blob(digest):
                raise StoreError(f"{self.url} has not all of {manifest_digest}: no {digest}")
        named = {"mediaType": image.media_type, "digest": manifest_digest, "size": len(data)}
        index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [named]}
        folder = self.objects.folder("images", manifest_digest[7:])
        try:
            _link(folder / "blobs", to="../../blobs")
            _write_if_other(folder / "oci-layout", LAYOUT)
            _write_if_other(folder / "index.json", canonical_json(index))
        except OSError as error:
            what = f"{self.url} could not publish {manifest_digest}"
            raise StoreError(f"{what}: {error.strerror}") from error
        return folder

    def sweep(self, *, older_than_seconds: float = DAY_SECONDS) -> int:
        """Remove the temporary files of writers that were killed; returns how many there were."""
        return self.objects.sweep(older_than_seconds=older_than_seconds)


def _write_if_other(path: Path, data: bytes) -> None:
    if path.is_symlink() or not path.is_file() or path.read_bytes() != data:
        files.write_bytes(path, data)


def _link(path: Path, *, to: str) -> None:
    """A symbolic link, unless the right one is there."""
    with contextlib.suppress(FileExistsError):
        path.symlink_to(to, target_is_directory=True)
    if not path.is_symlink() or str(path.readlink()) != to:
        raise IntegrityError(f"{path} should be a link to {to}")
