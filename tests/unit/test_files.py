"""Files appear whole or not at all, and leave nothing behind."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from planyard.core.digest import digest_of_bytes
from planyard.edge import files


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with files.atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write_half() -> None:
        with files.atomic_write(path) as file:
            file.write(b"after")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_another_file_is_replaced_and_its_other_names_are_not(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"before")
    other.hardlink_to(path)
    files.write_bytes(path, b"after")
    assert (path.read_bytes(), other.read_bytes()) == (b"after", b"before")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "file", tmp_path / "target"
    target.write_bytes(b"before")
    path.symlink_to(target)
    files.write_bytes(path, b"after")
    assert not path.is_symlink()
    assert target.read_bytes() == b"before"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_is_the_one_asked_for(tmp_path: Path, mode: int) -> None:
    with files.atomic_write(tmp_path / "file", mode=mode) as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / ("n" * 255), b"x")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_the_way_is_an_error_and_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        files.write_bytes(tmp_path / "file", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("data", [b"", b"x" * (files.CHUNK_BYTES + 1)])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert files.digest_of_file(tmp_path / "file") == digest_of_bytes(data)


def test_a_scratch_folder_is_gone_however_it_ends(tmp_path: Path) -> None:
    parent = tmp_path / "not" / "yet"
    with files.scratch_folder(parent, prefix="a-") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x")
        assert folder.name.startswith("a-")
    with pytest.raises(KeyboardInterrupt), files.scratch_folder(parent, prefix="a-") as other:
        raise KeyboardInterrupt
    assert folder != other
    assert list(parent.iterdir()) == []


def test_a_scratch_folder_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    with files.scratch_folder(tmp_path, prefix="a-") as folder:
        folder.rmdir()
    assert not folder.exists()


def test_scratch_does_not_reach_through_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x")
    with files.scratch_folder(tmp_path / "scratch", prefix="a-") as folder:
        (folder / "link").symlink_to(outside)
    assert (outside / "kept").exists()
