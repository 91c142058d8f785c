"""Images in docker archives: what `docker save` writes, read where it lies.

Layers are found by name in the archive; links between its members are followed there, and nowhere
else. Sizes are those of the layers in the archive, which engines mostly keep uncompressed.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from builders.audit.layer_index import Piece
from builders.audit.sources import (
    CONFIG_LIMIT_BYTES,
    ImageSource,
    LayerSource,
    read_config,
    title_of,
)
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError

_PIECE_BYTES = 1 << 20
_BUFFERS = 4
_HOPS = 10
_MEMBERS = 100_000


class _Entry(msgspec.Struct, frozen=True):
    """What `manifest.json` says of an image."""

    configuration: str = msgspec.field(name="Config")
    layers: tuple[str, ...] = msgspec.field(name="Layers")
    tags: tuple[str, ...] | None = msgspec.field(name="RepoTags", default=None)


def image_in_archive(path: Path) -> ImageSource:
    """The one image of a docker archive. Its identity here is its configuration's digest.

    Raises InputError for what is no uncompressed archive of one image.
    """
    members = _members(path)
    data = _read(path, members, "manifest.json")
    try:
        entries = msgspec.json.decode(data, type=tuple[_Entry, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError([f"{path} has a manifest.json that cannot be read: {error}"]) from error
    if len(entries) != 1:
        raise InputError([f"{path} holds {len(entries)} images: save one at a time"])
    entry = entries[0]
    config_bytes = _read(path, members, entry.configuration)
    config, diff_ids = read_config(config_bytes, of=str(path))
    if len(diff_ids) != len(entry.layers):
        raise InputError(
            [f"{path}: {len(entry.layers)} layers, and {len(diff_ids)} in its configuration"]
        )
    return ImageSource(
        image=digest_of_bytes(config_bytes),
        name=title_of(config) or (entry.tags or ("",))[0],
        config=config,
        metadata_bytes=len(data) + len(config_bytes),
        layers=tuple(
            _layer(path, _member(path, members, name), diff_id=diff_id)
            for name, diff_id in zip(entry.layers, diff_ids, strict=True)
        ),
    )


def _members(path: Path) -> dict[str, tarfile.TarInfo]:
    """The members of the archive by name; only headers are read."""
    found: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(path, mode="r:", encoding="utf-8") as archive:
            for member in archive:
                found[posixpath.normpath(member.name)] = member
                if len(found) > _MEMBERS:
                    raise InputError(
                        [f"{path} has more than {_MEMBERS} members: no docker archive"]
                    )
    except (tarfile.TarError, OverflowError, ValueError, EOFError) as error:
        raise InputError(
            [f"{path} is no docker archive: {error}"], mend="docker save IMAGE --output FILE"
        ) from error
    except OSError as error:
        raise InputError([f"{path} cannot be read: {error.strerror}"]) from error
    return found


def _member(path: Path, members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """A file of the archive; older engines name one layer through links."""
    wanted = posixpath.normpath(name)
    for _ in range(_HOPS):
        member = members.get(wanted)
        if member is None:
            break
        if member.isreg():
            return member
        if member.islnk():
            wanted = posixpath.normpath(member.linkname)
        elif member.issym():
            folder = posixpath.dirname(wanted)
            wanted = posixpath.normpath(posixpath.join(folder, member.linkname))
        else:
            break
    raise InputError([f"{path} has no file {name!r}, which its manifest.json names"])


def _read(path: Path, members: dict[str, tarfile.TarInfo], name: str) -> bytes:
    member = _member(path, members, name)
    if member.size > CONFIG_LIMIT_BYTES:
        raise InputError([f"{path}: {name!r} is too large to be read: {member.size} bytes"])
    return b"".join(bytes(piece) for piece in _pieces(path, member))


def _layer(path: Path, member: tarfile.TarInfo, *, diff_id: str) -> LayerSource:
    """A layer of the archive, known by the digest of its tar even where it lies there packed."""
    magic = next(iter(_pieces(path, member)), b"")[:4]
    is_plain = bytes(magic[:2]) != b"\x1f\x8b" and bytes(magic) != b"\x28\xb5\x2f\xfd"
    digest = diff_id if is_plain else _digest(path, member)
    return LayerSource(
        digest=digest,
        diff_id=diff_id,
        pull_bytes=member.size,
        open=lambda: _pieces(path, member),
    )


def _digest(path: Path, member: tarfile.TarInfo) -> str:
    import hashlib

    sha256 = hashlib.sha256()
    for piece in _pieces(path, member):
        sha256.update(piece)
    return "sha256:" + sha256.hexdigest()


def _pieces(path: Path, member: tarfile.TarInfo) -> Iterator[Piece]:
    """The content of a member. Four buffers in turn: what was given is gone four pieces later."""
    buffers = [memoryview(bytearray(min(_PIECE_BYTES, member.size))) for _ in range(_BUFFERS)]
    left, number = member.size, 0
    with path.open("rb", buffering=0) as file:
        file.seek(member.offset_data)
        while left:
            view = buffers[number % _BUFFERS][: min(_PIECE_BYTES, left)]
            size = file.readinto(view)
            if not size:
                raise InputError([f"{path} breaks off within {member.name!r}"])
            left -= size
            number += 1
            yield view[:size]
