"""The outline says what the file says, finds every hidden location, and refuses what is unsound."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from planyard.core.onnx_outline import (
    MAX_GRAPH_DEPTH,
    ValueInfo,
    check_external_locations,
    outline_of_onnx,
    plain_path,
    why_not_plain,
)
from tests import onnx_models


def field(number: int, body: bytes) -> bytes:
    """A field with a length, in protobuf's wire format."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_inputs_outputs_opsets_operators() -> None:
    model = onnx_models.plain_model(("n", 3, None, -1))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    model.graph.node.append(helper.make_node("Relu", ["y"], ["q"], domain="ai.onnx"))
    outline = outline_of_onnx(model.SerializeToString())
    assert outline.inputs == (ValueInfo(name="x", dtype="float32", shape=("n", 3, None, -1)),)
    assert [value.name for value in outline.outputs] == ["y"]
    assert outline.opsets == {"": 18, "com.microsoft": 1}
    assert outline.operators == {"Add": 1, "Relu": 2, "com.microsoft::Gelu": 1}
    assert outline.external == ()


def test_every_tensor_type_of_onnx_has_a_name() -> None:
    for name, number in TensorProto.DataType.items():
        model = onnx_models.plain_model()
        model.graph.input[0].type.tensor_type.elem_type = number
        dtype = outline_of_onnx(model.SerializeToString()).inputs[0].dtype
        expected = {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
        # ml_dtypes spells FLOAT8E4M3FN with an underscore, and adds "fn" or "fnu" to some.
        plain = dtype.replace("_", "").removesuffix("fnu").removesuffix("fn")
        assert plain == expected.removesuffix("fn")


def test_inputs_that_are_not_tensors() -> None:
    model = onnx_models.plain_model()
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    for name, kind in (
        ("s", helper.make_sequence_type_proto(inner)),
        ("o", helper.make_optional_type_proto(inner)),
        ("p", helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [1])),
        ("m", helper.make_map_type_proto(TensorProto.INT64, inner)),
    ):
        model.graph.input.append(helper.make_value_info(name, kind))
    model.graph.input.append(onnx.ValueInfoProto(name="u"))
    no_shape = helper.make_tensor_value_info("f", TensorProto.FLOAT, None)
    model.graph.input.append(no_shape)
    found = outline_of_onnx(model.SerializeToString()).inputs
    assert [(value.name, value.dtype, value.shape) for value in found[1:]] == [
        ("s", "sequence", None),
        ("o", "optional", None),
        ("p", "sparse_tensor", None),
        ("m", "map", None),
        ("u", "undefined", None),
        ("f", "float32", None),
    ]


def test_sparse_initializers_are_not_inputs() -> None:
    model = onnx_models.plain_model()
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    onnx_models.PLACES["sparse values"](model, values)
    model.graph.input.append(helper.make_tensor_value_info("sparse", TensorProto.FLOAT, [8]))
    assert [value.name for value in outline_of_onnx(model.SerializeToString()).inputs] == ["x"]


@pytest.mark.parametrize("place", onnx_models.PLACES)
def test_external_data_is_found_wherever_it_hides(place: str) -> None:
    model = onnx_models.plain_model()
    tensor = onnx_models.external_tensor("../../etc/passwd", offset=16, length=32)
    onnx_models.PLACES[place](model, tensor)
    outline = outline_of_onnx(model.SerializeToString())
    assert [
        (one.tensor, one.location, one.offset_bytes, one.length_bytes) for one in outline.external
    ] == [("w", "../../etc/passwd", 16, 32)]
    assert "'..'" in check_external_locations(outline)[0]


def test_a_location_counts_without_its_flag_and_each_time_it_is_given() -> None:
    model = onnx_models.plain_model()
    hidden = onnx_models.external_tensor("first")
    hidden.external_data.add(key="location", value="/second")
    hidden.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(hidden)
    outline = outline_of_onnx(model.SerializeToString())
    assert [one.location for one in outline.external] == ["first", "/second"]


def test_an_attribute_given_twice_is_merged_by_protobuf_and_still_found() -> None:
    """`t` twice in one attribute: protobuf joins flag and location from different pieces."""
    flag = TensorProto(data_location=TensorProto.EXTERNAL, name="w").SerializeToString()
    location = TensorProto()
    location.external_data.add(key="location", value="/etc/passwd")
    attribute = field(5, flag) + field(5, location.SerializeToString()) + field(1, b"value")
    node = field(4, b"Constant") + field(5, attribute)
    data = field(7, field(1, node))
    merged = onnx.load_model_from_string(data).graph.node[0].attribute[0].t
    assert merged.data_location == TensorProto.EXTERNAL
    assert merged.external_data[0].value == "/etc/passwd"
    locations = {one.location for one in outline_of_onnx(data).external}
    assert "/etc/passwd" in locations


