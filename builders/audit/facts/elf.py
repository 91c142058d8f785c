"""What an ELF file that streams past names: libraries, search path, its own name.

The program headers stand in front and say where the dynamic section is. Its strings lie near the
front (as linkers write them), or behind it at the end (as patchelf does); both are kept.
A string elsewhere stays unknown, and its name is left out.
"""

from __future__ import annotations

from builders.audit.facts.elf_header import (
    DYNAMIC,
    LOAD,
    NEEDED,
    RPATH,
    RUNPATH,
    SONAME,
    STRING_TABLE,
    ElfHeader,
    Segment,
    offset_of,
    read_segments,
    read_tags,
)
from builders.audit.facts.kept_ranges import KeptRanges
from planyard.core.contents import ElfFacts

FRONT_BYTES = 32 * 2**20
"""What is kept of the front: the string table of libtorch_cpu.so ends 20 MB into it."""
NEAR_BYTES = 4 * 2**20
"""What is kept before a dynamic section: strings that patchelf put into the same segment."""
_DYNAMIC_BYTES = 2**20
_NAME_BYTES = 4096  # PATH_MAX
_MOST_NAMES = 1024


class ElfWatch:
    """The dynamic section of one file, read as it passes. Keeps at most about 41 MiB."""

    def __init__(self, header: ElfHeader, head: bytes) -> None:
        self._header = header
        self._kept = KeptRanges()
        self._segments: tuple[Segment, ...] = ()
        self._dynamic: Segment | None = None
        self._names_wanted = False
        if header.segments_end <= len(head):
            self._plan(head[header.segments_at : header.segments_end])
        else:
            self._kept.want(0, FRONT_BYTES)

    def feed(self, data: bytes | memoryview, at: int) -> None:
        """The bytes at offset `at`, each once and in order."""
        self._kept.feed(data, at)
        if self._names_wanted or self._dynamic is None:
            return
        if at + len(data) >= self._dynamic.offset + self._dynamic.size:
            self._names_wanted = True
            for _, offset in self._names():
                if b"\0" not in self._kept.read(offset, _NAME_BYTES):
                    self._kept.want(offset, offset + _NAME_BYTES)
            self._kept.feed(data, at)

    def finish(self) -> ElfFacts | None:
        """What was found; None for a file without a dynamic section, or without its headers."""
        if self._dynamic is None:
            header = self._header
            self._plan(
                self._kept.read(header.segments_at, header.segments_end - header.segments_at)
            )
        if self._dynamic is None:
            return None
        texts: dict[int, list[str]] = {NEEDED: [], SONAME: [], RPATH: [], RUNPATH: []}
        for tag, offset in self._names():
            raw, end, _ = self._kept.read(offset, _NAME_BYTES).partition(b"\0")
            if end:
                texts[tag].append(raw.decode("utf-8", "replace"))
        search = texts[RUNPATH] or texts[RPATH]
        return ElfFacts(
            needed=tuple(texts[NEEDED]),
            search=tuple(folder for each in search for folder in each.split(":") if folder),
            soname=next(iter(texts[SONAME]), ""),
        )

    def _plan(self, table: bytes) -> None:
        """Ask for the dynamic section, and for where its strings are likely to be."""
        self._segments = read_segments(self._header, table)
        self._dynamic = next((each for each in self._segments if each.kind == DYNAMIC), None)
        if self._dynamic is None:
            return
        start, size = self._dynamic.offset, min(self._dynamic.size, _DYNAMIC_BYTES)
        loads = [each for each in self._segments if each.kind == LOAD]
        front = loads[0].offset + loads[0].size if loads else 0
        self._kept.want(0, min(front, FRONT_BYTES))
        around = [each for each in loads if each.offset <= start < each.offset + each.size]
        first = max(around[0].offset, start - NEAR_BYTES) if around else start
        self._kept.want(first, start + size)

    def _names(self) -> list[tuple[int, int]]:
        """The tags that name something, and the offset of each name in the file."""
        if self._dynamic is None:
            return []
        data = self._kept.read(self._dynamic.offset, min(self._dynamic.size, _DYNAMIC_BYTES))
        tags = read_tags(self._header, data)
        address = next((value for tag, value in tags if tag == STRING_TABLE), None)
        table = None if address is None else offset_of(address, self._segments)
        if table is None:
            return []
        wanted = {NEEDED, SONAME, RPATH, RUNPATH}
        return [(tag, table + value) for tag, value in tags if tag in wanted][:_MOST_NAMES]
