"""Debian packages of an image by its own dpkg database, or what of it distroless images keep.

A whole database is `/var/lib/dpkg/status` with a `.list` of paths for each package. Roots that are
only extracted have `/var/lib/dpkg/status.d/` with a file for each package, and its `.md5sums`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from builders.audit.contents import ImageContents
from planyard.core.contents import Owner, PackageFound

_DPKG = "/var/lib/dpkg/"
_STATUS = f"{_DPKG}status"
_STATUS_FOLDER = f"{_DPKG}status.d/"
_FIELD = re.compile(r"^(Package|Version|Architecture|Status|Homepage): *(.*)$", re.MULTILINE)
_MACHINE_READABLE = re.compile(
    r"\A\s*Format(?:-Specification)?:.*(?:copyright-format|dep5)", re.IGNORECASE
)
_LICENCE = re.compile(r"^License: *(\S.*)$", re.MULTILINE | re.IGNORECASE)
_COMMON = re.compile(
    r"/usr/share/common-licenses/((?:A|L)?GPL-[0-9.]*[0-9]|[A-Za-z]+-[0-9.]*[0-9])"
)
_GNU = re.compile(r"((?:A|L)?GPL|GFDL)-([0-9])(?:\.([0-9]))?(\+?)(?:\.0)?")
_NAMES = {
    "expat": "MIT",
    "mit": "MIT",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "apache-2.0": "Apache-2.0",
    "isc": "ISC",
    "zlib": "Zlib",
    "cc0-1.0": "CC0-1.0",
}
"""Short names of Debian's copyright format 1.0 that mean one licence of SPDX's list."""


class FoundPackage:
    """A package and the paths it claims, as its list has them."""

    __slots__ = ("package", "paths")

    def __init__(self, package: PackageFound, paths: list[str]) -> None:
        self.package, self.paths = package, paths


def debian_packages(texts: Mapping[str, str], *, contents: ImageContents) -> Iterator[FoundPackage]:
    """The installed packages that these texts tell of, with absolute paths."""
    for fields in _paragraphs(texts.get(_STATUS, "")):
        if fields.get("Status", "installed").endswith("installed"):
            name = fields["Package"]
            names = (f"{name}:{fields.get('Architecture', '')}", name)
            lists = [f"{_DPKG}info/{each}.list" for each in names]
            paths = next((texts[each].splitlines() for each in lists if each in texts), [])
            yield _found(fields, paths, source=_STATUS, texts=texts, contents=contents)
    for path, text in texts.items():
        if path.startswith(_STATUS_FOLDER) and not path.endswith((".md5sums", ".list")):
            for fields in _paragraphs(text):
                sums = texts.get(f"{path}.md5sums", "")
                paths = [f"/{line[34:]}" for line in sums.splitlines()]
                yield _found(fields, paths, source=path, texts=texts, contents=contents)


def _found(
    fields: dict[str, str],
    paths: list[str],
    *,
    source: str,
    texts: Mapping[str, str],
    contents: ImageContents,
) -> FoundPackage:
    name = fields["Package"]
    own = [f"/usr/share/doc/{name}/copyright", f"{_STATUS_FOLDER}{name}", f"{source}.md5sums"]
    copyright_path = contents.real_path(own[0])
    package = PackageFound(
        owner=Owner(kind="debian", name=name, version=fields.get("Version", "")),
        source=source,
        licences=debian_licences(texts.get(copyright_path, "")),
        homepage=fields.get("Homepage", ""),
        architecture=fields.get("Architecture", ""),
    )
    return FoundPackage(package, [*paths, *(own if source != _STATUS else own[:1])])


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The fields of each paragraph that names a package."""
    for paragraph in text.split("\n\n"):
        fields = dict(_FIELD.findall(paragraph))
        if fields.get("Package"):
            yield fields


def debian_licences(text: str) -> tuple[str, ...]:
    """The licences a copyright file names, sorted; none where nothing can be said.

    In the machine-readable format every licence of every file counts; of others, the licences of
    `/usr/share/common-licenses` that they refer to, in Debian's words.
    """
    if _MACHINE_READABLE.match(text):
        return tuple(sorted({_spdx(words.strip()) for words in _LICENCE.findall(text)}))
    return tuple(sorted(set(_COMMON.findall(text))))


def _spdx(words: str) -> str:
    """A licence of the copyright format in SPDX's words where that is sure, else as it stands."""
    terms = re.split(r" (or|and|OR|AND) ", words)
    translated = [
        term.upper() if number % 2 else _term(term.strip()) for number, term in enumerate(terms)
    ]
    return " ".join(translated) if all(translated) else words


def _term(term: str) -> str:
    known = _NAMES.get(term.lower())
    if known:
        return known
    gnu = _GNU.fullmatch(term)
    if not gnu:
        return term if len(term.split()) == 1 else ""
    family, major, minor, later = gnu.groups()
    return f"{family}-{major}.{minor or 0}-{'or-later' if later else 'only'}"
