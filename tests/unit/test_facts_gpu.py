"""Which GPUs a library has code for: fat binaries and cubins found while it streams past."""

from __future__ import annotations

import struct

import pytest

from builders.audit.facts import gpu_code
from builders.audit.facts.gpu_targets import runs_on
from builders.audit.facts.watching import watch
from planyard.core.contents import GpuCode
from tests.gpu_files import (
    COMPRESSED,
    CUBIN,
    EXACT,
    FAMILY,
    FILLER,
    FUTURE,
    PTX,
    cubin,
    entry,
    fat,
    library,
)


def read(data: bytes, *, piece: int = 1 << 20) -> GpuCode | None:
    watched = watch("/lib/x.so", size_bytes=len(data), head=data[:4096])
    assert watched is not None
    for at in range(0, len(data), piece):
        watched.feed(data[at : at + piece])
    facts = watched.finish().elf
    return facts.gpu if facts else None


def sizes(data: bytes) -> dict[str, int]:
    code = read(data)
    return code.sizes if code else {}


PLAIN = library("libcudart.so.13", body=FILLER)
TWO = fat(entry(CUBIN, 86), entry(CUBIN, 90, flags=EXACT), entry(PTX, 120, flags=FAMILY))


def test_a_library_without_gpu_code_has_none() -> None:
    assert read(PLAIN) is None


def test_every_entry_counts_by_kind_and_sm() -> None:
    code = read(PLAIN + TWO)
    assert code is not None
    assert (code.machine, code.ptx, code.sure) == ((86, 90), (120,), True)
    size = len(entry(CUBIN, 86))
    assert code.sizes == {"sm_86": size, "sm_90a": size, "compute_120f": size}
    assert code.code_bytes == 3 * size
    assert "1 fat binaries" in code.how


@pytest.mark.parametrize("piece", [1, 5, 16, 47, 48, 63, 64, 65, 1000])
def test_borders_between_pieces_change_nothing(piece) -> None:
    data = PLAIN + TWO + FILLER + cubin(80) + FILLER + fat(entry(CUBIN, 75)) + cubin(70)
    assert read(data, piece=piece) == read(data)
    assert read(data).machine == (70, 75, 80, 86, 90)


def test_longer_headers_and_compressed_payloads_are_read() -> None:
    headers = [entry(CUBIN, 100, header=size, flags=COMPRESSED) for size in (64, 80, 112, 144)]
    assert sizes(PLAIN + fat(*headers)) == {"sm_100": sum(map(len, headers))}


def test_machine_code_of_a_family_is_named_as_cuobjdump_names_it() -> None:
    assert set(sizes(PLAIN + fat(entry(CUBIN, 120, flags=FAMILY)))) == {"sm_120"}


def test_containers_are_found_wherever_they_lie() -> None:
    assert set(sizes(PLAIN + b"x" + TWO + b"odd" + fat(entry(CUBIN, 75)))) == {
        *("sm_86", "sm_90a", "compute_120f", "sm_75")
    }


def test_what_lies_in_a_payload_is_no_header_of_its_own() -> None:
    """Uncompressed payloads are cubins themselves, and may hold anything."""
    inner = fat(entry(CUBIN, 50)) + cubin(60)
    assert set(sizes(PLAIN + fat(entry(CUBIN, 75, inner)))) == {"sm_75"}


@pytest.mark.parametrize(
    ("made", "target"),
    [
        (cubin(75), "sm_75"),
        (cubin(90, exact=True), "sm_90a"),
        (cubin(100, abi=8), "sm_100"),
        (cubin(120, abi=8, exact=True), "sm_120a"),
    ],
)
def test_a_cubin_in_a_library_counts_but_says_nothing_of_others(made, target) -> None:
    code = read(PLAIN + made)
    assert code is not None
    assert code.sizes == {target: len(made)}
    assert code.sure is False


def test_a_cubin_beside_fat_binaries_leaves_them_sure() -> None:
    code = read(PLAIN + TWO + cubin(70))
    assert code is not None
    assert (code.machine, code.sure) == ((70, 86, 90), True)


