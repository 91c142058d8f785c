"""Whether every ELF file of an image finds the libraries it names: a loader without running it.

Only the driver's own libraries may be missing: the container runtime mounts them from the host.
Libraries that a program opens at run time are in no header; the matrix names them
(`lazy_libraries`) and they are held to the same rule.
"""

from __future__ import annotations

import fnmatch
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from planyard.core.findings import Finding

# Mounted from the host by nvidia-container-toolkit: they belong to the driver, not to the image.
DRIVER_LIBRARIES = ("libcuda.so.*", "libnvidia-*.so.*", "libnvcuvid.so.*", "libnvoptix.so.*")
_SYSTEM_FOLDERS = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
)
_ELF = b"\x7fELF"
_HOPS = 40  # as many links as the kernel follows


@dataclass(frozen=True, kw_only=True)
class ElfFile:
    """A dynamic ELF file: what it names and where it looks, `$ORIGIN` not yet replaced."""

    path: str
    needed: tuple[str, ...]
    search: tuple[str, ...]


@dataclass
class Contents:
    """The paths of an image and its ELF files, collected layer by layer."""

    paths: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    elf_files: dict[str, ElfFile] = field(default_factory=dict)

    def add_layer(self, layer: IO[bytes]) -> None:
        """Read an uncompressed layer tar; whiteouts take away what lower layers brought.

        They say nothing about their own layer, wherever in it they stand. Nothing is extracted.
        """
        own = Contents()
        hidden, emptied = set(), set()
        with tarfile.open(fileobj=layer, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                path = posixpath.normpath("/" + member.name.strip("/"))
                folder, base = posixpath.split(path)
                if base == ".wh..wh..opq":
                    emptied.add(folder)
                elif base.startswith(".wh."):
                    hidden.add(posixpath.join(folder, base.removeprefix(".wh.")))
                else:
                    own.add_member(path, member, tar)
                    if not member.isdir():
                        emptied.add(path)  # what is no folder has nothing below it
        self._hide(hidden | own.paths, emptied | hidden)
        self.paths |= own.paths
        self.links |= own.links
        self.elf_files |= own.elf_files

    def add_member(self, path: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        """Take in one member; a later one of the same path replaces it."""
        self._forget(path)
        self.paths.add(path)
        if member.issym():
            self.links[path] = member.linkname
        elif member.isreg() and member.size > 64:
            stream = tar.extractfile(member)
            if stream and stream.read(4) == _ELF and (found := read_elf(stream, path=path)):
                self.elf_files[path] = found

    def _forget(self, path: str) -> None:
        self.paths.discard(path)
        self.links.pop(path, None)
        self.elf_files.pop(path, None)

    def _hide(self, replaced: set[str], emptied: set[str]) -> None:
        """Forget these paths, and everything below the `emptied` ones."""
        for path in list(self.paths):
            if path in replaced or any(folder in emptied for folder in _folders_of(path)):
                self._forget(path)

    def exists(self, path: str) -> bool:
        """Whether a file is there, folders' and files' links followed."""
        return self.real_path(path) in self.paths

    def real_path(self, path: str) -> str:
        """`path` with every link in it replaced, as the kernel would; empty for a circle."""
        parts = [part for part in path.split("/") if part]
        resolved, hops = "/", 0
        while parts:
            part = parts.pop(0)
            candidate = posixpath.normpath(posixpath.join(resolved, part))
            target = self.links.get(candidate)
            if target is None:
                resolved = candidate
                continue
            hops += 1
            if hops > _HOPS:
                return ""
            absolute = posixpath.join(resolved, target)
            parts = [each for each in absolute.split("/") if each] + parts
            resolved = "/"
        return resolved


def _folders_of(path: str) -> Iterator[str]:
    """The folders that `path` is in, the nearest first."""
    while path != "/":
        path = posixpath.dirname(path)
        yield path


def read_elf(stream: IO[bytes], *, path: str) -> ElfFile | None:
    """The dynamic section of an ELF file; None for one without (static, object, damaged files)."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    stream.seek(0)
    try:
        segments: Iterator[Any] = ELFFile(stream).iter_segments("PT_DYNAMIC")
        dynamic = next(segments, None)
        if dynamic is None:
            return None
        tags = list(dynamic.iter_tags())
    except (ELFError, AssertionError, OverflowError, ValueError):  # a damaged file
        return None
    needed = tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
    runpath = [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
    rpath = [tag.rpath for tag in tags if tag.entry.d_tag == "DT_RPATH"]
    search = tuple(folder for value in runpath or rpath for folder in value.split(":") if folder)
    return ElfFile(path=path, needed=needed, search=search)


def check_closure(
    contents: Contents,
    *,
    image: str,
    environment: Mapping[str, str],
    lazy_libraries: Sequence[str],
) -> tuple[Finding, ...]:
    """One finding for each library that is named and cannot be found in the image."""
    library_path = [each for each in environment.get("LD_LIBRARY_PATH", "").split(":") if each]
    return tuple(
        Finding(
            gate="image",
            rule="image.library-missing",
            where=image,
            message=f"{library} is not in the image, and {user} needs it",
            evidence=(f"looked in {', '.join(searched[:6])}, …",),
        )
        for library, user, searched in _missing(contents, library_path, lazy_libraries)
    )


def _missing(
    contents: Contents, library_path: list[str], lazy_libraries: Sequence[str]
) -> Iterator[tuple[str, str, list[str]]]:
    system = [*library_path, *_SYSTEM_FOLDERS]
    for library in lazy_libraries:
        if not _found(contents, library, system):
            yield library, "a program that opens it at run time (lazy_libraries)", system
    reported = set()
    for elf in sorted(contents.elf_files.values(), key=lambda each: each.path):
        origin = posixpath.dirname(elf.path)
        own = [
            folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for folder in elf.search
        ]
        for library in elf.needed:
            if library in reported or _found(contents, library, [*own, *system]):
                continue
            reported.add(library)
            yield library, elf.path, [*own, *system]


def _found(contents: Contents, library: str, folders: list[str]) -> bool:
    if any(fnmatch.fnmatchcase(library, pattern) for pattern in DRIVER_LIBRARIES):
        return True
    if library.startswith("/"):
        return contents.exists(library)
    return any(contents.exists(posixpath.join(folder, library)) for folder in folders)
