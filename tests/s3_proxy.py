"""A real HTTP proxy on loopback that fails exactly one request, in a way of the test's choosing.

The Host header passes unchanged: it is signed. Bodies are held in memory: keep them small.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

BEFORE = ("500", "503", "closed before", "request flipped")
AFTER = ("timeout", "closed after", "cut", "flipped", "too short", "too long")
MODES = BEFORE + AFTER
"""Before the server has it, or after the server has done it."""

_NEEDS_ANSWER_BODY = ("cut", "flipped", "too short", "too long")


@dataclass
class Proxy:
    """Where it listens, what it fails, and what it has seen."""

    url: str = ""
    mode: str = ""
    fail_at: int = 0
    """The number of the request to fail, counted from 1; 0 fails none."""
    seed: int = 0
    seen: list[str] = field(default_factory=list)
    injected: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, mode: str, fail_at: int, *, seed: int = 0) -> None:
        """Count from the beginning again, and fail a request."""
        with self.lock:
            self.mode, self.fail_at, self.seed = mode, fail_at, seed
            self.seen.clear()
            self.injected.clear()

    def mode_of(self, line: str) -> str:
        """Count a request; the mode in which it fails, or nothing."""
        with self.lock:
            self.seen.append(line)
            return self.mode if len(self.seen) == self.fail_at else ""


@contextlib.contextmanager
def proxy_to(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy before a server until the block ends."""
    proxy = Proxy()
    handler = functools.partial(_Handler, proxy, (host, port))
    server = _Server(("127.0.0.1", 0), handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: Proxy, behind: tuple[str, int], *args: object) -> None:
        self.proxy, self.behind = proxy, behind
        super().__init__(*args)  # type: ignore[arg-type]

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet; `seen` has it."""

    def do_GET(self) -> None:
        self._pass()

    def do_HEAD(self) -> None:
        self._pass()

    def do_PUT(self) -> None:
        self._pass()

    def do_POST(self) -> None:
        self._pass()

    def do_DELETE(self) -> None:
        self._pass()

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.path}"
        mode = self.proxy.mode_of(line)
        if mode == "request flipped":
            if body:
                self._note(mode, line)
                body = self._flipped(body)
        elif mode in BEFORE:
            self._note(mode, line)
            self._refuse(mode)
            return
        status, headers, answer = self._ask(body)
        if mode in AFTER and (answer or mode not in _NEEDS_ANSWER_BODY):
            self._note(mode, line)
            self._spoil(mode, status, headers, answer)
        else:
            self._answer(status, headers, answer)

    def _note(self, mode: str, line: str) -> None:
        self.proxy.injected.append(f"{mode}: {line}")

    def _refuse(self, mode: str) -> None:
        self.close_connection = True
        if mode == "closed before":
            return
        code = "SlowDown" if mode == "503" else "InternalError"
        answer = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
        self._answer(int(mode), [("Content-Type", "application/xml")], answer)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.behind, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _spoil(self, mode: str, status: int, headers: list[tuple[str, str]], answer: bytes) -> None:
        self.close_connection = mode != "flipped"
        half = len(answer) // 2
        if mode == "timeout":
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the client gives up
        elif mode == "cut":
            self._answer(status, headers, answer[:half], length=len(answer))
        elif mode == "flipped":
            self._answer(status, headers, self._flipped(answer))
        elif mode == "too short":
            self._answer(status, headers, answer, length=half)
        elif mode == "too long":
            self._answer(status, headers, answer, length=len(answer) + 7)

    def _flipped(self, data: bytes) -> bytes:
        bit = random.Random(f"{self.proxy.seed} {len(data)}").randrange(len(data) * 8)
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        answer: bytes,
        *,
        length: int | None = None,
    ) -> None:
        """Send an answer; `length` is what Content-Length says, the truth when left out."""
        self.send_response_only(status)
        for name, value in headers:
            held = self.command == "HEAD" and name.lower() == "content-length"
            if held or name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(answer) if length is None else length))
        with contextlib.suppress(OSError):
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)
            self.wfile.flush()
