"""Compare-and-swap on S3: a conditional write of a small object, and the probe of whether it holds.

An answer can be lost after the server has done what was asked. So each write carries a word of its
own in the object's metadata: who finds it there has won, whatever the connection said.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.store.objects import NoCompareAndSwapError
from planyard.core.errors import StoreError
from planyard.edge import files
from planyard.edge.s3 import RefusedError, UnansweredError
from planyard.edge.s3_bucket import Bucket

PROBE_WRITERS = 32
PROBE_VALID_SECONDS = 7 * 86_400.0

_TRIES = 4
_WORD = "planyard-move"
_TOKEN = re.compile(r'"[\x21\x23-\x7e]{1,100}"')
_DONE, _LOST, _AGAIN, _UNKNOWN = "done", "lost", "again", "unknown"


def swap(bucket: Bucket, key: str, data: bytes, *, expected: str | None) -> bool:
    """Write `data` under a key if its ETag is `expected`; None: if nothing is there yet.

    Of any number of callers exactly one gets True, where the server keeps conditional writes.
    Raises StoreError when whether it was written cannot be found out.
    """
    if expected is not None and not _TOKEN.fullmatch(expected):
        return False
    word, is_certain = secrets.token_hex(16), True
    for _ in range(_TRIES):
        outcome = _put_if(bucket, key, data, expected=expected, word=word)
        is_certain &= outcome != _UNKNOWN
        if outcome == _DONE:
            return True
        if outcome == _LOST and is_certain:
            return False
        now = bucket.head(key)
        if now and now.metadata.get(_WORD) == word:
            return True
        if (now.etag if now else None) != expected:
            break
    if is_certain:
        return False
    raise StoreError(
        f"s3://{bucket.name}/{key}: a write got no answer, and whether it was done is not known",
        mend="look at what it holds now (planyard channels), and try again if need be",
    )


def probe(bucket: Bucket, prefix: str, *, writers: int = PROBE_WRITERS) -> str:
    """Why the server's conditional writes cannot be relied on; empty when they can.

    Of `writers` at one moment exactly one may create an object, and exactly one may replace it.
    """
    key = f"{prefix}probes/{secrets.token_hex(16)}"
    try:
        trouble = _race(bucket, key, expected=None, writers=writers)
        if not trouble:
            held = bucket.head(key)
            expected = held.etag if held else ""
            trouble = _race(bucket, key, expected=expected, writers=writers)
        return trouble
    finally:
        bucket.delete(key)


class Remembered:
    """What probes found out, for the program and, in the file `state`, for a week.

    Only good news is kept: a server that failed is asked again.
    """

    def __init__(self, state: Path | None = None) -> None:
        self._state = state
        self._good = False
        self._lock = threading.Lock()

    def trouble(self, place: str, ask: Callable[[], str]) -> str:
        """Why compare-and-swap cannot be relied on in `place`; asks only when it has to."""
        with self._lock:
            if self._good or self._is_known(place):
                self._good = True
                return ""
            trouble = ask()
            self._good = not trouble
            if self._good and self._state:
                known = {**self._known(), place: time.time()}
                files.write_bytes(self._state, json.dumps(known, sort_keys=True).encode())
            return trouble

    def _is_known(self, place: str) -> bool:
        checked = self._known().get(place)
        # A clock that was set back makes the age negative: ask again.
        return checked is not None and 0 <= time.time() - checked < PROBE_VALID_SECONDS

    def _known(self) -> dict[str, float]:
        """What the file holds; nothing when it is not there, or is not what it should be."""
        try:
            found = json.loads(self._state.read_bytes()) if self._state else {}
        except (OSError, ValueError):
            return {}
        items = found.items() if isinstance(found, dict) else ()
        return {place: when for place, when in items if isinstance(when, int | float)}


def checksum(data: bytes | bytearray) -> str:
    """The sha256 as S3 writes it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def checksum_of(digest: str) -> str:
    """A digest as S3 writes it."""
    return base64.b64encode(bytes.fromhex(digest[7:])).decode()


def md5(data: bytes | bytearray) -> str:
    """The MD5 as S3 writes it: against broken connections, not against people."""
    return base64.b64encode(bytes.fromhex(md5_hex(data))).decode()


def md5_hex(data: bytes | bytearray) -> str:
    """The MD5, which is the ETag of what was sent in one request."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _put_if(bucket: Bucket, key: str, data: bytes, *, expected: str | None, word: str) -> str:
    """One conditional write, and what became of it."""
    condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
    proof = {"ChecksumSHA256": checksum(data), "ContentMD5": md5(data)}
    try:
        bucket.put(key, data, Metadata={_WORD: word}, **proof, **condition)
    except UnansweredError:
        return _UNKNOWN
    except RefusedError as error:
        if error.status == 501:
            raise NoCompareAndSwapError(f"{key}: {error.message}") from error
        if error.status >= 500 or (error.retried and error.status in (404, 409, 412)):
            return _UNKNOWN  # an earlier try may have done it
        if error.status == 409:
            return _AGAIN  # AWS, when two come at one moment
        if error.status == 412 or error.code == "NoSuchKey":  # AWS, of If-Match on what is gone
            return _LOST
        raise
    return _DONE


def _race(bucket: Bucket, key: str, *, expected: str | None, writers: int) -> str:
    """Let all write at one moment; what went wrong, empty when one won and it is there."""
    gate = threading.Barrier(writers)

    def write(number: int) -> bool:
        gate.wait()
        return swap(bucket, key, _document(number, expected), expected=expected)

    with ThreadPoolExecutor(writers) as pool:
        won = [number for number, hit in enumerate(pool.map(write, range(writers))) if hit]
    what = "created" if expected is None else "replaced"
    if len(won) != 1:
        return f"{len(won)} of {writers} that {what} one object at once were told they won"
    lasting = b"".join(bucket.get(key).pieces(1 << 20))
    if lasting != _document(won[0], expected):
        return f"one of {writers} was told it had {what} an object, and another one did"
    return ""


def _document(number: int, expected: str | None) -> bytes:
    return json.dumps({"probe": number, "after": expected}).encode()
