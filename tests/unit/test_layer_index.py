"""Layers as an audit reads them: hostile names, damage and bombs become words, no more."""

from __future__ import annotations

import gzip
import io
import itertools
import random
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
from blake3 import blake3

from builders.audit.facts import FileFacts
from builders.audit.layer_index import HEAD_BYTES, LIMITS, Limits, no_facts
from builders.audit.reading import read_layer
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError
from tests import tars
from tests.audited import index_of, index_of_tar

CAPABILITY = {"SCHILY.xattr.security.capability": "\x01\0\0\x02\0\x04"}
ZEROS = bytes(1 << 20)


def by_path(*members: tars.Member) -> dict[str, tuple[object, ...]]:
    return {each.path: (each.kind, each.size_bytes, each.link) for each in index_of(*members).files}


def test_every_kind_of_member_is_told_apart() -> None:
    assert by_path(
        tars.folder("usr/"),
        tars.file("./usr/lib.so", b"12345"),
        tars.symlink("usr/link", "../lib.so"),
        tars.hard_link("usr/again", "usr/lib.so"),
        tars.entry("dev/null", tarfile.CHRTYPE),
        tars.entry("run/pipe", tarfile.FIFOTYPE),
    ) == {
        "/usr": ("folder", 0, ""),
        "/usr/lib.so": ("file", 5, ""),
        "/usr/link": ("link", 0, "../lib.so"),
        "/usr/again": ("hardlink", 0, "/usr/lib.so"),
        "/dev/null": ("device", 0, ""),
        "/run/pipe": ("pipe", 0, ""),
    }


def test_mode_owner_digest_and_capabilities_are_kept() -> None:
    content = b"ping" * 9000
    [ping, plain, empty] = index_of(
        tars.file("ping", content, mode=0o4755, uid=7, gid=1 << 30, pax_headers=CAPABILITY),
        tars.file("plain", content),
        tars.file("empty"),
    ).files
    assert (ping.mode, ping.uid, ping.gid, ping.capabilities) == (0o4755, 7, 1 << 30, True)
    assert ping.digest == plain.digest == blake3(content).hexdigest()[:32]
    assert (plain.mode, plain.capabilities) == (0o644, False)
    assert empty.digest == blake3(b"").hexdigest()[:32]


def test_whiteouts_are_no_files() -> None:
    index = index_of(
        tars.file("a/.wh.gone"),
        tars.file("b/.wh..wh..opq"),
        tars.file("b/new", b"x"),
        tars.file(".wh.top"),
    )
    assert (index.hidden, index.emptied) == (("/a/gone", "/top"), ("/b",))
    assert [each.path for each in index.files] == ["/b/new"]


HOSTILE = {
    "../../outside": "leads out",
    "/absolute": "begins with /",
    "a/../../../b": "leads out",
    "escape/etc": "below /escape, which is a link",
    "/shadow": "a hard link to /etc/shadow, not in this layer",
    "../../../../etc/passwd": "what a hard link shares leads out",
    "/disk": "device node",
    "/memory": "device node",
    ".wh.../../etc": "leads out",
    "..": "leads out",
}


def test_everything_hostile_is_said_and_stays_in_the_image() -> None:
    index = index_of(*tars.hostile())
    assert all(
        each.path.startswith("/") and not {"..", "."} & set(each.path.split("/"))
        for each in index.files
    )
    for name, words in HOSTILE.items():
        assert any(name in each and words in each for each in index.problems), name


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([tars.file("twice", b"1"), tars.file("twice", b"2")], "/twice: more than once"),
        ([tars.folder("x"), tars.file("x", b"2")], "/x: more than once"),
        ([tars.file("a/.wh.."), tars.file("a/.wh...")], "a whiteout of no file"),
        ([tars.file("n", pax_headers={"path": "a\0b"})], "a\\0b: the name has a NUL"),
        ([tars.entry("odd", b"Q")], "/odd: a member of a kind"),
        ([tars.file("s", b"x", pax_headers={"GNU.sparse.major": "1"})], "/s: a sparse file"),
    ],
)
def test_what_is_odd_is_a_problem(members: list[tars.Member], words: str) -> None:
    assert words in "\n".join(index_of(*members).problems)


def test_folders_named_twice_and_plain_layers_have_no_problems() -> None:
    layer = [tars.folder("a"), tars.folder("a"), tars.file("a/b", b"x"), tars.symlink("l", "/etc")]
    assert index_of(*layer, tars.hard_link("c", "a/b")).problems == ()


def test_names_that_are_no_utf8_are_written_out() -> None:
    index = index_of_tar(_latin())
    assert [each.path for each in index.files] == ["/caf\\xe9"]
    assert "not UTF-8" in index.problems[0]


def _latin() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        tar.addfile(tarfile.TarInfo("café"))
    return buffer.getvalue()


def test_of_very_many_problems_only_the_first_are_kept() -> None:
    index = index_of(*(tars.file(f"../{number}") for number in range(250)))
    assert len(index.problems) == 101
    assert index.problems[-1] == "150 more of the same kinds"


