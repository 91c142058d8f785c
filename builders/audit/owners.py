"""Who each file of an image belongs to: the package whose own metadata, in the image, claims it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
