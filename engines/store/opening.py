"""From what a user writes after `--store` to a store: file://, s3:// and oci://.

An address that ends in `?read-only=yes`, or PLANYARD_STORE_READONLY=1, gives a store that refuses
to be changed. A cache goes in front of a store elsewhere only where a verb asks for it
(`open_reader`): what keeps a store (fsck, gc) must see the store itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engines.store.counted import Traffic
from engines.store.local import LocalObjects
from engines.store.objects import Objects
from engines.store.store import ObjectStore
from planyard.core.errors import InputError
from planyard.core.units import ByteSize
from planyard.edge import files

SCHEMES = ("file://", "s3://", "oci://")
READ_ONLY_VARIABLE = "PLANYARD_STORE_READONLY"
CACHE_VARIABLE = "PLANYARD_STORE_CACHE"
CACHE_LIMIT_VARIABLE = "PLANYARD_STORE_CACHE_LIMIT"
CACHE_LIMIT = "20 GB"

_SWITCH = {"": False, "0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}


@dataclass(frozen=True, kw_only=True)
class CachePlace:
    """The folder of a local cache and how many bytes it may hold."""

    folder: Path
    limit_bytes: int


def open_objects(url: str) -> Objects:
    """The objects at a URL, or at a path; nothing is asked of a server yet.

    Raises InputError for an address that is none.
    """
    from engines.store.readonly import ReadOnlyLocalObjects, ReadOnlyObjects

    address, read_only = _split_read_only(url)
    if address.startswith(("s3://", "oci://", "oci+http://")):
        far = _open_far(address)
        return ReadOnlyObjects(far) if read_only else far
    path = address.removeprefix("file://")
    if "://" in path or not path:
        known = "file:///folder, s3://bucket/prefix or oci://host/repository"
        raise InputError([f"{url!r} is not the address of a store: write {known}"])
    root = Path(path).absolute()
    return ReadOnlyLocalObjects(root) if read_only else LocalObjects(root)


def open_url(url: str) -> ObjectStore:
    """The store at a URL, or in the directory at a path."""
    from engines.store.local_store import LocalStore

    objects = open_objects(url)
    if not isinstance(objects, LocalObjects):
        return ObjectStore(objects)
    store = LocalStore(objects.root)
    store.objects = objects
    return store


def open_reader(store: ObjectStore, *, cache: CachePlace | None, traffic: Traffic) -> ObjectStore:
    """The same store for reading only; one elsewhere with a cache in front, its bytes counted."""
    from engines.store.cache_files import CacheFiles
    from engines.store.cached import CachedObjects
    from engines.store.counted import CountedObjects
    from engines.store.readonly import ReadOnlyObjects

    objects: Objects = ReadOnlyObjects(store.objects)
    if not objects.is_near:
        objects = CountedObjects(objects, traffic)
        if cache is not None:
            kept = CacheFiles(cache.folder, limit_bytes=cache.limit_bytes)
            objects = CachedObjects(objects, kept, traffic=traffic)
    return ObjectStore(objects)


def cache_place(folder: str | None = None, limit: str | None = None) -> CachePlace | None:
    """The cache that is asked for, by arguments or else by the environment; None for none.

    Raises InputError for a limit that is no size.
    """
    folder = folder or os.environ.get(CACHE_VARIABLE)
    if not folder:
        return None
    text = limit or os.environ.get(CACHE_LIMIT_VARIABLE) or CACHE_LIMIT
    try:
        limit_bytes = ByteSize.parse(text)
    except ValueError as error:
        raise InputError([f"the limit of the cache: {error}"]) from error
    return CachePlace(folder=Path(folder).expanduser().absolute(), limit_bytes=limit_bytes)


def _open_far(url: str) -> Objects:
    if url.startswith("s3://"):
        from engines.store.s3 import S3Objects

        return S3Objects.from_url(url, state=files.user_cache() / "s3-probes.json")
    from engines.store.oci import OCIObjects

    return OCIObjects.from_url(url)


def _split_read_only(url: str) -> tuple[str, bool]:
    """An address without its `read-only=`, and whether it is to be read only."""
    read_only = _switched(os.environ.get(READ_ONLY_VARIABLE, ""), where=READ_ONLY_VARIABLE)
    address, mark, query = url.partition("?")
    if "://" not in address or not mark:
        return url, read_only
    rest = []
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if name == "read-only":
            read_only = _switched(value, where="read-only=") or read_only
        else:
            rest.append(option)
    return (f"{address}?{'&'.join(rest)}" if rest else address), read_only


def _switched(text: str, *, where: str) -> bool:
    if text.lower() not in _SWITCH:
        raise InputError([f"{where}: {text[:40]!r} is neither yes nor no"])
    return _SWITCH[text.lower()]
