"""Downloads over https: verified TLS, redirects only to https, a size limit, time limits, resume.

What arrives is not trusted: the caller checks the digest. A broken transfer goes on where it
stopped when the server knows ranges, and starts again when it does not. Query strings are left
out of messages, since signed URLs carry their secret there.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from planyard.core.errors import StoreError
from planyard.core.units import format_bytes

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, when the server said it, the bytes in all."""

MAX_REDIRECTS = 5
ATTEMPTS = 4
PAUSE_SECONDS = 1.0  # after the first attempt; it doubles
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class _TransientError(Exception):
    """The transfer broke in a way that another attempt may mend."""


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What one transfer may take; `deadline` is on the monotonic clock."""

    limit_bytes: int
    idle_seconds: float
    deadline: float
    progress: Progress


def download(
    url: str,
    target: Path,
    *,
    limit_bytes: int,
    progress: Progress = lambda _done, _total: None,
    idle_seconds: float = 30.0,
    total_seconds: float = 4 * 3600.0,
) -> None:
    """Download `url` into `target`, going on after the bytes that are already there.

    Raises StoreError when the server cannot be reached or refuses; `target` then keeps what came,
    for a later call to go on with. `idle_seconds` bounds each wait for the server,
    `total_seconds` everything together.
    """
    _check_url(url)
    limits = _Limits(
        limit_bytes=limit_bytes,
        idle_seconds=idle_seconds,
        deadline=time.monotonic() + total_seconds,
        progress=progress,
    )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with target.open("ab") as file:
                _transfer(url, file, limits)
                file.flush()
                os.fsync(file.fileno())
        except _TransientError as error:
            if attempt == ATTEMPTS or time.monotonic() >= limits.deadline:
                mend = "check the network and run the same command again: it goes on from here"
                raise StoreError(f"{public_url(url)}: {error}", mend=mend) from error
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        else:
            return


def public_url(url: str) -> str:
    """A URL as it may be shown: without user, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_url(url: str) -> None:
    """Only https, with a host; the port has to be a number."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        shown = url.partition("?")[0]
        raise StoreError(f"{shown} is not an https URL", mend="write https://host/path/model.onnx")


def _transfer(url: str, file: IO[bytes], limits: _Limits) -> None:
    """One attempt, from the end of `file` on."""
    have = file.seek(0, os.SEEK_END)
    try:
        response = _open(url, have=have, limits=limits)
    except urllib.error.HTTPError as error:
        with error:
            _take_refusal(error, file, url=url, have=have)
        return
    with response:
        begin = _where_it_begins(response, have=have)
        file.truncate(begin)
        total = _total_bytes(response, begin=begin)
        done = begin
        for piece in _pieces(response):
            done += len(piece)
            if max(done, total or 0) > limits.limit_bytes:
                file.truncate(0)
                raise _too_large(url, limits.limit_bytes)
            file.write(piece)
            limits.progress(done, total)
            if time.monotonic() > limits.deadline:
                raise _TransientError("did not end in time")
    if total is not None and done < total:
        raise _TransientError(f"broke off after {done} of {total} bytes")


def _open(url: str, *, have: int, limits: _Limits) -> http.client.HTTPResponse:
    """Ask for `url` from byte `have` on."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "planyard"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  https, checked before
    try:
        response: http.client.HTTPResponse = _opener().open(request, timeout=limits.idle_seconds)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            message = f"{public_url(url)}: {error.reason.verify_message}"
            mend = "add the server's CA to the file that SSL_CERT_FILE names"
            raise StoreError(message, mend=mend) from error
        raise _TransientError(f"cannot be reached: {error.reason}") from error
    except (http.client.HTTPException, OSError, UnicodeError) as error:
        raise _TransientError(f"cannot be reached: {error}") from error
    return response


def _opener() -> urllib.request.OpenerDirector:
    """Only what https needs: no file:, ftp: or data: URLs, and the environment's proxies."""
    opener = urllib.request.OpenerDirector()
    for part in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        _OnlyHttps(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(part)
    return opener


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to https."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(  # urllib's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The next request, or a StoreError when it would leave https."""
        if urllib.parse.urlsplit(newurl).scheme != "https":
            message = f"{public_url(req.full_url)} redirects to {public_url(newurl)}, not to https"
            raise StoreError(message, mend="name the https address the file really lies at")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _where_it_begins(response: http.client.HTTPResponse, *, have: int) -> int:
    """The first byte of the body: after what is there, or 0 when the server sends everything."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not match or match[1] is None or int(match[1]) != have:
        raise StoreError(f"{public_url(response.geturl())} sent another range than asked for")
    return have


def _total_bytes(response: http.client.HTTPResponse, *, begin: int) -> int | None:
    """The size of the whole file, when the server says it."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        url = public_url(response.geturl())
        raise StoreError(f"{url} sent a compressed body, which was not asked for")
    length = response.headers.get("Content-Length", "")
    return begin + int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it comes; read1 returns after one wait, so a dripping server meets the limits."""
    while True:
        try:
            piece = response.read1(_PIECE_BYTES)
        except (http.client.HTTPException, OSError) as error:
            raise _TransientError(f"broke off: {error!r}") from error
        if not piece:
            return
        yield piece


def _too_large(url: str, limit_bytes: int) -> StoreError:
    message = f"{public_url(url)} is larger than {format_bytes(limit_bytes)}"
    return StoreError(message, mend="check that this is the file's own address")


def _take_refusal(error: urllib.error.HTTPError, file: IO[bytes], *, url: str, have: int) -> None:
    """An error status: returns when `file` is already whole, else another attempt or the end."""
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
        match = _RANGE.fullmatch(error.headers.get("Content-Range", ""))
        if match and match[2] == str(have):
            return
        file.truncate(0)
        raise _TransientError("the part that was there does not fit the file")
    answer = f"answers {error.code} {error.reason}"
    if error.code in RETRY_STATUS:
        raise _TransientError(answer) from error
    mend = "check the address; a private file needs a signed URL or another source"
    raise StoreError(f"{public_url(url)} {answer}", mend=mend) from error
