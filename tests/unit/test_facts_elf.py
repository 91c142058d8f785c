"""What an ELF file names, read while it streams past, in every layout there is."""

from __future__ import annotations

import io
import itertools
import random
import shutil
import struct
from pathlib import Path

import pytest

from builders.audit.facts.elf import FRONT_BYTES, NEAR_BYTES, ElfWatch
from builders.audit.facts.elf_header import read_header
from builders.audit.facts.kept_ranges import KeptRanges
from builders.audit.facts.watching import watch
from planyard.core.contents import ElfFacts
from tests import gpu_files

NAMES = {"soname": "libown.so.1", "runpath": "$ORIGIN/../lib:/opt/x"}
FULL = ElfFacts(
    needed=("libc.so.6", "libm.so.6"), search=("$ORIGIN/../lib", "/opt/x"), soname="libown.so.1"
)


def read(data: bytes, *, piece: int = 1 << 20) -> ElfFacts | None:
    watched = watch("/lib/x.so", size_bytes=len(data), head=data[:4096])
    assert watched is not None
    for at in range(0, len(data), piece):
        watched.feed(data[at : at + piece])
    return watched.finish().elf


@pytest.mark.parametrize("strings_at", ["front", "behind", "before"])
@pytest.mark.parametrize(("wide", "order"), list(itertools.product((True, False), "<>")))
@pytest.mark.parametrize("segments_last", [False, True])
def test_every_layout_is_read(strings_at, wide, order, segments_last) -> None:
    data = gpu_files.library(
        *FULL.needed,
        **NAMES,
        strings_at=strings_at,
        wide=wide,
        order=order,
        segments_last=segments_last,
        body=gpu_files.FILLER,
    )
    for piece in (1, 7, 4096, 1 << 20):
        assert read(data, piece=piece) == FULL, piece


def test_a_runpath_puts_an_rpath_out_of_force() -> None:
    assert read(gpu_files.library(rpath="/a:/b")) == ElfFacts(search=("/a", "/b"))
    assert read(gpu_files.library(rpath="/a", runpath="/b")) == ElfFacts(search=("/b",))


def test_empty_parts_of_a_search_path_are_left_out() -> None:
    assert read(gpu_files.library(runpath=":/a::/b:")) == ElfFacts(search=("/a", "/b"))


@pytest.mark.parametrize("strings_at", ["behind", "before"])
def test_strings_at_the_end_of_a_large_library_are_found(strings_at) -> None:
    body = bytes(FRONT_BYTES + NEAR_BYTES)
    data = gpu_files.library(*FULL.needed, **NAMES, strings_at=strings_at, body=body)
    assert read(data) == FULL
    dynamic_bytes = 7 * 16  # they come in pieces of their own
    assert read(data, piece=len(data) - dynamic_bytes) == FULL


def test_strings_that_were_not_kept_are_left_out_and_not_guessed() -> None:
    """Between the front and the dynamic section's surroundings lies what nobody keeps."""
    data = bytearray(gpu_files.library("libc.so.6", body=bytes(FRONT_BYTES + 2 * NEAR_BYTES)))
    middle = FRONT_BYTES + 100
    data[middle : middle + 10] = b"\0libc.so.6"
    at = len(data) - 4 * 16  # the tags: needed, string table, its size, end
    assert struct.unpack_from("<QQ", data, at + 16)[0] == 5
    struct.pack_into("<QQ", data, at + 16, 5, 0x10000 + middle)
    assert read(bytes(data)) == ElfFacts()


def test_a_large_library_is_not_kept() -> None:
    data = gpu_files.library("libc.so.6", body=bytes(3 * FRONT_BYTES))
    watched = ElfWatch(read_header(data), data[:4096])
    for at in range(0, len(data), 1 << 20):
        watched.feed(data[at : at + (1 << 20)], at)
    kept = sum(len(each.data) for each in watched._kept._ranges)
    assert FRONT_BYTES <= kept <= FRONT_BYTES + NEAR_BYTES + (1 << 20)
    assert watched.finish() == ElfFacts(needed=("libc.so.6",))


