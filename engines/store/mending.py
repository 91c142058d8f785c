"""Making room for the right bytes: damaged objects of a blob go, so that it can be stored anew."""

from __future__ import annotations

from engines.store import objects as names
from engines.store import protocol
from engines.store.chunk_map import map_from_bytes
from engines.store.objects import Objects
from planyard.core.errors import IntegrityError


def is_damaged(objects: Objects, name: str) -> bool:
    """Whether an object is there with other bytes than its name says; reads it whole."""
    digest = names.digest_of_name(name)
    try:
        protocol.drain(protocol.verified(digest, objects.read(name), where=name))
    except FileNotFoundError:
        return False
    except IntegrityError:
        return True
    return False


def remove_damaged(objects: Objects, digest: str) -> tuple[str, ...]:
    """Remove the damaged packs and maps of a blob; returns their names.

    Nothing is lost by it: no reader would have taken them.
    """
    removed = []
    for each in list(objects.listing(f"{names.MAPS}{protocol.hex_of_digest(digest)}/")):
        if is_damaged(objects, each.name):
            removed.append(each.name)
            continue
        data = b"".join(objects.read(each.name))
        found = map_from_bytes(data, blob=digest, name=each.name, where=each.name)
        packs = (names.pack_name(found.family, pack) for pack in found.packs)
        removed += [pack for pack in packs if is_damaged(objects, pack)]
    for name in removed:
        objects.remove(name)
    return tuple(removed)
