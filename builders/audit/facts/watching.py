"""Watches one regular file of a layer while it streams past, and says what it found.

Most files say nothing and are not watched. Nothing here raises on bytes, whatever they are, and
what is kept of a file is bounded: 41 MiB of an ELF file, a few KiB of a text.
"""

from __future__ import annotations

from builders.audit.facts import FileFacts
from builders.audit.facts.elf import ElfWatch
from builders.audit.facts.elf_header import ELF_MAGIC, ElfHeader, read_header
from builders.audit.facts.gpu_code import FAT_MAGIC, GpuWatch, cubin_target
from builders.audit.facts.gpu_targets import gpu_code
from builders.audit.facts.package_texts import keeps_text
from builders.audit.facts.secret_rules import SecretWatch
from planyard.core.contents import ElfFacts, GpuCode


def watch(path: str, *, size_bytes: int, head: bytes) -> Watch | None:
    """A watch for a regular file, or None for one that has nothing to say.

    `path` is absolute; `head` are the file's first up to 4096 bytes, which are fed as well.
    """
    if size_bytes <= 0:
        return None
    if head.startswith((ELF_MAGIC, FAT_MAGIC)):
        return Watch(path, size_bytes=size_bytes, head=head, binary=True)
    keeps = keeps_text(path, size_bytes=size_bytes)
    # A NUL is what grep goes by, too.
    if keeps or b"\0" not in head:
        return Watch(path, size_bytes=size_bytes, head=head, text=keeps)
    return None


class Watch:
    """One file that streams past: `feed` every byte in order, then `finish` once."""

    def __init__(
        self, path: str, *, size_bytes: int, head: bytes, binary: bool = False, text: bool = False
    ) -> None:
        self._size = size_bytes
        self._at = 0
        self._header = read_header(head) if binary else None
        self._elf = ElfWatch(self._header, head) if self._header else None
        self._gpu = GpuWatch(size_bytes) if binary else None
        self._secrets = None if binary else SecretWatch(path)
        self._text: list[bytes] | None = [] if text else None

    def feed(self, piece: bytes | memoryview, /) -> None:
        """The next bytes, of any number."""
        if self._elf:
            self._elf.feed(piece, self._at)
        if self._gpu:
            self._gpu.feed(piece, self._at)
        self._at += len(piece)
        if self._secrets:
            data = bytes(piece)  # a view may change after this
            self._secrets.feed(data)
            if self._text is not None and self._at <= self._size:  # more is not kept
                self._text.append(data)

    def finish(self) -> FileFacts:
        """What the file says."""
        return FileFacts(
            elf=self._elf_facts(),
            text=None if self._text is None else b"".join(self._text).decode("utf-8", "replace"),
            secrets=self._secrets.finish() if self._secrets else (),
        )

    def _elf_facts(self) -> ElfFacts | None:
        found = self._elf.finish() if self._elf else None
        gpu = _whole_cubin(self._header, self._size) or (self._gpu.finish() if self._gpu else None)
        if gpu is None:
            return found
        named = found or ElfFacts()
        return ElfFacts(needed=named.needed, search=named.search, soname=named.soname, gpu=gpu)


def _whole_cubin(header: ElfHeader | None, size_bytes: int) -> GpuCode | None:
    """The code of a file that is one cubin, as libraries load them by name."""
    target = cubin_target(header) if header else None
    if target is None:
        return None
    return gpu_code({target: size_bytes}, sure=True, fat_binaries=0, cubins=1, unread=0)
