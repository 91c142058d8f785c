"""Loading: what the matrix names must agree with it before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.loading import load
from planyard.core.errors import InputError
from tests import small_site

A, B = "a" * 64, "b" * 64
WITH_LOCK = small_site.MATRIX.replace(
    "cpu: {backend: onnxruntime-cpu,", "cpu: {backend: onnxruntime-cpu, lock: locks/cpu.txt,"
)
LINE = WITH_LOCK.split("\n").index(
    next(line for line in WITH_LOCK.split("\n") if "locks/cpu.txt" in line)
)


def problems(root: Path, lock: str | bytes | None, *, matrix: str = WITH_LOCK) -> list[str]:
    (root / "locks").mkdir()
    if lock is not None:
        data = lock.encode() if isinstance(lock, str) else lock
        (root / "locks/cpu.txt").write_bytes(data)
    with pytest.raises(InputError) as caught:
        small_site.lay_out(root, matrix=matrix)
    return list(caught.value.problems)


def test_a_lock_that_agrees_is_taken(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/cpu.txt").write_text(
        f"onnxruntime==1.31.1 --hash=sha256:{A}\nnumpy==2.4.6 --hash=sha256:{A}\n"
    )
    loaded = small_site.lay_out(tmp_path, matrix=WITH_LOCK)
    assert loaded.matrix.images["cpu"].lock == "locks/cpu.txt"


@pytest.mark.parametrize(
    ("name", "version", "pin"),
    [
        ("onnxruntime", "1.31.2", "1.31.1"),
        ("onnxruntime-gpu", "1.30.0", "1.31.1"),
        ("ONNXRuntime_GPU", "1.30.0", "1.31.1"),
        ("onnxruntime", "1.31.10", "1.31.1"),
        ("tensorrt-rtx-cu13-libs", "1.6.0.1", "1.7.1.116"),
        ("tensorrt_rtx_cu13_bindings", "1.6.0.1", "1.7.1.116"),
        ("TensorRT.RTX", "1.6.0.1", "1.7.1.116"),
        ("tensorrt-lean-cu13", "10.0.0", "11.2.1.2"),
        ("nvidia-cudnn-cu13", "9.1.0", "9.28.0.42"),
        ("nvidia-cuda-runtime", "12.9.1", "13.0"),
    ],
)
def test_a_lock_must_follow_the_pins_however_a_name_is_written(
    tmp_path: Path, name: str, version: str, pin: str
) -> None:
    [problem] = problems(tmp_path, f"{name}=={version} --hash=sha256:{A}\n")
    assert problem.startswith(f"matrix.yaml:{LINE + 1}:")
    assert "images.cpu.lock" in problem
    assert f"{name} is {version} in the lock, but the pins say {pin}" in problem


def test_a_pin_with_fewer_parts_takes_every_version_below_it(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/cpu.txt").write_text(f"nvidia-cuda-runtime==13.0.96 --hash=sha256:{A}\n")
    assert small_site.lay_out(tmp_path, matrix=WITH_LOCK)


def test_a_lock_must_name_the_wheel_of_the_pins(tmp_path: Path) -> None:
    matrix = WITH_LOCK.replace(
        'onnxruntime: {version: "1.31.1"}',
        f'onnxruntime: {{version: "1.31.1", wheels: {{onnxruntime: "sha256:{B}"}}}}',
    )
    [problem] = problems(tmp_path, f"OnnxRuntime==1.31.1 --hash=sha256:{A}\n", matrix=matrix)
    assert "the lock names another wheel than pins.onnxruntime.wheels" in problem


def test_every_problem_of_a_lock_has_its_own_line_number(tmp_path: Path) -> None:
    found = problems(tmp_path, "numpy\n--index-url x\n-e .\nx @ https://example.invalid/x.whl\n")
    assert [problem.split("locks/cpu.txt:")[1][0] for problem in found] == ["1", "2", "3", "4"]
    assert all(problem.startswith(f"matrix.yaml:{LINE + 1}:") for problem in found)


@pytest.mark.parametrize("lock", [None, b"\xff\xfe"])
def test_a_lock_that_cannot_be_read_is_a_problem_of_the_matrix(
    tmp_path: Path, lock: bytes | None
) -> None:
    [problem] = problems(tmp_path, lock)
    assert "locks/cpu.txt cannot be read" in problem


def test_pins_that_contradict_each_other_are_told_with_their_source(tmp_path: Path) -> None:
    matrix = small_site.MATRIX.replace('driver: "580"', 'driver: "535"')
    found = problems(tmp_path, None, matrix=matrix)
    assert found
    assert all("pins." in problem for problem in found)
    assert any("http" in problem for problem in found)


def test_a_matrix_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        load(tmp_path / "matrix.yaml")
    assert "--matrix" in caught.value.mend


def test_a_matrix_that_is_a_folder_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "matrix.yaml").write_bytes(b"# x\n" * (300 << 10))
    with pytest.raises(InputError, match="write at most 1,048,576"):
        load(tmp_path / "matrix.yaml")


def test_nothing_is_written_when_the_matrix_is_wrong(tmp_path: Path) -> None:
    problems(tmp_path, "numpy\n")
    assert not (tmp_path / ".planyard").exists()


def test_batches_that_a_profile_does_not_take_are_refused_at_once(tmp_path: Path) -> None:
    matrix = small_site.MATRIX + "smoke: {batches: [2, 8]}\n"
    with pytest.raises(InputError) as caught:
        small_site.lay_out(tmp_path, matrix=matrix)
    assert [problem.partition(" ")[2] for problem in caught.value.problems] == [
        f"smoke.batches[1]: models.plain.profiles.{profile}.x: a batch of 8 is not within 1 to 2"
        for profile in ("16", "8")
    ]
