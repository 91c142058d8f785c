"""Every request of an S3 session fails once, in every way: nothing wrong is ever taken for right.

A session goes through a proxy to a real server. For each of its requests and each way to fail, it
ends as it would have without the fault, perhaps after an error and one more attempt at that step.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
import types
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engines.store import objects as names
from engines.store import protocol
from engines.store.s3 import S3Objects
from engines.store.s3_swap import checksum
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, PlanyardError
from planyard.edge.s3 import Patience
from planyard.edge.s3_bucket import Bucket
from tests import places_s3
from tests.s3_proxy import BEFORE, MODES, Proxy, proxy_to

pytestmark = pytest.mark.s3

PART_BYTES = 5 << 20
"""The smallest part that S3 takes."""
SMALL = random.Random(1).randbytes(3000)
LARGE = random.Random(2).randbytes(PART_BYTES + 99_999)
RIGHT = {names.blob_name(digest_of_bytes(data)): data for data in (SMALL, LARGE)}
SMALL_NAME, LARGE_NAME = RIGHT

LANES = [("small", 1), ("small", 3), ("file", 1), ("stream", 3)]
"""What a session does, and how often its client asks before that is an error."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    address = urllib.parse.urlsplit(places_s3.server()["AWS_ENDPOINT_URL"])
    assert address.hostname
    assert address.port
    with proxy_to(address.hostname, address.port) as running:
        yield running


@pytest.fixture(scope="module")
def through(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., S3Objects]:
    """Opens a place through the proxy, with a client that asks so many times."""
    state = tmp_path_factory.mktemp("state") / "probes.json"
    short = {attempts: Patience(read_seconds=0.7, attempts=attempts) for attempts in (1, 3)}
    with places_s3.environment(places_s3.server()):
        clients = {
            attempts: Bucket(places_s3.BUCKET, endpoint=proxy.url, patience=patience)
            for attempts, patience in {**short, 9: Patience()}.items()
        }

    def opened(prefix: str, attempts: int) -> S3Objects:
        return S3Objects(clients[attempts], prefix=prefix, state=state, part_bytes=PART_BYTES)

    # This probes the server, once for all.
    assert opened("warm", 9).move_pointer("prod", b"", expected=None)
    return opened


@dataclass
class Session:
    """One session: its steps, and the errors that a step was repeated after."""

    objects: S3Objects
    direct: S3Objects
    given: Path
    injected: list[str]
    errors: list[PlanyardError] = field(default_factory=list)

    def steps(self, lane: str) -> tuple[Callable[[], None], ...]:
        if lane == "file":
            return self.write_file, self.read_large
        if lane == "stream":
            return self.write_stream, self.read_range
        return (
            self.write_small,
            self.size_small,
            self.read_small,
            self.list_all,
            self.make_pointer,
            self.move_pointer,
            self.list_pointers,
            self.remove,
        )

    def run(self, lane: str) -> None:
        for step in self.steps(lane):
            try:
                step()
            except PlanyardError as error:
                self.errors.append(error)
                self.check_visible()
                step()
        self.check_visible()
        found = [one.name for one in self.direct.listing(names.BLOBS)]
        assert found == ([] if lane == "small" else [LARGE_NAME])
        if lane == "small":
            assert self.direct.pointer("prod").data == b"two"  # type: ignore[union-attr]

    def check_visible(self) -> None:
        """Whatever is visible is whole, seen past the proxy."""
        for one in self.direct.listing(names.BLOBS):
            assert b"".join(self.direct.read(one.name)) == RIGHT[one.name]

    def write_small(self) -> None:
        self.objects.write(SMALL_NAME, SMALL)

    def write_file(self) -> None:
        self.objects.write(LARGE_NAME, self.given)

    def write_stream(self) -> None:
        self.objects.write(LARGE_NAME, iter([LARGE[:1000], LARGE[1000:]]))

    def size_small(self) -> None:
        assert self.objects.size(SMALL_NAME) == len(SMALL)
        assert self.objects.size(names.blob_name("sha256:" + "0" * 64)) is None

    def read_small(self) -> None:
        self.read_verified(SMALL_NAME)

    def read_large(self) -> None:
        self.read_verified(LARGE_NAME)

    def read_verified(self, name: str) -> None:
        """As a store reads: nothing passes that its digest does not name."""
        digest = names.digest_of_name(name)
        pieces = self.objects.read(name)
        assert b"".join(protocol.verified(digest, pieces, where=name)) == RIGHT[name]

    def read_range(self) -> None:
        start, length = PART_BYTES - 1_500_000, 1_550_000
        wanted = LARGE[start : start + length]
        pieces = self.objects.read(LARGE_NAME, start=start, length=length)
        proved = protocol.verified(digest_of_bytes(wanted), pieces, where="a range")
        assert b"".join(proved) == wanted

    def list_all(self) -> None:
        found = [one.name for one in self.objects.listing(names.BLOBS)]
        assert found == [SMALL_NAME] or self.has_flipped_listing()

    def make_pointer(self) -> None:
        now = self.objects.pointer("prod")
        if now is None:
            assert self.objects.move_pointer("prod", b"one", expected=None)
            now = self.objects.pointer("prod")
        assert now
        assert now.data == b"one"

    def move_pointer(self) -> None:
        now = self.objects.pointer("prod")
        assert now
        if now.data != b"two":
            assert self.objects.move_pointer("prod", b"two", expected=now.token)

    def list_pointers(self) -> None:
        assert list(self.objects.pointers()) == ["prod"] or self.has_flipped_listing()

    def remove(self) -> None:
        self.objects.remove(SMALL_NAME)

    def has_flipped_listing(self) -> bool:
        """A listing has no digest: what it names is verified when it is read."""
        return any(each.startswith("flipped") and "list-type=2" in each for each in self.injected)


