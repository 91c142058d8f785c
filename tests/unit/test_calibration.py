"""Calibration files: found wrong before anything is built, and nothing of them is ever run."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from builders import calibration
from builders.calibration import copy_calibration, problems_of_calibration
from builders.loading import load
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError
from planyard.core.matrix import Calibration, Model, TensorSpec
from tests import quantized_models as models
from tests import small_site


def problems(root: Path, data: bytes, *, model: Model | None = None) -> list[str]:
    """What is wrong with these bytes as the calibration of the net."""
    (root / "models").mkdir(exist_ok=True)
    (root / "models/samples.npz").write_bytes(data)
    spec = model or models.declared(b"", calibration=data)
    asked = Calibration(file="models/samples.npz", sha256=digest_of_bytes(data))
    return list(problems_of_calibration(replace(spec, calibration=asked), root=root))


def test_samples_that_fit_are_taken(tmp_path: Path) -> None:
    assert problems(tmp_path, models.RIGHT) == []
    compressed = io.BytesIO()
    np.savez_compressed(compressed, x=models.samples())
    assert problems(tmp_path, compressed.getvalue()) == []
    assert (
        list(problems_of_calibration(models.declared(b"", calibration=None), root=tmp_path)) == []
    )


def test_another_digest_is_told_with_the_one_to_write(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/samples.npz").write_bytes(models.WRONG["zeros"])
    [found] = problems_of_calibration(models.declared(b""), root=tmp_path)
    assert digest_of_bytes(models.WRONG["zeros"]) in found
    assert "write this one" in found


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": models.samples()}, "holds z: write one array for each of x"),
        ({}, "holds nothing: write one array for each of x"),
        ({"x": models.samples(), "z": models.samples()}, "holds x, z: write one array"),
        ({"x": models.samples().astype("float64")}, "x: holds float64: write float32"),
        ({"x": models.samples()[..., 0]}, r"x: has the shape \[16, 3, 16\]: write \[samples, 3"),
        ({"x": models.samples(7)}, "x: has 7 samples: give at least 8, a fourth is held out"),
        ({"x": models.samples()[:, :2]}, "and the input has 3 where this has 2"),
        ({"x": np.array([{}] * 16, dtype=object)}, "x: holds object: write float32"),
        ({"x": np.float32(1)}, r"x: has the shape \[\]: write"),
    ],
)
def test_arrays_that_do_not_fit_the_inputs_are_told(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    found = problems(tmp_path, models.npz(arrays))
    assert re.search(said, found[0]), found


def two_inputs() -> Model:
    inputs = {
        "a": TensorSpec(dtype="float32", shape=("n", "s")),
        "b": TensorSpec(dtype="int64", shape=("n", 2, "s")),
        "t": TensorSpec(dtype="float32", shape=()),
    }
    return replace(models.declared(b""), inputs=inputs)


def arrays_for_two(*, a: int = 8, s: int = 5, t: int = 8) -> dict[str, np.ndarray]:
    return {
        "a": np.zeros((a, s), dtype="float32"),
        "b": np.zeros((8, 2, 5), dtype="int64"),
        "t": np.zeros((t,), dtype="float32"),
    }


def test_inputs_of_one_model_agree_with_each_other(tmp_path: Path) -> None:
    assert problems(tmp_path, models.npz(arrays_for_two()), model=two_inputs()) == []
    [found] = problems(tmp_path, models.npz(arrays_for_two(a=9)), model=two_inputs())
    assert "9 of a, 8 of b, 8 of t: give every input equally many samples" in found
    [found] = problems(tmp_path, models.npz(arrays_for_two(s=6)), model=two_inputs())
    assert "s is 5 in b and 6 in another input" in found


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04 and no more", models.RIGHT[:-100], models.RIGHT[:3000]],
    ids=["empty", "no zip", "cut off", "half"],
)
def test_what_is_no_archive_is_a_problem_and_no_crash(tmp_path: Path, data: bytes) -> None:
    [found] = problems(tmp_path, data)
    assert "not an .npz file that can be read" in found


def archive(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return file.getvalue()


def test_a_member_that_is_no_array_is_a_problem(tmp_path: Path) -> None:
    [found] = problems(tmp_path, archive(("x.npy", b"no array")))
    assert "not an .npz file that can be read" in found


def test_the_same_array_twice_is_a_problem(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, models.samples())
    with pytest.warns(UserWarning, match="Duplicate"):
        data = archive(("x.npy", array.getvalue()), ("x.npy", array.getvalue()))
    [found] = problems(tmp_path, data)
    assert "it holds x twice" in found


def test_what_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = archive(("x.npy", bytes(1 << 20)))
    monkeypatch.setattr(calibration, "LIMIT_BYTES", 1 << 19)
    assert len(data) < 1 << 19
    [found] = problems(tmp_path, data)
    assert "unpacks to 1.0 MB, more than" in found
    monkeypatch.setattr(calibration, "LIMIT_BYTES", 100)
    [found] = problems(tmp_path, data)
    assert "more than 100" in found


@pytest.mark.parametrize("kind", ["symbolic", "hard", "missing", "folder"])
def test_only_a_plain_file_beside_the_matrix_is_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "models").mkdir()
    elsewhere, path = tmp_path / "elsewhere.npz", tmp_path / "models/samples.npz"
    elsewhere.write_bytes(models.RIGHT)
    {
        "symbolic": lambda: path.symlink_to(elsewhere),
        "hard": lambda: os.link(elsewhere, path),
        "missing": lambda: None,
        "folder": path.mkdir,
    }[kind]()
    [found] = problems_of_calibration(models.declared(b""), root=tmp_path)
    assert "models/samples.npz" in found
    with pytest.raises(InputError):
        copy_calibration(
            Calibration(file="models/samples.npz", sha256=digest_of_bytes(models.RIGHT)),
            root=tmp_path,
            target=tmp_path / "copy",
        )


def test_a_copy_is_what_the_matrix_names(tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(models.RIGHT)
    asked = Calibration(file="samples.npz", sha256=digest_of_bytes(models.RIGHT))
    copy_calibration(asked, root=tmp_path, target=tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == models.RIGHT
    (tmp_path / "samples.npz").write_bytes(models.WRONG["zeros"])
    with pytest.raises(IntegrityError, match="has changed"):
        copy_calibration(asked, root=tmp_path, target=tmp_path / "copy")


# In a whole matrix


def with_int8(
    *, tolerance: bool = True, file: str = "models/plain.npz", data: bytes = b"", cells: str = ""
) -> str:
    text = small_site.MATRIX.replace("precisions: [fp32]", "precisions: [fp32, int8]")
    if tolerance:
        int8 = "      int8: {max_abs: 0.1, mean_abs: 0.01}\n"
        text = text.replace("precisions:", f"{int8}precisions:", 1)
    if data:
        named = f"    calibration: {{file: {file}, sha256: {digest_of_bytes(data)}}}\n"
        text = text.replace("    tolerance:\n", f"{named}    tolerance:\n")
    ours = '  - {id: ort, cells: "[cg]pu/*/*/int8/*", reason: only plans are in int8}\n'
    return text + "drop:\n" + ours + cells


def refused(root: Path, matrix: str, data: bytes = b"") -> list[str]:
    (root / "models").mkdir()
    (root / "models/plain.npz").write_bytes(data)
    with pytest.raises(InputError) as caught:
        small_site.lay_out(root, matrix=matrix)
    return list(caught.value.problems)


def plain_samples(**shape: int) -> bytes:
    return models.npz({"x": np.zeros((8, 3, shape.get("side", 8), 8), dtype="float32")})


def test_a_matrix_with_int8_and_all_it_needs_is_taken(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/plain.npz").write_bytes(plain_samples())
    loaded = small_site.lay_out(tmp_path, matrix=with_int8(data=plain_samples()))
    assert "int8" in loaded.matrix.precisions


def test_what_int8_lacks_is_told_at_its_place_all_at_once(tmp_path: Path) -> None:
    text = with_int8(tolerance=False)
    found = refused(tmp_path, text)
    line = text.split("\n").index("  plain:") + 1
    assert len(found) == 2
    assert all(each.startswith(f"matrix.yaml:{line}:") for each in found)
    assert "add tolerance: with int8" in found[0] + found[1]
    assert "add calibration: {file: samples.npz" in found[0] + found[1]
    assert "rtx/plain/8/int8/sm89 and 1 more" in found[0]


def test_a_calibration_file_is_looked_into_at_its_place(tmp_path: Path) -> None:
    wrong = models.npz({"z": models.samples()})
    text = with_int8(data=wrong)
    [found] = refused(tmp_path, text, wrong)
    line = next(i for i, each in enumerate(text.split("\n"), 1) if "calibration:" in each)
    assert found.startswith(f"matrix.yaml:{line}:")
    assert "models.plain.calibration" in found
    assert "plain.npz holds z" in found


def test_int8_that_is_dropped_asks_for_nothing(tmp_path: Path) -> None:
    drop = '  - {id: none, cells: "rtx/*/*/int8/*", reason: there is no int8 yet}\n'
    assert small_site.lay_out(tmp_path, matrix=with_int8(tolerance=False, cells=drop))


def test_onnx_runtime_cells_in_int8_need_a_converter(tmp_path: Path) -> None:
    text = with_int8(data=plain_samples()).replace("[cg]pu/", "gpu/")
    [found] = refused(tmp_path, text, plain_samples())
    assert "images.cpu: cpu/plain/8/int8/cpu and 1 more are cells of this image" in found
    assert "add compiler:" in found


def test_a_matrix_in_fp32_makes_no_cells_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("cells were made")

    monkeypatch.setattr("builders.loading.expand", never)
    small_site.lay_out(tmp_path)
    assert load(tmp_path / "matrix.yaml")
