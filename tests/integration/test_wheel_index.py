"""Wheels through the real pip, from a folder that it takes for its only index: no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.wheels import Requirement, Wheel, WheelCache, read_lock, write_lock
from planyard.core.errors import StoreError
from tests.wheel_files import sha256_of, wheel_file

A, B = "a" * 64, "b" * 64


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index: no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def one(sha256: str, *more: str) -> tuple[Requirement, ...]:
    return (Requirement(name="tiny", version="1.0", sha256=(sha256, *more)),)


def test_what_was_fetched_is_found_staged_and_lockable(tmp_path: Path, index: Path) -> None:
    source = wheel_file(index)
    cache, lines = WheelCache(tmp_path / "cache"), []
    wanted = one(A, sha256_of(source))
    assert cache.find(wanted, python="3.11") is None
    fetched = cache.fetch(wanted, python="3.11", report=lines.append)
    assert fetched == (Wheel(file_name=source.name, sha256=sha256_of(source)),)
    assert lines
    index.rename(tmp_path / "gone")
    assert cache.find(wanted, python="3.11") == fetched
    assert cache.find(wanted, python="3.12") is None
    assert cache.find(one(A, B, sha256_of(fetched_path(cache, fetched))), python="3.11") is None
    cache.stage(fetched, tmp_path / "staged")
    [staged] = (tmp_path / "staged").iterdir()
    assert (staged.name, sha256_of(staged)) == (source.name, fetched[0].sha256)
    assert not list((tmp_path / "cache").glob(".fetch-*"))


def fetched_path(cache: WheelCache, wheels: tuple[Wheel, ...]) -> Path:
    return cache.path(wheels[0])


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, index: Path) -> None:
    wheel_file(index)
    cache = WheelCache(tmp_path / "cache")
    with pytest.raises(StoreError, match="could not be fetched") as caught:
        cache.fetch(one(A), python="3.11", report=lambda _: None)
    assert any("HASHES" in line or "hash" in line.lower() for line in caught.value.log_tail)
    assert cache.find(one(A), python="3.11") is None
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_lock_is_written_from_what_was_downloaded(tmp_path: Path, index: Path) -> None:
    source = wheel_file(index)
    text = write_lock(("tiny==1.0",), python="3.11", scratch=tmp_path, report=lambda _: None)
    assert read_lock(text, name="l") == one(sha256_of(source))
