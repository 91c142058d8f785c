"""Small real servers on loopback for tests: https with its own CA, a Hugging Face Hub, S3.

Each is a context manager that gives its address and ends with the block. Files are a mapping from
path to bytes that a test may change while the server runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import http.server
import os
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planyard.edge import proc


@dataclass
class Web:
    """A running server: its address, its files, how it misbehaves, what it was asked.

    `redirects` maps a path to a Location. `broken_after` maps a path to how many bytes of each
    answer are sent before the connection breaks; `slow` paths send 64 KiB every 50 ms;
    `without_length` leaves out Content-Length and sends for ever.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Statuses to answer with before the file is served, one a request."""
    broken_after: dict[str, int] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    endless: set[str] = field(default_factory=set)
    knows_ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path with query, and Range header of each request."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *args: object) -> None:
        self.web = web
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet; `asked` has it."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        asked_range = self.headers.get("Range", "")
        self.web.asked.append((self.command, self.path, asked_range))
        if self.web.statuses.get(path):
            self._head(self.web.statuses[path].pop(0), {"Content-Length": "0"})
        elif path in self.web.redirects:
            head = {"Location": self.web.redirects[path], "Content-Length": "0"}
            self._head(302, head)
        elif path in self.web.endless:
            self._head(200, {"Connection": "close"})
            self._send_for_ever()
        elif path in self.web.files:
            self._file(path, asked_range)
        else:
            self._head(404, {"Content-Length": "0"})

    def _file(self, path: str, asked_range: str) -> None:
        body = self.web.files[path]
        begin, status, head = 0, 200, dict[str, str]()
        if asked_range and self.web.knows_ranges:
            first, _, last = asked_range.removeprefix("bytes=").partition("-")
            begin, end = int(first), int(last or len(body) - 1)
            if begin >= len(body):
                self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                return
            head["Content-Range"] = f"bytes {begin}-{end}/{len(body)}"
            status, body = 206, body[begin : end + 1]
        head["Content-Length"] = str(len(body))
        self._head(status, head | self._more_headers(path))
        if self.command == "GET":
            self._send(path, body)

    def _more_headers(self, path: str) -> dict[str, str]:
        return self.web.headers

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: str, body: bytes) -> None:
        stop = self.web.broken_after.get(path, len(body))
        with contextlib.suppress(OSError):
            for at in range(0, min(stop, len(body)), 1 << 16):
                self.wfile.write(body[at : min(at + (1 << 16), stop)])
                if path in self.web.slow:
                    time.sleep(0.05)
            if stop < len(body):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send_for_ever(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"\0" * 65536)


class _HubHandler(_Handler):
    """What huggingface_hub wants of `/{repository}/resolve/{commit}/{file}`."""

    def _more_headers(self, path: str) -> dict[str, str]:
        commit = path.partition("/resolve/")[2].partition("/")[0]
        etag = hashlib.sha256(self.web.files[path]).hexdigest()
        return {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}


@contextlib.contextmanager
def _serve(handler: type[_Handler], web: Web, context: ssl.SSLContext | None) -> Iterator[Web]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        functools.partial(handler, web),
    )
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    web.url = f"{'https' if context else 'http'}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certificate authority of a test, and a certificate of it for localhost."""

    ca_file: Path
    certificate: Path
    key: Path


def make_authority(folder: Path) -> Authority:
    """Make one with openssl; point SSL_CERT_FILE at its `ca_file` to trust it."""
    folder.mkdir(parents=True, exist_ok=True)
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    names = ["-extfile", str(extensions)]
    for line in (
        ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test CA"],
        ["req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "server.csr", *authority, *names, "-out", "server.crt"],
    ):
        proc.run(["openssl", *line], timeout_seconds=30, cwd=folder)
    return Authority(
        ca_file=folder / "ca.crt", certificate=folder / "server.crt", key=folder / "server.key"
    )


@contextlib.contextmanager
def https_server(authority: Authority, web: Web) -> Iterator[Web]:
    """Serve `web` over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    with _serve(_Handler, web, context) as running:
        yield running


@contextlib.contextmanager
def hub_server(web: Web) -> Iterator[Web]:
    """Serve files as the Hugging Face Hub does; point HF_ENDPOINT at its `url`."""
    with _serve(_HubHandler, web, None) as running:
        yield running


def find_weed() -> Path | None:
    """SeaweedFS from the test group: beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


S3_KEY, S3_SECRET = "planyardtest", "planyardtestsecret"


@contextlib.contextmanager
def s3_server(weed: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Run SeaweedFS in `folder`; gives the environment that points an S3 client at it."""
    names = [f"{part}.port" for part in ("s3", "master", "volume", "filer", "admin")]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    args = [str(weed), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    args += [f"-{name}={port}" for name, port in ports.items()]
    args += ["-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false"]
    keys = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "weed.log"
    weed_process = proc.start(args, cwd=folder, env={**os.environ, **keys}, log=log)
    try:
        _wait_for_s3(ports["s3.port"], log)
        yield {
            **keys,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        proc.end_group(weed_process)


def _wait_for_s3(port: int, log: Path, *, limit_seconds: float = 60) -> None:
    """Until the server answers 403 to a stranger: then its credentials are loaded."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/")
            if connection.getresponse().status == 403:
                return
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not come up:\n{log.read_text()[-2000:]}")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
