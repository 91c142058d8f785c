"""Layers in normal form: the same files give the same bytes, whenever and wherever they were built.

Engines stamp new files and folders with the time of the build, so two builds of one Dockerfile
differ. Times later than SOURCE_DATE_EPOCH become it, as BuildKit's `rewrite-timestamp` does; names
of users, access times and writer-specific headers go. Order, modes, owners and contents stay.
"""

from __future__ import annotations

import hashlib
import heapq
import tarfile
from typing import BinaryIO, Protocol

from planyard.core.results import FileSize

DEFAULT_EPOCH_SECONDS = 1_735_689_600  # 2025-01-01, where SOURCE_DATE_EPOCH is not set
_COPY_BYTES = 1 << 20
_LARGEST_FILES = 8


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes) -> int:
        """Take `data`."""


class HashingSink:
    """Passes bytes on and digests them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._sha256 = hashlib.sha256()
        self._position = 0

    def write(self, data: bytes) -> int:
        """Digest and pass on."""
        self._sha256.update(data)
        self._position += len(data)
        return self._sink.write(data)

    def tell(self) -> int:
        """How many bytes went through; tarfile asks."""
        return self._position

    @property
    def digest(self) -> str:
        """The digest of what went through."""
        return "sha256:" + self._sha256.hexdigest()


class LayerContents:
    """What was seen while a layer was rewritten: its diff id, its weight, its largest files."""

    def __init__(self) -> None:
        self.diff_id = ""
        self.unpacked_bytes = 0
        self._largest: list[tuple[int, str]] = []

    def add(self, member: tarfile.TarInfo) -> None:
        """Count a regular file; a hard link weighs nothing."""
        self.unpacked_bytes += member.size
        heapq.heappush(self._largest, (member.size, member.name))
        if len(self._largest) > _LARGEST_FILES:
            heapq.heappop(self._largest)

    @property
    def largest_files(self) -> tuple[FileSize, ...]:
        """The heaviest files, heaviest first."""
        ordered = sorted(self._largest, key=lambda pair: (-pair[0], pair[1]))
        return tuple(FileSize(path=path, size_bytes=size) for size, path in ordered)


def normalise_member(member: tarfile.TarInfo, *, epoch_seconds: int) -> tarfile.TarInfo:
    """The same member without what depends on the moment or the machine of the build."""
    member.mtime = min(int(member.mtime), epoch_seconds)
    member.uname = member.gname = ""
    # Extended attributes (file capabilities) are contents; everything else is written anew.
    member.pax_headers = {
        key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")
    }
    return member


def rewrite_layer(source: BinaryIO, sink: Sink, *, epoch_seconds: int) -> LayerContents:
    """Copy an uncompressed layer tar in normal form; returns what was in it."""
    contents = LayerContents()
    hashing = HashingSink(sink)
    with (
        tarfile.TarFile(fileobj=source, copybufsize=_COPY_BYTES) as layer,
        tarfile.TarFile(
            fileobj=hashing,  # type: ignore[arg-type]
            mode="w",
            format=tarfile.PAX_FORMAT,
            copybufsize=_COPY_BYTES,
        ) as normal,
    ):
        for member in layer:
            body = layer.extractfile(member) if member.isreg() else None
            if member.isreg():
                contents.add(member)
            normal.addfile(normalise_member(member, epoch_seconds=epoch_seconds), body)
            # tarfile keeps every member otherwise, and a layer can hold very many.
            layer.members = []  # type: ignore[attr-defined]
            normal.members = []  # type: ignore[attr-defined]
    contents.diff_id = hashing.digest
    return contents
