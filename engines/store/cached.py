"""A local cache in front of a store elsewhere: what was fetched once is not fetched again.

- Small objects are kept whole, once their sha256 was verified, and are verified on every read.
- Of packs the ranges that were read are kept, so that only what is missing is ever fetched. Each
  carries a BLAKE3 of its place and bytes; chunks are verified by their reader as always, and a pack
  that fails there is forgotten (`forget`).
- A damaged file of the cache is dropped and fetched again. Listings and pointers, and whether an
  object is there, are always asked of the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from blake3 import blake3

from engines.store import objects as names
from engines.store import protocol
from engines.store.cache_files import CacheFiles
from engines.store.counted import Traffic
from engines.store.objects import Objects
from engines.store.wrapped import WrappedObjects
from planyard.core.digest import digest_of_bytes

WHOLE_BYTES = 16 << 20
"""Objects up to this size are kept whole; larger ones, image layers mostly, are passed through."""

RANGE_BYTES = 32 << 20
"""Longer ranges of packs are passed through: a reader of chunks asks for 8 MiB at most."""

_PART_BYTES = 4 << 20
_SEAL_BYTES = 32


class CachedObjects(WrappedObjects):
    """Reads through `files`; writes go to `inner` and are not kept."""

    is_near = False

    def __init__(
        self, inner: Objects, files: CacheFiles, *, traffic: Traffic | None = None
    ) -> None:
        super().__init__(inner)
        self._files, self._traffic = files, traffic or Traffic()

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range; raises IntegrityError for a small object that is not its name's."""
        digest = names.digest_of_name(name)
        if name.startswith(names.PACKS):
            if not length or length > RANGE_BYTES:
                return self.inner.read(name, start=start, length=length)
            return self._read_range(name, start, start + length)
        kept = self._kept_whole(digest)
        if kept is None and (start or length is not None):
            return self.inner.read(name, start=start, length=length)
        if kept is None:
            return self._fetch_whole(name, digest)
        return _in_pieces(kept[start : None if length is None else start + length])

    def remove(self, name: str) -> None:
        """Remove an object from the store and from the cache."""
        self.forget(name)
        self.inner.remove(name)

    def forget(self, name: str) -> None:
        """Drop what the cache has of an object."""
        digest = names.digest_of_name(name)
        self._files.drop(_whole(digest))
        for part in self._files.names(_parts(digest)):
            self._files.drop(f"{_parts(digest)}/{part}")

    def _kept_whole(self, digest: str) -> bytes | None:
        data = self._files.get(_whole(digest))
        if data is None:
            return None
        if digest_of_bytes(data) != digest:
            self._files.drop(_whole(digest))
            return None
        self._traffic.reused(len(data))
        return data

    def _fetch_whole(self, name: str, digest: str) -> Iterator[bytes]:
        pieces, first, size_bytes = self.inner.read(name), list[bytes](), 0
        for piece in pieces:
            first.append(piece)
            size_bytes += len(piece)
            if size_bytes > WHOLE_BYTES:
                return chain(first, pieces)
        data = b"".join(first)
        protocol.drain(protocol.verified(digest, (data,), where=f"{self.url}: {name}"))
        self._files.put(_whole(digest), data)
        return iter(first)

    def _read_range(self, name: str, start: int, end: int) -> Iterator[bytes]:
        folder = _parts(names.digest_of_name(name))
        parts = _places(self._files.names(folder))
        pieces: list[bytes] = []
        at = start
        while at < end:
            part = max((each for each in parts if each[0] <= at < each[1]), default=None)
            if part is None:
                stop = min((each[0] for each in parts if each[0] > at), default=end)
                data = self._fetch_range(name, at, min(stop, end))
                pieces.append(data)
                at += len(data)
                if at < min(stop, end):
                    break  # the pack ends here
            elif (kept := self._kept_part(folder, part)) is not None:
                data = kept[at - part[0] : end - part[0]]
                self._traffic.reused(len(data))
                pieces.append(data)
                at += len(data)
            else:
                parts.remove(part)
        return chain.from_iterable(map(_in_pieces, pieces))

    def _fetch_range(self, name: str, start: int, end: int) -> bytes:
        data = b"".join(self.inner.read(name, start=start, length=end - start))
        folder = _parts(names.digest_of_name(name))
        for at in range(0, len(data), _PART_BYTES):
            part = data[at : at + _PART_BYTES]
            key = f"{folder}/{start + at}-{start + at + len(part)}"
            self._files.put(key, part + _seal(key, part))
        return data

    def _kept_part(self, folder: str, part: tuple[int, int]) -> bytes | None:
        key = f"{folder}/{part[0]}-{part[1]}"
        sealed = self._files.get(key)
        if sealed is None:
            return None
        data = sealed[:-_SEAL_BYTES]
        if len(data) != part[1] - part[0] or sealed[-_SEAL_BYTES:] != _seal(key, data):
            self._files.drop(key)
            return None
        return data


def _in_pieces(data: bytes) -> Iterator[bytes]:
    if len(data) <= _PART_BYTES:
        return iter((data,))
    return (data[at : at + _PART_BYTES] for at in range(0, len(data), _PART_BYTES))


def _whole(digest: str) -> str:
    return f"whole/{digest[7:]}"


def _parts(digest: str) -> str:
    return f"parts/{digest[7:]}"


def _seal(key: str, data: bytes) -> bytes:
    """What a part ends with: it belongs to this place and has these bytes."""
    return blake3(key.encode() + b"\0").update(data).digest()


def _places(found: list[str]) -> set[tuple[int, int]]:
    """Start and end of each part, from their names; other names are no parts."""
    places = set()
    for name in found:
        start, _, end = name.partition("-")
        if start.isdecimal() and end.isdecimal() and len(name) < 40 and int(start) < int(end):
            places.add((int(start), int(end)))
    return places
