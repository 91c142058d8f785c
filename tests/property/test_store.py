"""Whatever the bytes and however they are cut: stored is read, changed is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.lookup import PlanFound, plan_file_names
from engines.lookup_miss import edit_distance
from engines.snapshot import (
    BudgetFigures,
    Commit,
    DeviceReport,
    Snapshot,
    VersionFound,
    from_json,
    to_json,
)
from engines.store import protocol
from engines.store.local_store import LocalStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError
from planyard.core.findings import Finding
from planyard.core.results import NodePlacement, PlanRecord, SmokeVerdict

digests = st.binary(max_size=8).map(digest_of_bytes)
texts = st.text(max_size=20)
numbers = st.integers(0, 2**53)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | floats | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=8,
)
plans = st.builds(
    PlanRecord,
    cell=texts,
    recipe=digests,
    digest=digests,
    size_bytes=numbers,
    backend=texts,
    version=texts,
    sm=numbers,
    model=texts,
    profile=texts,
    precision=texts,
    compile_seconds=floats,
    inputs=st.dictionaries(texts, json_values, max_size=3),
)
findings = st.builds(
    Finding,
    gate=texts,
    rule=texts,
    message=texts,
    severity=st.sampled_from(["fail", "warn"]),
    evidence=st.lists(texts, max_size=2).map(tuple),
    line=st.none() | numbers,
)
verdicts = st.builds(
    SmokeVerdict,
    cell=texts,
    verdict=st.sampled_from(["passed", "failed", "not run"]),
    gates=st.dictionaries(texts, st.sampled_from(["passed", "failed", "not run", "off"])),
    findings=st.lists(findings, max_size=2).map(tuple),
    latencies_ms=st.lists(floats, max_size=3).map(tuple),
    placement=st.lists(
        st.builds(NodePlacement, provider=texts, operator=texts, count=numbers), max_size=2
    ).map(tuple),
)
snapshots = st.builds(
    Snapshot,
    image=digests,
    image_name=texts,
    image_recipe=digests,
    gpu=texts,
    sm=st.none() | numbers,
    pins=st.dictionaries(texts, texts, max_size=3),
    versions_found=st.dictionaries(
        texts, st.builds(VersionFound, version=texts, how=texts), max_size=3
    ),
    device=st.builds(
        DeviceReport,
        count=st.none() | numbers,
        driver=st.none() | texts,
        fp16=st.none() | st.booleans(),
        int8=st.none() | st.booleans(),
    ),
    workspace_bytes=numbers,
    plans=st.lists(plans, max_size=2).map(tuple),
    smoke=st.lists(verdicts, max_size=2).map(tuple),
    gates_off=st.lists(texts, max_size=2).map(tuple),
    budget=st.builds(
        BudgetFigures,
        pull_bytes=numbers,
        unpacked_bytes=numbers,
        largest_layer_bytes=numbers,
        pull_limit_bytes=st.none() | numbers,
    ),
    commit=st.none() | st.builds(Commit, id=st.text("0123456789abcdef", min_size=40, max_size=40)),
    matrix_digest=digests,
    created=st.datetimes().map(
        lambda time: time.strftime("%Y").zfill(4) + f"{time:-%m-%dT%H:%M:%SZ}"
    ),
    planyard_version=texts,
)


@pytest.fixture(scope="module")
def store() -> Iterator[LocalStore]:
    with tempfile.TemporaryDirectory() as folder:
        yield LocalStore(Path(folder))


@given(snapshot=snapshots)
def test_a_snapshot_is_read_as_it_was_written(snapshot: Snapshot) -> None:
    document = to_json(snapshot)
    assert from_json(document) == snapshot
    assert to_json(from_json(document)) == document


@given(pieces=st.lists(st.binary(max_size=50), max_size=8))
def test_pieces_are_verified_however_they_are_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert b"".join(protocol.verified(digest_of_bytes(whole), pieces, where="x")) == whole


@given(pieces=st.lists(st.binary(max_size=50), max_size=8), other=st.binary(max_size=100))
def test_other_pieces_are_never_handed_out_whole(pieces: list[bytes], other: bytes) -> None:
    whole = b"".join(pieces)
    if other == whole:
        return
    seen: list[bytes] = []
    with pytest.raises(IntegrityError):
        seen.extend(protocol.verified(digest_of_bytes(other), pieces, where="x"))
    assert seen == pieces[:-1]


@given(data=st.binary(min_size=1, max_size=300), place=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_on_the_disk_is_found(
    store: LocalStore, data: bytes, place: int, bit: int
) -> None:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    damaged = bytearray(data)
    damaged[place % len(data)] ^= 1 << bit
    path = store.root / "blobs/sha256" / digest[7:]
    path.chmod(0o644)
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError):
        store.read_blob(digest, limit_bytes=1000)


@given(documents=st.lists(st.binary(max_size=40), max_size=6), key=digests)
def test_entries_are_a_set_of_documents(
    store: LocalStore, documents: list[bytes], key: str
) -> None:
    before = set(store.entries("plans", key))
    for document in documents:
        store.put_entry("plans", key, document)
    found = list(store.entries("plans", key))
    assert set(found) == before | set(documents)
    assert found == sorted(found, key=digest_of_bytes)
    assert len(found) == len(set(found))


def plain_edit_distance(left: str, right: str) -> int:
    """The definition, without a limit or a band."""
    row = list(range(len(right) + 1))
    for index, letter in enumerate(left, start=1):
        before, row = row, [index]
        for column, other in enumerate(right, start=1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != other)))
    return row[-1]


@given(left=st.text("ab0", max_size=9), right=st.text("ab0", max_size=9), limit=st.integers(0, 6))
def test_the_edit_distance_is_right_up_to_its_limit(left: str, right: str, limit: int) -> None:
    expected = min(plain_edit_distance(left, right), limit + 1)
    assert edit_distance(left, right, limit=limit) == expected


@given(cells=st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_no_cell_leads_out_of_the_folder_and_no_two_plans_into_one_file(cells: list[str]) -> None:
    found = [
        PlanFound(
            cell=cell,
            recipe=digest_of_bytes(b""),
            digest=digest_of_bytes(cell.encode(errors="replace")),
            size_bytes=1,
            sm=89,
            backend="",
            version="",
            model="",
            profile="",
            precision="",
        )
        for cell in cells
    ]
    names = plan_file_names(found)
    for name in names:
        assert Path(name).name == name
        assert not name.startswith((".", "-"))
        assert name.endswith(".plan")
    assert len(set(names)) == len({plan.digest for plan in found})
