"""Goldens: kept whole or not at all, and filed under everything they depend on."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from builders.goldens import KIND, GoldenTensor, find_golden, golden_key, has_golden, put_golden
from engines.store.objects import blob_name
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError
from tests.object_places import MemoryStore

IMAGE, MODEL = digest_of_bytes(b"image"), digest_of_bytes(b"model")
KEY = golden_key(image=IMAGE, model=MODEL, shapes={"x": (1, 3)})
OUTPUTS = {
    "map": np.linspace(0, 1, 24, dtype="float32").reshape(1, 2, 3, 4),
    "count": np.array([7], dtype="int64"),
    "scalar": np.float16(0.5).reshape(()),
}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_a_golden_comes_back_bit_by_bit(store: MemoryStore) -> None:
    put_golden(store, KEY, OUTPUTS)
    found = find_golden(store, KEY)
    assert found is not None
    assert found.keys() == OUTPUTS.keys()
    for name, array in OUTPUTS.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    assert has_golden(store, KEY)


def test_a_slice_is_kept_as_it_reads(store: MemoryStore) -> None:
    array = np.arange(12, dtype="float32").reshape(3, 4).T[::2]
    put_golden(store, KEY, {"y": array})
    found = find_golden(store, KEY)
    assert found is not None
    assert np.array_equal(found["y"], array)


@pytest.mark.parametrize(
    "other",
    [
        golden_key(image=MODEL, model=MODEL, shapes={"x": (1, 3)}),
        golden_key(image=IMAGE, model=IMAGE, shapes={"x": (1, 3)}),
        golden_key(image=IMAGE, model=MODEL, shapes={"x": (3, 1)}),
        golden_key(image=IMAGE, model=MODEL, shapes={"z": (1, 3)}),
    ],
)
def test_another_image_model_or_shape_has_another_golden(store: MemoryStore, other: str) -> None:
    put_golden(store, KEY, OUTPUTS)
    assert find_golden(store, other) is None
    assert not has_golden(store, other)


def test_a_golden_that_lost_a_blob_is_none(store: MemoryStore) -> None:
    put_golden(store, KEY, OUTPUTS)
    store.objects.remove(blob_name(digest_of_bytes(OUTPUTS["count"].tobytes())))
    assert find_golden(store, KEY) is None
    assert not has_golden(store, KEY)


def test_a_golden_without_outputs_is_none(store: MemoryStore) -> None:
    """One such entry, first by its digest or not, must never let a run pass."""
    put_golden(store, KEY, {})
    assert find_golden(store, KEY) is None
    put_golden(store, KEY, OUTPUTS)
    found = find_golden(store, KEY)
    assert found is not None
    assert found.keys() == OUTPUTS.keys()


def test_a_damaged_golden_is_refused(store: MemoryStore) -> None:
    put_golden(store, KEY, OUTPUTS)
    name = blob_name(digest_of_bytes(OUTPUTS["map"].tobytes()))
    store.objects.held[name] = store.objects.held[name][::-1]
    with pytest.raises(IntegrityError):
        find_golden(store, KEY)


def test_the_entry_says_what_its_bytes_are(store: MemoryStore) -> None:
    put_golden(store, KEY, {"count": OUTPUTS["count"]})
    [document] = store.entries(KIND, KEY)
    [tensor] = msgspec.json.decode(document, type=tuple[GoldenTensor, ...])
    digest = digest_of_bytes(OUTPUTS["count"].tobytes())
    assert tensor == GoldenTensor(name="count", dtype="int64", shape=(1,), digest=digest)
