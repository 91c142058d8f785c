"""Large objects on S3: sent in parts, visible only when every byte has proved to be right.

- At most four parts are in memory at once, whatever the size and however many write.
- Every part carries its sha256; the object is made of the parts only after the whole matched.
- A file's upload that was killed goes on with the parts that are there and have the same bytes.
- What fails is dropped, so that no hidden parts are paid for.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from engines.store import protocol
from engines.store.s3_swap import checksum, checksum_of, md5, md5_hex
from planyard.core.errors import StoreError
from planyard.edge.s3 import RefusedError, UnansweredError
from planyard.edge.s3_bucket import Bucket, Held, Part

PART_BYTES = 16 << 20
MAX_PARTS = 10_000
_TRIES = 4
IN_FLIGHT = 4
DIGEST = "planyard-digest"
"""The metadata of an object that was made of parts after all of them had proved to be right."""


class Blocks:
    """The bytes of an iterable in blocks of `size_bytes`, the last one shorter."""

    def __init__(self, pieces: Iterable[bytes], size_bytes: int) -> None:
        self._pieces = iter(pieces)
        self._size_bytes = size_bytes
        self._left = memoryview(b"")
        self._first: bytearray | None = None

    def __iter__(self) -> Iterator[bytearray]:
        return self

    def __next__(self) -> bytearray:
        if self._first is not None:
            block, self._first = self._first, None
            return block
        if self.is_at_end():
            raise StopIteration
        block, filled = bytearray(self._size_bytes), 0
        while filled < self._size_bytes and not self.is_at_end():
            piece = self._left[: self._size_bytes - filled]
            block[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._left = self._left[len(piece) :]
        del block[filled:]
        return block

    def is_one(self) -> bool:
        """Whether there is one block or none; to be asked before the first is taken."""
        self._first = next(self, None)
        return self.is_at_end()

    def is_at_end(self) -> bool:
        """Whether nothing follows; fetches the next piece to find out."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._left = memoryview(piece)
        return False


class Proof:
    """What goes along with bytes so that the server checks them before it keeps them.

    The MD5, which every server checks, until the server has shown that it knows the sha256.
    """

    def __init__(self) -> None:
        self._knows_sha256 = False

    def of(self, data: bytes | bytearray, sha256: str) -> dict[str, str]:
        """The options of a request that sends `data`."""
        proof = {"ChecksumSHA256": sha256}
        return proof if self._knows_sha256 else {**proof, "ContentMD5": md5(data)}

    def learn(self, answer: Held | Part) -> None:
        """See from an answer whether the server knows the sha256."""
        self._knows_sha256 = bool(answer.sha256)


