"""The deflate streams inside wheels, found by the content they hold.

A wheel is a zip: each member is a raw deflate stream with its CRC-32. The wheel's own RECORD names
the sha256 of every member. A file of an image with the same sha256 is that member, and its stream
can go into a layer unchanged. The wheels themselves were checked against their lock.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_WORTH_BYTES = 256 << 10
"""Smaller files are compressed with their neighbours: a member of their own costs more."""
_PIECE_BYTES = 4 << 20
_LOCAL_HEADER_BYTES = 30  # then the name and the extra field, whose lengths stand at 26 and 28


@dataclass(frozen=True, kw_only=True)
class WheelMember:
    """A member of a wheel, as it lies in the file."""

    wheel: Path
    header_offset: int
    deflated_bytes: int
    crc: int

    def pieces(self) -> Iterator[bytes]:
        """The raw deflate stream."""
        with self.wheel.open("rb") as file:
            file.seek(self.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            file.seek(self.header_offset + _LOCAL_HEADER_BYTES + name + extra)
            left = self.deflated_bytes
            while left:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise EOFError(f"{self.wheel.name} ends within a member")
                left -= len(piece)
                yield piece


class WheelStreams:
    """Every large deflated member of some wheels, by size and sha256."""

    def __init__(self, wheels: Iterable[Path]) -> None:
        self._sizes: set[int] = set()
        self._members: dict[str, WheelMember] = {}
        for wheel in wheels:
            self._add(wheel)

    def find(self, body: IO[bytes], size_bytes: int) -> WheelMember | None:
        """The member that holds exactly this content; `body` is left at its start."""
        if size_bytes not in self._sizes:
            return None
        seen, crc = hashlib.sha256(), 0
        while piece := body.read(_PIECE_BYTES):
            seen.update(piece)
            crc = zlib.crc32(piece, crc)
        body.seek(0)
        member = self._members.get(seen.hexdigest())
        # The CRC is of what the stream holds: a RECORD that names other content is not believed.
        return member if member and member.crc == crc else None

    def _add(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            recorded = _recorded(archive)
            for entry in archive.infolist():
                sha256 = recorded.get(entry.filename)
                deflated = entry.compress_type == zipfile.ZIP_DEFLATED and not entry.flag_bits & 1
                if sha256 is None or not deflated or entry.file_size < _WORTH_BYTES:
                    continue
                self._sizes.add(entry.file_size)
                self._members[sha256] = WheelMember(
                    wheel=wheel,
                    header_offset=entry.header_offset,
                    deflated_bytes=entry.compress_size,
                    crc=entry.CRC,
                )


def _recorded(archive: zipfile.ZipFile) -> dict[str, str]:
    """The sha256 (hex) of each member, as the wheel's RECORD says."""
    record = next((n for n in archive.namelist() if n.endswith(".dist-info/RECORD")), None)
    if record is None:
        return {}
    found = {}
    for row in csv.reader(io.TextIOWrapper(archive.open(record), encoding="utf-8")):
        if len(row) >= 2 and row[1].startswith("sha256="):
            text = row[1].removeprefix("sha256=")
            padded = text + "=" * (-len(text) % 4)
            found[row[0]] = base64.urlsafe_b64decode(padded).hex()
    return found
