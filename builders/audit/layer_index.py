"""A layer's tar, read once as it streams past: its members, digests, facts and problems.

Pieces of any size are given to `feed`; nothing is written anywhere, and no more is kept than the
index will hold. Names and links are text: where they lead is said, and never followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from blake3 import blake3

from builders.audit import tar_headers as tar
from builders.audit.facts import FileFacts
from builders.audit.members import Found, Member
from builders.audit.pull_map import PullMap
from builders.audit.tar_headers import BLOCK_BYTES, DamagedTarError, Header
from planyard.core.contents import LayerIndex
from planyard.core.units import format_bytes

HEAD_BYTES = 4096
_DIGEST_BYTES = 16
_EMPTY = blake3().hexdigest(_DIGEST_BYTES)
Piece: TypeAlias = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a layer may be; more is a DamagedTarError while it is read, not after.

    The ratio of unpacked to compressed bytes counts from `free_bytes` of tar on.
    """

    unpacked_bytes: int = 64 << 30
    members: int = 500_000
    ratio: int = 500
    free_bytes: int = 16 << 20


LIMITS = Limits()


class Watch(Protocol):
    """Looks at the content of one file while it streams past."""

    def feed(self, piece: Piece, /) -> None:
        """Look at the next bytes; they are gone after this."""

    def finish(self) -> FileFacts:
        """What was seen."""


class WatchFile(Protocol):
    """Decides whether a file is of interest."""

    def __call__(self, path: str, *, size_bytes: int, head: bytes) -> Watch | None:
        """A watch for a file that begins with `head`, or None."""


def no_facts(path: str, *, size_bytes: int, head: bytes) -> None:
    """Watch nothing."""


