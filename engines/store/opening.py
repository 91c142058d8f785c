"""From what a user writes after `--store` to a store: file://, s3:// and oci://."""

from __future__ import annotations

from pathlib import Path

from engines.store.local import LocalObjects
from engines.store.objects import Objects
from engines.store.store import ObjectStore
from planyard.core.errors import InputError

SCHEMES = ("file://", "s3://", "oci://")


def open_objects(url: str) -> Objects:
    """The objects at a URL, or at a path; nothing is asked of a server yet.

    Raises InputError for an address that is none.
    """
    if url.startswith("s3://"):
        from engines.store.s3 import S3Objects

        return S3Objects.from_url(url)
    if url.startswith(("oci://", "oci+http://")):
        from engines.store.oci import OCIObjects

        return OCIObjects.from_url(url)
    path = url.removeprefix("file://")
    if "://" in path or not path:
        known = "file:///folder, s3://bucket/prefix or oci://host/repository"
        raise InputError([f"{url!r} is not the address of a store: write {known}"])
    return LocalObjects(Path(path).absolute())


def open_url(url: str) -> ObjectStore:
    """The store at a URL, or in the directory at a path."""
    from engines.store.local_store import LocalStore

    objects = open_objects(url)
    return LocalStore(objects.root) if isinstance(objects, LocalObjects) else ObjectStore(objects)
