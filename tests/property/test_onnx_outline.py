"""Whatever the bytes: an outline or a ValueError; and never fewer locations than ONNX's parser."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from planyard.core.onnx_outline import outline_of_onnx, why_not_plain
from tests import onnx_models


def every_tensor(message: object) -> Iterator[TensorProto]:
    """All tensors of a parsed model, by walking every set field whatever it is called."""
    if isinstance(message, TensorProto):
        yield message
    for descriptor, value in message.ListFields():  # type: ignore[attr-defined]
        if descriptor.message_type is not None:
            for one in value if hasattr(value, "add") else [value]:
                yield from every_tensor(one)


def locations_onnx_sees(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in every_tensor(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
SHAPES = st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), NAMES, st.none()), max_size=5)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Models with inputs of any name and shape, and outside tensors in any place."""
    model = onnx_models.plain_model()
    for name in draw(st.lists(NAMES, max_size=3)):
        shape = draw(SHAPES)
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    for place in draw(st.lists(st.sampled_from(sorted(onnx_models.PLACES)), max_size=4)):
        onnx_models.PLACES[place](model, onnx_models.external_tensor(draw(NAMES)))
    return model


@given(st.binary(max_size=400))
def test_any_bytes_give_an_outline_or_a_value_error(data: bytes) -> None:
    try:
        outline = outline_of_onnx(data)
    except ValueError as error:
        said = str(error)
    else:
        said = f"byte 0: {len(outline.operators)} kinds of nodes"
    assert said.startswith("byte ")


@given(models())
@settings(deadline=None)
def test_the_outline_agrees_with_onnx(model: onnx.ModelProto) -> None:
    outline = outline_of_onnx(model.SerializeToString())
    initializers = {one.name for one in model.graph.initializer}
    initializers |= {one.values.name for one in model.graph.sparse_initializer}
    expected = [value for value in model.graph.input if value.name not in initializers]
    assert [value.name for value in outline.inputs] == [value.name for value in expected]
    for ours, theirs in zip(outline.inputs, expected, strict=True):
        dimensions = theirs.type.tensor_type.shape.dim
        parts = [(one.WhichOneof("value"), one) for one in dimensions]
        assert ours.shape == tuple(getattr(one, kind) if kind else None for kind, one in parts)
    assert {one.location for one in outline.external} == locations_onnx_sees(model)


@given(model=models(), data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_model_hides_no_location_from_us_that_onnx_sees(
    model: onnx.ModelProto, data: st.DataObject
) -> None:
    whole = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(st.binary(max_size=2))
        whole[at : at + data.draw(st.integers(0, 2))] = piece
    try:
        seen = locations_onnx_sees(onnx.load_model_from_string(bytes(whole)))
    except DecodeError:
        seen = set()
    try:
        outline = outline_of_onnx(bytes(whole))
    except ValueError:
        return
    assert seen <= {one.location for one in outline.external}


@given(models(), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_cut_model_is_refused_or_smaller(model: onnx.ModelProto, part: float) -> None:
    whole = model.SerializeToString()
    cut = whole[: int(len(whole) * part)]
    try:
        outline = outline_of_onnx(cut)
    except ValueError:
        return
    # A cut between two fields is a sound message: ONNX agrees that it is one.
    assert onnx.load_model_from_string(cut).graph.name == model.graph.name
    assert len(outline.external) <= len(outline_of_onnx(whole).external)


@given(st.text(max_size=30))
def test_a_plain_location_stays_below(location: str) -> None:
    import os.path

    if why_not_plain(location):
        return
    resolved = os.path.normpath(f"/models/ocr/{location}")
    assert resolved.startswith("/models/ocr/")


def test_the_walk_over_tensors_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert locations_onnx_sees(onnx_models.external_model("a")) == set()
