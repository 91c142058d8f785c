"""The small files that say which package owns what: kept whole, up to a limit."""

from __future__ import annotations

import fnmatch
import re

TEXT_BYTES = 8 * 2**20
"""A longer file is not kept. The longest known is the RECORD of a wheel with 60,000 files."""
COPYRIGHT_BYTES = 512 * 2**10

_COPYRIGHT = re.compile(fnmatch.translate("/usr/share/doc/*/copyright"))
_PATTERNS = (
    "/var/lib/dpkg/status",
    "/var/lib/dpkg/status.d/*",
    "/var/lib/dpkg/info/*.list",
    "/var/lib/dpkg/info/*.md5sums",
    "*.dist-info/METADATA",
    "*.dist-info/RECORD",
    "*.dist-info/top_level.txt",
    "*.egg-info",
    "*.egg-info/PKG-INFO",
    "*.egg-info/installed-files.txt",
    "*.egg-info/top_level.txt",
    "/etc/os-release",
    "/usr/lib/os-release",
)
_ANY = re.compile("|".join(fnmatch.translate(pattern) for pattern in _PATTERNS))


def keeps_text(path: str, *, size_bytes: int) -> bool:
    """Whether a file of that path and size is kept for ownership."""
    if _COPYRIGHT.match(path):
        return size_bytes <= COPYRIGHT_BYTES
    return size_bytes <= TEXT_BYTES and bool(_ANY.match(path))
