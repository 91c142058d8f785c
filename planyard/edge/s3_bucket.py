"""One bucket of S3: what can be asked of it, with typed answers.

The sha256 of what is sent goes along in a signed header, and the server checks the bytes against
it. That replaces signing the body, which would cost one more pass over it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planyard.edge.s3 import BrokenError, Caller, Patience, RefusedError, breaks

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, kw_only=True)
class Held:
    """An object as the server describes it; `sha256` is base64, empty where it keeps none."""

    size_bytes: int
    etag: str
    sha256: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One line of a listing."""

    key: str
    size_bytes: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an upload that the server has."""

    number: int
    size_bytes: int
    etag: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Body:
    """An answer that is still coming: `length_bytes` from `start` on, of `total_bytes`."""

    start: int
    length_bytes: int
    total_bytes: int
    etag: str
    sha256: str
    _stream: Any

    def pieces(self, step_bytes: int) -> Iterator[bytes]:
        """What comes, until it ends or breaks: BrokenError then."""
        left = self.length_bytes
        with contextlib.closing(self._stream):
            while left:
                with breaks():
                    piece = self._stream.read(min(step_bytes, left))
                if not piece:
                    break
                left -= len(piece)
                yield piece
        if left:
            raise BrokenError(f"the connection broke {left} bytes before the end")


class Bucket:
    """One bucket. Keys are strings; what fails raises RefusedError or UnansweredError."""

    def __init__(
        self, name: str, *, endpoint: str | None = None, patience: Patience | None = None
    ) -> None:
        self._caller = Caller(name, endpoint=endpoint, patience=patience or Patience())
        self.name = name
        self.endpoint = self._caller.endpoint

    def head(self, key: str) -> Held | None:
        """What the server says about an object; None when there is none."""
        try:
            got = self._caller.call("head_object", Key=key, ChecksumMode="ENABLED")
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        size_bytes, etag = _fields(got, "ContentLength", "ETag")
        return Held(
            size_bytes=size_bytes,
            etag=etag,
            sha256=got.get("ChecksumSHA256", ""),
            metadata=got.get("Metadata", {}),
        )

    def get(self, key: str, **options: str) -> Body:
        """Begin to read an object; `options` are Range, IfMatch and ChecksumMode."""
        got = self._caller.call("get_object", Key=key, **options)
        length, etag = _fields(got, "ContentLength", "ETag")
        start, total = _content_range(got.get("ContentRange", ""), length_bytes=length)
        return Body(
            start=start,
            length_bytes=length,
            total_bytes=total,
            etag=etag,
            sha256=got.get("ChecksumSHA256", ""),
            _stream=got["Body"],
        )

    def put(self, key: str, data: bytes | bytearray, **options: Any) -> Held:
        """Write an object in one request; `options` are those of PutObject."""
        got = self._caller.call("put_object", Key=key, Body=_body(data), **options)
        sha256 = got.get("ChecksumSHA256", "")
        return Held(size_bytes=len(data), etag=_fields(got, "ETag")[0], sha256=sha256)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        self._caller.call("delete_object", Key=key)

    def listing(self, prefix: str) -> Iterator[Listing]:
        """Objects whose keys start with `prefix`, in the order the server gives."""
        token: dict[str, str] = {}
        while True:
            got = self._caller.call("list_objects_v2", Prefix=prefix, **token)
            for one in got.get("Contents", ()):
                key, size_bytes, modified = _fields(one, "Key", "Size", "LastModified")
                yield Listing(key=key, size_bytes=size_bytes, modified=modified.timestamp())
            if not got.get("IsTruncated"):
                return
            token = {"ContinuationToken": _fields(got, "NextContinuationToken")[0]}

    def begin_upload(self, key: str, *, metadata: Mapping[str, str]) -> str:
        """Begin an upload in parts and return its id."""
        got = self._caller.call(
            "create_multipart_upload", Key=key, Metadata=dict(metadata), ChecksumAlgorithm="SHA256"
        )
        return str(_fields(got, "UploadId")[0])

    def uploads(self, key: str) -> list[str]:
        """The ids of uploads of exactly this key that were begun and not ended, newest first."""
        got = self._caller.call("list_multipart_uploads", Prefix=key)
        found = [_fields(one, "Initiated", "UploadId", "Key") for one in got.get("Uploads", ())]
        return [upload for _, upload, of in sorted(found, reverse=True) if of == key]

    def parts(self, key: str, upload: str) -> Iterator[Part]:
        """The parts of an upload that the server has."""
        marker: dict[str, int] = {}
        while True:
            got = self._caller.call("list_parts", Key=key, UploadId=upload, **marker)
            for one in got.get("Parts", ()):
                number, size_bytes, etag = _fields(one, "PartNumber", "Size", "ETag")
                sha256 = one.get("ChecksumSHA256", "")
                yield Part(number=number, size_bytes=size_bytes, etag=etag, sha256=sha256)
            if not got.get("IsTruncated"):
                return
            marker = {"PartNumberMarker": _fields(got, "NextPartNumberMarker")[0]}

    def send_part(
        self, key: str, upload: str, data: bytes | bytearray, *, number: int, **options: str
    ) -> Part:
        """Send a part; `options` are those of UploadPart."""
        got = self._caller.call(
            "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=_body(data), **options
        )
        etag, sha256 = _fields(got, "ETag")[0], got.get("ChecksumSHA256", "")
        return Part(number=number, size_bytes=len(data), etag=etag, sha256=sha256)

    def end_upload(self, key: str, upload: str, parts: list[Part]) -> None:
        """Make an object of the parts: now it is visible."""
        named = [
            {"PartNumber": one.number, "ETag": one.etag}
            | ({"ChecksumSHA256": one.sha256} if one.sha256 else {})
            for one in parts
        ]
        args = {"Key": key, "UploadId": upload, "MultipartUpload": {"Parts": named}}
        self._caller.call("complete_multipart_upload", **args)

    def drop_upload(self, key: str, upload: str) -> None:
        """Forget an upload and its parts; one that is gone is fine."""
        try:
            self._caller.call("abort_multipart_upload", Key=key, UploadId=upload)
        except RefusedError as error:
            if error.status != 404:
                raise

    def check(self) -> None:
        """Raise StoreError, with the command that makes it, when there is no such bucket."""
        try:
            self._caller.call("head_bucket")
        except RefusedError as error:
            if error.status != 403:  # who may not ask may still read
                raise


def _fields(answer: Mapping[str, Any], *names: str) -> list[Any]:
    """Fields that every answer has; BrokenError where one was lost on the way."""
    try:
        return [answer[name] for name in names]
    except KeyError as error:
        raise BrokenError(f"the answer lacks {error}") from error


def _body(data: bytes | bytearray) -> bytearray:
    """What botocore sends at once, in one go.

    Of bytes it would make a file, ask `Expect: 100-continue` first, and send small blocks. Servers
    hold a lock while they wait for the rest: conditional writes took seconds that way.
    """
    return data if isinstance(data, bytearray) else bytearray(data)


def _content_range(header: str, *, length_bytes: int) -> tuple[int, int]:
    """Where an answer starts, and the size of the object; BrokenError if they do not fit."""
    if not header:
        return 0, length_bytes
    match = _CONTENT_RANGE.fullmatch(header)
    if not match or int(match[2]) - int(match[1]) + 1 != length_bytes:
        raise BrokenError(f"an answer of {length_bytes} bytes says it is {header!r:.80}")
    return int(match[1]), int(match[3])
