"""Files that serve building, testing and reading, and that a running service never opens."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership
from builders.audit.rules.found import Found, Place

_HEADERS = (".h", ".hh", ".hpp", ".hxx", ".h++", ".cuh", ".inl")
_TEST_FOLDERS = frozenset({"test", "tests"})
_DOC_FOLDERS = frozenset({"doc", "docs", "examples", "example", "samples"})
_DOC_ENDS = (".md", ".rst", ".ipynb", ".pdf", ".chm")


def find_leftovers(contents: ImageContents, ownership: Ownership) -> Iterator[Found]:
    """Static archives, headers and bytecode of anyone; tests and documentation of wheels."""

    def of_wheel(path: str) -> bool:
        return ownership.owner_of(path).kind == "wheel"

    def found(rule: str, what: str, test: Callable[[str], bool]) -> Found:
        places = (
            Place(path, placed.file.size_bytes)
            for path, placed in contents.visible.items()
            if placed.file.kind == "file" and test(path)
        )
        return Found(rule=rule, places=tuple(places), message=what)

    yield found("static-archive", "static archives, {files} of {size}", is_archive)
    yield found("header-file", "header files, {files} of {size}", is_header)
    yield found("bytecode", "compiled Python, {files} of {size}", is_bytecode)
    yield found(
        "tests", "tests in wheels, {files} of {size}", lambda path: is_test(path) and of_wheel(path)
    )
    yield found(
        "docs",
        "documentation in wheels, {files} of {size}",
        lambda path: is_document(path) and of_wheel(path),
    )


def is_archive(path: str) -> bool:
    """`libcudart_static.a`."""
    return path.endswith(".a")


def is_header(path: str) -> bool:
    """What C, C++ and CUDA include."""
    return path.endswith(_HEADERS)


def is_bytecode(path: str) -> bool:
    """What Python compiled."""
    return path.endswith((".pyc", ".pyo"))


def is_test(path: str) -> bool:
    """Files in a folder of tests, and what pytest collects."""
    folder, name = posixpath.split(path)
    if name == "conftest.py" or (name.startswith("test_") and name.endswith(".py")):
        return True
    return not _TEST_FOLDERS.isdisjoint(folder.split("/"))


def is_document(path: str) -> bool:
    """Texts for people, but licences and the package's own metadata."""
    folder, name = posixpath.split(path)
    folders = folder.split("/")
    if any(each.endswith((".dist-info", ".egg-info")) for each in folders):
        return False
    if name.lower().startswith(("license", "licence", "copying", "notice", "copyright")):
        return False
    if any(each.lower() in ("licenses", "licences") for each in folders):
        return False
    return name.lower().endswith(_DOC_ENDS) or not _DOC_FOLDERS.isdisjoint(folders)
