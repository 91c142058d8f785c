"""The parts of an ELF file that name libraries: header, segments, dynamic section. Pure, on bytes.

pyelftools wants the whole file and its section table, which lies at the end; a file that streams
past has only these. tests/unit/test_facts_elf.py holds both against each other.
Layouts: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ELF_MAGIC = b"\x7fELF"
HEADER_BYTES = 64
CUDA_MACHINE = 190
"""`e_machine` of a cubin."""
DYNAMIC, LOAD = 2, 1
NEEDED, STRING_TABLE, SONAME, RPATH, RUNPATH = 1, 5, 14, 15, 29
_MOST_TAGS = 1 << 16


class Segment(NamedTuple):
    """A program header: where the file has it, and where memory."""

    kind: int
    offset: int
    address: int
    size: int


class ElfHeader(NamedTuple):
    """What the first 64 bytes say; `abi` are the bytes EI_OSABI and EI_ABIVERSION."""

    wide: bool
    order: str
    abi: tuple[int, int]
    machine: int
    flags: int
    segments_at: int
    segment_bytes: int
    segment_count: int
    sections_at: int
    section_bytes: int
    section_count: int

    @property
    def segments_end(self) -> int:
        """Where the table of segments ends in the file."""
        return self.segments_at + self.segment_bytes * self.segment_count

    @property
    def sections_end(self) -> int:
        """Where the table of sections ends: in most files the end of the file."""
        return self.sections_at + self.section_bytes * self.section_count


def read_header(head: bytes) -> ElfHeader | None:
    """The header of an ELF file of either width and byte order; None for anything else."""
    if len(head) < HEADER_BYTES or head[:4] != ELF_MAGIC or head[4] not in (1, 2):
        return None
    if head[5] not in (1, 2):
        return None
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    fields = struct.unpack_from(f"{order}HHI{'QQQ' if wide else 'III'}IHHHHHH", head, 16)
    _, machine, _, _, segments_at, sections_at, flags, _, *sizes = fields
    return ElfHeader(
        wide=wide,
        order=order,
        abi=(head[7], head[8]),
        machine=machine,
        flags=flags,
        segments_at=segments_at,
        segment_bytes=sizes[0],
        segment_count=sizes[1],
        sections_at=sections_at,
        section_bytes=sizes[2],
        section_count=sizes[3],
    )


def read_segments(header: ElfHeader, table: bytes) -> tuple[Segment, ...]:
    """The program headers; `table` may be cut off, then those that are whole."""
    size = 56 if header.wide else 32
    if header.segment_bytes < size:
        return ()
    found = []
    for number in range(min(header.segment_count, len(table) // header.segment_bytes)):
        at = number * header.segment_bytes
        if header.wide:
            kind, _, offset, address, _, length = struct.unpack_from(
                f"{header.order}IIQQQQ", table, at
            )
        else:
            kind, offset, address, _, length = struct.unpack_from(f"{header.order}IIIII", table, at)
        found.append(Segment(kind, offset, address, length))
    return tuple(found)


def read_tags(header: ElfHeader, dynamic: bytes) -> tuple[tuple[int, int], ...]:
    """The tags of a dynamic section and their values, up to the end mark."""
    width = 16 if header.wide else 8
    found = []
    for at in range(0, min(len(dynamic) // width, _MOST_TAGS) * width, width):
        tag, value = struct.unpack_from(
            f"{header.order}{'QQ' if header.wide else 'II'}", dynamic, at
        )
        if tag == 0:
            break
        found.append((tag, value))
    return tuple(found)


def offset_of(address: int, segments: tuple[Segment, ...]) -> int | None:
    """Where the file has what is loaded at an address."""
    for each in segments:
        if each.kind == LOAD and each.address <= address < each.address + each.size:
            return each.offset + address - each.address
    return None
