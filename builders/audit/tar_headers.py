"""The headers of a tar, byte by byte and without trust: ustar, pax and GNU forms.

The standard library's `tarfile` reads a pax header whole however large it says it is, believes
sizes below zero, and takes a damaged header for the end of the tar. An audit reads layers that
anybody may have made, so it reads them itself; what both can read, both read alike (a test).
"""

from __future__ import annotations

from typing import NamedTuple

from planyard.core.errors import InputError

BLOCK_BYTES = 512
EXTENSION_LIMIT_BYTES = 1 << 20
"""Pax headers and long names of one member: what Go's reader, and so a runtime, takes as well."""
PATH_LIMIT_BYTES = 4096
"""As long as a path can be on Linux."""

REGULAR = frozenset(b"\x0007S")
LINK, HARD_LINK, FOLDER, PIPE = ord("2"), ord("1"), ord("5"), ord("6")
DEVICES = frozenset(b"34")
PAX, PAX_OLD, PAX_GLOBAL, LONG_NAME, LONG_LINK, SPARSE = map(ord, "xXgLKS")
EXTENSIONS = frozenset((PAX, PAX_OLD, PAX_GLOBAL, LONG_NAME, LONG_LINK))
_WITHOUT_CONTENT = frozenset((LINK, HARD_LINK, FOLDER, PIPE)) | DEVICES


class Header(NamedTuple):
    """A header as it stands: names as bytes, `size_bytes` of the content that follows it."""

    name: bytes
    type: int
    size_bytes: int
    mode: int
    uid: int
    gid: int
    link: bytes
    more: bool
    """Whether a block with the map of a sparse file follows."""


class DamagedTarError(InputError):
    """A layer that is no whole tar, or larger than an audit takes."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def read_header(block: bytes, *, at: int) -> Header:
    """The header in a block of 512 bytes, `at` bytes into the tar; checks its sum."""
    try:
        if sum(block) - sum(block[148:156]) + 256 != _number(block[148:156]):
            raise ValueError
        kind = block[156]
        name = _until_nul(block[:100])
        if block[257:263] == b"ustar\0" and block[345]:
            name = _until_nul(block[345:500]) + b"/" + name
        if kind == 0 and name.endswith(b"/"):
            kind = FOLDER  # as tars from before 1988 say it
        size = 0 if kind in _WITHOUT_CONTENT else _number(block[124:136])
        return Header(
            name,
            kind,
            size,
            _number(block[100:108]) & 0o7777,
            _number(block[108:116]),
            _number(block[116:124]),
            _until_nul(block[157:257]),
            more=kind == SPARSE and block[482] != 0,
        )
    except ValueError:
        raise DamagedTarError(f"the header at byte {at} of its tar cannot be read") from None


def read_pax(data: bytes, *, at: int) -> dict[bytes, bytes]:
    """The records of a pax header: `12 path=a/b\\n`, each with its own length in front."""
    found = {}
    begin = 0
    while begin < len(data):
        space = data.find(b" ", begin, begin + 20)
        digits = data[begin:space] if space > begin else b""
        end = begin + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        # A record that says it is shorter than its own length would be read for ever.
        if not equals or not begin < space < end <= len(data) or data[end - 1] != 10:
            raise DamagedTarError(f"the pax header at byte {at} of its tar cannot be read")
        found[key] = value
        begin = end
    return found


def with_extensions(header: Header, pax: dict[bytes, bytes], *, at: int) -> Header:
    """The header with what pax records say instead."""
    try:
        return header._replace(
            name=pax.get(b"path", header.name),
            link=pax.get(b"linkpath", header.link),
            size_bytes=_decimal(pax, b"size", header.size_bytes)
            if header.type not in _WITHOUT_CONTENT
            else 0,
            uid=_decimal(pax, b"uid", header.uid),
            gid=_decimal(pax, b"gid", header.gid),
        )
    except ValueError:
        raise DamagedTarError(f"the pax header at byte {at} of its tar cannot be read") from None


def _decimal(pax: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
    text = pax.get(key)
    if text is None:
        return otherwise
    if not text.isdigit() or len(text) > 19:
        raise ValueError(text)
    return int(text)


def _number(field: bytes) -> int:
    """An octal number, or a large one in base 256; ValueError for what is neither."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >> 63:  # below zero, or of no file there is
            raise ValueError("out of range")
        return value
    text = field.partition(b"\0")[0].strip()
    if text and not text.isdigit():
        raise ValueError(text)
    return int(text or b"0", 8)


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