def test_external_without_a_location_is_refused() -> None:
    model = onnx_models.plain_model()
    model.graph.initializer.append(TensorProto(name="w", data_location=TensorProto.EXTERNAL))
    problems = check_external_locations(outline_of_onnx(model.SerializeToString()))
    assert problems == ("tensor 'w' lies at '': it names no file",)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("../secret", "'..'"),
        ("a/../../secret", "'..'"),
        ("../model_evil/weights.bin", "'..'"),
        ("C:/secret", "drive letter"),
        ("c:secret", "drive letter"),
        ("..\\secret", "backslash"),
        ("a\\b", "backslash"),
        ("weights.bin\0.txt", "control character"),
        ("a\nb", "control character"),
        ("", "names no file"),
        (".", "does not name a file"),
        ("a//b", "does not name a file"),
        ("a/", "does not name a file"),
        ("a/.", "does not name a file"),
        ("*/_ORT_MEM_ADDR_/*", "address in memory"),
    ],
)
def test_locations_that_are_not_plain(location: str, reason: str) -> None:
    assert reason in why_not_plain(location)
    outline = outline_of_onnx(onnx_models.external_model(location).SerializeToString())
    assert [reason in problem for problem in check_external_locations(outline)] == [True]


@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "a/b/..c", "...", "a b"])
def test_locations_that_are_plain(location: str) -> None:
    assert why_not_plain(location) == ""
    assert ".." not in plain_path(location).split("/")
    assert plain_path("./a/./b") == "a/b"


def test_offset_and_length_must_be_numbers() -> None:
    tensor = onnx_models.external_tensor("w.bin")
    tensor.external_data[1].value = "-1"
    model = onnx_models.plain_model()
    model.graph.initializer.append(tensor)
    with pytest.raises(ValueError, match=r"byte \d+: offset '-1' of tensor 'w' is not a number"):
        outline_of_onnx(model.SerializeToString())


def nested(depth: int) -> bytes:
    """A model of `depth` graphs, each in an attribute of the one before."""
    graph = b""
    for _ in range(depth - 1):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def test_depth_of_graphs_is_bounded() -> None:
    assert outline_of_onnx(nested(MAX_GRAPH_DEPTH)).operators == {"": MAX_GRAPH_DEPTH - 1}
    for depth in (MAX_GRAPH_DEPTH + 1, 5000):
        with pytest.raises(ValueError, match=f"more than {MAX_GRAPH_DEPTH} deep"):
            outline_of_onnx(nested(depth))


def test_the_number_of_fields_is_bounded() -> None:
    with pytest.raises(ValueError, match="more than 1000 fields"):
        outline_of_onnx(field(7, field(1, b"") * 5000), max_fields=1000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "holds no graph"),
        (b"<html><body>Not Found</body></html>", "wire type 4"),
        (b"version https://git-lfs.github.com/spec/v1\n", "wire type 6"),
        (field(7, b"x")[:-1], "a field of 1 bytes where 0 are left"),
        (b"\x3a", "truncated"),
        (b"\x3a\xff\xff", "truncated"),
        (b"\x3a" + b"\xff" * 10, "more than ten bytes"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "a field of 18446744073709551615 bytes"),
        (b"\x02\x00", "not a protobuf field number"),
        (b"\x0b", "wire type 3"),
        (b"\x3d\x00\x00", "a field of 4 bytes where 2 are left"),
        (field(7, field(1, field(4, b"\xff\xfe"))), "not UTF-8"),
        (field(7, field(1, field(4, b"a" * 70_000))), "a name of 70000 bytes"),
    ],
)
def test_what_is_not_a_model_is_refused_with_its_byte(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^byte \d+: .*{reason}"):
        outline_of_onnx(data)


def test_unknown_fields_are_skipped() -> None:
    unknown = (
        field(999, b"\xff" * 9)
        + varint(998 << 3)
        + varint(5)
        + (varint(997 << 3 | 1) + b"8bytes!!")
        + (varint(996 << 3 | 5) + b"four")
    )
    data = unknown + onnx_models.external_model().SerializeToString() + unknown
    assert outline_of_onnx(data).external[0].location == "weights.bin"


def test_a_mapped_file_of_two_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    """A sparse file with 2 GB of raw_data between the graph's input and its outside tensor."""
    hole = (1 << 31) - (1 << 20)
    model = onnx_models.plain_model()
    tensor_head = field(8, b"big") + varint(9 << 3 | 2) + varint(hole)
    inside = model.graph.SerializeToString()
    tail = field(5, onnx_models.external_tensor("weights.bin").SerializeToString())
    tensor_length = len(tensor_head) + hole
    initializer_head = varint(5 << 3 | 2) + varint(tensor_length)
    graph_length = len(inside) + len(initializer_head) + tensor_length + len(tail)
    head = varint(7 << 3 | 2) + varint(graph_length) + inside + initializer_head + tensor_head
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.write(head)
        file.seek(hole, os.SEEK_CUR)
        file.write(tail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        outline = outline_of_onnx(memoryview(mapped))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outline.external[0].location == "weights.bin"
    assert [value.name for value in outline.inputs] == ["x"]
    assert (after - before) * 1024 < 64 << 20