def test_data_behind_the_end_is_a_problem_and_padding_is_none() -> None:
    data = tars.tar([tars.file("f", b"x")])
    assert index_of_tar(data + bytes(9000)).problems == ()
    assert "behind the end" in index_of_tar(data + b"\0" * 700 + b"hidden").problems[0]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_large_numbers_are_read_in_every_form(kind: int) -> None:
    members = [
        tars.file("n" * 300, b"x", uid=1 << 40),
        tars.symlink("link", "t" * 400),
        tars.file("p" * 90 + "/" + "q" * 90, b"y"),
    ]
    index = index_of_tar(tars.tar(members, kind=kind))
    assert [each.path[1:] for each in index.files] == ["n" * 300, "link", "p" * 90 + "/" + "q" * 90]
    assert (index.files[0].uid, index.files[1].link) == (1 << 40, "t" * 400)


def test_the_pull_size_of_a_file_is_what_it_packs_to() -> None:
    """Noise weighs what it weighs; zeros weigh nothing, wherever they stand."""
    noise = random.Random(1).randbytes(400_000)
    index = index_of(
        tars.file("zeros", bytes(600_000)),
        tars.file("noise", noise),
        tars.file("more", bytes(600_000)),
    )
    sizes = {each.path: each.pull_bytes for each in index.files}
    assert abs(sizes["/noise"] - len(noise)) < 40_000
    assert sizes["/zeros"] < 40_000
    assert sizes["/more"] < 40_000
    assert sum(sizes.values()) + index.rest_bytes == index.pull_bytes


class Seen:
    """A watch that keeps what it was given."""

    def __init__(self) -> None:
        self.heads: dict[str, bytes] = {}
        self.fed: dict[str, bytearray] = {}

    def __call__(self, path: str, *, size_bytes: int, head: bytes) -> _OfFile | None:
        self.heads[path] = head
        return None if path.startswith("/skip") else _OfFile(self.fed.setdefault(path, bytearray()))


class _OfFile:
    def __init__(self, into: bytearray) -> None:
        self._into = into

    def feed(self, piece: bytes | memoryview, /) -> None:
        self._into += piece

    def finish(self) -> FileFacts:
        return FileFacts(text=f"{len(self._into)} bytes")


@pytest.mark.parametrize("piece_bytes", [1, 511, 4096, 1 << 20])
def test_a_watch_gets_the_head_and_then_every_byte(piece_bytes: int) -> None:
    sizes = (1, 4095, 4096, 4097, 9000)
    contents = {f"f{size}": random.Random(size).randbytes(size) for size in sizes}
    members = [tars.file(name, data) for name, data in contents.items()]
    seen = Seen()
    data = tars.tar([*members, tars.file("skip", b"s"), tars.file("empty")])
    index = index_of_tar(data, packed=data, watch=seen, piece_bytes=piece_bytes)
    assert {path[1:]: bytes(each) for path, each in seen.fed.items()} == contents
    assert {path[1:]: each for path, each in seen.heads.items()} == {
        **{name: each[:HEAD_BYTES] for name, each in contents.items()},
        "skip": b"s",
    }
    assert index.texts == {f"/f{size}": f"{size} bytes" for size in sizes}


def test_facts_of_a_file_that_comes_again_are_forgotten() -> None:
    index = index_of(tars.file("f", b"one"), tars.symlink("f", "g"), watch=Seen())
    assert index.texts == {}


DAMAGED = {
    "a header with a wrong sum": lambda tar: tar[:148] + b"0000000\0" + tar[156:],
    "a file cut short": lambda tar: tar[:700],
    "a header cut short": lambda tar: tar[:100],
    "padding cut short": lambda tar: tar[:1030],
    "a size below zero": lambda tar: _resized(tar, b"\xff" * 12),
    "a size of no file": lambda tar: _resized(tar, b"\x80" + b"\xff" * 11),
    "a size that is no number": lambda tar: _resized(tar, b"0000000_17\0 "),
    "a size beyond all limits": lambda tar: _resized(tar, b"\x80" + (1 << 40).to_bytes(11, "big")),
}


