"""Load records in a store: entered for a stored image, newest first, refused when damaged."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engines.loads import LOADS, load_from_bytes, loads_of_image, put_load
from engines.store.local_store import LocalStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.core.loads import LoadRecord
from tests.load_records import IMAGE, a_record, a_series

MANIFEST = b"the manifest of an image"
STORED = digest_of_bytes(MANIFEST)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "store")
    made.put_blob(STORED, [MANIFEST])
    return made


def test_a_record_comes_back_as_it_was(store: LocalStore):
    series = (a_series(gpu_percent=93.5, gpu_memory_bytes=5 << 30, power_watts=512.25), a_series())
    record = a_record(image=STORED, series=series, gates={"logs": "passed", "outputs": "off"})
    put_load(store, record)
    put_load(store, record)  # the same is kept once
    assert loads_of_image(store, STORED) == (record,)


def test_the_newest_comes_first(store: LocalStore):
    times = ["2026-11-22T05:00:01Z", "2026-11-22T05:00:03Z", "2026-11-22T05:00:02Z"]
    for created in times:
        put_load(store, a_record(image=STORED, created=created))
    put_load(store, a_record(image=STORED, created=times[1], workload="a"))
    found = [(each.created[-3:-1], each.workload) for each in loads_of_image(store, STORED)]
    assert found == [("03", "a"), ("03", "pages"), ("02", "pages"), ("01", "pages")]
    assert loads_of_image(store, IMAGE) == ()


def test_an_image_that_is_not_stored_has_no_records(store: LocalStore):
    with pytest.raises(StoreError, match=r"the load pages of ort-cpu/.* was not entered"):
        put_load(store, a_record(image=IMAGE))
    assert list(store.keys(LOADS)) == []


def test_a_record_under_another_image_is_damage(store: LocalStore):
    document = canonical_json(msgspec.to_builtins(a_record(image=IMAGE)))
    store.put_entry(LOADS, STORED, document)
    with pytest.raises(IntegrityError, match="lies under"):
        loads_of_image(store, STORED)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"image": "planyard/ort-cpu"},
        {"steps": 0},
        {"series": ()},
        {"series": (a_series(p50_ms=0.0),)},
        {"series": (a_series(requests=0),)},
        {"series": (a_series(seconds=-1.0),)},
        {"gates": {"logs": "fine"}},
    ],
)
def test_what_cannot_be_a_record_is_refused(changes: dict[str, object]):
    document = canonical_json(msgspec.to_builtins(a_record(**changes)))
    with pytest.raises(IntegrityError, match="index of loads cannot be read"):
        load_from_bytes(document, image=IMAGE)
    assert load_from_bytes(canonical_json(msgspec.to_builtins(a_record())), image=IMAGE)


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_damage_is_an_error_of_integrity(document: bytes):
    with pytest.raises(IntegrityError):
        load_from_bytes(document, image=IMAGE)


def test_fields_that_a_later_version_adds_are_passed_over():
    document = msgspec.to_builtins(a_record()) | {"later": 1}
    assert isinstance(load_from_bytes(canonical_json(document), image=IMAGE), LoadRecord)
