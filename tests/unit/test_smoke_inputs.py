"""Seeded inputs: the same bytes everywhere, each input on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planyard.core.digest import digest_of_bytes
from planyard.core.matrix import ShapeRange, TensorSpec
from smoke.inputs import input_shapes, make_inputs, write_inputs

SPECS = {
    "x": TensorSpec(dtype="float32", shape=("n", 3, "h", "w")),
    "t": TensorSpec(dtype="int64", shape=(1,)),
    "half": TensorSpec(dtype="float16", shape=("n", 7)),
    "flag": TensorSpec(dtype="bool", shape=(9,)),
    "scalar": TensorSpec(dtype="uint8", shape=()),
}
PROFILE = {
    "x": ShapeRange(min=(1, 3, 8, 8), opt=(1, 3, 16, 24), max=(4, 3, 32, 32)),
    "half": ShapeRange(min=(1, 7), opt=(2, 7), max=(4, 7)),
}
SHAPES = {"x": (1, 3, 16, 24), "t": (1,), "half": (2, 7), "flag": (9,), "scalar": ()}


def test_the_optimum_is_asked_and_fixed_inputs_are_as_they_are() -> None:
    assert input_shapes(SPECS, PROFILE) == SHAPES


def test_the_bytes_are_the_same_on_every_machine() -> None:
    """Written down once: another NumPy or processor that gives other bytes breaks every golden."""
    arrays = make_inputs(SPECS, SHAPES)
    assert {name: digest_of_bytes(array.tobytes())[7:19] for name, array in arrays.items()} == {
        "x": "cec9cb963b1e",
        "t": "af5570f5a181",
        "half": "1c606a130a18",
        "flag": "3c017ca39d35",
        "scalar": "4bf5122f3445",
    }


def test_kinds_and_shapes_are_those_asked_for() -> None:
    arrays = make_inputs(SPECS, SHAPES)
    assert {name: (str(a.dtype), a.shape) for name, a in arrays.items()} == {
        name: (spec.dtype, SHAPES[name]) for name, spec in SPECS.items()
    }


def test_numbers_are_spread_over_their_range() -> None:
    arrays = make_inputs(SPECS, SHAPES)
    x = arrays["x"]
    assert -1 <= x.min() < -0.9
    assert 0.9 < x.max() < 1
    assert abs(x.mean()) < 0.1
    assert len(np.unique(x)) > 1000
    assert set(np.unique(arrays["flag"])) == {False, True}
    assert set(np.unique(arrays["t"])) <= {0, 1}


def test_an_input_added_changes_no_other() -> None:
    alone = make_inputs({"x": SPECS["x"]}, SHAPES)
    assert np.array_equal(alone["x"], make_inputs(SPECS, SHAPES)["x"])


@pytest.mark.parametrize("change", [{"seed": 2}, {}])
def test_seed_and_name_make_the_stream(change: dict[str, int]) -> None:
    one = make_inputs({"x": SPECS["x"]}, SHAPES)["x"]
    name = "x" if change else "y"
    other = make_inputs({name: SPECS["x"]}, {name: SHAPES["x"]}, **change)[name]
    assert not np.array_equal(one, other)


def test_files_hold_the_raw_bytes_and_names_never_become_paths(tmp_path: Path) -> None:
    arrays = {"../../etc/x": np.arange(6, dtype="int32").reshape(2, 3), "b": np.ones(1, "float16")}
    described = write_inputs(arrays, tmp_path)
    assert described == {
        "../../etc/x": {"file": "input-0.bin", "dtype": "int32", "shape": [2, 3]},
        "b": {"file": "input-1.bin", "dtype": "float16", "shape": [1]},
    }
    assert (tmp_path / "input-0.bin").read_bytes() == arrays["../../etc/x"].tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input-0.bin", "input-1.bin"]
