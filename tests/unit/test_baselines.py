"""The window of accepted runs in a store: what goes in, what comes out, what stops a build."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from builders.baselines import KIND, Window, read_window, record_run
from planyard.core.digest import canonical_json, digest_of_value
from planyard.core.errors import IntegrityError
from planyard.core.results import SmokeVerdict
from smoke.baseline import AcceptedRun, AcceptedSeries
from tests.object_places import MemoryStore

WINDOW = Window(
    cell="ort-cpu/ocr/640/fp32/cpu",
    machine="Xeon, 2 cores",
    shapes={"x": (1, 3, 640, 640)},
    batches=(1,),
    concurrency=(1, 2),
    warmup=2,
)
PASSED = SmokeVerdict(cell=WINDOW.cell, verdict="passed", gates={"latency": "passed"})
SERIES = AcceptedSeries(
    batch=1,
    concurrency=1,
    requests=20,
    p50_ms=10.25,
    p95_ms=12.0,
    p99_ms=13.0,
    reference_ms=5.0,
    reference="host",
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def run_at(second: int, *, image: str = "", **changes: Any) -> AcceptedRun:
    fields: dict[str, Any] = {
        "created": f"2026-11-21T00:00:{second:02}Z",
        "image": image or f"sha256:{99 - second:064}",
        "served": "model",
        "series": (SERIES,),
    }
    return AcceptedRun(**{**fields, **changes})


def put(store: MemoryStore, document: object, *, window: Window = WINDOW) -> None:
    """Put an entry behind record_run's back."""
    data = document if isinstance(document, bytes) else canonical_json(document)
    store.put_entry(KIND, window.key, data)


def entry(run: AcceptedRun, *, window: Window = WINDOW) -> Any:
    return {"window": msgspec.to_builtins(window), "run": msgspec.to_builtins(run)}


def test_a_window_comes_back_oldest_first_and_no_longer_than_asked(store: MemoryStore) -> None:
    for second in (3, 1, 5, 2, 4):
        assert record_run(store, WINDOW, run_at(second), verdict=PASSED)
    assert read_window(store, WINDOW) == tuple(run_at(each) for each in (1, 2, 3, 4, 5))
    assert read_window(store, WINDOW, runs=2) == (run_at(4), run_at(5))
    assert read_window(MemoryStore(), WINDOW) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"cell": "ort-cpu/ocr/960/fp32/cpu"},
        {"machine": "Xeon, 4 cores"},
        {"shapes": {"x": (4, 3, 640, 640)}},
        {"batches": (1, 4)},
        {"concurrency": (1,)},
        {"warmup": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_compared_has_a_window_of_its_own(
    store: MemoryStore, change: dict[str, Any]
) -> None:
    record_run(store, WINDOW, run_at(1), verdict=PASSED)
    other = msgspec.structs.replace(WINDOW, **change)
    assert other.key != WINDOW.key
    assert read_window(store, other) == ()


def test_the_same_image_counts_once_by_its_first_run(store: MemoryStore) -> None:
    image = "sha256:" + "a" * 64
    first, second = run_at(1, image=image), run_at(2, image=image)
    assert record_run(store, WINDOW, first, verdict=PASSED)
    assert not record_run(store, WINDOW, second, verdict=PASSED)
    assert len(list(store.entries(KIND, WINDOW.key))) == 1
    put(store, entry(second))  # as another machine would, at the same time
    assert read_window(store, WINDOW) == (first,)


def test_another_plan_in_the_same_image_counts_again(store: MemoryStore) -> None:
    image = "sha256:" + "a" * 64
    for second, served in ((1, "plan 1"), (2, "plan 2")):
        run = run_at(second, image=image, served=served)
        assert record_run(store, WINDOW, run, verdict=PASSED)
    assert len(read_window(store, WINDOW)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "failed"},
        {"verdict": "not run"},
        {"gates": {"latency": "failed"}},
        {"gates": {"latency": "off"}},
        {"gates": {}},
        {"verdict": "failed", "gates": {"latency": "passed", "outputs": "failed"}},
    ],
)
def test_only_a_run_that_passed_is_recorded(store: MemoryStore, change: dict[str, Any]) -> None:
    verdict = msgspec.structs.replace(PASSED, **change)
    assert not record_run(store, WINDOW, run_at(1), verdict=verdict)
    assert list(store.entries(KIND, WINDOW.key)) == []


def changed(path: tuple[str, ...], value: object) -> Any:
    """A good entry with one other value."""
    document = entry(run_at(2))
    place = document
    for name in path[:-1]:
        place = place[int(name)] if isinstance(place, list | tuple) else place[name]
    if isinstance(place, tuple):
        raise TypeError(path)
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        {"run": {}},
        changed(("window", "schema"), 2),
        changed(("window", "extra"), 1),
        changed(("run", "extra"), 1),
        changed(("run", "series"), []),
        changed(("run", "created"), None),
        entry(run_at(2), window=msgspec.structs.replace(WINDOW, machine="another")),
    ],
)
def test_an_entry_that_cannot_be_trusted_stops_the_build(
    store: MemoryStore, document: object
) -> None:
    """Left out in silence, the window would shrink, and with it what it can find."""
    record_run(store, WINDOW, run_at(1), verdict=PASSED)
    put(store, document)
    for ask in (
        lambda: read_window(store, WINDOW),
        lambda: record_run(store, WINDOW, run_at(3), verdict=PASSED),
    ):
        with pytest.raises(IntegrityError) as caught:
            ask()
        assert WINDOW.cell in caught.value.message
        assert "store fsck" in (caught.value.mend or "")


@pytest.mark.parametrize("name", ["reference_ms", "p50_ms", "batch", "requests"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_baseline_of_nothing_is_refused(store: MemoryStore, name: str, value: int) -> None:
    document = entry(run_at(2))
    document["run"]["series"][0][name] = value
    put(store, document)
    with pytest.raises(IntegrityError, match=name):
        read_window(store, WINDOW)


def test_damaged_bytes_are_refused(store: MemoryStore) -> None:
    record_run(store, WINDOW, run_at(1), verdict=PASSED)
    [name] = [each for each in store.objects.held if KIND in each]
    store.objects.held[name] = store.objects.held[name].replace(b"10.25", b"90.25")
    with pytest.raises(IntegrityError):
        read_window(store, WINDOW)


def test_the_key_is_the_digest_of_the_window_in_the_entry(store: MemoryStore) -> None:
    """So that `store fsck` can tell whose an entry is without knowing what a window means."""
    record_run(store, WINDOW, run_at(1), verdict=PASSED)
    [document] = store.entries(KIND, WINDOW.key)
    assert digest_of_value(msgspec.json.decode(document)["window"]) == WINDOW.key
