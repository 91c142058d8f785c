"""What an image holds, as frozen values: the files of each layer, packages, owners, findings.

A layer index is everything an audit needs of a layer, so that a layer is read once. Paths are
absolute and in normal form (`/usr/lib/x.so`); sizes are bytes. Pull sizes are shares of the
compressed layer, and add up to it exactly.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from planyard.core.findings import Finding

LAYER_INDEX_VERSION = 1
"""Raised when a newer reader finds more in a layer: older indexes are made anew."""
AUDIT_SCHEMA = 1
IMAGE_DIFF_SCHEMA = 1

FileKind = Literal["file", "folder", "link", "hardlink", "device", "pipe"]
OwnerKind = Literal["debian", "wheel", "project", "image"]
"""`project` are files that no package claims, `image` is what is no file: manifest, tar ends."""


class LayerFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One member of a layer. `pull_bytes` is its share of the compressed layer, header included.

    `link` is a symbolic link's target as written, or the path a hard link shares. `digest` is 32
    hex digits of the BLAKE3 of a regular file's content: it finds equal files, and is no identity.
    """

    path: str
    kind: FileKind
    size_bytes: int
    pull_bytes: int
    mode: int
    uid: int
    gid: int
    link: str = ""
    digest: str = ""
    capabilities: bool = False
    """Whether it has file capabilities (the attribute security.capability)."""


class GpuCode(msgspec.Struct, frozen=True, kw_only=True):
    """The SMs a library carries code for, as numbers like 89; `ptx` is compiled by the driver.

    `sure` is False where code may be there that could not be read (compressed containers, other
    forms); `how` says what was read.
    """

    machine: tuple[int, ...] = ()
    ptx: tuple[int, ...] = ()
    code_bytes: int = 0
    sizes: dict[str, int] = {}
    """Bytes by target, in NVIDIA's names: `sm_90a`, `compute_120f`."""
    sure: bool = True
    how: str = ""


class ElfFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an ELF file names: libraries, where it looks (`$ORIGIN` not replaced), its own name."""

    needed: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    soname: str = ""
    gpu: GpuCode | None = None


class SecretHit(msgspec.Struct, frozen=True, kw_only=True):
    """A line that looks like a secret: the rule's id and the 1-based line. Never the secret."""

    rule: str
    line: int


class LayerIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an audit needs of one layer.

    `digest` is that of the layer as stored, `diff_id` of its uncompressed tar. The pull sizes of
    `files` and `rest_bytes` (ends of the tar and of the stream) add up to `pull_bytes`.
    `hidden` are paths that whiteouts take from lower layers, `emptied` folders that begin anew.
    `problems` are members that no image should have: names that lead out, unreadable headers.
    """

    version: int = LAYER_INDEX_VERSION
    digest: str
    diff_id: str
    pull_bytes: int
    unpacked_bytes: int
    rest_bytes: int
    files: tuple[LayerFile, ...]
    hidden: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    elf: dict[str, ElfFacts] = {}
    texts: dict[str, str] = {}
    """Small files that say which package owns what, by path: dpkg's, and wheels' METADATA, RECORD,
    licence files' names are in METADATA; copyright files of Debian packages."""
    secrets: dict[str, tuple[SecretHit, ...]] = {}
    problems: tuple[str, ...] = ()


class Owner(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Who a file belongs to. `project` and `image` have neither name nor version."""

    kind: OwnerKind
    name: str = ""
    version: str = ""


class PackageFound(msgspec.Struct, frozen=True, kw_only=True):
    """A package whose own metadata is in the image: `source` is the path that says so.

    `licences` are SPDX expressions where the metadata allows, else the words that stand there.
    """

    owner: Owner
    source: str
    licences: tuple[str, ...] = ()
    homepage: str = ""
    architecture: str = ""


class OwnerSize(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner weighs in the image, over all layers."""

    owner: Owner
    pull_bytes: int
    unpacked_bytes: int
    files: int


class LayerAudit(msgspec.Struct, frozen=True, kw_only=True):
    """One layer and its owners; `wasted_bytes` are unpacked bytes that later layers hide."""

    digest: str
    created_by: str
    pull_bytes: int
    unpacked_bytes: int
    wasted_bytes: int
    owners: tuple[OwnerSize, ...]


class ImageAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `planyard image audit --json`.

    The owners' sizes add up to the image's, and each layer's to the layer's, to the byte.
    `read_layers` are the layers that were read now; the others were known.
    """

    schema: int = AUDIT_SCHEMA
    image: str
    name: str
    pull_bytes: int
    unpacked_bytes: int
    layers: tuple[LayerAudit, ...]
    owners: tuple[OwnerSize, ...]
    packages: tuple[PackageFound, ...]
    findings: tuple[Finding, ...] = ()
    read_layers: tuple[str, ...] = ()


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner or file weighs before and after, None where it is not there."""

    what: str
    before_bytes: int | None
    after_bytes: int | None
    before_pull_bytes: int | None = None
    after_pull_bytes: int | None = None


class PackageChange(msgspec.Struct, frozen=True, kw_only=True):
    """A package that came, went or has another version; None where it is not there."""

    kind: OwnerKind
    name: str
    before: str | None
    after: str | None


class ImageDiff(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `planyard image diff --json`. `movements` are the ten largest, by owner."""

    schema: int = IMAGE_DIFF_SCHEMA
    before: str
    after: str
    before_pull_bytes: int
    after_pull_bytes: int
    before_unpacked_bytes: int
    after_unpacked_bytes: int
    packages: tuple[PackageChange, ...]
    files_added: int
    files_removed: int
    files_changed: int
    files: tuple[Movement, ...]
    """The largest changes among files, most first."""
    movements: tuple[Movement, ...]
    config: tuple[str, ...] = ()
    """What changed in the configuration: user, entrypoint, environment, labels."""
