"""HTTP to a registry: connections that are kept, redirects judged hop by hop, short retries.

A registry may send a client anywhere, so no address is trusted: each one is resolved here, judged,
and exactly what was judged is connected to. A registry on the internet cannot lead into a private
network, to this machine, or to a link-local address (where clouds serve credentials). What it
authorizes with goes to the registry itself and to nobody else.
"""

from __future__ import annotations

import contextlib
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import urllib3
import urllib3.exceptions

from planyard.core.errors import StoreError
from planyard.edge.network import Network, Zone, may_lead, pool_of

MAX_REDIRECTS = 5
RETRY_STATUS = frozenset({429, 500, 502, 503, 504})
PAUSES_SECONDS = (0.2, 0.8)
"""Before the second and the third attempt."""
RETRY_AFTER_LIMIT_SECONDS = 10
PIECE_BYTES = 1 << 20
_DRAIN_BYTES = 64 << 10


class BrokenError(Exception):
    """The exchange broke in a way that another attempt may mend."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request; a file as body is sent from its start, `length` bytes of it."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | BinaryIO | None = None

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return origin_of(self.url)


class Answer:
    """What a server answers: status and headers; the body is still on its way."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self.url = url
        self.status = response.status
        self.headers = response.headers
        self._data: bytes | None = None

    def loaded(self, limit_bytes: int) -> Answer:
        """The answer itself with the body of a success read, for `whole` to give."""
        if self.status == 200:
            self._data = self.whole(limit_bytes)
        return self

    def whole(self, limit_bytes: int) -> bytes:
        """The body; StoreError when it is larger than `limit_bytes`, BrokenError when cut."""
        if self._data is not None:
            return self._data
        data = bytearray()
        for piece in self.pieces():
            data += piece
            if len(data) > limit_bytes:
                message = f"{shown(self.url)} answers with more than {limit_bytes} bytes"
                raise StoreError(message, mend="check that this is the address of a registry")
        return bytes(data)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, at most 1 MiB at a time; raises BrokenError when it is cut."""
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise StoreError(f"{shown(self.url)} sent a compressed body, which was not asked for")
        try:
            yield from self._response.stream(PIECE_BYTES, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenError(f"broke off: {error}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back when the body has been read, else end it."""
        left = self._response.length_remaining
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            if left is not None and left <= _DRAIN_BYTES:
                self._response.read(decode_content=False)
        self._response.close()