@pytest.mark.parametrize(("lane", "attempts"), LANES)
@pytest.mark.parametrize("mode", MODES)
def test_every_request_fails_once(
    proxy: Proxy,
    through: Callable[..., S3Objects],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    lane: str,
    attempts: int,
) -> None:
    import botocore.endpoint

    # Not the seconds between attempts: chance sets them, and they are not what is tested.
    hurried = types.SimpleNamespace(time=time.time, sleep=lambda _: None)
    monkeypatch.setattr(botocore.endpoint, "time", hurried)
    given = tmp_path / "given"
    given.write_bytes(LARGE)
    faults, surfaced = 0, 0
    for fail_at in itertools.count(1):
        prefix = f"faults/{lane}-{attempts}-{mode.replace(' ', '-')}-{fail_at}"
        direct = S3Objects(places_s3.bucket(1), prefix=prefix)
        proxy.arm(mode, fail_at, seed=fail_at)
        session = Session(through(prefix, attempts), direct, given, proxy.injected)
        session.run(lane)
        faults += len(proxy.injected)
        surfaced += len(session.errors)
        if fail_at > len(proxy.seen):
            break
    print(f"{lane}, {mode}, {attempts} attempts: {faults} faults, {surfaced} surfaced as errors")
    assert faults >= 3
    assert fail_at > {"small": 12, "file": 7, "stream": 5}[lane]
    if mode in BEFORE and mode != "request flipped":
        moves = 2 if lane == "small" else 0  # these try again themselves
        assert surfaced == (faults - moves if attempts == 1 else 0)


def test_answers_with_a_wrong_bit_are_errors_or_right(
    proxy: Proxy, through: Callable[..., S3Objects]
) -> None:
    """Anywhere in an answer: what comes out is an error of ours, never another one."""
    held = through("faults/bits", 1)
    held.write(SMALL_NAME, SMALL)
    now = held.pointer("prod")
    assert held.move_pointer("prod", b"x" * 50, expected=now.token if now else None)
    counts = {"listing": 0, "pointer": 0, "read": 0}
    for seed in range(250):
        for what, ask in (
            ("listing", lambda: [list(held.listing(names.BLOBS)), list(held.pointers())]),
            ("pointer", lambda: held.pointer("prod")),
            ("read", lambda: b"".join(held.read(SMALL_NAME))),
        ):
            proxy.arm("flipped", 1, seed=seed)
            try:
                found = ask()
            except PlanyardError:
                counts[what] += 1
                continue
            if what == "pointer":
                assert found.data == b"x" * 50  # type: ignore[union-attr]
            if what == "read":
                assert digest_of_bytes(found) != names.digest_of_name(SMALL_NAME)  # type: ignore[arg-type]
    print(f"750 answers with one wrong bit; ended as errors: {counts}")
    assert counts["listing"] > 0


# Large objects


def upload_of(held: S3Objects, name: str) -> list[str]:
    return held.bucket.uploads(f"{held.probe_prefix}{name}")