def test_static_programs_and_objects_name_nothing() -> None:
    data = bytearray(gpu_files.library("libc.so.6"))
    struct.pack_into("<H", data, 56, 2)  # two segments: the dynamic one is the third
    assert read(bytes(data)) is None


@pytest.mark.parametrize(
    "head", [b"\x7fELF", b"\x7fELF\x03\x01" + bytes(80), b"\x7fELF\x02\x07" * 20]
)
def test_what_only_begins_like_an_elf_file_is_nothing(head) -> None:
    assert read(head) is None


def test_a_class_that_does_not_exist_is_not_read() -> None:
    data = bytearray(gpu_files.library("libc.so.6", wide=False))
    assert read(bytes(data)) is not None
    data[4] = 3
    assert read(bytes(data)) is None


def test_tags_behind_the_end_mark_count_for_nothing() -> None:
    data = bytearray(gpu_files.library("liba.so", "libb.so"))
    at = len(data) - 5 * 16  # needed, needed, string table, its size, end
    assert struct.unpack_from("<Q", data, at + 16)[0] == 1
    struct.pack_into("<Q", data, at + 16, 0)
    assert read(bytes(data)) == ElfFacts()


def test_a_name_without_an_end_is_left_out() -> None:
    data = gpu_files.library("libc.so.6", strings_at="behind")
    assert data.endswith(b"libc.so.6\0")
    assert read(data[:-1]) == ElfFacts()


def test_names_that_are_no_utf8_are_text_all_the_same() -> None:
    data = gpu_files.library("libc.so.6").replace(b"libc.so.6", b"\xff\xfe\xfdc.so.6")
    found = read(data)
    assert found is not None
    assert found.needed == ("\ufffd\ufffd\ufffdc.so.6",)


def test_thousands_of_names_end_at_a_limit() -> None:
    found = read(gpu_files.library(*(f"lib{each}.so" for each in range(3000))))
    assert found is not None
    assert len(found.needed) == 1024


def test_libraries_of_this_machine_are_read_as_pyelftools_reads_them() -> None:
    import numpy as np
    from elftools.elf.elffile import ELFFile

    folder = Path(np.__file__).parent
    program = Path(shutil.which("env") or "/usr/bin/env").resolve()
    files = [program, *sorted(folder.rglob("*.so*"))[::3]]
    files += (folder.parent / "numpy.libs").glob("*.so*")
    assert len(files) > 5
    for path in files:
        data = path.read_bytes()
        segments = ELFFile(io.BytesIO(data)).iter_segments("PT_DYNAMIC")
        tags = list(next(segments).iter_tags())
        needed = tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
        sonames = [tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"]
        found = read(data)
        assert found is not None
        assert (found.needed, [found.soname] if found.soname else []) == (needed, sonames)
        assert found.gpu is None


def test_a_damaged_file_gives_some_answer_and_no_exception() -> None:
    """Bits turned in headers and strings, and files cut off."""
    chance = random.Random(5)
    layouts = [
        gpu_files.library(*FULL.needed, **NAMES, strings_at=place, wide=wide, segments_last=last)
        for place in ("front", "behind", "before")
        for wide in (True, False)
        for last in (True, False)
    ]
    for _ in range(600):
        plain = chance.choice(layouts)
        data = bytearray(plain[: chance.choice((len(plain), 70, 200, len(plain) - 9))])
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(4, len(data))] = chance.choice((0, 1, 127, 128, 255))
        found = read(bytes(data), piece=chance.choice((11, 1 << 20)))
        assert found is None or isinstance(found, ElfFacts)


def test_ranges_keep_what_was_asked_for() -> None:
    kept = KeptRanges()
    kept.want(3, 6)
    kept.want(9, 4)  # none
    kept.feed(b"0123", 0)
    kept.want(2, 4)  # too late for its first byte
    kept.feed(b"4567", 4)
    kept.feed(b"4567", 4)
    assert kept.read(3, 9) == b"345"
    assert kept.read(4, 1) == b"4"
    assert kept.read(2, 1) == kept.read(6, 1) == kept.read(0, 4) == b""
