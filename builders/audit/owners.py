"""Who each file of an image belongs to: the package whose own metadata, in the image, claims it.

Debian packages come first, then wheels: a module that a Debian package brought is Debian's. What
is visible claims before what later layers hide. A path that two packages claim is the first's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from builders.audit.contents import ImageContents
from builders.audit.debian_packages import FoundPackage, debian_packages
from builders.audit.wheel_packages import wheel_packages
from planyard.core.contents import Owner, PackageFound

PROJECT = Owner(kind="project")
IMAGE = Owner(kind="image")


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """The packages of an image, and the owner of each path that a package claims."""

    packages: tuple[PackageFound, ...] = ()
    claims: Mapping[str, Owner] = field(default_factory=dict)

    def owner_of(self, path: str) -> Owner:
        """The owner of a path; the project where nobody claims it."""
        return self.claims.get(path, PROJECT)


def find_owners(contents: ImageContents) -> Ownership:
    """The packages of an image, and whose each of its files is, in hidden layers too.

    Links belong to whom their target belongs, compiled modules to their sources, and folders to
    the one owner of all that is below them; a folder of several is the image's.
    """
    claiming = _Claiming(contents)
    packages = claiming.claim(contents.texts)
    for number in reversed(range(len(contents.layers))):
        texts = contents.layers[number].texts
        if not all(contents.is_visible(path, layer=number) for path in texts):
            claiming.claim(texts)
    claiming.complete()
    return Ownership(packages=tuple(packages), claims=claiming.claims)


class _Claiming:
    """Claims as they are made; the first one of a path stays."""

    def __init__(self, contents: ImageContents) -> None:
        self._contents = contents
        self._real: dict[str, str] = {}
        self._folders: dict[str, Owner] = {}
        self.claims: dict[str, Owner] = {}

    def claim(self, texts: Mapping[str, str]) -> list[PackageFound]:
        """Enter what packages claim; returns those that are no part of another package."""
        packages = []
        for found in debian_packages(texts, contents=self._contents):
            self._enter(found)
            packages.append(found.package)
        for found in wheel_packages(texts):
            owner = self.claims.get(self._real_place(found.package.source))
            if owner is None or owner.kind != "debian":
                self._enter(found)
                packages.append(found.package)
        return sorted(packages, key=lambda package: (package.owner, package.source))

    def _enter(self, found: FoundPackage) -> None:
        owner, real = found.package.owner, self._real
        for path in found.paths:
            folder, _, name = path.rpartition("/")
            if not name:
                self._folders.setdefault(self._real_place(folder), owner)
                continue
            known = real.get(folder)
            place = self._real_place(path) if known is None else f"{known}/{name}"
            self.claims.setdefault(place, owner)

    def _real_place(self, path: str) -> str:
        """A path with the links of its folders replaced (`/lib` is a link where /usr is merged)."""
        folder, _, name = path.rpartition("/")
        known = self._real.get(folder)
        if known is None:
            known = self._real[folder] = self._contents.real_path(folder).rstrip("/")
        return f"{known}/{name}"

    def complete(self) -> None:
        """Find owners for what no package lists by itself: links, compiled modules, folders."""
        claims = self.claims
        folders, links = [], []
        for layer in self._contents.layers:
            for file in layer.files:
                if file.kind == "folder":
                    folders.append(file.path)
                elif file.path not in claims:
                    owner = self._by_neighbours(file.path)
                    if owner is not None:
                        claims[file.path] = owner
                    elif file.kind in ("link", "hardlink"):
                        links.append(file)
        for file in links:
            at = file.path if file.kind == "link" else file.link
            owner = claims.get(self._contents.real_path(at))
            if owner is not None:
                claims[file.path] = owner
        single = self._single_owners()
        for folder in folders:
            claims[folder] = single.get(folder) or self._by_neighbours(folder) or IMAGE

    def _by_neighbours(self, path: str) -> Owner | None:
        """The owner of a module's source, or of the whole folder that a path lies in."""
        folder, _, name = path.rpartition("/")
        if folder.endswith("/__pycache__") and name.endswith(".pyc"):
            owner = self.claims.get(f"{folder[:-12]}/{name.partition('.')[0]}.py")
            if owner is not None:
                return owner
        if self._folders:
            for above in _folders_of(path):
                if above in self._folders:
                    return self._folders[above]
        return None

    def _single_owners(self) -> dict[str, Owner | None]:
        """For each folder with files below it their one owner, None where there are several."""
        single: dict[str, Owner | None] = {}
        for path in self._files():
            owner: Owner | None = self.claims.get(path, PROJECT)
            for folder in _folders_of(path):
                seen = single.setdefault(folder, owner)
                if seen is None:
                    break
                if seen != owner:
                    single[folder] = owner = None
        return single

    def _files(self) -> Iterable[str]:
        return (
            file.path
            for layer in self._contents.layers
            for file in layer.files
            if file.kind != "folder"
        )


def _folders_of(path: str) -> Iterator[str]:
    """The folders that a path is in, the nearest first; not the root."""
    while path := path.rpartition("/")[0]:
        yield path