def sent_parts(proxy: Proxy) -> list[str]:
    """The numbers of the parts that went over the line."""
    queries = [urllib.parse.parse_qs(line.partition("?")[2]) for line in proxy.seen]
    return sorted(number for each in queries for number in each.get("partNumber", []))


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({1: LARGE[:PART_BYTES]}, ["2"]),
        ({1: LARGE[:PART_BYTES], 2: LARGE[PART_BYTES:]}, []),
        ({1: LARGE[:PART_BYTES], 2: LARGE[PART_BYTES:-1] + b"?"}, ["2"]),
        ({1: LARGE[1 : PART_BYTES + 1]}, ["1", "2"]),
        ({2: LARGE[PART_BYTES:], 3: b"more than the file has"}, ["1"]),
    ],
)
def test_an_upload_that_was_killed_goes_on(
    proxy: Proxy,
    through: Callable[..., S3Objects],
    tmp_path: Path,
    there: dict[int, bytes],
    wanted: list[str],
) -> None:
    given = tmp_path / "given"
    given.write_bytes(LARGE)
    held = through(f"killed/{uuid.uuid4().hex}", 3)
    key = f"{held.probe_prefix}{LARGE_NAME}"
    digest = names.digest_of_name(LARGE_NAME)
    upload = held.bucket.begin_upload(key, metadata={"planyard-digest": digest})
    for number, data in there.items():
        sha256 = checksum(data)
        held.bucket.send_part(key, upload, data, number=number, ChecksumSHA256=sha256)
    proxy.arm("", 0)
    held.write(LARGE_NAME, given)
    assert sent_parts(proxy) == wanted
    assert b"".join(held.read(LARGE_NAME)) == LARGE
    assert upload_of(held, LARGE_NAME) == []
    proxy.arm("", 0)
    held.write(LARGE_NAME, given)  # it is known to be there, and right
    assert sent_parts(proxy) == []
    given.write_bytes(LARGE[:-1] + b"?")
    with pytest.raises(IntegrityError):
        held.write(LARGE_NAME, given)


def test_a_leftover_that_cannot_be_finished_is_replaced(
    through: Callable[..., S3Objects], tmp_path: Path
) -> None:
    """Its part has no checksum, so that the server refuses to make an object of it."""
    given = tmp_path / "given"
    given.write_bytes(LARGE)
    held = through("foreign", 3)
    key = f"{held.probe_prefix}{LARGE_NAME}"
    upload = held.bucket.begin_upload(key, metadata={})
    held.bucket.send_part(key, upload, LARGE[:PART_BYTES], number=1)
    held.write(LARGE_NAME, given)
    assert b"".join(held.read(LARGE_NAME)) == LARGE
    assert upload_of(held, LARGE_NAME) == []


def test_a_leftover_of_another_file_does_no_harm(
    through: Callable[..., S3Objects], tmp_path: Path
) -> None:
    """Wrong bytes join an upload of the right ones: refused, dropped, and the right ones win."""
    given = tmp_path / "given"
    given.write_bytes(LARGE[:-1] + b"?")
    held = through("leftover", 3)
    key = f"{held.probe_prefix}{LARGE_NAME}"
    upload = held.bucket.begin_upload(key, metadata={})
    held.bucket.send_part(key, upload, LARGE[:PART_BYTES], number=1)
    with pytest.raises(IntegrityError):
        held.write(LARGE_NAME, given)
    assert held.size(LARGE_NAME) is None
    assert upload_of(held, LARGE_NAME) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_no_parts(
    through: Callable[..., S3Objects], error: type[BaseException]
) -> None:
    def failing() -> Iterator[bytes]:
        yield LARGE
        raise error

    held = through("interrupted", 3)
    with pytest.raises(error):
        held.write(LARGE_NAME, failing())
    assert held.size(LARGE_NAME) is None
    assert upload_of(held, LARGE_NAME) == []


MEMORY = """
import hashlib, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from engines.store import objects as names
from engines.store.s3 import S3Objects
from engines.store.s3_swap import checksum

held, path = S3Objects.from_url(sys.argv[1]), Path(sys.argv[2])
digest = "sha256:" + hashlib.file_digest(path.open("rb"), "sha256").hexdigest()

def pieces():
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece

def work(number):
    name = names.pack_name("sha256:" + str(number) * 64, digest)
    held.write(name, path if number % 2 else pieces())
    seen = hashlib.sha256()
    for piece in held.read(name):
        seen.update(piece)
    assert "sha256:" + seen.hexdigest() == digest

with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) * 1024)
"""


def test_memory_does_not_grow_with_the_size(tmp_path: Path) -> None:
    """Four objects of 96 MiB at once, from files and from streams, there and back."""
    given = tmp_path / "given"
    with given.open("wb") as file:
        for number in range(96):
            file.write(random.Random(number).randbytes(1 << 20))
    with places_s3.environment(places_s3.server()):
        url = f"s3://{places_s3.BUCKET}/memory"
        args = [sys.executable, "-c", MEMORY, url, str(given)]
        here = Path(__file__).parents[2]
        done = subprocess.run(args, check=True, capture_output=True, text=True, cwd=here)
    peak_bytes = int(done.stdout)
    print(f"peak memory of four transfers of 96 MiB: {peak_bytes >> 20} MiB")
    assert peak_bytes < 256 << 20
