"""Locks and the wheel cache: nothing without a hash gets in, nothing changed gets out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from builders.wheels import Requirement, Wheel, WheelCache, read_lock
from planyard.core.errors import InputError, IntegrityError
from tests.wheel_files import sha256_of, wheel_file

A, B = "a" * 64, "b" * 64


def problems_of(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_lock(text, name="rtx.txt")
    return [problem.split(": ")[0] for problem in caught.value.problems]


def test_a_lock_is_names_versions_and_hashes() -> None:
    text = f"""\
# written by planyard lock
numpy==2.4.6 --hash=sha256:{A}   # a comment
onnxruntime-gpu==1.31.1 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}

local==1.0+cu13 --hash=sha256:{B}
"""
    found = [(each.name, each.version, each.sha256) for each in read_lock(text, name="l")]
    assert found == [
        ("numpy", "2.4.6", (A,)),
        ("onnxruntime-gpu", "1.31.1", (A, B)),
        ("local", "1.0+cu13", (B,)),
    ]


def test_an_empty_lock_names_nothing() -> None:
    assert read_lock("# nothing\n\n", name="l") == ()


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6",
        "numpy",
        f"numpy>=2 --hash=sha256:{A}",
        f"numpy==2.* --hash=sha256:{A}",
        f"numpy==-r --hash=sha256:{A}",
        f"numpy==2 --hash=md5:{'a' * 32}",
        f"numpy==2 --hash=sha256:{A[:-1]}",
        f"numpy==2 --hash=sha256:{A}0",
        f"numpy==2 --hash=sha256:{A.upper()}",
        f"numpy==2 --hash=sha256:{A} --hash=md5:{'a' * 32}",
        f"numpy==2 --hash=sha256:{A} --index-url x",
        f"numpy==2 --hash=sha256:{A} ; python_version > '3'",
        f"numpy[extra]==2 --hash=sha256:{A}",
        "--index-url x",
        "--index-url=https://example.invalid/simple",
        "--extra-index-url x",
        "--find-links /tmp",
        "--trusted-host x",
        "-i x",
        "-e .",
        "-r other.txt",
        "-c other.txt",
        ".",
        "./here.whl",
        "numpy @ https://example.invalid/numpy.whl",
        f"numpy @ https://example.invalid/numpy.whl --hash=sha256:{A}",
        f"-numpy==2 --hash=sha256:{A}",
        "git+https://example.invalid/x.git",
        "$(touch x)==1",
    ],
)
def test_whatever_is_not_pinned_and_hashed_is_refused_with_its_line(line: str) -> None:
    assert problems_of(f"# first\nok==1 --hash=sha256:{A}\n{line}\n") == ["rtx.txt:3"]


def test_every_problem_is_told_at_once() -> None:
    assert problems_of(f"a\nok==1 --hash=sha256:{A}\nb \\\n  c\n\n-e .\n") == [
        "rtx.txt:1",
        "rtx.txt:3",
        "rtx.txt:6",
    ]


def test_a_comment_does_not_hide_half_a_requirement() -> None:
    """As in pip, a comment line ends what the line before it continued."""
    assert problems_of(f"numpy==2 \\\n# why\n --hash=sha256:{A}\n")[0] == "rtx.txt:1"


def one(sha256: str, *more: str) -> tuple[Requirement, ...]:
    return (Requirement(name="tiny", version="1.0", sha256=(sha256, *more)),)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[WheelCache, tuple[Requirement, ...], Wheel]:
    """A cache that holds one wheel, as a fetch leaves it."""
    cache = WheelCache(tmp_path / "cache")
    source = wheel_file(tmp_path)
    wheel = Wheel(file_name=source.name, sha256=sha256_of(source))
    cache.path(wheel).parent.mkdir(parents=True)
    source.rename(cache.path(wheel))
    wanted = one(wheel.sha256)
    record(cache, wanted).parent.mkdir(parents=True)
    record(cache, wanted).write_bytes(msgspec.json.encode([wheel]))
    assert cache.find(wanted, python="3.11") == (wheel,)
    return cache, wanted, wheel


def record(cache: WheelCache, wanted: tuple[Requirement, ...]) -> Path:
    return cache._record_path(wanted, python="3.11")


Kept = tuple[WheelCache, tuple[Requirement, ...], Wheel]


def test_a_wheel_that_changed_in_the_cache_is_not_staged(tmp_path: Path, kept: Kept) -> None:
    cache, _, wheel = kept
    cache.path(wheel).write_bytes(cache.path(wheel).read_bytes() + b"more")
    with pytest.raises(IntegrityError, match="is damaged"):
        cache.stage((wheel,), tmp_path / "staged")


def test_a_wheel_that_is_gone_is_not_found(kept: Kept) -> None:
    cache, wanted, wheel = kept
    cache.path(wheel).unlink()
    assert cache.find(wanted, python="3.11") is None


@pytest.mark.parametrize(
    "document",
    [
        b"no json",
        b'{"a": 1}',
        msgspec.json.encode([Wheel(file_name="../../evil.whl", sha256=A)]),
        msgspec.json.encode([Wheel(file_name="other-1.0-py3-none-any.whl", sha256=B)]),
    ],
)
def test_a_poisoned_record_is_no_record(kept: Kept, document: bytes) -> None:
    """A record may only name what the lock allows, even when other files are there."""
    cache, wanted, _ = kept
    for sha256 in (A, B):
        wheel_file(cache.folder / "files" / sha256, name="other")
        wheel_file(cache.folder, name="evil").rename(cache.folder / "evil.whl")
    record(cache, wanted).write_bytes(document)
    assert cache.find(wanted, python="3.11") is None


def test_a_record_with_an_allowed_hash_and_a_path_is_no_record(kept: Kept) -> None:
    cache, wanted, wheel = kept
    wheel_file(cache.folder, name="evil").rename(cache.folder / "evil.whl")
    for name in ("../../evil.whl", str(cache.folder / "evil.whl"), "..", ""):
        poisoned = [Wheel(file_name=name, sha256=wheel.sha256)]
        record(cache, wanted).write_bytes(msgspec.json.encode(poisoned))
        assert cache.find(wanted, python="3.11") is None
