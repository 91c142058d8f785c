"""What an image is made of, as one value that both formats are written from. Pure.

Packages are known from three places: their own metadata in the image, the lock of wheels and the
Debian packages that the build's base was resolved to. Each says how it is known. What no package
claims is one component, the project's own files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import msgspec

from builders.audit.contents import ImageContents
from builders.audit.debian_packages import debian_licences
from builders.audit.diff import normal_name
from builders.audit.owners import PROJECT, Ownership
from builders.audit.visible import visible
from builders.sbom.licences import Licence, licences_of
from builders.sbom.purls import Release, checked_address, image_purl, package_purl, release_of
from builders.wheels import Requirement
from planyard.core.contents import Owner, PackageFound
from planyard.core.digest import digest_of_value, is_digest
from planyard.core.results import Package

UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""Where a configuration does not say when the image was made: both formats want a time."""

_KNOWN = {"debian": "the packages of the build's base", "wheel": "the build's lock"}


class BuildInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a build knows of an image beside its files: packages of its base, its lock of wheels.

    `release` is the Debian release of the base, like `bookworm`.
    """

    base: tuple[Package, ...] = ()
    wheels: tuple[Requirement, ...] = ()
    release: str = ""


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """A package, or the project's own files.

    `sha256` is that of the package file that was installed, if the build knows it; `known` says how
    it is known that the image has it; `layer` is the digest of the layer with its metadata.
    """

    ref: str
    kind: Literal["debian", "wheel", "project"]
    name: str
    version: str = ""
    purl: str = ""
    licences: tuple[Licence, ...] = ()
    sha256: str = ""
    homepage: str = ""
    known: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    layer: str = ""
    description: str = ""
    is_contained: bool = True
    """False for what only the build names: pip, in a stage that installs, or a removed package."""


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """An image and its parts. Equal bills give equal documents, to the byte.

    `sha256` is that of the manifest, empty for an image that has none.
    """

    image: str
    name: str
    sha256: str
    purl: str
    created: str
    layers: tuple[str, ...]
    components: tuple[Component, ...]
    planyard_version: str

    @property
    def identity(self) -> str:
        """A digest of all of it: documents that differ in anything have other names."""
        return digest_of_value(msgspec.to_builtins(self))


def bill_of(
    contents: ImageContents,
    owners: Ownership,
    *,
    planyard_version: str,
    inputs: BuildInputs | None = None,
    has_manifest: bool = True,
) -> Bill:
    """The bill of an image; `inputs` for one that was built here.

    Without a manifest (`has_manifest`), `contents.image` is no digest that a registry serves.
    """
    known = inputs or BuildInputs()
    release = release_of(contents, otherwise=known.release)
    packages = [
        *_in_image(contents, owners, inputs=known, release=release),
        *_only_in_build(contents, owners, inputs=known, release=release),
    ]
    packages.sort(key=lambda each: (each.kind, each.name, each.version, each.ref))
    return Bill(
        image=contents.image,
        name=visible(contents.name) or "image",
        sha256=sha256_of(contents.image) if has_manifest else "",
        purl=image_purl(contents, has_manifest=has_manifest),
        created=time_of(contents.config.get("created")),
        layers=tuple(dict.fromkeys(layer.digest for layer in contents.layers)),
        components=(*packages, *_project(contents, owners)),
        planyard_version=planyard_version,
    )


def sha256_of(digest: str) -> str:
    """The hex digits of a digest; nothing for what is none, like the path of an archive."""
    return digest[7:] if is_digest(digest) else ""


def time_of(created: object) -> str:
    """A time of an image configuration, in UTC and whole seconds; 1970 for none that is valid."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", str(created))
    try:
        moment = datetime.fromisoformat(match[1] + match[3]).astimezone(UTC) if match else None
    except (ValueError, OverflowError):
        moment = None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment and moment.year >= 1000 else UNKNOWN_TIME


# Packages that the image itself names


@dataclass
class _Copies:
    """One package and every place where its metadata lies."""

    owner: Owner
    found: list[PackageFound] = field(default_factory=list)

    def first(self, name: str) -> str:
        """The first copy's word on something, of those that have one."""
        return next((said for each in self.found if (said := getattr(each, name))), "")


