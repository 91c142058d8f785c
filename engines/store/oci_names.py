"""The tag of an object in a registry, and the artifact manifest that the tag names.

    blobs/sha256/D        b.D.SIZE
    packs/F/D             p.FD.SIZE
    maps/B/D              m.BD.SIZE
    index/KIND/K/D        i.KIND.KD.SIZE

Each digest is its 32 bytes in base64url without padding (43 characters), SIZE is the object's size
in bytes in base 36. The longest tag has 128 characters, which is what a registry allows. A tag
holds the whole name and the size, so a list of tags is a listing, and one tag an object means that
writers never meet.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from engines.store import objects
from planyard.core.digest import canonical_json, digest_of_bytes, is_digest
from planyard.edge.registry import DOCKER_MANIFEST, IMAGE_MANIFEST

TAG_LIMIT = 128
EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
OBJECT_TYPE = "application/octet-stream"
NAME_ANNOTATION = "io.planyard.object"
REFERRING_KINDS = ("evidence", "sboms", "snapshots")
"""Index entries whose key is the digest of an image."""

CHANNEL = "channel."
"""Before the name of a channel in its tag."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TAG = re.compile(
    r"(?:(?P<area>[bpm])|i\.(?P<kind>[a-z][a-z0-9-]{0,31}))"
    r"\.(?P<first>[\w-]{43})(?P<second>[\w-]{43})?\.(?P<size>[0-9a-z]{1,13})",
    re.ASCII,
)
_AREAS = {"b": objects.BLOBS, "p": objects.PACKS, "m": objects.MAPS}
_LETTERS = {area: letter for letter, area in _AREAS.items()}


def tag_of(name: str, size_bytes: int) -> str:
    """The tag of an object of that size."""
    return f"{stem_of(name)}.{_base36(size_bytes)}"


def stem_of(name: str) -> str:
    """What the tag of an object starts with, whatever its size."""
    objects.digest_of_name(name)
    return _shortened(name)


def tag_prefix_of(prefix: str) -> str:
    """What the tags of all objects start with whose names start with `prefix`."""
    return _shortened(objects.checked_prefix(prefix))


def name_and_size(tag: str) -> tuple[str, int] | None:
    """The object a tag is for; None for any other tag."""
    match = _TAG.fullmatch(tag)
    if not match:
        return None
    digests = [_unpacked(each) for each in match.group("first", "second") if each]
    area = _AREAS.get(match["area"] or "", f"{objects.INDEX}{match['kind']}/")
    name, size_bytes = area + "/".join(digests), int(match["size"], 36)
    # Several spellings could mean one digest: only ours is a tag of ours.
    is_ours = objects.is_name(name) and tag_of(name, size_bytes) == tag
    return (name, size_bytes) if is_ours else None


def artifact_type_of(name: str) -> str:
    """The artifactType of an object: its area, and the kind of an index entry."""
    area, _, rest = name.partition("/")
    kind = f"index.{rest.partition('/')[0]}" if area == "index" else area.removesuffix("s")
    return f"application/vnd.planyard.{kind}.v1"


def image_of(name: str) -> str | None:
    """The digest of the image that an index entry is about; None for other objects."""
    parts = name.split("/")
    is_referring = len(parts) == 4 and parts[0] == "index" and parts[1] in REFERRING_KINDS
    return f"sha256:{parts[2]}" if is_referring else None


def artifact_manifest(
    name: str, *, layer: dict[str, Any], artifact_type: str, subject: dict[str, Any] | None = None
) -> bytes:
    """A manifest with one layer; equal for equal arguments.

    https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md#guidelines-for-artifact-usage
    """
    empty = {"mediaType": EMPTY_TYPE, "digest": digest_of_bytes(EMPTY), "size": len(EMPTY)}
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": artifact_type,
        "config": empty,
        "layers": [layer],
        "annotations": {NAME_ANNOTATION: name},
    }
    return canonical_json(manifest | ({"subject": subject} if subject else {}))


def layer_of(digest: str, size_bytes: int) -> dict[str, Any]:
    """The descriptor of an object's bytes."""
    return {"mediaType": OBJECT_TYPE, "digest": digest, "size": size_bytes}


def image_type_of(document: object) -> str | None:
    """The media type of an image manifest; None for any other document."""
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        return None
    media_type = document.get("mediaType", IMAGE_MANIFEST)
    config, layers = document.get("config"), document.get("layers")
    if media_type not in (IMAGE_MANIFEST, DOCKER_MANIFEST) or not isinstance(layers, list):
        return None
    is_whole = all(
        isinstance(each, dict) and is_digest(str(each.get("digest"))) for each in [config, *layers]
    )
    return str(media_type) if is_whole else None


def parts_of(image_manifest: dict[str, Any]) -> list[str]:
    """The digests of the configuration and the layers of an image manifest, each once."""
    parts = [image_manifest["config"], *image_manifest["layers"]]
    return list(dict.fromkeys(str(each["digest"]) for each in parts))


def _shortened(name: str) -> str:
    """A name, or the start of one, with each digest in 43 characters."""
    area = next(area for area in objects.AREAS if name.startswith(area))
    parts = name.removeprefix(area).split("/")
    start = _LETTERS.get(area, "i") + "."
    if area == objects.INDEX and len(parts) > 1:
        start += parts.pop(0) + "."
    return start + "".join(_packed(each) for each in parts if each)


def _packed(hex_digits: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(hex_digits)).decode().rstrip("=")


def _unpacked(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=").hex()


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
