"""Byte sizes as people write them: decimal `MB` and binary `MiB` are different things."""

from __future__ import annotations

import re

_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|kB|MB|GB|KiB|MiB|GiB)$"
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]{1,3})")
_LONGEST = 24


class ByteSize(int):
    """A number of bytes, written `140 MB` or `256 MiB` in `matrix.yaml`."""

    @classmethod
    def parse(cls, text: str) -> ByteSize:
        """Read `140 MB`; raises ValueError with what to write instead."""
        match = _SIZE.fullmatch(text)
        if not match or match[2] not in _UNITS:
            units = ", ".join(_UNITS)
            raise ValueError(f"{text[:40]!r} is not a size: write a number and a unit ({units})")
        if len(text) > _LONGEST:
            raise ValueError(f"{text[:40]!r} is out of range: write a number and a unit")
        return cls(round(float(match[1]) * _UNITS[match[2]]))


def format_bytes(size_bytes: int) -> str:
    """`133.4 MB`: decimal units, as registries and budgets count."""
    for unit in ("GB", "MB", "kB"):
        if size_bytes >= 0.99995 * _UNITS[unit]:  # what would be rounded to 1000.0 of the next
            return f"{size_bytes / _UNITS[unit]:.1f} {unit}"
    return f"{size_bytes} B"


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 m 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} m {int(seconds) % 60:02d} s"
