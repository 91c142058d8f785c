"""A listing of objects from the tags of a registry, however that orders and cuts them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from engines.store import objects, oci_names
from engines.store.oci import OCIObjects
from planyard.core.digest import digest_of_bytes
from planyard.edge import registry as edge_registry
from tests.scripted_registry import Asked, Reply, scripted_registry

KEYS = [digest_of_bytes(b"key %d" % number) for number in range(5)]
NAMES = sorted(
    objects.entry_name(kind, key, digest_of_bytes(b"%d" % number))
    for kind in ("plans", "snapshots")
    for key in KEYS
    for number in range(12)
)
TAGS = [oci_names.tag_of(name, 7) for name in NAMES] + ["latest", "channel.prod", "zebra"]
PREFIX = f"index/plans/{KEYS[0][7:]}/"


def in_order(asked: Asked) -> Reply:
    """Pages in order from `last` on, with a Link: as the specification has it."""
    found = [each for each in sorted(TAGS) if each > asked.query.get("last", "")]
    return linked(asked, found, found[:10], found[9:10])


def without_case(asked: Asked) -> Reply:
    """Pages in an order of its own."""
    found = sorted(TAGS, key=lambda tag: (tag.lower(), tag))
    last = asked.query.get("last", "")
    found = [each for each in found if (each.lower(), each) > (last.lower(), last)]
    return linked(asked, found, found[:10], found[9:10])


def ignoring_last(asked: Asked) -> Reply:
    """Backwards, and with a cursor of its own: `last` means nothing."""
    at = int(asked.query.get("cursor", "0"))
    found = sorted(TAGS, reverse=True)
    headers = {"Link": f'<?cursor={at + 10}>; rel="next"'} if at + 10 < len(found) else {}
    return Reply(body=json.dumps({"tags": found[at : at + 10]}).encode(), headers=headers)


def all_at_once(asked: Asked) -> Reply:
    """One page, as Debian's registry 2.8 gives it."""
    return Reply(body=json.dumps({"tags": TAGS}).encode())


def linked(asked: Asked, found: list[str], page: list[str], last: list[str]) -> Reply:
    more = len(found) > len(page)
    headers = {"Link": f'<{asked.path}?n=10&last={last[0]}>; rel="next"'} if more else {}
    return Reply(body=json.dumps({"tags": page}).encode(), headers=headers)


@pytest.mark.parametrize("script", [in_order, without_case, ignoring_last, all_at_once])
@pytest.mark.parametrize("prefix", ["index/", "index/plans/", PREFIX, "packs/"])
def test_every_order_lists_the_same(
    script: Callable[[Asked], Reply], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_registry, "TAGS_A_PAGE", 10)
    with scripted_registry(script) as server:
        held = OCIObjects(server.client(), url="oci://registry.test/team/store")
        found = [(each.name, each.size_bytes) for each in held.listing(prefix)]
    assert found == [(name, 7) for name in NAMES if name.startswith(prefix)]


def test_a_registry_in_order_is_not_read_to_the_end() -> None:
    with scripted_registry(in_order) as server:
        held = OCIObjects(server.client(), url="oci://registry.test/team/store")
        assert len(list(held.listing(PREFIX))) == 12
        assert len(server.asked) <= 3
        assert list(held.pointers()) == ["prod"]


def test_an_empty_repository_has_no_objects() -> None:
    with scripted_registry(lambda _: None) as server:
        held = OCIObjects(server.client(), url="oci://registry.test/team/store")
        assert list(held.listing("index/")) == []
        assert held.size(NAMES[0]) is None
        assert held.pointer("prod") is None
