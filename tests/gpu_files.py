"""ELF files, fat binaries and cubins for tests, in memory: only the bytes that are read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

PTX, CUBIN, FUTURE = 1, 2, 64
COMPRESSED, EXACT, FAMILY = 0x8000, 1 << 20, 1 << 21
FILLER = bytes(range(1, 256)) * 9
"""Neither zeros nor anything like a header."""


def entry(
    kind: int, sm: int, payload: bytes = FILLER, *, flags: int = 0, header: int = 64
) -> bytes:
    """One entry of a fat binary; real headers have 64 to 144 bytes."""
    payload += bytes(-len(payload) % 8)
    fields = struct.pack("<HHIQIIIIQQ", kind, 0x0101, header, len(payload), 0, 0, 0, sm, 0, flags)
    return fields.ljust(header, b"\0") + payload


def fat(*entries: bytes) -> bytes:
    """A fat binary of these entries."""
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def cubin(sm: int, *, exact: bool = False, abi: int = 7, body: bytes = FILLER) -> bytes:
    """A cubin that ends with its section table, with the SM where that ABI version has it."""
    flags = sm << 8 | exact * 0x8 if abi >= 8 else 0x500000 | exact * 0x800 | sm
    ident = b"\x7fELF\x02\x01\x01\x33" + bytes([abi])
    fields = (2, 190, 1, 0, 0, 64 + len(body), flags, 64, 56, 0, 64, 1, 0)
    return struct.pack("<16sHHIQQQIHHHHHH", ident, *fields) + body + bytes(64)


Place = Literal["front", "behind", "before"]


def library(
    *needed: str,
    soname: str = "",
    runpath: str = "",
    rpath: str = "",
    wide: bool = True,
    order: Literal["<", ">"] = "<",
    strings_at: Place = "front",
    segments_last: bool = False,
    body: bytes = b"",
) -> bytes:
    """A shared library: header, `body`, and the dynamic section with its strings.

    Strings lie in front of the body as linkers write them, or behind or before the dynamic section
    at the end, as patchelf does.
    """
    strings, named = b"\0", []
    tags = [(1, each) for each in needed] + [(14, soname), (29, runpath), (15, rpath)]
    for tag, text in tags:
        if text:
            named.append((tag, len(strings)))
            strings += text.encode() + b"\0"
    address = "Q" if wide else "I"
    sizes = (64, 56) if wide else (52, 32)
    dynamic_bytes = (len(named) + 3) * struct.calcsize(f"{order}2{address}")
    front = sizes[0] + (0 if segments_last else 3 * sizes[1])
    parts: dict[str, tuple[int, int]] = {}
    pieces: Sequence[tuple[str, int]] = {
        "front": (("strings", len(strings)), ("body", len(body)), ("dynamic", dynamic_bytes)),
        "behind": (("body", len(body)), ("dynamic", dynamic_bytes), ("strings", len(strings))),
        "before": (("body", len(body)), ("strings", len(strings)), ("dynamic", dynamic_bytes)),
    }[strings_at]
    at = front
    for name, size in pieces:
        parts[name] = (at, size)
        at += size
    base = 0x10000  # what is loaded has another address than offset
    named += [(5, base + parts["strings"][0]), (10, len(strings)), (0, 0)]
    contents = {
        "strings": strings,
        "body": body,
        "dynamic": b"".join(struct.pack(f"{order}2{address}", *tag) for tag in named),
    }
    table = b"".join(
        _segment(kind, offset, base + offset, size, wide=wide, order=order)
        for kind, offset, size in (
            (6, front, 8),
            (1, 0, at),
            (2, *parts["dynamic"]),
        )
    )
    header = _header(wide=wide, order=order, segments_at=at if segments_last else sizes[0])
    whole = b"".join(contents[name] for name, _ in pieces)
    return header + whole + table if segments_last else header + table + whole


def _segment(kind: int, offset: int, address: int, size: int, *, wide: bool, order: str) -> bytes:
    if wide:
        return struct.pack(f"{order}IIQQQQQQ", kind, 4, offset, address, address, size, size, 8)
    return struct.pack(f"{order}IIIIIIII", kind, offset, address, address, size, size, 4, 8)


def _header(*, wide: bool, order: str, segments_at: int) -> bytes:
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1])
    sizes = (64, 56) if wide else (52, 32)
    fields = (3, 62, 1, 0, segments_at, 0, 0, sizes[0], sizes[1], 3, 64, 0, 0)
    form = f"{order}16sHHI{'QQQ' if wide else 'III'}IHHHHHH"
    return struct.pack(form, ident, *fields)