class Connections:
    """Kept connections to a registry and to where it leads."""

    def __init__(self, url: str, network: Network) -> None:
        self._origin = origin_of(url)
        self._network = network
        self._zone: Zone | None = None
        self._pools: dict[tuple[str, str, int], urllib3.HTTPConnectionPool] = {}
        self._lock = threading.Lock()

    def ask(self, request: Request, *, authorization: str | None = None) -> Answer:
        """One attempt. Redirects of GET and HEAD are followed, without `authorization`.

        Raises BrokenError when no answer comes, StoreError where it must not go on.
        """
        url = request.url
        for _ in range(MAX_REDIRECTS + 1):
            # Once it has left the registry it stays without credentials, even when led back.
            if origin_of(url) != self._origin:
                authorization = None
            answer = self.hop(request, url, authorization=authorization)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            answer.close()
            if request.method not in ("GET", "HEAD"):
                raise StoreError(
                    f"{shown(url)} redirects a {request.method}, which is not followed"
                )
            url = self.checked_location(answer)
        message = f"{shown(request.url)} redirects more than {MAX_REDIRECTS} times"
        raise StoreError(message, mend="ask who runs the registry")

    def ask_again(
        self, request: Request, ask: Callable[[Request], Answer], *, attempts: int = 3
    ) -> Answer:
        """`ask(request)` until the server neither breaks off nor says to try later."""
        for attempt in range(attempts):
            is_last = attempt == attempts - 1
            try:
                answer = ask(request)
            except BrokenError as error:
                if is_last:
                    raise unreachable(request.url, error) from error
                self.rest(attempt)
                continue
            if is_last or answer.status not in RETRY_STATUS:
                return answer
            answer.close()
            self.rest(attempt, answer)
        raise AssertionError("no attempt was made")

    def rest(self, attempt: int, answer: Answer | None = None) -> None:
        """Wait before another attempt; a server that says how long is believed up to 10 s."""
        seconds = PAUSES_SECONDS[min(attempt, len(PAUSES_SECONDS) - 1)]
        said = answer.headers.get("Retry-After", "") if answer else ""
        if said.isascii() and said.isdigit():
            seconds = min(int(said[:6]), RETRY_AFTER_LIMIT_SECONDS)
        self._network.pause(seconds)

    def checked_location(self, answer: Answer) -> str:
        """Where an answer leads, as a whole address; StoreError for anything but http(s)."""
        location = urllib.parse.urljoin(answer.url, answer.headers.get("Location", ""))
        scheme, host, _ = origin_of(location)
        where = f"{shown(answer.url)} leads to {shown(location)}"
        if not host or scheme not in ("http", "https") or "Location" not in answer.headers:
            raise StoreError(f"{where}, which is no web address", mend="ask who runs the registry")
        if scheme == "http" and self._origin[0] == "https":
            raise StoreError(f"{where}, which is not https", mend="ask who runs the registry")
        return urllib.parse.urldefrag(location).url

    def is_loopback(self, host: str, port: int) -> bool:
        """Whether a host is this machine."""
        try:
            return set(self._network.zones(host, port).values()) == {Zone.LOOPBACK}
        except OSError:
            return False

    def judged(self, host: str, port: int) -> list[str]:
        """The addresses of a host that may be connected to; StoreError when there are none."""
        zones = self._network.zones(host, port)
        good = [each for each in zones if may_lead(self._origin_zone(), zones[each])]
        if not good and zones:
            address, zone = next(iter(zones.items()))
            message = f"{self._origin[1]} leads to {host} ({address}), a {zone.value} address"
            raise StoreError(message, mend="nothing was sent there; ask who runs the registry")
        return good

    def _origin_zone(self) -> Zone:
        """Where the registry lies: the outermost of its addresses, as first resolved."""
        if self._zone is None:
            found = self._network.zones(*self._origin[1:]).values()
            self._zone = next((zone for zone in Zone if zone in found), Zone.PUBLIC)
        return self._zone

    def hop(self, request: Request, url: str, *, authorization: str | None) -> Answer:
        """One exchange with `url`, no redirects; the caller answers for who gets to see what."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "planyard", **request.headers}
        if authorization:
            headers["Authorization"] = authorization
        body = request.body
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        parts = urllib.parse.urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            response = self._pool(origin_of(url)).urlopen(
                request.method,
                target or "/",
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except urllib3.exceptions.SSLError as error:
            message = f"{shown(url)} cannot be trusted: {error}"
            mend = "add the server's CA to the file that SSL_CERT_FILE names"
            raise StoreError(message, mend=mend) from error
        except (urllib3.exceptions.HTTPError, OSError, UnicodeError) as error:
            raise BrokenError(f"cannot be reached: {error}") from error
        return Answer(response, url)

    def _pool(self, origin: tuple[str, str, int]) -> urllib3.HTTPConnectionPool:
        with self._lock:
            if origin not in self._pools:
                self._pools[origin] = pool_of(*origin, judge=self.judged)
            return self._pools[origin]


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address; a host that is none is empty."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
    except ValueError:
        return "", "", 0
    return parts.scheme, parts.hostname or "", port


def shown(url: str) -> str:
    """An address as it may be shown: signed ones carry a secret in their query."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]


def unreachable(url: str, error: BrokenError) -> StoreError:
    """The error for a server that did not answer, however often it was asked."""
    mend = "check the network and the address, and run the same command again"
    return StoreError(f"{shown(url)}: {error}", mend=mend)
