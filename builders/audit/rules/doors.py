"""Ways into a running container, or out of it: shells, package managers, file modes, devices."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator

from builders.audit.contents import ImageContents
from builders.audit.rules.found import Found, Place
from planyard.core.contents import LayerFile

_PROGRAM_FOLDERS = frozenset(
    f"{root}/{name}" for root in ("", "/usr", "/usr/local", "/opt") for name in ("bin", "sbin")
)
SHELLS = frozenset(
    {"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "mksh", "csh", "tcsh", "fish", "toybox"}
)
PACKAGE_MANAGERS = frozenset(
    {
        *("apt", "apt-get", "dpkg", "apk", "yum", "dnf", "microdnf", "rpm", "zypper", "pacman"),
        *("pip", "pip3", "pipx", "uv", "poetry", "conda", "mamba", "micromamba", "npm", "gem"),
    }
)
_PIP = (
    "*/*-packages/pip/__main__.py",
    "*/ensurepip/_bundled/pip-*.whl",
    "*/share/python-wheels/pip-*",
)
_SETUID, _STICKY, _OTHERS_WRITE, _RUN = 0o6000, 0o1000, 0o002, 0o111


def find_doors(contents: ImageContents) -> Iterator[Found]:
    """One finding for each kind of door, with all its places."""
    files = [(path, placed.file) for path, placed in contents.visible.items()]
    yield _found("shell", "a shell is in the image", _programs(contents, SHELLS))
    managers = [*_programs(contents, PACKAGE_MANAGERS), *_pips(files)]
    yield _found("package-manager", "a package manager is in the image", managers)
    for rule, message, test in (
        ("setuid", "setuid or setgid files, {files}", _is_setuid),
        ("capabilities", "files with capabilities, {files}", _is_capable),
        ("world-writable", "everyone may write, {files}", _is_open),
        ("device", "device nodes, {files}", _is_device),
    ):
        yield _found(rule, message, [_place(path, file) for path, file in files if test(file)])
    problems = (each for layer in contents.layers for each in layer.problems)
    yield _found("layer-problem", "members that no image should have", map(Place, problems))


def _found(rule: str, message: str, places: list[Place] | Iterator[Place]) -> Found:
    return Found(rule=rule, message=message, places=tuple(places))


def _programs(contents: ImageContents, names: frozenset[str]) -> list[Place]:
    """Programs of these names in the folders that programs are in, links that lead to one too."""
    found = []
    for path, placed in contents.visible.items():
        folder, name = posixpath.split(path)
        if name not in names or folder not in _PROGRAM_FOLDERS:
            continue
        real = contents.visible.get(contents.real_path(path))
        if real and real.file.kind in ("file", "hardlink") and real.file.mode & _RUN:
            found.append(Place(path, placed.file.size_bytes))
    return found


def _pips(files: list[tuple[str, LayerFile]]) -> Iterator[Place]:
    """pip as a module, which needs no program to be started."""
    for path, file in files:
        if "/pip" in path and any(fnmatch.fnmatchcase(path, pattern) for pattern in _PIP):
            yield Place(path, file.size_bytes)


def _place(path: str, file: LayerFile) -> Place:
    return Place(path, file.size_bytes, f"mode {file.mode & 0o7777:o}, owner {file.uid}:{file.gid}")


def _is_setuid(file: LayerFile) -> bool:
    """On a folder the bits mean something harmless: what group new files get."""
    return file.kind in ("file", "hardlink") and bool(file.mode & _SETUID)


def _is_capable(file: LayerFile) -> bool:
    return file.capabilities


def _is_open(file: LayerFile) -> bool:
    """A link's own mode says nothing; in a sticky folder nobody replaces what is another's."""
    if file.kind in ("link", "device") or not file.mode & _OTHERS_WRITE:
        return False
    return not (file.kind == "folder" and file.mode & _STICKY)


def _is_device(file: LayerFile) -> bool:
    return file.kind == "device"