def _resized(data: bytes, size: bytes) -> bytes:
    header = bytearray(data[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_tar_is_an_error_in_words(damage: object) -> None:
    whole = tars.tar([tars.file("f", b"x" * 600)])
    with pytest.raises(InputError, match=r"layer sha256:[0-9a-f]{64} cannot be audited: "):
        index_of_tar(damage(whole))  # type: ignore[operator]


@pytest.mark.parametrize(
    "pax", [b"99 path=a\n", b"path=a\n", b"0 a=b\n", b"7 patha", b"9 size=-1\n"]
)
def test_a_damaged_pax_header_is_an_error_in_words(pax: bytes) -> None:
    data = tars.tar([_extension(pax), tars.file("f", b"x")])
    with pytest.raises(InputError, match=r"pax header at byte 0|breaks off"):
        index_of_tar(data)


def _extension(pax: bytes, kind: bytes = tarfile.XHDTYPE) -> tars.Member:
    """A pax header as raw bytes: tarfile writes the body of no such member by itself."""
    info = _WithBody("x")
    info.type, info.size = kind, len(pax)
    return info, pax


class _WithBody(tarfile.TarInfo):
    """A member of any kind whose body is written."""

    def isreg(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (gzip.compress(tars.tar([tars.file("f", b"x")]), mtime=0)[:-9], "breaks off"),
        (gzip.compress(tars.tar([tars.file("f", b"x")]), mtime=0)[:-8] + bytes(8), "is damaged"),
        (gzip.compress(b"", mtime=0)[:10] + b"\xff" * 50, "is damaged"),
        (gzip.compress(tars.tar([]), mtime=0) + b"more", "is damaged|breaks off"),
        (b"\x1f\x8b", "breaks off"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 50, "zstd"),
        (b"no tar at all" * 80, "header at byte 0"),
    ],
)
def test_a_damaged_stream_is_an_error_in_words(packed: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        index_of_tar(b"", packed=packed)


def test_many_gzip_members_are_one_layer() -> None:
    data = tars.tar([tars.file("a", ZEROS), tars.file("b", b"b" * 70_000)])
    cuts = [data[at : at + 99_999] for at in range(0, len(data), 99_999)]
    packed = b"".join(gzip.compress(cut) for cut in cuts) + gzip.compress(b"")
    index = index_of_tar(data, packed=gzip.compress(b"") + packed, piece_bytes=1000)
    assert [each.path for each in index.files] == ["/a", "/b"]
    assert sum(each.pull_bytes for each in index.files) + index.rest_bytes == index.pull_bytes


def test_another_tar_than_the_configuration_names_is_refused() -> None:
    data = tars.tar([tars.file("f", b"x")])
    with pytest.raises(IntegrityError, match="unpacks to sha256:"):
        read_layer(
            [data], digest=digest_of_bytes(data), diff_id=digest_of_bytes(b"other"), watch=no_facts
        )


def endless_zeros() -> Iterator[bytes]:
    """A gzip stream of ten gigabytes in ten megabytes, made as it is read."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    header = tarfile.TarInfo("bomb")
    header.size = 10 << 30
    yield packer.compress(header.tobuf())
    for _ in range(10 << 10):
        yield packer.compress(ZEROS)
    yield packer.flush()


def refused_after(pieces: Iterator[bytes] | list[bytes], *, limits: Limits = LIMITS) -> float:
    """The seconds of CPU until a layer was refused as too much."""
    begun = time.process_time()
    with pytest.raises(InputError, match=r"bomb|limit|more than"):
        read_layer(pieces, digest="sha256:" + "0" * 64, diff_id="", watch=no_facts, limits=limits)
    return time.process_time() - begun


def test_a_bomb_ends_while_it_is_read() -> None:
    taken = 0

    def counted() -> Iterator[bytes]:
        nonlocal taken
        for piece in endless_zeros():
            taken += len(piece)
            yield piece

    tracemalloc.start()
    refused_after(counted())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1 << 20
    assert peak < 24 << 20


@pytest.mark.parametrize("size", [1 << 37, 65 << 30])
def test_a_size_that_is_only_claimed_is_refused_at_its_header(size: int) -> None:
    info = tarfile.TarInfo("claims")
    info.size = size
    refused_after([info.tobuf(tarfile.GNU_FORMAT)])


def test_headers_that_never_end_are_refused_at_their_beginning() -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, (1 << 20) + 1
        refused_after([info.tobuf(tarfile.GNU_FORMAT)])


def test_more_members_than_an_index_can_hold_are_refused() -> None:
    members = (tars.file(f"{number}")[0].tobuf() for number in itertools.count())
    refused_after(members, limits=Limits(members=50))


def test_names_longer_than_a_path_are_refused() -> None:
    with pytest.raises(InputError, match="longer than a path"):
        index_of(tars.file("/".join(["deep"] * 900)))
    assert index_of(tars.file("/".join(["deep"] * 800))).problems == ()


def test_a_pax_header_of_digits_takes_no_time() -> None:
    """What made tarfile's own patterns slow (CVE-2024-6232)."""
    data = tars.tar([_extension(b"1" * 900_000), tars.file("f", b"x")])
    begun = time.process_time()
    with pytest.raises(InputError, match="pax header"):
        index_of_tar(data)
    assert time.process_time() - begun < 2


def test_a_sparse_file_of_old_gnu_tar_with_a_long_map_is_read_through() -> None:
    header = bytearray(tarfile.TarInfo("hole").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = b"S", 1
    header[124:136] = b"00000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more, last = bytearray(512), bytearray(512)
    more[504] = 1
    data = bytes(header + more + last) + b"s" * 512 + tars.tar([tars.file("after", b"x")])
    index = index_of_tar(data)
    assert [(each.path, each.size_bytes) for each in index.files] == [("/hole", 512), ("/after", 1)]
    assert "sparse" in index.problems[0]
    assert sum(each.pull_bytes for each in index.files) + index.rest_bytes == index.pull_bytes
