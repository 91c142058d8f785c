"""What `planyard init` reads from a model and writes into a matrix."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper

from builders.loading import load
from builders.starting.example import example_model
from builders.starting.matrix_text import matrix_text, scalar
from builders.starting.model import model_name, read_model
from builders.starting.shapes import BATCH, LENGTH, OTHER, SIDE, Range, open_inputs
from builders.starting.start import choices_of, start
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.onnx_outline import ValueInfo
from tests.attention_models import bert
from tests.onnx_models import external_model, plain_model

WEIGHTS = bytes(range(256)) * 16


def value(*shape: int | str | None, name: str = "x", dtype: str = "float32") -> ValueInfo:
    return ValueInfo(name=name, dtype=dtype, shape=shape)


def model_with(*inputs: onnx.ValueInfoProto) -> bytes:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", [each.name], [f"{each.name}_"]) for each in inputs]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [out])).SerializeToString()


def tensor(
    name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


# Shapes


def test_names_tell_what_a_dimension_is():
    found = open_inputs([value("batch_size", 3, "height", "k", 2)])
    assert found.inputs[0].shape == ("batch_size", 3, "height", "k", 2)
    assert found.ranges["batch_size"] == BATCH
    assert found.ranges["height"] == SIDE
    assert found.ranges["k"] == OTHER


def test_a_name_is_one_dimension_wherever_it_stands():
    found = open_inputs([value("n", "seq", name="ids"), value("n", "seq", name="mask")])
    assert found.ranges == {"n": BATCH, "seq": LENGTH}


@pytest.mark.parametrize(
    ("shape", "names", "ranges"),
    [
        (("dim_0", 3, "?", "dim_0"), ("batch", 3, "height", "batch"), (BATCH, SIDE)),
        ((3, "dim_1"), (3, "dim_1"), (LENGTH,)),
        ((None, 3, None, None), ("batch", 3, "height", "width"), (BATCH, SIDE, SIDE)),
        ((0, -1, -1, 3), ("batch", "height", "width", 3), (BATCH, SIDE, SIDE)),
        ((None, None), ("batch", "x.1"), (BATCH, LENGTH)),
        ((1, None, 64), (1, "x.1", 64), (LENGTH,)),
        ((2, 8, None, None, 4), (2, 8, "x.2", "x.3", 4), (OTHER, OTHER)),
    ],
)
def test_a_place_tells_where_a_name_does_not(shape, names, ranges):
    found = open_inputs([value(*shape)])
    assert found.inputs[0].shape == names
    assert tuple(found.ranges.values()) == ranges


def test_a_sum_is_the_sum_of_its_parts():
    found = open_inputs([value(1, "past_len + 1", name="mask"), value(1, "a + b", name="z")])
    assert found.inputs[0].shape == (1, "past_len-1")
    assert found.ranges["past_len-1"] == Range(min=2, opt=129, max=513, meaning="a sum")
    assert found.ranges["a-b"] == LENGTH  # by its place


def test_names_that_would_become_one_stay_two():
    found = open_inputs([value(1, "a b", "a:b", "7", "été")])
    assert found.inputs[0].shape == (1, "a-b", "a-b-2", "dim-7", "t")
    assert len(found.ranges) == 4


def test_every_range_goes_up():
    assert all(1 <= each.min <= each.opt <= each.max for each in (BATCH, SIDE, LENGTH, OTHER))


# Models


@pytest.mark.parametrize(
    ("stem", "name"),
    [("Net v2", "net-v2"), ("yolo_v8.n", "yolo_v8.n"), ("été", "t"), ("..", "model")],
)
def test_a_model_is_called_as_its_file(stem, name):
    assert model_name(stem) == name


def test_a_model_is_read(tmp_path):
    data = plain_model().SerializeToString()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Plain.onnx").write_bytes(data)
    found = read_model(tmp_path / "in" / ".." / "in" / "Plain.onnx", root=tmp_path)
    assert (found.name, found.path, found.sha256) == (
        "plain",
        "in/Plain.onnx",
        digest_of_bytes(data),
    )
    assert [each.name for each in found.inputs.inputs] == ["x"]
    assert found.attention_blocks == 0


def test_weights_beside_the_model_are_named(tmp_path):
    (tmp_path / "net.onnx").write_bytes(external_model("weights.bin").SerializeToString())
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    found = read_model(tmp_path / "net.onnx", root=tmp_path)
    assert found.external == {"weights.bin": digest_of_bytes(WEIGHTS)}
    assert f"weights.bin: {digest_of_bytes(WEIGHTS)}" in matrix_text(found, choices=("cpu",))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has 0 bytes"),
        (b"no protobuf at all", "not a sound ONNX file: byte"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (external_model("../w.bin").SerializeToString(), "leaves the model's folder"),
        (external_model("w.bin").SerializeToString(), "w.bin"),
        (model_with(), "has no inputs"),
        (model_with(tensor("x", 1, dtype=TensorProto.DOUBLE)), "'x' is float64; planyard feeds"),
        (model_with(tensor("x", 1, dtype=TensorProto.STRING)), "'x' is string"),
        (model_with(tensor("x", *[1] * 9)), "has 9 dimensions"),
        (model_with(tensor("x", 1 << 21)), "over 1,048,576"),
        (
            model_with(helper.make_tensor_value_info("x", TensorProto.FLOAT, None)),
            "has no shape in the file",
        ),
    ],
)
def test_a_model_that_no_matrix_can_name_is_refused(tmp_path, data, said):
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(InputError, match=re.escape(said)):
        start(tmp_path / "net.onnx", root=tmp_path, choices=("cpu",))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_what_no_matrix_may_hold_is_not_written(tmp_path):
    """A matrix of more than 1 MiB, from names of 60,000 letters."""
    inputs = [tensor(f"{'x' * 60_000}{number}", 1) for number in range(20)]
    (tmp_path / "net.onnx").write_bytes(model_with(*inputs))
    with pytest.raises(InputError, match="no matrix can be written for this model"):
        start(tmp_path / "net.onnx", root=tmp_path, choices=("cpu",))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_all_problems_of_a_model_come_at_once(tmp_path):
    double = TensorProto.DOUBLE
    (tmp_path / "net.onnx").write_bytes(
        model_with(tensor("a", 1, dtype=double), tensor("b", *[1] * 9))
    )
    with pytest.raises(InputError) as refused:
        read_model(tmp_path / "net.onnx", root=tmp_path)
    assert len(refused.value.problems) == 2


def test_a_model_outside_of_the_folder_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(example_model())
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="does not lie below") as refused:
        read_model(tmp_path / "net.onnx", root=tmp_path / "in")
    assert "--dir" in refused.value.mend
    (tmp_path / "in" / "net.onnx").symlink_to(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="link"):
        read_model(tmp_path / "in" / "net.onnx", root=tmp_path / "in")
    with pytest.raises(InputError, match=r"none\.onnx"):
        read_model(tmp_path / "in" / "none.onnx", root=tmp_path / "in")


# The example


def test_the_example_is_a_sound_model():
    model = onnx.load_from_string(example_model())
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(example_model(), providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(1).random((2, 3, 32, 48), dtype=np.float32)
    (scores,) = session.run(None, {"picture": picture})
    assert scores.shape == (2, 10)
    assert np.ptp(scores) > 0.1
    assert example_model() == example_model()
    assert len(example_model()) < 4000


# The matrix


def written(tmp_path: Path, data: bytes, *words: str, name: str = "net.onnx") -> tuple[Path, str]:
    (tmp_path / name).write_bytes(data)
    start(tmp_path / name, root=tmp_path, choices=choices_of(words or ("cpu",)))
    return tmp_path / "matrix.yaml", (tmp_path / "matrix.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (("cpu",), ["ort-cpu/net/default/fp32/cpu"]),
        (("rtx",), ["rtx/net/default/fp32/sm89", "ort-cpu/net/default/fp32/cpu"]),
        (("gpu",), ["ort-cpu/net/default/fp32/cpu", "ort-gpu/net/default/fp32/sm89"]),
        (
            ("gpu", "rtx", "cpu", "gpu"),
            [
                "rtx/net/default/fp32/sm89",
                "ort-cpu/net/default/fp32/cpu",
                "ort-gpu/net/default/fp32/sm89",
            ],
        ),
    ],
)
def test_what_is_written_loads_and_has_the_cells(tmp_path, words, cells):
    path, text = written(tmp_path, example_model(), *words)
    expansion = expand(load(path).matrix, load_compat())
    assert [cell.id for cell in expansion.cells] == cells
    assert "@" not in text
    assert ("cpu_operators" in text) == ("gpu" in words)
    locks = {path.stem for path in (tmp_path / "images" / "locks").iterdir()}
    matrix = load(path).matrix
    named = {image.lock for image in matrix.images.values()}
    named |= {image.compiler_lock for image in matrix.images.values() if image.compiler_lock}
    assert {f"images/locks/{lock}.txt" for lock in locks} == named


def test_an_unknown_image_is_refused():
    with pytest.raises(InputError, match="write cpu, gpu or rtx"):
        choices_of(["cuda"])


def test_a_model_whose_names_need_quotes_comes_back_as_it_is(tmp_path):
    data = model_with(
        tensor("on", 3, "yes"), tensor('a "b": {c}', "it's", 2), tensor("été", "null")
    )
    path, _ = written(tmp_path, data, name="1e3 @PINS@.onnx")
    (model,) = load(path).matrix.models.values()
    assert list(model.inputs) == ["on", 'a "b": {c}', "été"]
    assert model.inputs["on"].shape == (3, "yes")
    assert model.source.file == "1e3 @PINS@.onnx"


def test_fixed_shapes_need_no_profile(tmp_path):
    path, text = written(tmp_path, model_with(tensor("x", 1, 3)))
    assert load(path).matrix.models["net"].profiles == {"default": {}}
    assert "LOOK HERE" not in text


def test_every_size_that_was_guessed_is_said(tmp_path):
    _, text = written(tmp_path, model_with(tensor("x", None, "height", 7)))
    assert "#   batch 1 to 4, opt 1 (a batch)" in text
    assert "#   height 224 to 448, opt 224 (a side of an image)" in text


def test_attention_on_the_reference_has_a_budget_with_a_reason(tmp_path):
    data = bert(2).SerializeToString()
    path, text = written(tmp_path, data)
    (change,) = load(path).matrix.gates.cells
    assert (change.cells, change.unfused_attention) == ("ort-cpu/*", 2)
    assert yaml.safe_load(text)["gates"].keys() == {"cells"}


def test_a_large_model_has_room(tmp_path):
    (tmp_path / "net.onnx").write_bytes(example_model())
    small = read_model(tmp_path / "net.onnx", root=tmp_path)
    large = msgspec.structs.replace(small, size_bytes=3 << 30)
    assert "smoke:" not in matrix_text(small, choices=("cpu",))
    assert "smoke:\n  memory: 11 GiB\n" in matrix_text(large, choices=("cpu",))


@pytest.mark.parametrize("text", ["y", "No", "null", "1", "a: b", "#x", "", "é", "~", "a/b.c"])
def test_a_scalar_reads_back_as_text(text):
    assert yaml.safe_load(scalar(text)) == text
