"""Read-only mode: nothing that would change a store gets through, whatever its address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.store import opening
from engines.store.local import LocalObjects
from engines.store.local_store import LocalStore
from engines.store.memory import MemoryObjects
from engines.store.objects import Objects, blob_name
from engines.store.opening import open_objects, open_url
from engines.store.readonly import ReadOnlyLocalObjects, ReadOnlyObjects
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, StoreError

NAME = blob_name(digest_of_bytes(b"kept"))
CHANGES: dict[str, Callable[[Objects, Path], object]] = {
    "write": lambda store, _: store.write(blob_name(digest_of_bytes(b"new")), b"new"),
    "write what is there": lambda store, _: store.write(NAME, b"kept"),
    "adopt": lambda store, file: store.adopt(blob_name(digest_of_bytes(b"a file")), file),
    "remove": lambda store, _: store.remove(NAME),
    "move a pointer": lambda store, _: store.move_pointer("stable", b"{}", expected=None),
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (opening.READ_ONLY_VARIABLE, opening.CACHE_VARIABLE, opening.CACHE_LIMIT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["memory", "local", "opened"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Objects, Objects]:
    """The same place to write, and read-only."""
    place = MemoryObjects() if request.param == "memory" else LocalObjects(tmp_path / "store")
    place.write(NAME, b"kept")
    assert place.move_pointer("canary", b"{}", expected=None)
    if request.param == "opened":
        return place, open_objects(f"{place.url}?read-only=yes")
    return place, ReadOnlyObjects(place)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_nothing_happens(pair, tmp_path: Path, change: str) -> None:
    place, read_only = pair
    source = tmp_path / "a file"
    source.write_bytes(b"a file")
    before = snapshot(place)
    with pytest.raises(StoreError, match="read-only") as raised:
        CHANGES[change](read_only, source)
    assert "read-only=yes" in raised.value.mend
    assert snapshot(place) == before
    assert source.read_bytes() == b"a file"


def test_reading_goes_on(pair) -> None:
    place, read_only = pair
    assert b"".join(read_only.read(NAME)) == b"kept"
    assert b"".join(read_only.read(NAME, start=1, length=2)) == b"ep"
    assert read_only.size(NAME) == 4
    assert list(read_only.listing("blobs/sha256/")) == list(place.listing("blobs/sha256/"))
    assert read_only.pointer("canary") == place.pointer("canary")
    assert list(read_only.pointers()) == ["canary"]
    assert (read_only.url, read_only.is_near) == (place.url, place.is_near)


def test_no_folder_is_made_by_opening_or_refusing(tmp_path: Path) -> None:
    store = open_url(f"file://{tmp_path}/store?read-only=yes")
    assert isinstance(store, LocalStore)
    with pytest.raises(StoreError):
        store.put_blob(digest_of_bytes(b"new"), [b"new"])
    for change in (store.sweep, lambda: store.objects.folder("images")):
        with pytest.raises(StoreError, match="read-only"):
            change()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["1", "yes", "TRUE"])
def test_a_variable_makes_every_store_read_only(tmp_path: Path, monkeypatch, text: str) -> None:
    monkeypatch.setenv(opening.READ_ONLY_VARIABLE, text)
    for url in (str(tmp_path), f"file://{tmp_path}", f"file://{tmp_path}?read-only=no"):
        assert isinstance(open_objects(url), ReadOnlyLocalObjects)
    assert isinstance(open_objects("s3://bucket/prefix"), ReadOnlyObjects)


@pytest.mark.parametrize("text", ["", "0", "no", "false"])
def test_a_variable_that_says_no_does_not(tmp_path: Path, monkeypatch, text: str) -> None:
    monkeypatch.setenv(opening.READ_ONLY_VARIABLE, text)
    assert type(open_objects(str(tmp_path))) is LocalObjects


def test_what_is_neither_yes_nor_no_is_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="neither yes nor no"):
        open_objects(f"file://{tmp_path}?read-only=perhaps")
    monkeypatch.setenv(opening.READ_ONLY_VARIABLE, "on and off")
    with pytest.raises(InputError, match=opening.READ_ONLY_VARIABLE):
        open_objects(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "address", "read_only"),
    [
        ("s3://b/p?read-only=yes", "s3://b/p", True),
        ("s3://b/p?read-only=no", "s3://b/p", False),
        ("oci://h/r?single-writer=yes&read-only=yes", "oci://h/r?single-writer=yes", True),
        ("oci://h/r?read-only=yes&single-writer=yes", "oci://h/r?single-writer=yes", True),
        ("oci://h/r?single-writer=yes", "oci://h/r?single-writer=yes", False),
        ("folder?read-only=yes", "folder?read-only=yes", False),
    ],
)
def test_the_option_is_taken_out_of_the_address(url: str, address: str, read_only: bool) -> None:
    assert opening._split_read_only(url) == (address, read_only)


def test_an_opened_bucket_is_wrapped() -> None:
    found = open_objects("s3://bucket/prefix?read-only=yes")
    assert isinstance(found, ReadOnlyObjects)
    assert found.url == "s3://bucket/prefix"


def snapshot(place: Objects) -> object:
    held = {each.name: b"".join(place.read(each.name)) for each in place.listing("blobs/sha256/")}
    return held, {name: place.pointer(name) for name in place.pointers()}
