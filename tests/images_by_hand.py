"""Images made of values alone, without a tar: for tests of what is said about images."""

from __future__ import annotations

from typing import Any

from blake3 import blake3

from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership
from planyard.core.contents import LayerFile, LayerIndex, Owner, PackageFound
from planyard.core.digest import digest_of_bytes

HEADER_BYTES = 10
"""What each member weighs in the compressed layer beside a tenth of its content."""
REST_BYTES = 7
METADATA_BYTES = 500


def a_file(path: str, content: bytes = b"", *, size: int | None = None, **fields: Any) -> LayerFile:
    """A regular file; `size` stands for content that nobody needs to hold."""
    size_bytes = len(content) if size is None else size
    given = {
        "kind": "file",
        "size_bytes": size_bytes,
        "pull_bytes": HEADER_BYTES + size_bytes // 10,
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "digest": blake3(content + str(size).encode()).hexdigest()[:32],
    }
    return LayerFile(path=path, **{**given, **fields})


def a_link(path: str, target: str) -> LayerFile:
    return a_file(path, size=0, kind="link", link=target, digest="")


def a_folder(path: str) -> LayerFile:
    return a_file(path, size=0, kind="folder", digest="", mode=0o755)


def a_layer(*files: LayerFile, seed: str = "", **fields: Any) -> LayerIndex:
    """A layer whose sums are right."""
    text = (seed + repr(files) + repr(fields)).encode()
    return LayerIndex(
        digest=digest_of_bytes(text),
        diff_id=digest_of_bytes(text + b"diff"),
        pull_bytes=sum(file.pull_bytes for file in files) + REST_BYTES,
        unpacked_bytes=sum(file.size_bytes for file in files if file.kind == "file"),
        rest_bytes=REST_BYTES,
        files=files,
        **fields,
    )


def an_image(
    *layers: LayerIndex, name: str = "app", config: dict[str, Any] | None = None, **fields: Any
) -> ImageContents:
    """An image whose digest follows from its layers and configuration."""
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2025-01-02T03:04:05Z",
        "config": {"User": "65532:65532"},
        **(config or {}),
    }
    text = repr([layer.digest for layer in layers]).encode() + repr(whole).encode(
        "utf-8", "backslashreplace"
    )
    given = {
        "image": digest_of_bytes(text),
        "name": name,
        "config": whole,
        "layers": layers,
        "created_by": tuple("COPY" for _ in layers),
        "metadata_bytes": METADATA_BYTES,
    }
    return ImageContents(**{**given, **fields})


def debian(name: str, version: str) -> Owner:
    return Owner(kind="debian", name=name, version=version)


def wheel(name: str, version: str) -> Owner:
    return Owner(kind="wheel", name=name, version=version)


def found(owner: Owner, *, source: str = "", **fields: Any) -> PackageFound:
    return PackageFound(owner=owner, source=source or f"/meta/{owner.name}", **fields)


def owned(claims: dict[str, Owner] | None = None, *packages: PackageFound) -> Ownership:
    """Who owns which path; the packages are those given, else one for each owner."""
    owners = dict.fromkeys((claims or {}).values())
    return Ownership(packages=packages or tuple(map(found, owners)), claims=claims or {})
