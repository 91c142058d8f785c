"""The GPU code in a file that streams past, by the headers of fat binaries and cubins.

A fat binary is a header of 16 bytes (magic, version 1, its own size, the size of what follows)
and entries, each with a header: kind (1 PTX, 2 machine code) in bytes 0 and 1, header size at 4,
padded payload size at 8, SM at 28, flags at 40 (bit 20 for `a`, bit 21 for `f`). Payloads may be
compressed; headers never are. NVIDIA does not publish the format: these fields are read alike by
ZLUDA (ext/cuda_types), n-eiling/cuda-fatbin-decompression and nvopen-tools' specification, and
on the libraries of the default images they count what cuobjdump 13.5 lists (docs/image-audit.md).
Containers outside the section .nv_fatbin, which cuobjdump does not list, are counted too.
A cubin that stands alone is an ELF file of machine 190 with its SM in `e_flags` (LLVM's ELF.h).
"""

from __future__ import annotations

import struct
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from builders.audit.facts.elf_header import CUDA_MACHINE, HEADER_BYTES, ElfHeader, read_header
from builders.audit.facts.gpu_targets import gpu_code, target_name
from planyard.core.contents import GpuCode

if TYPE_CHECKING:
    import re2

Piece: TypeAlias = bytes | memoryview
FAT_MAGIC = b"\x50\xed\x55\xba\x01\x00\x10\x00"
"""Magic, version 1, header size 16."""
_CUBIN_MAGIC = b"\x7fELF\x02\x01\x01"
_FAT_HEADER = 16
_ENTRY = 48
_PTX, _MACHINE_CODE = 1, 2
_ARCHITECTURE_ONLY, _FAMILY = 1 << 20, 1 << 21
_MOST_HEADERS = 1_000_000  # libcublasLt.so.13 has 9,285


class GpuWatch:
    """Counts the GPU code of one file of `size_bytes`; keeps less than 64 bytes between pieces."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._carry = b""
        self._at = 0  # the offset that is looked at next
        self._container_end = 0  # 0 outside a container
        self._sizes: Counter[str] = Counter()
        self._fat_binaries = self._cubins = self._unread = self._headers = 0

    def feed(self, data: Piece, at: int) -> None:
        """The bytes at offset `at`, each once and in order."""
        if self._carry:
            # Only the border is copied: a header that began before ends within its first 64 bytes.
            border, border_at = self._carry + bytes(data[:HEADER_BYTES]), at - len(self._carry)
            self._walk(border, border_at)
        if not self._carry or len(data) > HEADER_BYTES:
            self._walk(data, at)

    def _walk(self, data: Piece, at: int) -> None:
        """Go from header to header; what waits for more bytes is carried."""
        self._carry = b""
        while self._at < at + len(data) and self._headers < _MOST_HEADERS:
            step = self._entry if self._container_end else self._search
            if not step(data, at):
                self._carry = bytes(data[self._at - at :])
                return

    def finish(self) -> GpuCode | None:
        """The code found; None where there is no sign of any."""
        cut = self._container_end > self._at or self._headers >= _MOST_HEADERS
        unread = self._unread + cut
        if not (self._sizes or unread):
            return None
        # Cubins that stand alone are kernels a program picks from: what others it has is unknown.
        return gpu_code(
            self._sizes,
            sure=not unread and self._fat_binaries > 0,
            fat_binaries=self._fat_binaries,
            cubins=self._cubins,
            unread=unread,
        )

    def _search(self, data: Piece, at: int) -> bool:
        """Look for the next header; False when the rest has to wait for more bytes."""
        start = self._at - at
        found = _pattern(FAT_MAGIC).search(data, start)
        stop = found.start() if found else len(data)
        for cubin in _pattern(_CUBIN_MAGIC).finditer(data, start, stop):
            if cubin.start() + HEADER_BYTES > len(data):
                self._at = at + cubin.start()
                return False
            self._headers += 1
            self._cubin(bytes(data[cubin.start() : cubin.start() + HEADER_BYTES]))
        if found is None:
            self._at = max(self._at, at + len(data) - len(FAT_MAGIC) + 1)
            return False
        if stop + _FAT_HEADER > len(data):
            self._at = at + stop
            return False
        self._headers += 1
        (size,) = struct.unpack_from("<Q", data, stop + 8)
        self._at = at + stop + _FAT_HEADER
        if size <= self._size - self._at:  # else the bytes only look like a header
            self._container_end = self._at + size
            self._fat_binaries += 1
        return True

    def _entry(self, data: Piece, at: int) -> bool:
        """Read one entry of a container, or leave it at its end."""
        left = self._container_end - self._at
        if left < _ENTRY:
            self._unread += left > 0
            self._at, self._container_end = self._container_end, 0
            return True
        if self._at - at + _ENTRY > len(data):
            return False
        self._headers += 1
        kind, _, header, payload = struct.unpack_from("<HHIQ", data, self._at - at)
        sm, _, flags = struct.unpack_from("<IQQ", data, self._at - at + 28)
        if not _ENTRY <= header <= 4096 or header + payload > left:
            self._unread += 1
            self._container_end = 0  # from here on, headers are searched for again
            return True
        if kind in (_PTX, _MACHINE_CODE) and 10 <= sm < 1000:
            suffix = "a" if flags & _ARCHITECTURE_ONLY else ""
            if kind == _PTX and flags & _FAMILY:
                suffix = "f"  # machine code with this bit runs as if without, and is so named
            self._sizes[target_name(is_ptx=kind == _PTX, sm=sm, suffix=suffix)] += header + payload
        else:
            self._unread += 1
        self._at += header + payload
        return True

    def _cubin(self, head: bytes) -> None:
        header = read_header(head)
        if header and (target := cubin_target(header)):
            self._cubins += 1
            self._sizes[target] += min(header.sections_end, self._size)


def cubin_target(header: ElfHeader) -> str | None:
    """The target of a cubin, `sm_90a`; None for any other ELF file."""
    if header.machine != CUDA_MACHINE:
        return None
    if header.abi[1] >= 8:  # CUDA 12.8 and later
        sm, exact = header.flags >> 8 & 0xFF, header.flags & 0x8
    else:
        sm, exact = header.flags & 0xFF, header.flags & 0x800
    return target_name(is_ptx=False, sm=sm, suffix="a" if exact else "") if sm >= 10 else None


@cache
def _pattern(literal: bytes) -> re2._Regexp:
    """A literal as RE2 finds it: 2 GB/s, four times as fast as bytes.find of CPython 3.11."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(re2.escape(literal), options)
