"""Layers in normal form: the same files give the same bytes, whenever and wherever they were built.

Engines stamp new files and folders with the time of the build, so two builds of one Dockerfile
differ. Times later than SOURCE_DATE_EPOCH become it, as BuildKit's `rewrite-timestamp` does; names
of users, access times and writer-specific headers go. Order, modes, owners and contents stay.

Most of an inference image are libraries that came deflated in wheels. Their streams are spliced
into the layer as they are, which costs a digest instead of a compression.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import tarfile
from collections.abc import Callable, Iterable
from typing import IO, Any, BinaryIO, Protocol

from planyard.core.results import FileSize

DEFAULT_EPOCH_SECONDS = 1_735_689_600  # 2025-01-01, where SOURCE_DATE_EPOCH is not set
Progress = Callable[[int], None]
"""Told of each piece of a layer that was written, in bytes."""
_COPY_BYTES = 1 << 20
_LARGEST_FILES = 8
_ENCODING = "utf-8"  # tarfile takes the locale's otherwise, and the digest would depend on it


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes) -> int:
        """Take `data`."""


class Compressor(Sink, Protocol):
    """A sink that can also take content which is deflated already."""

    def splice(self, pieces: Iterable[bytes], *, crc: int, size_bytes: int) -> None:
        """Take a whole deflate stream."""


class Reader(Protocol):
    """Reads along what is written."""

    def feed(self, piece: bytes, /) -> None:
        """Look at the next bytes."""


class Deflated(Protocol):
    """A file's content that lies somewhere as a deflate stream: its CRC-32, and the stream."""

    @property
    def crc(self) -> int:
        """CRC-32 of the content."""

    def pieces(self) -> Iterable[bytes]:
        """The raw deflate stream."""


class DeflatedFiles(Protocol):
    """Finds deflate streams by content."""

    def find(self, body: IO[bytes], size_bytes: int) -> Deflated | None:
        """The stream of exactly this content, or None; `body` is left at its start."""


class HashingSink:
    """Passes bytes on and digests them; spliced content is digested and not passed on.

    `reader` is given everything.
    """

    def __init__(
        self, sink: Sink, *, progress: Progress | None = None, reader: Reader | None = None
    ) -> None:
        self._sink = sink
        self._reader = reader
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._progress = progress
        self._muted_bytes = 0

    def mute(self, size_bytes: int) -> None:
        """Do not pass on the next bytes: they reach the sink another way."""
        self._muted_bytes = size_bytes

    def write(self, data: bytes) -> int:
        """Digest and pass on."""
        self._sha256.update(data)
        self._position += len(data)
        if self._reader:
            self._reader.feed(data)
        if self._progress:
            self._progress(len(data))
        if self._muted_bytes:
            self._muted_bytes -= len(data)
            return len(data)
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
    if not math.isfinite(member.mtime):
        raise tarfile.ReadError(f"{member.name} has no time that can be read")
    member.mtime = min(int(member.mtime), epoch_seconds)
    member.uname = member.gname = ""
    if member.isreg():
        member.type = tarfile.REGTYPE  # sparse and contiguous files are written as plain ones
    # Extended attributes (file capabilities) are contents; everything else is written anew.
    member.pax_headers = {
        key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")
    }
    return member


class _SplicedBody:
    """A file's content that goes into the tar's digest, and as a deflate stream into the sink."""

    def __init__(
        self,
        body: IO[bytes],
        found: Deflated,
        *,
        size_bytes: int,
        into: Compressor,
        muted: HashingSink,
    ) -> None:
        self._body = body
        self._found: Deflated | None = found
        self._size_bytes = size_bytes
        self._into = into
        self._muted = muted

    def read(self, size: int = -1) -> bytes:
        """tarfile has written the header before its first read: that is the place to splice."""
        if self._found is not None:
            found, self._found = self._found, None
            self._into.splice(found.pieces(), crc=found.crc, size_bytes=self._size_bytes)
            self._muted.mute(self._size_bytes)
        return self._body.read(size)


def rewrite_layer(
    source: BinaryIO,
    sink: Compressor,
    *,
    epoch_seconds: int,
    progress: Progress | None = None,
    deflated: DeflatedFiles | None = None,
    reader: Reader | None = None,
) -> LayerContents:
    """Copy an uncompressed layer tar in normal form; returns what was in it.

    Content that `deflated` knows is not compressed again. `reader` is given the
    normal form. Nothing is ever extracted: names and links are text here, wherever they point.
    Raises tarfile.TarError for what is no whole tar.
    """
    contents = LayerContents()
    hashing = HashingSink(sink, progress=progress, reader=reader)
    with (
        tarfile.TarFile(fileobj=source, encoding=_ENCODING, copybufsize=_COPY_BYTES) as layer,
        tarfile.TarFile(
            fileobj=hashing,  # type: ignore[arg-type]
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding=_ENCODING,
            copybufsize=_COPY_BYTES,
        ) as normal,
    ):
        for member in layer:
            body: Any = layer.extractfile(member) if member.isreg() else None
            if body is not None:
                contents.add(member)
                found = deflated.find(body, member.size) if deflated else None
                if found:
                    size = member.size
                    body = _SplicedBody(body, found, size_bytes=size, into=sink, muted=hashing)
            normal.addfile(normalise_member(member, epoch_seconds=epoch_seconds), body)
            # tarfile keeps every member otherwise, and a layer can hold very many.
            layer.members = []  # type: ignore[attr-defined]
            normal.members = []  # type: ignore[attr-defined]
        _require_end(source, at=layer.offset)
    contents.diff_id = hashing.digest
    return contents


def _require_end(source: BinaryIO, *, at: int) -> None:
    """tarfile takes a header it cannot read for the end of the tar: what stands there decides."""
    source.seek(at)
    if source.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {at} cannot be read")
