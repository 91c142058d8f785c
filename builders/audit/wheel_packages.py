"""Python packages of an image by the metadata their installers left: RECORD, METADATA, egg-info."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator, Mapping

from builders.audit.debian_packages import FoundPackage
from planyard.core.contents import Owner, PackageFound

_METADATA = ".dist-info/METADATA"
_EGGS = (".egg-info/PKG-INFO", ".egg-info")
_CLASSIFIER = "License :: "
_LONGEST_LICENCE = 200
"""Longer ones are the licence's text, which names nothing."""


def wheel_packages(texts: Mapping[str, str]) -> Iterator[FoundPackage]:
    """The packages that these texts tell of; a claim that ends in `/` is of all below it."""
    for path, text in texts.items():
        if not path.endswith((_METADATA, *_EGGS)):
            continue
        folder = posixpath.dirname(path) if path.count("-info/") else ""
        fields = _fields(text)
        name = fields.get("name", [""])[0]
        if not name:
            continue
        site = posixpath.dirname(folder or path)
        package = PackageFound(
            owner=Owner(
                kind="wheel",
                name=re.sub(r"[-_.]+", "-", name).lower(),
                version=fields.get("version", [""])[0],
            ),
            source=path,
            licences=_licences(fields),
            homepage=_homepage(fields),
        )
        paths = list(_claims(texts, folder=folder, site=site))
        yield FoundPackage(package, [path, *([f"{folder}/"] if folder else []), *paths])


def _claims(texts: Mapping[str, str], *, folder: str, site: str) -> Iterator[str]:
    """What the installer wrote down; where it did not, the packages' own folders and modules."""
    record = texts.get(f"{folder}/RECORD")
    if record is not None:
        yield from (_joined(site, name) for name in _record_names(record))
        return
    installed = texts.get(f"{folder}/installed-files.txt")
    if installed is not None:
        yield from (_joined(folder, name) for name in installed.splitlines() if name)
        return
    for name in texts.get(f"{folder}/top_level.txt", "").split():
        yield _joined(site, f"{name}.py")
        yield _joined(site, name) + "/"


def _record_names(record: str) -> Iterator[str]:
    if '"' in record:
        try:
            yield from (row[0] for row in csv.reader(record.splitlines()) if row)
        except csv.Error:  # a line longer than csv takes, or a NUL
            return
    else:
        for line in record.splitlines():
            yield line.rsplit(",", 2)[0]


def _joined(folder: str, name: str) -> str:
    path = posixpath.join(folder, name)
    return posixpath.normpath(path) if ".." in path or "//" in path or "/./" in path else path


def _fields(text: str) -> dict[str, list[str]]:
    """The headers of METADATA or PKG-INFO, by lower-case name; the description is left out."""
    found: dict[str, list[str]] = {}
    last: list[str] = []
    for line in text.splitlines():
        if not line:
            break
        if line[0] in " \t":
            if last:
                last[-1] += "\n" + line.strip()
            continue
        name, colon, value = line.partition(":")
        if colon:
            last = found.setdefault(name.lower(), [])
            last.append(value.strip())
    return found


def _licences(fields: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The expression, else the words of the licence field, else those of the classifiers."""
    for key in ("license-expression", "license"):
        said = [
            value
            for value in fields.get(key, [])
            if value.strip() and "\n" not in value and len(value) <= _LONGEST_LICENCE
        ]
        if said and said[0].upper() != "UNKNOWN":
            return (said[0],)
    classified = [
        value.rsplit(" :: ", 1)[1]
        for value in fields.get("classifier", [])
        if value.startswith(_CLASSIFIER) and not value.endswith(":: OSI Approved")
    ]
    return tuple(sorted(set(classified)))


def _homepage(fields: Mapping[str, list[str]]) -> str:
    for value in fields.get("home-page", []):
        if value and value.upper() != "UNKNOWN":
            return value
    urls = [value.partition(",") for value in fields.get("project-url", [])]
    by_label = {label.strip().lower(): url.strip() for label, _, url in urls}
    wanted = ("homepage", "home", "source", "repository", "source code")
    return next((by_label[each] for each in wanted if by_label.get(each)), "")
