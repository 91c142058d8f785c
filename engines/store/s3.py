"""Objects in a bucket of S3, or of any server that speaks it; docs/store.md has the layout.

- What is written carries its sha256, and the server checks it before anything is visible; where a
  server does not know that, the MD5.
- What is large goes in parts, which become an object when all of them are right (`s3_upload.py`).
- Pointers move by conditional writes, once a probe has shown that the server keeps their promise
  (`s3_swap.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.store import objects, protocol, s3_swap
from engines.store.memory import pieces_of
from engines.store.objects import Listed, NoCompareAndSwapError, Pointer
from engines.store.s3_upload import PART_BYTES, Blocks, Proof, Uploads, file_blocks, reading
from planyard.core.errors import InputError, StoreError
from planyard.edge.s3 import BrokenError, Patience, RefusedError
from planyard.edge.s3_bucket import Body, Bucket

PIECE_BYTES = 1 << 20
RANGE_BYTES = 9 << 20
"""A range that a reader of chunks asks for comes in one piece: joining costs as much as hashing."""
SINGLE_BYTES = 32 << 20
"""Bytes at hand up to this size are sent in one request."""

_TRIES = 4
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_PREFIX = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")
_PREFIX_LIMIT = 512
_MEND_URL = "write s3://BUCKET/PREFIX: lower-case bucket; A to Z, 0 to 9, dot, dash, _ in a prefix"


class S3Objects:
    """Keeps every promise of `objects.Objects` below `prefix` in `bucket`.

    `state` is a file that remembers for a week what a probe found out about the server.
    """

    is_near = False
    is_collected = True

    def __init__(
        self,
        bucket: Bucket,
        *,
        prefix: str = "",
        state: Path | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = f"s3://{bucket.name}" + (f"/{prefix}" if prefix else "")
        self._probes = s3_swap.Remembered(state)
        self._proof = Proof()
        self._uploads = Uploads(bucket, proof=self._proof, part_bytes=part_bytes)
        self._is_there = False

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        endpoint: str | None = None,
        patience: Patience | None = None,
        state: Path | None = None,
        part_bytes: int = PART_BYTES,
    ) -> S3Objects:
        """The place `s3://bucket/prefix`; `endpoint` goes before AWS_ENDPOINT_URL."""
        name, prefix = bucket_and_prefix(url)
        bucket = Bucket(name, endpoint=endpoint, patience=patience)
        return cls(bucket, prefix=prefix, state=state, part_bytes=part_bytes)

    @property
    def url(self) -> str:
        """`s3://`, the bucket and the prefix."""
        return self._url

    @property
    def probe_prefix(self) -> str:
        """Where a probe may write."""
        return self._prefix

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None when it is not there, one request."""
        held = self.bucket.head(self._key(name))
        if held is None:
            self._check_bucket()
        return held.size_bytes if held else None

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of a range in pieces, one request unless the connection breaks."""
        key = self._key(name)
        if length == 0:
            if self.size(name) is None:
                raise FileNotFoundError(name)
            return iter(())
        end = None if length is None else start + length
        body = self._opened(key, start=start, end=end)
        step = min(length or PIECE_BYTES, RANGE_BYTES)
        return self._pieces(key, body, step_bytes=step)

    def write(
        self, name: str, source: bytes | Iterable[bytes] | Path, *, proved: bool = False
    ) -> None:
        """Keep an object: one request up to 32 MiB at hand, several parts above."""
        digest, key = objects.digest_of_name(name), self._prefix + name
        if isinstance(source, Path):
            self._write_file(key, source, digest=digest, proved=proved)
        elif isinstance(source, tuple | list) and sum(map(len, source)) <= SINGLE_BYTES:
            with self._uploads.slots:
                self._put(key, bytearray().join(source), digest=digest, proved=proved)
        elif isinstance(source, bytes):
            self._write_bytes(key, source, digest=digest, proved=proved)
        else:
            blocks = Blocks(source, self._uploads.part_bytes)
            if blocks.is_one():
                self._put(key, next(blocks, b""), digest=digest, proved=proved)
            else:
                self._uploads.send(key, blocks, digest=digest)

    def adopt(self, name: str, path: Path) -> bool:  # noqa: ARG002
        """A file is never moved into a bucket."""
        objects.digest_of_name(name)
        return False

    def listing(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names start with `prefix`, sorted; a request for each thousand."""
        found = self._listing(objects.checked_prefix(prefix))
        # Some servers put `a/` before `a-b/`: only the names of kinds can differ like that.
        return iter(sorted(found, key=_name)) if prefix == objects.INDEX else found

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        self.bucket.delete(self._key(name))

    def pointer(self, name: str) -> Pointer | None:
        """A pointer as it is now; verified where the server keeps a checksum."""
        key = self._pointer_key(name)
        for _ in range(_TRIES):
            with contextlib.suppress(BrokenError):
                try:
                    body = self.bucket.get(key, ChecksumMode="ENABLED")
                except RefusedError as error:
                    if error.code == "NoSuchKey":
                        return None
                    raise
                if body.total_bytes > objects.POINTER_LIMIT_BYTES:
                    raise StoreError(f"{self._url}: {name} is too large for a pointer")
                data = b"".join(body.pieces(PIECE_BYTES))
                if body.sha256 in ("", s3_swap.checksum(data)):
                    return Pointer(data=data, token=body.etag)
        raise StoreError(f"{self._url}: {name} did not come whole", mend="try again")

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        """Compare and swap, by one conditional write.

        Tables of leases spare the probe: where two win, something is made twice, and nothing lost.
        """
        key = self._pointer_key(name)
        objects.checked_pointer_data(data)
        if not objects.is_lease_table(name):
            self._refuse_without_swap()
        return s3_swap.swap(self.bucket, key, data, expected=expected)

    def _refuse_without_swap(self) -> None:
        place = f"{self.bucket.endpoint or 'AWS'} {self.bucket.name}"
        if trouble := self._probes.trouble(place, lambda: probe_compare_and_swap(self)):
            raise NoCompareAndSwapError(
                f"{self._url}: channels need conditional writes, which {place} does not keep: "
                f"{trouble}",
                mend="keep channels in a directory, or on a server that keeps them (AWS S3, R2)",
            )

    def pointers(self) -> Iterator[str]:
        """The names of all channels, sorted."""
        start = self._prefix + objects.CHANNELS
        names = [one.key.removeprefix(start) for one in self.bucket.listing(start)]
        return iter(sorted(filter(objects.is_channel_name, names)))

    def _key(self, name: str) -> str:
        objects.digest_of_name(name)
        return self._prefix + name

    def _pointer_key(self, name: str) -> str:
        return self._prefix + objects.pointer_path(name)

    def _check_bucket(self) -> None:
        """What is missing may be the whole bucket: asked once."""
        if not self._is_there:
            self.bucket.check()
            self._is_there = True

    def _opened(
        self, key: str, *, start: int, end: int | None, etag: str | None = None
    ) -> Body | None:
        """The answer to a request for a range; None when it lies past the end."""
        options = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        if etag:
            options["IfMatch"] = etag
        for _ in range(_TRIES):
            try:
                body = self.bucket.get(key, **options)
            except BrokenError:
                continue
            except RefusedError as error:
                if error.status == 416:
                    return None
                if error.code == "NoSuchKey":
                    raise FileNotFoundError(key) from error
                if error.status == 412:
                    changed = f"{self._url}/{key} was replaced while it was read"
                    raise StoreError(changed, mend="try again") from error
                raise
            if body.start == start and body.length_bytes == _length(body, start=start, end=end):
                return body
        raise StoreError(f"s3://{self.bucket.name}/{key}: the server sent other ranges than asked")

    def _pieces(self, key: str, body: Body | None, *, step_bytes: int) -> Iterator[bytes]:
        """The bytes of an answer; where it breaks, of another that goes on there."""
        left = _TRIES
        while body:
            at = body.start
            try:
                for piece in body.pieces(step_bytes):
                    at += len(piece)
                    yield piece
            except BrokenError as error:
                left -= 1
                if not left:
                    broke = f"s3://{self.bucket.name}/{key}: broke off {_TRIES} times: {error}"
                    raise StoreError(broke, mend="check the connection, and try again") from error
            else:
                return
            stop = body.start + body.length_bytes
            body = self._opened(key, start=at, end=stop, etag=body.etag)

    def _listing(self, prefix: str) -> Iterator[Listed]:
        for one in self.bucket.listing(self._prefix + prefix):
            if objects.is_name(name := one.key.removeprefix(self._prefix)):
                yield Listed(name=name, size_bytes=one.size_bytes, modified=one.modified)

    def _write_bytes(self, key: str, data: bytes, *, digest: str, proved: bool) -> None:
        if len(data) <= SINGLE_BYTES:
            self._put(key, data, digest=digest, proved=proved)
            return
        step = self._uploads.part_bytes
        if self._uploads.has(key, digest=digest, size_bytes=len(data)):
            _check(digest, data)
        else:
            blocks = (data[at : at + step] for at in range(0, len(data), step))
            self._uploads.send(key, blocks, digest=digest)

    def _write_file(self, key: str, path: Path, *, digest: str, proved: bool) -> None:
        with reading(path):
            size_bytes = path.stat().st_size
        if size_bytes <= self._uploads.part_bytes:
            with self._uploads.slots:
                with reading(path), path.open("rb") as file:
                    data = next(file_blocks(file, self._uploads.part_bytes), b"")
                self._put(key, data, digest=digest, proved=proved)
        elif self._uploads.has(key, digest=digest, size_bytes=size_bytes):
            protocol.drain(protocol.verified(digest, pieces_of(path), where=str(path)))
        else:
            self._uploads.send_file(key, path, digest=digest)

    def _put(self, key: str, data: bytes | bytearray, *, digest: str, proved: bool) -> None:
        """Write in one request. The server checks the sha256 even when nobody else does."""
        if not proved:
            _check(digest, data)
        sha256 = s3_swap.checksum_of(digest)
        held = self.bucket.put(key, data, **self._proof.of(data, sha256))
        self._proof.learn(held)
        if held.sha256:
            return  # the server says what it has
        now = self.bucket.head(key)
        if now is None or now.size_bytes != len(data):
            raise StoreError(
                f"s3://{self.bucket.name}/{key} is not whole after it was written",
                mend="look at the server's log, and try again",
            )


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """The two parts of `s3://bucket/prefix`; raises InputError for anything else."""
    match = _URL.fullmatch(url)
    prefix = ((match["prefix"] or "") if match else "").rstrip("/")
    if not match or ".." in match["bucket"]:
        raise InputError([f"{url[:200]!r} is not a bucket of S3"], mend=_MEND_URL)
    if prefix and (len(prefix) > _PREFIX_LIMIT or not _PREFIX.fullmatch(prefix)):
        raise InputError([f"{prefix[:200]!r} cannot be a prefix"], mend=_MEND_URL)
    return match["bucket"], prefix


def probe_compare_and_swap(place: S3Objects, writers: int = s3_swap.PROBE_WRITERS) -> str:
    """Why the conditional writes of a place cannot be relied on; empty when they can.

    Writes one small object a few times and removes it.
    """
    return s3_swap.probe(place.bucket, place.probe_prefix, writers=writers)


def _check(digest: str, data: bytes | bytearray) -> None:
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise protocol.damaged(digest, found=found, where="what was given")


def _length(body: Body, *, start: int, end: int | None) -> int:
    """How many bytes an answer must have."""
    return (body.total_bytes if end is None else min(end, body.total_bytes)) - start


def _name(listed: Listed) -> str:
    return listed.name
