"""Whether every ELF file of an image finds the libraries it names: a loader without running it.

Only the driver's own libraries may be missing: the container runtime mounts them from the host.
Libraries that a program opens at run time are in no header; the matrix names them
(`lazy_libraries`) and they are held to the same rule.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator, Mapping, Sequence

from builders.audit.contents import ImageContents
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


def image_closure(contents: ImageContents, *, lazy_libraries: Sequence[str]) -> tuple[Finding, ...]:
    """The findings of an image in the environment that its own configuration gives it."""
    found = contents.settings.get("Env")
    variables = found if isinstance(found, list) else ()
    return check_closure(
        contents,
        image=contents.name,
        environment=dict(str(entry).partition("=")[::2] for entry in variables),
        lazy_libraries=lazy_libraries,
    )


def check_closure(
    contents: ImageContents,
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
    contents: ImageContents, library_path: list[str], lazy_libraries: Sequence[str]
) -> Iterator[tuple[str, str, list[str]]]:
    system = [*library_path, *_SYSTEM_FOLDERS]
    for library in lazy_libraries:
        if not _found(contents, library, system):
            yield library, "a program that opens it at run time (lazy_libraries)", system
    reported = set()
    for path, elf in sorted(contents.elf_files.items()):
        origin = posixpath.dirname(path)
        own = [
            folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for folder in elf.search
        ]
        for library in elf.needed:
            if library in reported or _found(contents, library, [*own, *system]):
                continue
            reported.add(library)
            yield library, path, [*own, *system]


def _found(contents: ImageContents, library: str, folders: list[str]) -> bool:
    if any(fnmatch.fnmatchcase(library, pattern) for pattern in DRIVER_LIBRARIES):
        return True
    if library.startswith("/"):
        return contents.exists(library)
    return any(contents.exists(posixpath.join(folder, library)) for folder in folders)
