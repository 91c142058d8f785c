"""The closure: every library an image names is in it, as its layers really leave it."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from builders.audit.contents import ImageContents
from builders.closure import check_closure
from planyard.core.findings import Finding, failures
from tests import tars
from tests.audited import contents_of

LIB = "/usr/lib/x86_64-linux-gnu"


def elf(*needed: str, runpath: str = "", rpath: str = "") -> bytes:
    """A 64-bit ELF file with nothing but a dynamic section and its strings."""
    strings, tags = b"\0", []
    for tag, text in [(1, name) for name in needed] + [(29, runpath), (15, rpath)]:
        if text:
            tags.append((tag, len(strings)))
            strings += text.encode() + b"\0"
    at = 64 + 3 * 56  # the header and three program headers
    size = (len(tags) + 3) * 16
    tags += [(5, at + size), (10, len(strings)), (0, 0)]  # DT_STRTAB, DT_STRSZ, DT_NULL
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    whole = at + size + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        *(3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0),
    )
    segments = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, offset, offset, offset, length, length, 8)
        for kind, offset, length in ((1, 0, whole), (2, at, size), (0x6474E551, 0, 0))
    )
    return header + segments + dynamic + strings


def check(
    contents: ImageContents, *, lazy: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[Finding, ...]:
    return check_closure(contents, image="rtx", environment=env or {}, lazy_libraries=lazy)


def lacks(*layers: Sequence[tars.Member], **options: object) -> list[str]:
    return [each.message.split()[0] for each in check(contents_of(*layers), **options)]  # type: ignore[arg-type]


APP = tars.file("app/bin", elf("libx.so.1"))


def test_a_library_that_is_there_is_no_finding() -> None:
    assert lacks([APP, tars.file(f"{LIB}/libx.so.1"[1:], b"x")]) == []


def test_one_that_is_not_is_a_finding_that_says_who_needs_it() -> None:
    [finding] = check(contents_of([APP]))
    assert finding.rule == "image.library-missing"
    assert finding.message == "libx.so.1 is not in the image, and /app/bin needs it"
    assert LIB in finding.evidence[0]
    assert failures((finding,))


@pytest.mark.parametrize(
    ("binary", "folder"),
    [
        (elf("libx.so.1", runpath="$ORIGIN/../own"), "own"),
        (elf("libx.so.1", runpath="/nowhere:${ORIGIN}"), "app"),
        (elf("libx.so.1", rpath="/opt/own"), "opt/own"),
    ],
)
def test_the_search_path_of_the_file_counts(binary: bytes, folder: str) -> None:
    library = tars.file(f"{folder}/libx.so.1", b"x")
    assert lacks([tars.file("app/bin", binary), library]) == []
    assert lacks([APP, library]) == ["libx.so.1"]


def test_a_runpath_puts_an_rpath_out_of_force() -> None:
    binary = elf("libx.so.1", runpath="/a", rpath="/b")
    assert lacks([tars.file("app/bin", binary), tars.file("b/libx.so.1", b"x")]) == ["libx.so.1"]


def test_the_library_path_of_the_image_counts() -> None:
    library = tars.file("opt/lib/libx.so.1", b"x")
    assert lacks([APP, library], env={"LD_LIBRARY_PATH": "/other:/opt/lib"}) == []
    assert lacks([APP, library], env={"LD_LIBRARY_PATH": ""}) == ["libx.so.1"]


def test_only_the_drivers_own_libraries_may_be_missing() -> None:
    driver = ("libcuda.so.1", "libnvidia-ml.so.1", "libnvcuvid.so.1")
    other = ("libcudart.so.13", "libcudnn.so.9", "libnvrtc.so.13", "libnvinfer.so.11")
    assert lacks([tars.file("bin", elf(*driver, *other))]) == list(other)


def test_lazy_libraries_are_held_to_the_same_rule() -> None:
    layer = [tars.file(f"{LIB}/liba.so"[1:], b"x")]
    assert lacks(layer, lazy=["liba.so", "libb.so", "libcuda.so.1"]) == ["libb.so"]


def test_links_are_followed_through_folders_and_files() -> None:
    links = [
        tars.symlink("lib", "usr/lib"),
        tars.symlink("usr/lib/x86_64-linux-gnu", "/opt/real"),
        tars.symlink("opt/real/libx.so.1", "../v/libx.so.1.2"),
    ]
    there = tars.file("opt/v/libx.so.1.2", b"x")
    assert lacks([APP, *links, there]) == []
    assert lacks([APP, *links]) == ["libx.so.1"]


@pytest.mark.parametrize(
    "links",
    [
        [tars.symlink("lib/libx.so.1", "libx.so.1")],
        [tars.symlink("lib/libx.so.1", "y"), tars.symlink("lib/y", "libx.so.1")],
        [tars.symlink("lib/libx.so.1", "../" * 60 + "nothing")],
    ],
)
def test_links_that_lead_nowhere_are_no_library(links: list[tars.Member]) -> None:
    assert lacks([APP, *links]) == ["libx.so.1"]


def test_a_path_in_an_elf_file_is_looked_up_as_it_stands() -> None:
    binary = tars.file("bin", elf("/opt/libx.so"))
    assert lacks([binary]) == ["/opt/libx.so"]
    assert lacks([binary, tars.file("opt/libx.so", b"x")]) == []


LOWER = [tars.folder("lib"), tars.file("lib/libx.so.1", b"x"), APP]


@pytest.mark.parametrize(
    "upper",
    [
        [tars.file("lib/.wh.libx.so.1")],
        [tars.file(".wh.lib")],
        [tars.file("lib/.wh..wh..opq")],
        [tars.file("./lib/.wh.libx.so.1")],
        [tars.file("lib", b"a file now")],
        [tars.symlink("lib", "nowhere")],
        [tars.symlink("lib/libx.so.1", "gone")],
    ],
)
def test_what_an_upper_layer_takes_away_is_gone(upper: list[tars.Member]) -> None:
    assert lacks(LOWER, upper) == ["libx.so.1"]


@pytest.mark.parametrize(
    "upper",
    [
        [tars.file("lib/.wh..wh..opq"), tars.file("lib/libx.so.1", b"y")],
        [tars.file("lib/libx.so.1", b"y"), tars.file("lib/.wh..wh..opq")],
        [tars.file("lib/libx.so.1", b"y"), tars.file("lib/.wh.libx.so.1")],
        [tars.file(".wh.lib"), tars.folder("lib"), tars.file("lib/libx.so.1", b"y")],
        [tars.folder("lib", mode=0o700)],
        [tars.file("lib/.wh.other")],
        [tars.file("li/.wh..wh..opq")],
    ],
)
def test_what_an_upper_layer_brings_or_leaves_is_there(upper: list[tars.Member]) -> None:
    assert lacks(LOWER, upper) == []


def test_a_program_that_was_removed_needs_nothing() -> None:
    assert lacks([APP], [tars.file("app/.wh.bin")]) == []
    assert lacks([APP], [tars.file("app/bin", b"#!/bin/sh\n" + b"x" * 100)]) == []


def test_a_library_is_reported_once() -> None:
    assert lacks([tars.file(f"bin{each}", elf("libx.so.1")) for each in range(3)]) == ["libx.so.1"]


def test_a_layer_full_of_escapes_only_gives_names() -> None:
    contents = contents_of(tars.hostile())
    assert all(path.startswith("/") and ".." not in path.split("/") for path in contents.visible)


def test_a_real_program_of_this_machine_is_read() -> None:
    program = Path(shutil.which("env") or "/usr/bin/env").resolve()
    found = contents_of([tars.file("usr/bin/env", program.read_bytes())]).elf_files["/usr/bin/env"]
    assert any(name.startswith("libc.") for name in found.needed)


def test_our_own_elf_is_read_as_it_was_meant() -> None:
    found = contents_of([tars.file("p", elf("a", "b", runpath="/x:/y"))]).elf_files["/p"]
    assert (found.needed, found.search) == (("a", "b"), ("/x", "/y"))


def test_a_damaged_elf_file_never_ends_the_build() -> None:
    """Bits turned in headers and strings: some answer comes, or none, and no exception."""
    random_bits = random.Random(5)
    plain = elf("libx.so.1", "liby.so.2", runpath="$ORIGIN")
    for _ in range(150):
        data = bytearray(plain[: random_bits.choice((len(plain), 70, 200, len(plain) - 9))])
        for _ in range(random_bits.randint(1, 8)):
            data[random_bits.randrange(4, len(data))] = random_bits.choice((0, 1, 127, 128, 255))
        check(contents_of([tars.file("p", bytes(data))]))
