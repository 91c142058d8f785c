"""A small S3 in memory that misbehaves as it is told: conditions, checksums, ranges, answers.

It checks no signatures. Real behaviour is tested against SeaweedFS; this has what no good server
does.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.sax.saxutils import escape


@dataclass
class FakeS3:
    """The server's bucket, its habits, and what it was asked."""

    url: str = ""
    held: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    """By key: the bytes, and the metadata and checksum headers."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, headers with lower-case names."""
    keeps_conditions: bool = True
    knows_sha256: bool = True
    knows_ranges: bool = True
    has_bucket: bool = True
    page: int = 1000
    statuses: list[tuple[int, str]] = field(default_factory=list)
    """Refusals to give before anything else is done, one a request."""
    lost_answers: int = 0
    """How many writes are done and get no answer."""
    after_lost: tuple[str, bytes] | None = None
    """What somebody else writes at that moment."""
    broken_reads: int = 0
    """How many answers with a body break off in the middle."""
    after_broken: tuple[str, bytes] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str) -> int:
        """How often a method was asked for."""
        return sum(each[0] == method for each in self.asked)


@contextlib.contextmanager
def fake_s3() -> Iterator[FakeS3]:
    """Run one until the block ends."""
    fake = FakeS3()
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, fake))
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, fake: FakeS3, *args: object) -> None:
        self.fake = fake
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet; `asked` has it."""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.sent = {name.lower(): value for name, value in self.headers.items()}
        parts = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        self.key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")[2]
        with self.fake.lock:
            self.fake.asked.append((self.command, self.path, self.sent))
            refusal = self.fake.statuses.pop(0) if self.fake.statuses else None
        if not refusal and not self.fake.has_bucket:
            refusal = (404, "NoSuchBucket")
        if refusal:
            self._refuse(*refusal)
        return not refusal

    def do_PUT(self) -> None:
        with self.fake.lock:
            now = self.fake.held.get(self.key)
            if self.fake.keeps_conditions and not self._is_allowed(now):
                self._refuse(412, "PreconditionFailed")
                return
            kept = {n: v for n, v in self.sent.items() if n.startswith("x-amz-meta-")}
            if self.fake.knows_sha256:
                kept |= {n: v for n, v in self.sent.items() if n == "x-amz-checksum-sha256"}
            if not self._is_proved():
                self._refuse(400, "BadDigest")
                return
            self.fake.held[self.key] = (self.body, kept)
            lost = self.fake.lost_answers > 0
            if lost:
                self.fake.lost_answers -= 1
                if self.fake.after_lost:
                    key, data = self.fake.after_lost
                    self.fake.held[key] = (data, {})
        if lost:
            self.close_connection = True
            return
        self._answer(200, b"", {"ETag": _etag(self.body), **kept})

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        if self.key:
            self._read()
        else:
            self._list()

    def do_DELETE(self) -> None:
        self.fake.held.pop(self.key, None)
        self._answer(204, b"", {})

    def _is_allowed(self, now: tuple[bytes, dict[str, str]] | None) -> bool:
        if "if-none-match" in self.sent:
            return now is None
        wanted = self.sent.get("if-match")
        return wanted is None or (now is not None and _etag(now[0]) == wanted)

    def _is_proved(self) -> bool:
        """Whether the bytes are those of the checksums that this server knows."""
        known = {"content-md5": hashlib.md5}
        if self.fake.knows_sha256:
            known["x-amz-checksum-sha256"] = hashlib.sha256
        return all(
            self.sent[name] == base64.b64encode(kind(self.body).digest()).decode()
            for name, kind in known.items()
            if name in self.sent
        )

    def _read(self) -> None:
        if not self.key:  # HeadBucket
            self._answer(200, b"", {})
            return
        found = self.fake.held.get(self.key)
        if found is None:
            self._refuse(404, "NoSuchKey")
            return
        data, kept = found
        wanted = self.sent.get("if-match")
        if wanted and wanted != _etag(data):
            self._refuse(412, "PreconditionFailed")
            return
        headers, status = {"ETag": _etag(data), **kept}, 200
        span = self.sent.get("range") if self.fake.knows_ranges else None
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            if start >= len(data):
                self._refuse(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._answer(status, data, headers)

    def _list(self) -> None:
        prefix, token = self.query.get("prefix", ""), self.query.get("continuation-token", "")
        found = [key for key in sorted(self.fake.held) if key.startswith(prefix) and key > token]
        shown, is_cut = found[: self.fake.page], len(found) > self.fake.page
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.fake.held[key][0])}</Size>"
            "<LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents>"
            for key in shown
        )
        following = f"<NextContinuationToken>{shown[-1]}</NextContinuationToken>" if is_cut else ""
        is_truncated = f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>"
        text = f"<ListBucketResult>{is_truncated}{following}{rows}</ListBucketResult>"
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>because</Message></Error>".encode()
        self._answer(status, text, {"Content-Type": "application/xml"}, breaks=False)

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str], *, breaks: bool = True
    ) -> None:
        is_broken = breaks and self.command == "GET" and bool(self.key) and self.fake.broken_reads
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if is_broken:
            self.fake.broken_reads -= 1
            self.close_connection = True
            data = data[: len(data) // 2]
            if self.fake.after_broken:
                key, other = self.fake.after_broken
                self.fake.held[key] = (other, {})
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(data)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