class Uploads:
    """Sends large objects to a bucket; all of them together hold a few parts in memory."""

    def __init__(self, bucket: Bucket, *, proof: Proof, part_bytes: int = PART_BYTES) -> None:
        self.part_bytes = part_bytes
        self.slots = threading.BoundedSemaphore(IN_FLIGHT)
        """Held by whoever has the bytes of a part in memory."""
        self._bucket = bucket
        self._proof = proof

    def send(self, key: str, blocks: Iterator[bytes | bytearray], *, digest: str) -> None:
        """Send bytes that come once; IntegrityError, with nothing visible, if they are wrong."""
        upload = self._bucket.begin_upload(key, metadata={DIGEST: digest})
        self._fill(key, upload, blocks, digest=digest, there={})

    def send_file(self, key: str, path: Path, *, digest: str) -> None:
        """Send a file, on top of what an upload of it that was killed has left.

        Whether that was killed cannot be seen: another writer may be at it, and end it under us, as
        may one who joins an upload of our own. Then the object is there, or it is begun anew.
        """
        with reading(path):
            size_bytes = path.stat().st_size
        for upload in (*self._bucket.uploads(key)[:1], *[None] * _TRIES):
            try:
                self._join(key, upload, path, digest=digest)
            except RefusedError as error:
                if error.status not in (400, 404) or error.code == "NoSuchBucket":
                    raise
                last = error
                if self.has(key, digest=digest, size_bytes=size_bytes):
                    return
            else:
                return
        raise last

    def _join(self, key: str, upload: str | None, path: Path, *, digest: str) -> None:
        """Send what an upload lacks, or all of a new one."""
        there = {}
        if upload is None:
            upload = self._bucket.begin_upload(key, metadata={DIGEST: digest})
        else:
            there = {one.number: one for one in self._bucket.parts(key, upload)}
        self._fill_from_file(key, upload, path, digest=digest, there=there)

    def has(self, key: str, *, digest: str, size_bytes: int) -> bool:
        """Whether the object is there, and is known to be right without fetching it."""
        held = self._bucket.head(key)
        if held is None or held.size_bytes != size_bytes:
            return False
        return held.metadata.get(DIGEST) == digest or held.sha256 == checksum_of(digest)

    def _fill_from_file(
        self, key: str, upload: str, path: Path, *, digest: str, there: Mapping[int, Part]
    ) -> None:
        with reading(path), path.open("rb") as file:
            blocks = file_blocks(file, self.part_bytes)
            self._fill(key, upload, blocks, digest=digest, there=there)

    def _fill(
        self,
        key: str,
        upload: str,
        blocks: Iterator[bytes | bytearray],
        *,
        digest: str,
        there: Mapping[int, Part],
    ) -> None:
        """Send what is not there, and make the object; or leave nothing of the upload."""
        try:
            parts, found = self._send_parts(key, upload, blocks, there=there)
            if found != digest:
                raise protocol.damaged(digest, found=found, where="what was given")
            self._end(key, upload, parts, digest=digest)
        except BaseException:
            with contextlib.suppress(StoreError):
                self._bucket.drop_upload(key, upload)
            raise

    def _send_parts(
        self,
        key: str,
        upload: str,
        blocks: Iterator[bytes | bytearray],
        *,
        there: Mapping[int, Part],
    ) -> tuple[list[Part], str]:
        """The parts, sent or found there, and the digest of all blocks together."""
        seen, futures, failed = hashlib.sha256(), list[Future[Part]](), threading.Event()

        def send(number: int, block: bytes | bytearray) -> Part:
            try:
                return self._send_part(key, upload, block, number=number, old=there.get(number))
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                while not failed.is_set() and (block := self._next(blocks)) is not None:
                    seen.update(block)
                    futures.append(pool.submit(send, len(futures) + 1, block))
                    futures[-1].add_done_callback(lambda _: self.slots.release())
                    del block  # or it stays in memory while the next one waits for a slot
                    if len(futures) > MAX_PARTS:
                        most = MAX_PARTS * self.part_bytes
                        raise StoreError(f"{key} is larger than {most} bytes, the limit on S3")
                return [future.result() for future in futures], f"sha256:{seen.hexdigest()}"
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _next(self, blocks: Iterator[bytes | bytearray]) -> bytes | bytearray | None:
        """The next block, with a slot that its reader must free; None, without, at the end."""
        self.slots.acquire()
        block = None
        try:
            block = next(blocks, None)
        finally:
            if block is None:
                self.slots.release()
        return block

    def _send_part(
        self, key: str, upload: str, block: bytes | bytearray, *, number: int, old: Part | None
    ) -> Part:
        sha256 = checksum(block)
        if old and old.size_bytes == len(block):
            is_same = old.sha256 == sha256 if old.sha256 else old.etag == f'"{md5_hex(block)}"'
            if is_same:  # not every server lists the checksum, and some want it at the end
                return replace(old, sha256=sha256)
        proof = self._proof.of(block, sha256)
        sent = self._bucket.send_part(key, upload, block, number=number, **proof)
        self._proof.learn(sent)
        return sent

    def _end(self, key: str, upload: str, parts: list[Part], *, digest: str) -> None:
        """Make the object. The answer may be lost, or another writer first: then look."""
        size_bytes = sum(part.size_bytes for part in parts)
        try:
            self._bucket.end_upload(key, upload, parts)
        except (RefusedError, UnansweredError):
            if not self.has(key, digest=digest, size_bytes=size_bytes):
                raise
            return
        held = self._bucket.head(key)
        if held is None or held.size_bytes != size_bytes:
            raise StoreError(
                f"s3://{self._bucket.name}/{key} is not whole after it was written",
                mend="look at the server's log, and try again",
            )


def file_blocks(file: BinaryIO, size_bytes: int) -> Iterator[bytearray]:
    """The bytes of a file in blocks, each read straight to where it is sent from."""
    while True:
        block = bytearray(size_bytes)
        del block[file.readinto(block) :]  # type: ignore[attr-defined]
        if not block:
            return
        yield block
        del block


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file could not be read."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} could not be read: {error.strerror}") from error
