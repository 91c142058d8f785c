"""A server on loopback that answers what a test says: for what no real registry does.

`127.0.0.1` counts as the internet, where the registry is, and `127.0.0.2` as this machine.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from planyard.core.registry_address import Address
from planyard.edge.network import Network, Zone
from planyard.edge.registry import Registry

REPOSITORY = "team/store"
ADDRESSES = {"registry.test": "127.0.0.1", "token.test": "127.0.0.1", "inside.test": "127.0.0.2"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    host: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def rest(self) -> str:
        """The path after the repository."""
        return self.path.removeprefix(f"/v2/{REPOSITORY}")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What to answer; the connection breaks after `cut_after` bytes of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    without_length: bool = False


Script = Callable[[Asked], Reply | None]


@dataclass
class Scripted:
    """A running server: what it was asked, and a client of it."""

    port: int
    asked: list[Asked] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def url(self, host: str, path: str = "/elsewhere") -> str:
        """An address at this server under another name."""
        return f"http://{host}:{self.port}{path}"

    def client(self, host: str = "registry.test") -> Registry:
        """A client; it never waits, and resolves only ADDRESSES and literal addresses."""
        address = Address(host=f"{host}:{self.port}", repository=REPOSITORY, is_plain=True)
        network = Network(resolve=_resolve, zone_of=_zone_of, pause=self.paused.append)
        return Registry(address, network=network, environment=self.environment)

    def seen(self, method: str) -> list[Asked]:
        """The requests of a method."""
        return [each for each in self.asked if each.method == method]


def _resolve(host: str, port: int) -> list[str]:
    return [ADDRESSES.get(host, host)]


def _zone_of(address: str) -> Zone:
    return Zone.PUBLIC if address == "127.0.0.1" else Zone.LOOPBACK


class _Requests(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    script: Script
    server_of: Scripted

    def _answer(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        asked = Asked(
            host=self.headers["Host"].partition(":")[0],
            method=self.command,
            path=parts.path,
            query=dict(urllib.parse.parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )
        self.server_of.asked.append(asked)
        reply = type(self).script(asked) or Reply(status=404)
        with contextlib.suppress(OSError):
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = dict(reply.headers)
        if not reply.without_length:
            headers.setdefault("Content-Length", str(len(reply.body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.cut_after])
        if reply.cut_after is not None or reply.without_length:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet; `asked` has it."""


@contextlib.contextmanager
def scripted_registry(script: Script) -> Iterator[Scripted]:
    """Serve `script`; None from it is a 404."""
    scripted = Scripted(port=0)
    kind = type("Requests", (_Requests,), {"script": staticmethod(script), "server_of": scripted})
    server = http.server.ThreadingHTTPServer(("", 0), kind)
    server.daemon_threads = True
    scripted.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