class LayerReader:
    """Reads one uncompressed layer tar, piece by piece. Every limit and damage raises at once."""

    def __init__(self, *, watch: WatchFile, limits: Limits = LIMITS) -> None:
        self._watch_file, self._limits = watch, limits
        self._at = 0
        self._partial = bytearray()
        self._left = 0  # bytes of the current content
        self._skip = 0  # bytes to the next block
        self._take: Callable[[memoryview], None] = _ignore
        self._end_content: Callable[[], None] = _nothing
        self._ended = False
        self._behind = 0
        self._began = -1  # where the current member begins, its extensions included
        self._sparse: Header | None = None
        self._pax: dict[bytes, bytes] = {}
        self._long: dict[int, bytes] = {}
        self._found = Found()
        self.unpacked_bytes = 0

    @property
    def position(self) -> int:
        """How many bytes of tar were given."""
        return self._at

    def feed(self, piece: Piece) -> None:
        """Read the next bytes of the tar."""
        view = memoryview(piece)
        offset, size = 0, len(view)
        while offset < size:
            if self._left:
                part = view[offset : offset + self._left]
                self._left -= len(part)
                offset += len(part)
                self._take(part)
                if not self._left:
                    self._end_content()
            elif self._skip:
                step = min(self._skip, size - offset)
                self._skip -= step
                offset += step
            elif self._ended:
                rest = bytes(view[offset:])
                self._behind += len(rest) - rest.count(0)
                offset = size
            else:
                step = min(BLOCK_BYTES - len(self._partial), size - offset)
                self._partial += view[offset : offset + step]
                offset += step
                if len(self._partial) == BLOCK_BYTES:
                    block = bytes(self._partial)
                    self._partial.clear()
                    self._block(block, at=self._at + offset - BLOCK_BYTES)
        self._at += size

    def finish(self, *, digest: str, diff_id: str, pulls: PullMap) -> LayerIndex:
        """The index, once everything was fed; raises for a tar that breaks off."""
        if self._left or self._skip or self._partial or self._began >= 0:
            raise DamagedTarError(f"its tar breaks off after {self._at} bytes")
        if self._behind:
            self._found.problem("data stands behind the end of the tar")
        return self._found.index(digest=digest, diff_id=diff_id, pulls=pulls)

    def _block(self, block: bytes, *, at: int) -> None:
        if self._sparse:
            if not block[504]:  # the last block of the map
                self._member(self._sparse, at=at)
            return
        if block.count(0) == BLOCK_BYTES:
            self._ended = True
            return
        header = tar.read_header(block, at=at)
        if self._began < 0:
            self._began = at
        if header.more:
            self._sparse = header
            return
        self._skip = -header.size_bytes % BLOCK_BYTES
        if header.type in tar.EXTENSIONS:
            self._extension(header, at=at)
        else:
            self._member(header, at=at)

    def _extension(self, header: Header, *, at: int) -> None:
        """What belongs to the next member: a pax header or a long name, kept until it is whole."""
        if header.size_bytes > tar.EXTENSION_LIMIT_BYTES:
            raise DamagedTarError(
                f"the pax header at byte {at} of its tar says it has "
                f"{format_bytes(header.size_bytes)}: {format_bytes(tar.EXTENSION_LIMIT_BYTES)} is "
                "the limit"
            )
        data = bytearray()

        def end() -> None:
            if header.type in (tar.PAX, tar.PAX_OLD):
                self._pax |= tar.read_pax(bytes(data), at=at)
            elif header.type == tar.PAX_GLOBAL:
                # A runtime applies none of these; a tool that does would see another layer.
                if {b"path", b"linkpath", b"size"} & tar.read_pax(bytes(data), at=at).keys():
                    self._found.problem("a global pax header names a path or a size")
            else:
                self._long[header.type] = bytes(data).partition(b"\0")[0]

        self._content(header.size_bytes, data.extend, end)

    def _content(
        self, size_bytes: int, take: Callable[[memoryview], None], end: Callable[[], None]
    ) -> None:
        self._left, self._take, self._end_content = size_bytes, take, end
        if not size_bytes:
            end()

    def _member(self, header: Header, *, at: int) -> None:
        pax, long, self._sparse = self._pax, self._long, None
        if pax or long:
            self._pax, self._long = {}, {}
            header = header._replace(
                name=long.get(tar.LONG_NAME, header.name), link=long.get(tar.LONG_LINK, header.link)
            )
            header = tar.with_extensions(header, pax, at=at)
        if max(len(header.name), len(header.link)) > tar.PATH_LIMIT_BYTES:
            raise DamagedTarError(f"the name at byte {at} of its tar is longer than a path can be")
        self._skip = -header.size_bytes % BLOCK_BYTES
        self.unpacked_bytes += header.size_bytes
        if self.unpacked_bytes > self._limits.unpacked_bytes:
            limit = format_bytes(self._limits.unpacked_bytes)
            raise DamagedTarError(f"its files have more than {limit}, the limit")
        if len(self._found.members) >= self._limits.members:
            raise DamagedTarError(f"it has more than {self._limits.members} members, the limit")
        until = at + BLOCK_BYTES + header.size_bytes + self._skip
        member = self._found.member(header, pax, began=self._began, until=until)
        self._began = -1
        if member is not None and header.size_bytes:
            body = _Body(member, found=self._found, watch_file=self._watch_file)
            self._content(header.size_bytes, body.take, body.end)
        else:
            self._content(header.size_bytes, _ignore, _nothing)
            if member is not None and member.kind == "file":
                member.digest = _EMPTY


def _ignore(_: memoryview) -> None:
    """Content that nobody looks at."""


def _nothing() -> None:
    """An end that changes nothing."""


class _Body:
    """The content of a file: digested, and shown to a watch that its head decides on."""

    def __init__(self, member: Member, *, found: Found, watch_file: WatchFile) -> None:
        self._member, self._found, self._watch_file = member, found, watch_file
        self._blake3 = blake3()
        self._head: bytearray | None = bytearray()
        self._watch: Watch | None = None

    def take(self, piece: memoryview) -> None:
        self._blake3.update(piece)
        if self._head is None:
            if self._watch:
                self._watch.feed(piece)
            return
        size = self._member.header.size_bytes
        wanted = min(HEAD_BYTES, size)
        if self._head or len(piece) < wanted:
            missing = wanted - len(self._head)
            self._head += piece[:missing]
            if len(self._head) < wanted:
                return
            head = bytes(self._head)
            pieces: list[Piece] = [head, piece[missing:]]
        else:
            head = bytes(piece[:wanted])
            pieces = [piece]
        self._head = None
        self._watch = self._watch_file(self._member.path, size_bytes=size, head=head)
        if self._watch:
            for each in pieces:
                if len(each):
                    self._watch.feed(each)

    def end(self) -> None:
        self._member.digest = self._blake3.hexdigest(_DIGEST_BYTES)
        if self._watch:
            self._found.add_facts(self._member.path, self._watch.finish())
