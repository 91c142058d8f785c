"""A client of OCI registries: blobs, manifests, tags and referrers of one repository.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. Everything a registry says
is capped in size and count; the addresses in `urls` of a descriptor are never looked at.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from planyard.core.digest import digest_of_bytes, is_digest
from planyard.core.errors import StoreError
from planyard.core.registry_address import Address
from planyard.edge.network import Network
from planyard.edge.registry_answers import (
    length_of,
    list_in,
    next_page,
    what_was_said,
)
from planyard.edge.registry_blobs import BlobReader
from planyard.edge.registry_http import (
    Answer,
    BrokenError,
    Connections,
    Request,
    origin_of,
    shown,
    unreachable,
)
from planyard.edge.registry_login import Login

MANIFEST_LIMIT_BYTES = 4 << 20
TAG_PAGE_LIMIT_BYTES = 32 << 20
"""Debian's registry 2.8 knows no pages: all tags come in one answer."""
TAGS_LIMIT = 1_000_000
PAGES_LIMIT = 10_000
TAGS_A_PAGE = 1000
REFERRERS_LIMIT = 10_000
REFERRERS_LIMIT_BYTES = 16 << 20
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_ACCEPT = f"{IMAGE_MANIFEST}, {IMAGE_INDEX}, {DOCKER_MANIFEST}"
_UPLOADS = 3
_PUTS = 6


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a registry says of a manifest."""

    digest: str
    size_bytes: int
    media_type: str


class Registry:
    """One repository of a registry. Methods may be called from several threads at once.

    Every method raises StoreError when the registry cannot be reached, refuses, or says nonsense.
    """

    def __init__(
        self,
        address: Address,
        *,
        network: Network | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.address = address
        self._connections = Connections(address.url, network or Network())
        self._origin = origin_of(address.url)
        self._login = Login(
            self._connections, url=address.url, host=address.host, environment=environment
        )

    def blob_size(self, digest: str) -> int | None:
        """The size of a blob in bytes; None when it is not there."""
        answer = self._get(f"/blobs/{digest}", method="HEAD")
        if answer.status == 404:
            answer.close()
            return None
        self._expect(answer, 200)
        answer.close()
        return length_of(answer)

    def open_blob(self, digest: str, *, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start` to `stop` (not included), fewer when the registry's blob ends before.

        Pieces of at most 1 MiB, not verified. Raises FileNotFoundError at once when it is missing.
        """

        def ask(begin: int, end: int) -> Answer | None:
            answer = self._get(f"/blobs/{digest}", headers={"Range": f"bytes={begin}-{end - 1}"})
            if answer.status == 404:
                answer.close()
                return None
            self._expect(answer, 200, 206, 416)
            return answer

        return BlobReader(ask, self._connections.rest).pieces(start, stop)

    def upload_blob(self, digest: str, *, size_bytes: int, body: bytes | BinaryIO) -> None:
        """Send a blob in one piece; the registry verifies the digest. Starts again when cut off."""
        for attempt in range(_UPLOADS):
            try:
                status = self._upload(digest, size_bytes=size_bytes, body=body)
            except BrokenError as error:
                if attempt == _UPLOADS - 1:
                    raise unreachable(self.address.url, error) from error
                status = 0
            if status == 201 or self.blob_size(digest) == size_bytes:
                return
            self._connections.rest(attempt)
        message = f"{shown(self.address.url)} does not take {digest} (status {status})"
        raise StoreError(message, mend="run the same command again")

    def manifest(self, reference: str) -> bytes | None:
        """A manifest by tag or digest, not verified; None when it is not there."""
        accept = {"Accept": _ACCEPT}
        limit_bytes = MANIFEST_LIMIT_BYTES
        answer = self._get(f"/manifests/{reference}", headers=accept, limit_bytes=limit_bytes)
        return self._whole_or_none(answer, MANIFEST_LIMIT_BYTES)

    def describe(self, reference: str) -> Described | None:
        """What a manifest is, by tag or digest, as the registry says it; None when missing."""
        answer = self._get(f"/manifests/{reference}", method="HEAD", headers={"Accept": _ACCEPT})
        if answer.status == 404:
            answer.close()
            return None
        self._expect(answer, 200)
        answer.close()
        digest = answer.headers.get("Docker-Content-Digest", "")
        if not is_digest(digest):
            # The header is only recommended.
            data = self.manifest(reference)
            if data is None:
                return None
            digest = digest_of_bytes(data)
        media_type = answer.headers.get("Content-Type", IMAGE_MANIFEST)
        return Described(digest=digest, size_bytes=length_of(answer), media_type=media_type)

    def put_manifest(
        self, reference: str, data: bytes, *, media_type: str, is_whole: bool = True
    ) -> bool:
        """Put a manifest under a tag or digest; whether the registry took note of its subject.

        A registry that does answers with OCI-Subject, and then lists it among the referrers.
        `is_whole` says that all it names is there: distribution's registry 2.8 denies that for a
        moment when several writers put one manifest at once, and is then asked again.
        """
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        for left in range(_PUTS if is_whole else 1, 0, -1):
            answer = self._get(f"/manifests/{reference}", method="PUT", headers=headers, body=data)
            if answer.status not in (400, 404) or left == 1:
                break
            answer.close()
            self._connections.rest(0)
        self._expect(answer, 201)
        answer.close()
        return "OCI-Subject" in answer.headers

    def delete_manifest(self, reference: str) -> bool:
        """Delete a tag, or a manifest by its digest; False when the registry does not do that."""
        answer = self._get(f"/manifests/{reference}", method="DELETE", action="delete")
        if answer.status in (400, 405):
            answer.close()
            return False
        self._expect(answer, 200, 202, 404)
        answer.close()
        return True

    def tag_pages(self, *, after: str = "") -> Iterator[list[str]]:
        """The tags in pages as the registry orders them, those after `after` if it knows that."""
        url, last, seen, is_guess = self._tags_url(after), after, 0, False
        for _ in range(PAGES_LIMIT):
            request = Request(method="GET", url=url)
            answer = self._ask_again(request, "pull", limit_bytes=TAG_PAGE_LIMIT_BYTES)
            data = self._whole_or_none(answer, TAG_PAGE_LIMIT_BYTES)
            tags = list_in(data, "tags", str, url=answer.url) if data is not None else []
            following = next_page(answer)
            # Some registries cut the list without a Link, and begin anew past its end.
            if is_guess and tags and tags[0] <= last:
                return
            seen += len(tags)
            if seen > TAGS_LIMIT:
                break
            yield tags
            if not following and len(tags) != TAGS_A_PAGE:
                return
            last = tags[-1] if tags else last
            is_guess = not following
            url = following or self._tags_url(last)
        message = f"{shown(self.address.url)} lists more than {TAGS_LIMIT} tags, or without end"
        raise StoreError(message, mend="keep what is no longer used in another repository")

    def _tags_url(self, after: str) -> str:
        query = {"n": str(TAGS_A_PAGE)} | ({"last": after} if after else {})
        return f"{self.address.url}/tags/list?{urllib.parse.urlencode(query)}"

    def referrers(self, digest: str) -> list[dict[str, Any]] | None:
        """Descriptors of what refers to a manifest; None when the registry has no such list."""
        url: str | None = f"{self.address.url}/referrers/{digest}"
        found: list[dict[str, Any]] = []
        seen_bytes = 0
        while url:
            request = Request(method="GET", url=url, headers={"Accept": IMAGE_INDEX})
            answer = self._ask_again(request, "pull", limit_bytes=MANIFEST_LIMIT_BYTES)
            if answer.status in (400, 404, 405, 501):
                answer.close()
                return None
            self._expect(answer, 200)
            data = answer.whole(MANIFEST_LIMIT_BYTES)
            seen_bytes += len(data) + 1024  # an empty page counts, too: they could be endless
            found += list_in(data, "manifests", dict, url=answer.url)
            if len(found) > REFERRERS_LIMIT or seen_bytes > REFERRERS_LIMIT_BYTES:
                message = f"{shown(url)} lists more than {REFERRERS_LIMIT} referrers"
                raise StoreError(message, mend="remove those that nobody needs")
            url = next_page(answer)
        return found

    def rest(self, attempt: int) -> None:
        """Wait a moment, a little longer after more attempts."""
        self._connections.rest(attempt)

    def _get(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        action: str = "",
        limit_bytes: int = 0,
    ) -> Answer:
        url = self.address.url + path
        request = Request(method=method, url=url, headers=headers or {}, body=body)
        action = action or ("push" if body is not None else "pull")
        return self._ask_again(request, action, limit_bytes=limit_bytes)

    def _ask_again(self, request: Request, action: str, *, limit_bytes: int = 0) -> Answer:
        """Ask until there is an answer; with a limit, until there is the whole body of one."""

        def ask(each: Request) -> Answer:
            answer = self._ask(each, action)
            return answer.loaded(limit_bytes) if limit_bytes else answer

        return self._connections.ask_again(request, ask)

    def _ask(self, request: Request, action: str) -> Answer:
        """One attempt, authorized; what is not asked of the registry goes without."""
        used = self._login.header(action)
        answer = self._connections.ask(request, authorization=used)
        if answer.status == 401 and origin_of(answer.url) == self._origin:
            challenge = answer.headers.get("WWW-Authenticate", "")
            better = self._login.answer(challenge, action, used=used)
            if better:
                answer.close()
                answer = self._connections.ask(request, authorization=better)
        return answer

    def _upload(self, digest: str, *, size_bytes: int, body: bytes | BinaryIO) -> int:
        """One upload session; 201 when the blob is there, else the status that asks for another."""
        started = self._get("/blobs/uploads/", method="POST", body=b"")
        self._expect(started, 202)
        started.close()
        place = self._connections.checked_location(started)
        url = place + ("&" if "?" in place else "?") + "digest=" + urllib.parse.quote(digest)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        request = Request(method="PUT", url=url, headers=headers, body=body)
        answer = self._ask(request, "push")
        if answer.status not in (404, 416, 429, 500, 502, 503, 504):
            self._expect(answer, 201)
        answer.close()
        return answer.status

    def _whole_or_none(self, answer: Answer, limit_bytes: int) -> bytes | None:
        if answer.status == 404:
            answer.close()
            return None
        self._expect(answer, 200)
        return answer.whole(limit_bytes)

    def _expect(self, answer: Answer, *statuses: int) -> None:
        """Raise StoreError, with what the registry said, unless it answered one of `statuses`."""
        if answer.status in statuses:
            return
        said = what_was_said(answer)
        mends = {
            401: f"docker login {self.address.host}",
            403: f"ask for the right to do that, or docker login {self.address.host}",
            404: f"create the repository {self.address.repository}, or check its name",
        }
        message = f"{shown(answer.url)} answers {answer.status}{said}"
        mend = mends.get(answer.status, "check the address, or run the same command again later")
        raise StoreError(message, mend=mend)
