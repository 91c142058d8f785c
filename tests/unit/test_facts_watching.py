"""Which files are watched, which are kept as text, and that nothing breaks the watch."""

from __future__ import annotations

import tracemalloc

import pytest

from builders.audit.facts import FileFacts
from builders.audit.facts.package_texts import COPYRIGHT_BYTES, TEXT_BYTES
from builders.audit.facts.watching import watch
from tests import tars
from tests.audited import index_of
from tests.gpu_files import CUBIN, entry, fat, library


def text_of(path: str, data: bytes = b"Name: x\n", *, size: int | None = None) -> str | None:
    watched = watch(path, size_bytes=len(data) if size is None else size, head=data[:4096])
    if watched is None:
        return None
    watched.feed(data)
    return watched.finish().text


SITE = "/usr/local/lib/python3.11/dist-packages"


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/dpkg/status",
        "/var/lib/dpkg/status.d/libc6",
        "/var/lib/dpkg/info/libc6:amd64.list",
        "/var/lib/dpkg/info/libc6:amd64.md5sums",
        f"{SITE}/numpy-2.4.6.dist-info/METADATA",
        f"{SITE}/numpy-2.4.6.dist-info/RECORD",
        f"{SITE}/numpy-2.4.6.dist-info/top_level.txt",
        f"{SITE}/old.egg-info",
        f"{SITE}/old.egg-info/PKG-INFO",
        f"{SITE}/old.egg-info/installed-files.txt",
        "/usr/share/doc/libc6/copyright",
    ],
)
def test_what_says_who_owns_what_is_kept(path) -> None:
    assert text_of(path) == "Name: x\n"
    assert text_of(path, b"\xff\0binary") == "\ufffd\0binary"


@pytest.mark.parametrize(
    "path",
    [
        "/var/lib/dpkg/info/libc6.postinst",
        f"{SITE}/numpy-2.4.6.dist-info/WHEEL",
        f"{SITE}/numpy/METADATA",
        "/usr/share/doc/libc6/changelog",
        "/srv/me/status",
    ],
)
def test_other_texts_are_only_searched(path) -> None:
    assert text_of(path) is None


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/var/lib/dpkg/status", TEXT_BYTES), ("/usr/share/doc/x/copyright", COPYRIGHT_BYTES)],
)
def test_what_is_too_long_is_not_kept(path, limit) -> None:
    assert text_of(path, size=limit) == "Name: x\n"
    assert text_of(path, size=limit + 1) is None


def test_more_than_was_said_is_not_kept() -> None:
    assert text_of("/var/lib/dpkg/status", b"x" * 100, size=50) == ""


@pytest.mark.parametrize("head", [b"\0", b"PK\3\4\0\0", b"\x89PNG\r\n\x1a\n\0"])
def test_binary_files_say_nothing(head) -> None:
    assert watch("/app/x", size_bytes=100, head=head) is None


def test_an_empty_file_says_nothing() -> None:
    assert watch("/var/lib/dpkg/status", size_bytes=0, head=b"") is None


def test_pieces_may_be_views() -> None:
    data = library("libc.so.6") + fat(entry(CUBIN, 86))
    watched = watch("/x", size_bytes=len(data), head=data[:4096])
    assert watched is not None
    for at in range(0, len(data), 100):
        watched.feed(memoryview(bytearray(data[at : at + 100])))
    elf = watched.finish().elf
    assert elf is not None
    assert elf.needed == ("libc.so.6",)
    assert elf.gpu is not None


def test_the_memory_of_a_piece_may_be_used_again() -> None:
    """Readers fill one buffer over and over."""
    elf = library("libc.so.6", strings_at="behind") + fat(entry(CUBIN, 86), entry(CUBIN, 90))
    text = b"Package: libc6\n" * 50 + b"ghp_" + b"0a1b2c3d4e5f6g7h8i9j" * 2 + b"\n"
    for path, data in (("/x", elf), ("/var/lib/dpkg/status", text)):
        whole = watch(path, size_bytes=len(data), head=data[:4096])
        parts = watch(path, size_bytes=len(data), head=data[:4096])
        assert whole is not None
        assert parts is not None
        whole.feed(data)
        buffer = bytearray(90)
        for at in range(0, len(data), 90):
            piece = data[at : at + 90]
            buffer[: len(piece)] = piece
            parts.feed(memoryview(buffer)[: len(piece)])
            buffer[:] = b"?" * 90
        found = whole.finish()
        assert parts.finish() == found
        assert found.elf or found.secrets


def test_a_watch_that_was_fed_nothing_finishes() -> None:
    for head in (b"\x7fELF", b"text", library("x")):
        watched = watch("/x", size_bytes=10, head=head)
        assert watched is not None
        assert isinstance(watched.finish(), FileFacts)


def test_a_long_text_is_searched_in_little_memory() -> None:
    line = b"a line of text, and another one after it\n" * 25_000
    watched = watch("/app/long.json", size_bytes=40 * len(line), head=line[:4096])
    assert watched is not None
    watched.feed(line)  # compiles what is needed
    tracemalloc.start()
    for _ in range(39):
        watched.feed(line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(line)
    assert watched.finish() == FileFacts()


def test_a_layer_is_read_with_all_of_it() -> None:
    secret = b"TOKEN = 'ghp_" + b"0a1b2c3d4e5f6g7h8i9j" * 2 + b"'\n"
    index = index_of(
        tars.file("usr/lib/liba.so", library("libc.so.6", soname="liba.so.1")),
        tars.file("var/lib/dpkg/status", b"Package: libc6\n"),
        tars.file("app/settings.py", b"import os\n" + secret),
        tars.file("app/data.bin", b"\0" * 9000),
    )
    assert index.elf["/usr/lib/liba.so"].soname == "liba.so.1"
    assert index.texts == {"/var/lib/dpkg/status": "Package: libc6\n"}
    [hit] = index.secrets["/app/settings.py"]
    assert (hit.rule, hit.line) == ("github-token", 2)
    assert "ghp_" not in repr(index)
