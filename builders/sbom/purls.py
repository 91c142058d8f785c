"""Package URLs: names that every tool for bills of materials understands.

https://github.com/package-url/purl-spec. What stands in them comes from the image and is not
trusted: the library escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from builders.audit.contents import ImageContents
from builders.audit.visible import visible
from planyard.core.contents import Owner
from planyard.core.digest import is_digest

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_WORD = re.compile(r"[A-Za-z0-9._]{1,40}")
_ADDRESS = re.compile(
    r"https?://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,5}(:\d{1,5})?(/[!-~]*)?"
)
_NOT_IN_ADDRESS = re.compile(r"[\"<>\\^`{|}\[\]]|%(?![0-9A-Fa-f]{2})|#.*#")
_LONGEST = 200


class Release(NamedTuple):
    """Whose Debian packages these are: `debian` and `debian-12`, or `debian` and `bookworm`."""

    vendor: str = "debian"
    name: str = ""


def release_of(contents: ImageContents, *, otherwise: str = "") -> Release:
    """The distribution by the image's own word; `otherwise` is the build's, of a Debian base.

    `debian-12` is the form that scanners know, from ID and VERSION_ID of os-release.
    """
    for path in _OS_RELEASE:
        fields = _fields(contents.texts.get(contents.real_path(path), ""))
        vendor, version = fields.get("ID", ""), fields.get("VERSION_ID", "")
        if _WORD.fullmatch(vendor) and _WORD.fullmatch(version):
            return Release(vendor.lower(), f"{vendor.lower()}-{version}")
    return Release(name=otherwise)


def _fields(text: str) -> Mapping[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, _, value in lines}


def package_purl(owner: Owner, release: Release, *, architecture: str = "") -> str:
    """`pkg:deb/debian/zlib1g@1%3A1.2.13?arch=amd64&distro=debian-12`, `pkg:pypi/numpy@2.4.6`."""
    from packageurl import PackageURL

    name = visible(owner.name, limit=_LONGEST) or "unnamed"
    version = visible(owner.version, limit=_LONGEST) or None
    if owner.kind == "wheel":
        return PackageURL(type="pypi", name=name, version=version).to_string()
    qualifiers = {"arch": visible(architecture, limit=40), "distro": release.name}
    return PackageURL(
        type="deb",
        namespace=release.vendor,
        name=name,
        version=version,
        qualifiers={key: value for key, value in qualifiers.items() if value} or None,
    ).to_string()


def image_purl(contents: ImageContents, *, has_manifest: bool) -> str:
    """`pkg:oci/ort-cpu@sha256%3A…?arch=amd64`."""
    from packageurl import PackageURL

    name = visible(contents.name, limit=_LONGEST).rpartition("/")[2].partition(":")[0]
    architecture = contents.config.get("architecture")
    is_named = isinstance(architecture, str) and _WORD.fullmatch(architecture)
    return PackageURL(
        type="oci",
        name=name.lower() or "image",
        version=contents.image if has_manifest and is_digest(contents.image) else None,
        qualifiers={"arch": str(architecture)} if is_named else None,
    ).to_string()


def checked_address(homepage: str) -> str:
    """The homepage if it is an address that both formats take; else nothing."""
    is_good = _ADDRESS.fullmatch(homepage) and not _NOT_IN_ADDRESS.search(homepage)
    return homepage if is_good and len(homepage) <= 500 else ""
