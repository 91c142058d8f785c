"""Seeded inputs: the same bytes everywhere, each input on its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.matrix import Model, ShapeRange, Source, TensorSpec
from smoke.inputs import batch_of, input_shapes, make_inputs, shapes_at_batch, write_inputs

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


MODEL = Model(
    source=Source(file="m.onnx"),
    sha256="sha256:" + "0" * 64,
    inputs=SPECS,
    profiles={"p": PROFILE},
)


def shapes_at(batch: int, model: Model = MODEL) -> dict[str, tuple[int, ...]]:
    return shapes_at_batch(model, name="ocr", profile="p", batch=batch)


def test_a_batch_is_the_first_dimension_where_that_has_a_name() -> None:
    with_batch = {**SHAPES, "x": (4, 3, 16, 24), "half": (4, 7)}
    assert shapes_at(4) == with_batch
    assert batch_of(SPECS, with_batch) == 4


def test_the_batch_of_the_optimum_is_the_optimum() -> None:
    """Here the inputs begin with two sizes, 1 and 2: what the goldens were made with stays."""
    assert batch_of(SPECS, SHAPES) == 1
    assert shapes_at(1) == SHAPES


@pytest.mark.parametrize(
    ("batch", "problems"),
    [
        (5, ["x: a batch of 5 is not within 1 to 4", "half: a batch of 5 is not within 1 to 3"]),
        (4, ["half: a batch of 4 is not within 1 to 3"]),
    ],
)
def test_a_batch_that_a_profile_does_not_have_is_refused(batch: int, problems: list[str]) -> None:
    narrow = ShapeRange(min=(1, 7), opt=(2, 7), max=(3, 7))
    model = msgspec.structs.replace(MODEL, profiles={"p": {**PROFILE, "half": narrow}})
    with pytest.raises(InputError) as caught:
        shapes_at(batch, model)
    assert caught.value.problems == tuple(f"models.ocr.profiles.p.{each}" for each in problems)
    assert "smoke.batches" in caught.value.mend


def test_a_batch_below_the_minimum_is_refused() -> None:
    wide = {"x": ShapeRange(min=(2, 3, 8, 8), opt=(4, 3, 16, 24), max=(8, 3, 32, 32))}
    specs = {"x": SPECS["x"]}
    model = msgspec.structs.replace(MODEL, inputs=specs, profiles={"p": wide})
    assert [shapes_at(each, model)["x"][0] for each in (2, 4, 8)] == [2, 4, 8]
    with pytest.raises(InputError, match="a batch of 1 is not within 2 to 8"):
        shapes_at(1, model)


def test_a_model_of_fixed_batch_has_that_one_alone() -> None:
    fixed = {"x": TensorSpec(dtype="float32", shape=(2, 3, "h", "w"))}
    profile = {"x": ShapeRange(min=(2, 3, 8, 8), opt=(2, 3, 16, 24), max=(2, 3, 32, 32))}
    model = msgspec.structs.replace(MODEL, inputs=fixed, profiles={"p": profile})
    assert shapes_at(2, model) == {"x": (2, 3, 16, 24)}
    with pytest.raises(InputError, match="no input has a first dimension"):
        shapes_at(1, model)
    assert batch_of({"s": SPECS["scalar"]}, {"s": ()}) == 1


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
    assert (
        write_inputs({"x": arrays["b"]}, tmp_path, stem="batch-4")["x"]["file"] == "batch-4-0.bin"
    )