def test_a_file_that_is_a_cubin_or_a_fat_binary_is_read() -> None:
    code = read(cubin(90, exact=True))
    assert code is not None
    assert (code.sizes, code.sure) == ({"sm_90a": len(cubin(90))}, True)
    assert read(TWO) == read(b"\x7fELF" + TWO)


def test_an_elf_file_of_another_machine_is_no_cubin() -> None:
    assert read(PLAIN + library("libc.so.6")) is None


@pytest.mark.parametrize(
    "odd",
    [
        fat(entry(CUBIN, 86), entry(FUTURE, 86)),
        fat(entry(CUBIN, 86), entry(CUBIN, 3)),
        fat(entry(CUBIN, 86), entry(CUBIN, 86, header=40)),
        fat(entry(CUBIN, 86), entry(CUBIN, 86)[:-8]),
        fat(entry(CUBIN, 86), b"rest"),
    ],
)
def test_what_is_not_understood_makes_it_unsure(odd) -> None:
    code = read(PLAIN + odd + FILLER)
    assert code is not None
    assert (code.machine, code.sure) == ((86,), False)
    assert "1 not understood" in code.how


def test_a_container_that_nothing_is_understood_of_is_said() -> None:
    code = read(PLAIN + fat(b"\xff" * 64))
    assert code == GpuCode(
        machine=(), ptx=(), code_bytes=0, sure=False, how=code.how if code else ""
    )


def test_bytes_that_only_look_like_a_header_are_passed_over() -> None:
    """Programs that read fat binaries compare with the magic; a size beyond the file gives away."""
    looks = gpu_code.FAT_MAGIC + struct.pack("<Q", 1 << 40)
    assert read(PLAIN + looks + FILLER) is None
    code = read(PLAIN + looks + TWO)
    assert code is not None
    assert (code.machine, code.sure) == ((86, 90), True)


def test_a_file_that_ends_inside_a_container_is_not_sure() -> None:
    data = PLAIN + fat(entry(CUBIN, 86), entry(CUBIN, 90))
    watched = watch("/x", size_bytes=len(data), head=data[:4096])
    assert watched is not None
    watched.feed(data[: -len(entry(CUBIN, 90)) + 20])
    elf = watched.finish().elf
    assert elf is not None
    assert elf.gpu is not None
    assert (elf.gpu.machine, elf.gpu.sure) == ((86,), False)


def test_a_flood_of_headers_ends_at_a_limit(monkeypatch) -> None:
    monkeypatch.setattr(gpu_code, "_MOST_HEADERS", 50)
    code = read(PLAIN + fat(entry(CUBIN, 86, b"")) * 200)
    assert code is not None
    assert code.code_bytes < 50 * 64
    assert code.sure is False


def test_next_to_nothing_is_kept_between_pieces() -> None:
    data = PLAIN + TWO * 40 + FILLER
    watched = gpu_code.GpuWatch(len(data))
    for at in range(0, len(data), 333):
        watched.feed(data[at : at + 333], at)
        assert len(watched._carry) < 64


@pytest.mark.parametrize(
    ("target", "runs", "not_on"),
    [
        ("sm_80", (80, 86, 89), (75, 90, 87)),
        ("sm_86", (86, 89), (80, 90)),
        ("sm_87", (87,), (80, 86, 89)),
        ("sm_90a", (90,), (89, 100)),
        ("sm_100", (100, 103), (120, 90, 101)),
        ("sm_100f", (100, 103), (120,)),
        ("sm_120a", (120,), (121,)),
        ("sm_120", (120, 121), (100,)),
        ("compute_75", (75, 80, 121), (70,)),
        ("compute_90a", (90,), (100, 120)),
        ("compute_120f", (120, 121), (100, 130)),
    ],
)
def test_what_runs_where(target, runs, not_on) -> None:
    assert [sm for sm in runs if not runs_on(target, sm)] == []
    assert [sm for sm in not_on if runs_on(target, sm)] == []