def _in_image(
    contents: ImageContents, owners: Ownership, *, inputs: BuildInputs, release: Release
) -> Iterator[Component]:
    copies: dict[tuple[str, str, str], _Copies] = {}
    for package in owners.packages:
        copies.setdefault(_key(package.owner), _Copies(package.owner)).found.append(package)
    hashes = _hashes(inputs)
    for key, each in copies.items():
        paths = sorted({package.source for package in each.found})
        layers = [contents.visible[path].layer for path in paths if path in contents.visible]
        yield _component(
            each.owner,
            purl=package_purl(each.owner, release, architecture=each.first("architecture")),
            licences=licences_of([said for package in each.found for said in package.licences]),
            sha256=hashes.get(key, ""),
            homepage=checked_address(each.first("homepage")),
            known=("metadata in the image", *([_KNOWN[each.owner.kind]] if key in hashes else [])),
            paths=tuple(map(visible, paths)),
            layer=contents.layers[layers[0]].digest if layers else "",
        )


def _only_in_build(
    contents: ImageContents, owners: Ownership, *, inputs: BuildInputs, release: Release
) -> Iterator[Component]:
    """Packages that only the build names: they were used and are gone, but for their licences.

    An image that names no Debian package at all has lost its database: there, all of the base is.
    """
    there = {_key(package.owner) for package in owners.packages}
    is_without_database = not any(package.owner.kind == "debian" for package in owners.packages)
    hashes = _hashes(inputs)
    for owner in _owners_of(inputs):
        if _key(owner) in there:
            continue
        is_debian = owner.kind == "debian"
        is_contained = is_debian and is_without_database
        path = contents.real_path(f"/usr/share/doc/{owner.name}/copyright") if is_debian else ""
        text = contents.texts.get(path, "")
        yield _component(
            owner,
            purl=package_purl(owner, release),
            licences=licences_of(debian_licences(text)),
            sha256=hashes[_key(owner)],
            known=(_KNOWN[owner.kind] + ("" if is_contained else " alone"),),
            paths=(path,) if text else (),
            layer=contents.layers[contents.visible[path].layer].digest if text else "",
            is_contained=is_contained,
        )


def _hashes(inputs: BuildInputs) -> dict[tuple[str, str, str], str]:
    """The sha256 of each package file that the build took; empty where it may be one of several."""
    sums = [each.sha256 for each in inputs.base]
    sums += [each.sha256[0] if len(each.sha256) == 1 else "" for each in inputs.wheels]
    return dict(zip(map(_key, _owners_of(inputs)), sums, strict=True))


def _owners_of(inputs: BuildInputs) -> list[Owner]:
    found = [Owner(kind="debian", name=each.name, version=each.version) for each in inputs.base]
    found += [Owner(kind="wheel", name=each.name, version=each.version) for each in inputs.wheels]
    return found


def _key(owner: Owner) -> tuple[str, str, str]:
    return owner.kind, normal_name(owner), owner.version


# Everything else


def _project(contents: ImageContents, owners: Ownership) -> Iterator[Component]:
    """The files that no package claims, together."""
    sizes = [
        placed.file.size_bytes
        for path, placed in contents.visible.items()
        if placed.file.kind == "file" and owners.owner_of(path) == PROJECT
    ]
    if sizes:
        yield Component(
            ref="project-files",
            kind="project",
            name=f"{visible(contents.name) or 'image'} files",
            known=("files in the image that no package claims",),
            description=f"{len(sizes)} files, {sum(sizes)} bytes, that no package claims",
        )


def _component(
    owner: Owner,
    *,
    purl: str,
    known: tuple[str, ...],
    licences: tuple[Licence, ...] = (),
    sha256: str = "",
    homepage: str = "",
    paths: tuple[str, ...] = (),
    layer: str = "",
    is_contained: bool = True,
) -> Component:
    """A package, under a name that no other one of this image has."""
    kind: Literal["debian", "wheel"] = "debian" if owner.kind == "debian" else "wheel"
    name = visible(owner.name, limit=200) or "unnamed"
    distinct = "\0".join(_key(owner)).encode("utf-8", "surrogatepass")
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", name[:60]).strip("-")
    return Component(
        ref=f"{kind}-{stem}-{hashlib.sha256(distinct).hexdigest()[:12]}",
        kind=kind,
        name=name,
        version=visible(owner.version, limit=200),
        purl=purl,
        licences=licences,
        sha256=sha256,
        homepage=homepage,
        known=known,
        paths=paths,
        layer=layer,
        is_contained=is_contained,
    )
