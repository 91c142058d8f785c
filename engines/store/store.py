"""A store made of any backend's objects: blobs kept whole or in chunks, and index entries.

A blob given with a family is cut into chunks, which it shares with the others of its family; the
rest, and what is small, is one object. Docs/store.md has the layout.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from engines.store import claims, protocol
from engines.store import objects as names
from engines.store.chunk_map import MAP_LIMIT_BYTES, ChunkMap, map_from_bytes
from engines.store.objects import Objects
from engines.store.sources import given_pieces, is_large, opened, remove_taken
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.edge import files


class ObjectStore:
    """Keeps every promise of `protocol.Store` on any `Objects`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @property
    def url(self) -> str:
        """The place, as a user would write it after `--store`."""
        return self.objects.url

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is there: whole, or as a map with all its packs."""
        if self.objects.size(names.blob_name(digest)) is not None:
            return True
        return any(self._is_complete(found) for found in self.maps_of(digest))

    def put_blob(
        self,
        digest: str,
        source: Iterable[bytes] | Path,
        *,
        take: bool = False,
        family: str | None = None,
    ) -> None:
        """Keep the bytes, verified: one read if they are here already, one write if not."""
        name = names.blob_name(digest)
        if family is not None and is_large(source):
            self._put_chunks(digest, source, family=family)
        elif self._is_claimed(digest) and self.objects.is_near and self._is_intact(name):
            protocol.drain(given_pieces(digest, source))
        elif take and isinstance(source, Path) and self.objects.adopt(name, source):
            return
        else:
            self.objects.write(name, source)
        if take and isinstance(source, Path):
            remove_taken(source)

    def open_blob(self, digest: str) -> Iterator[bytes]:
        """The bytes in pieces, the last one after all of them are verified."""
        return self._open_whole(digest) or self._open_chunks(digest)

    def read_blob(self, digest: str, *, limit_bytes: int) -> bytes:
        """A small blob, verified."""
        pieces, size_bytes = [], 0
        for piece in self.open_blob(digest):
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise protocol.too_large(digest, limit_bytes=limit_bytes)
            pieces.append(piece)
        return b"".join(pieces)

    def fetch_blob(self, digest: str, path: Path) -> None:
        """Write the verified bytes to `path`, whole or not at all; not flushed to the disk."""
        from engines.store.chunk_reader import read_runs

        try:
            whole = self._open_whole(digest)
            if whole is not None:
                with files.atomic_write(path, sync=False) as file:
                    file.writelines(whole)
                return
            found = self.map_to_read(digest)
            runs = (run.data for run in read_runs(self.objects, found, verify=False))
            with self._naming_damage(found), files.atomic_write(path, sync=False) as file:
                write_verified(file, runs, digest=digest, where=self.url)
        except OSError as error:
            raise protocol.refused(f"{path} could not be written", error) from error

    def put_entry(self, kind: str, key: str, document: bytes) -> str:
        """Add an index entry and return its digest."""
        digest = digest_of_bytes(protocol.checked_document(document))
        claims.write_lasting(self.objects, names.entry_name(kind, key, digest), document)
        return digest

    def entries(self, kind: str, key: str) -> Iterator[bytes]:
        """The documents of a key, verified, in the order of their digests."""
        prefix = f"{names.INDEX}{protocol.checked_kind(kind)}/{protocol.hex_of_digest(key)}/"
        return (
            self._read_small(each.name, each.size_bytes, limit_bytes=protocol.ENTRY_LIMIT_BYTES)
            for each in self.objects.listing(prefix)
        )

    def keys(self, kind: str) -> Iterator[str]:
        """The keys of a kind, sorted; lists all its entries."""
        listed = self.objects.listing(f"{names.INDEX}{protocol.checked_kind(kind)}/")
        return iter(sorted({"sha256:" + each.name.split("/")[2] for each in listed}))

    def claim(self, digests: Iterable[str]) -> None:
        """Rely on blobs, images or families: what of them is here stays, for a grace period."""
        claims.claim(self.objects, digests)

    def objects_of_blob(self, digest: str) -> tuple[str, ...]:
        """The names of the objects that the blob is read from; none when it is not there."""
        name = names.blob_name(digest)
        if self.objects.size(name) is not None:
            return (name,)
        for found in self.maps_of(digest):
            if self._is_complete(found):
                packs = (names.pack_name(found.family, pack) for pack in found.packs)
                return (*packs, found.name)
        return ()

    def maps_of(self, digest: str) -> Iterator[ChunkMap]:
        """The chunk maps of a blob, verified."""
        for each in self.objects.listing(f"{names.MAPS}{protocol.hex_of_digest(digest)}/"):
            data = self._read_small(each.name, each.size_bytes, limit_bytes=MAP_LIMIT_BYTES)
            where = f"{self.url}: {each.name}"
            yield map_from_bytes(data, blob=digest, name=each.name, where=where)

    def map_to_read(self, digest: str) -> ChunkMap:
        """A map whose packs are all there; any map when none has them; raises LookupMissError."""
        some = None
        for found in self.maps_of(digest):
            if self._is_complete(found):
                return found
            some = found
        if some is None:
            raise protocol.missing(digest, where=self.url)
        return some

    def _read_small(self, name: str, size_bytes: int, *, limit_bytes: int) -> bytes:
        digest, where = names.digest_of_name(name), f"{self.url}: {name}"
        if size_bytes > limit_bytes:
            raise IntegrityError(f"{where} is too large to be what it should: {size_bytes} bytes")
        try:
            return b"".join(protocol.verified(digest, self.objects.read(name), where=where))
        except FileNotFoundError:
            raise StoreError(f"{where} was removed while it was read", mend="try again") from None

    def _is_complete(self, found: ChunkMap) -> bool:
        wanted = {names.pack_name(found.family, pack) for pack in found.packs}
        if self.objects.is_near:
            return all(self.objects.size(name) is not None for name in wanted)
        folder = f"{names.PACKS}{protocol.hex_of_digest(found.family)}/"
        return wanted <= {each.name for each in self.objects.listing(folder)}

    def _open_whole(self, digest: str) -> Iterator[bytes] | None:
        """The bytes of a blob that is one object; None when there is no such object."""
        name = names.blob_name(digest)
        try:
            pieces = self.objects.read(name)
        except FileNotFoundError:
            return None
        return protocol.verified(digest, pieces, where=f"{self.url}: {name}")

    def _open_chunks(self, digest: str) -> Iterator[bytes]:
        return self._chunks_of(self.map_to_read(digest))

    def _chunks_of(self, found: ChunkMap) -> Iterator[bytes]:
        from engines.store.chunk_reader import read_runs

        runs = read_runs(self.objects, found, verify=False)
        pieces = (bytes(run.data) for run in runs)
        with self._naming_damage(found):
            yield from protocol.verified(found.blob, pieces, where=self.url)

    @contextlib.contextmanager
    def _naming_damage(self, found: ChunkMap) -> Iterator[None]:
        """For a blob that is not what it should be, say which of its chunks is not."""
        from engines.store.chunk_reader import PackLostError, read_runs

        try:
            yield
        except PackLostError:
            raise
        except IntegrityError:
            for _ in read_runs(self.objects, found):
                pass
            raise

    def _is_claimed(self, digest: str) -> bool:
        """Whether a whole blob is there, and stays there: a new one needs no claim."""
        claims.wait_for_sweeps(self.objects)
        is_there = self.objects.size(names.blob_name(digest)) is not None
        if is_there:
            self.claim((digest,))
        return is_there

    def _is_intact(self, name: str) -> bool:
        """Whether the object is there and is what its name says; reads it whole."""
        try:
            pieces = self.objects.read(name)
            protocol.drain(protocol.verified(names.digest_of_name(name), pieces, where=name))
        except (FileNotFoundError, IntegrityError):
            return False
        return True

    def _put_chunks(self, digest: str, source: Iterable[bytes] | Path, *, family: str) -> None:
        from engines.store.chunk_writer import ChunkWriter
        from engines.store.chunking import Cutter

        self.claim((digest,))
        if self._has_good_chunks(digest):
            protocol.drain(given_pieces(digest, source))
            return
        with (
            claims.family_claimed(self.objects, family),
            opened(source) as file,
            ChunkWriter.opened(self.objects, family=family) as writer,
        ):
            cutter = Cutter(file, predict=writer.predict)
            for chunk, data in cutter.chunks():
                writer.add(chunk, data)
            if cutter.digest != digest:
                where = str(source) if isinstance(source, Path) else "what was given"
                raise protocol.damaged(digest, found=cutter.digest, where=where)
            writer.finish(digest, size_bytes=cutter.size_bytes)

    def _has_good_chunks(self, digest: str) -> bool:
        """Whether the blob is there in chunks. Near, it is read; what is damaged is removed."""
        from engines.store.mending import remove_damaged

        if not self.objects.is_near:
            return any(self._is_complete(found) for found in self.maps_of(digest))
        try:
            found = list(self.maps_of(digest))
            if any(self._is_complete(each) for each in found):
                protocol.drain(self._open_chunks(digest))
                return True
        except IntegrityError:
            remove_damaged(self.objects, digest)
            return False
        if found:  # some packs went: whoever mended it may have been killed before the last one
            remove_damaged(self.objects, digest)
        return False


def write_verified(
    file: BinaryIO, pieces: Iterable[memoryview], *, digest: str, where: str
) -> None:
    """Write pieces while SHA-256 runs beside; raises IntegrityError at the end if it differs."""
    whole = hashlib.sha256()
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as beside:
        before = None
        for piece in pieces:
            hashing = beside.submit(whole.update, piece)
            file.write(piece)
            if before is not None:
                before.result()  # at most two pieces wait, and are kept in memory
            before = hashing
    found = "sha256:" + whole.hexdigest()
    if found != digest:
        raise protocol.damaged(digest, found=found, where=where)
