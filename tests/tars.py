"""Tars for tests, in memory: layers, roots and docker archives."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"", **fields: Any) -> Member:
    """A regular file; `fields` are those of TarInfo."""
    return entry(name, tarfile.REGTYPE, data, **fields)


def folder(name: str, **fields: Any) -> Member:
    """A folder."""
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str, **fields: Any) -> Member:
    """A symbolic link."""
    return entry(name, tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str, **fields: Any) -> Member:
    """Another name of a file before it."""
    return entry(name, tarfile.LNKTYPE, linkname=target, **fields)


def entry(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> Member:
    """A member of any kind."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(members: Iterable[Member], *, kind: int = tarfile.PAX_FORMAT) -> bytes:
    """The bytes of a tar of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, encoding="utf-8") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def read(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of a tar and the contents of its files."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as archive:
        found = []
        for info in archive:
            body = archive.extractfile(info) if info.isreg() else None
            found.append((info, body.read() if body else b""))
        return found


def docker_archive(
    path: Path,
    layers: Sequence[bytes],
    *,
    config: Mapping[str, Any] | None = None,
    changes: Mapping[str, bytes | None] | None = None,
) -> Path:
    """What `docker save` writes of one image; `changes` replace members, or take them away."""
    names = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in layers]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "User": "65532:65532"},
        "history": [{"created_by": f"RUN step {number}"} for number, _ in enumerate(layers)],
        **(config or {}),
    }
    manifest = [{"Config": "config.json", "RepoTags": None, "Layers": names}]
    members: dict[str, bytes | None] = {
        **dict(zip(names, layers, strict=True)),
        "config.json": json.dumps(document).encode(),
        "manifest.json": json.dumps(manifest).encode(),
        **(changes or {}),
    }
    kept = [file(name, data) for name, data in members.items() if data is not None]
    path.write_bytes(tar(kept))
    return path


def hostile() -> list[Member]:
    """Everything that would touch the disk, or leave a folder, if it were extracted."""
    return [
        file("../../outside", b"x"),
        file("/absolute", b"x"),
        file("a/../../../b", b"x"),
        symlink("escape", "/"),
        file("escape/etc/planted", b"x"),
        symlink("loop", "loop"),
        hard_link("shadow", "/etc/shadow"),
        hard_link("passwd", "../../../../etc/passwd"),
        entry("disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
        entry("memory", tarfile.CHRTYPE, devmajor=1, devminor=1),
        entry("pipe", tarfile.FIFOTYPE),
        file("setuid", b"x", mode=0o6755),
        file("n" * 300, b"x"),
        file("/".join(["deep"] * 400), b"x"),
        file(".wh.../../etc", b""),
        file("..", b"x"),
    ]
