"""Attention blocks are counted however they are written; lookalikes and unsound files are not."""

from __future__ import annotations

import gzip
import mmap
import os
from pathlib import Path

import onnx
import pytest
from onnx import helper

from planyard.core import attention
from planyard.core.attention import count_attention, find_attention
from planyard.core.onnx_dataflow import Operation, dataflow_of_onnx
from planyard.core.protobuf_wire import MAX_TEXT_BYTES
from tests.attention_forms import ATTENTION, LOOKALIKES, called, one
from tests.attention_models import FLOAT, Net, bert, projected
from tests.attention_models import attention as block

UNET = Path(__file__).parents[2] / "models" / "sd15-unet.onnx.gz"


@pytest.mark.parametrize("name", ATTENTION)
def test_every_way_to_write_attention_counts(name: str) -> None:
    model, blocks = ATTENTION[name]
    assert count_attention(model().SerializeToString()) == blocks


@pytest.mark.parametrize("name", LOOKALIKES)
def test_what_only_looks_like_attention_does_not(name: str) -> None:
    assert find_attention(LOOKALIKES[name]().SerializeToString()).kinds == {}


def test_the_unet_has_32() -> None:
    data = gzip.decompress(UNET.read_bytes())
    assert find_attention(data).kinds == {"Softmax": 32}


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A gigabyte of weights, mapped: only the graph costs memory."""
    model = bert(2)
    graph = model.SerializeToString()
    name = b"weight of a gigabyte"
    size = 1 << 30
    tensor = b"\x42" + bytes([len(name)]) + name + b"\x4a" + varint(size)
    initializer = b"\x2a" + varint(len(tensor) + size) + tensor
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(graph + b"\x3a" + varint(len(initializer) + size) + initializer)
        file.truncate(file.tell() + size)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = resident_bytes()
        assert count_attention(memoryview(mapped)) == 2
        assert resident_bytes() - before < 64 << 20


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_body_of_a_loop_counts_once_and_what_it_carries_is_followed() -> None:
    """QKᵀ before the loop, softmax in it, V behind it."""
    net = Net()
    q, k, v = projected(net, "x")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("p", FLOAT, None),
        ],
    )
    turns = net.constant(3, dtype=int)
    weights = net("Loop", turns, net.constant(True, dtype=bool), net("MatMul", q, k), body=body)
    model = net.model({"x": ["batch", 8, 16]}, net("MatMul", weights, v), rank=4)
    assert find_attention(model.SerializeToString()).kinds == {"Softmax": 1}


def test_a_value_of_the_graph_around_is_seen_from_within() -> None:
    """The whole block inside an If, its Q, K and V outside."""
    net = Net()
    heads = projected(net, "x")
    branches = []
    for prefix in ("then-", "else-"):
        inside = Net(prefix=prefix)
        value = helper.make_tensor_value_info(block(inside, *heads), FLOAT, None)
        branches.append(helper.make_graph(inside.nodes, prefix, [], [value], inside.weights))
    condition = net("Greater", net("ReduceSum", "x", keepdims=0), net.constant(0.0))
    result = net("If", condition, then_branch=branches[0], else_branch=branches[1])
    model = net.model({"x": ["batch", 8, 16]}, result, rank=4)
    assert count_attention(model.SerializeToString()) == 2


def test_the_order_of_nodes_in_the_file_does_not_matter() -> None:
    model = bert(3)
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert count_attention(model.SerializeToString()) == 3


def test_a_function_called_attention_is_judged_by_its_body() -> None:
    model = called(4)
    del model.functions[1].node[1:]  # a product alone
    model.functions[1].output[0] = "s"
    assert count_attention(model.SerializeToString()) == 0


def test_onnxs_own_domain_has_two_names() -> None:
    model = called(1)
    for function in model.functions:
        function.domain = ""
    for node in (*model.graph.node, *(each for body in model.functions for each in body.node)):
        node.domain = "ai.onnx"
    assert find_attention(model.SerializeToString()).kinds == {"Softmax": 1}


@pytest.mark.parametrize("operator", sorted(attention.ATTENTION))
def test_operators_that_are_attention_count_as_they_are(operator: str) -> None:
    node = helper.make_node(operator, ["q", "k", "v"], ["y"], domain="com.microsoft")
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    assert find_attention(model.SerializeToString()).kinds == {operator: 1}


def test_attention_with_a_graph_of_its_own_counts() -> None:
    """FlexAttention's change of scores is a subgraph."""
    change = helper.make_graph([helper.make_node("Tanh", ["s"], ["t"])], "score_mod", [], [])
    node = helper.make_node("FlexAttention", ["q", "k", "v"], ["y"], score_mod=change)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    assert find_attention(model.SerializeToString()).kinds == {"FlexAttention": 1}


def test_linear_attention_is_no_attention_block() -> None:
    nodes = [helper.make_node("LinearAttention", ["q", "k", "v"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert count_attention(model.SerializeToString()) == 0


def test_the_dataflow_of_a_small_graph() -> None:
    node = helper.make_node("Add", ["x", "", "w"], ["y"])
    weight = helper.make_tensor("w", FLOAT, [1], [1.0])
    x = helper.make_tensor_value_info("x", FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [x], [], [weight]))
    assert dataflow_of_onnx(model.SerializeToString()) == [
        Operation("Constant", (), (2,)),
        Operation("Add", (1, 0, 2), (3,)),
    ]


def circle() -> bytes:
    model = called(1)
    model.functions[0].node[0].CopyFrom(
        helper.make_node("Attention", ["s", "s", "s"], ["p"], domain="ours")
    )
    return model.SerializeToString()


def doubling(depth: int, *, leaves: bool = True) -> bytes:
    """Functions that call the next one twice: two to the power of `depth` calls."""
    model = called(1)
    del model.functions[:]
    own = [helper.make_opsetid("ours", 1)]
    for number in range(depth):
        nodes = [helper.make_node(f"F{number + 1}", [], [each], domain="ours") for each in "ab"]
        if number == depth - 1 and not leaves:
            nodes = []
        model.functions.append(helper.make_function("ours", f"F{number}", [], ["a"], nodes, own))
    model.graph.node.append(helper.make_node("F0", [], ["bomb"], domain="ours"))
    return model.SerializeToString()


def deep() -> bytes:
    """Graphs in graphs, written by hand: protobuf's own writer stops earlier."""
    graph = b""
    for _ in range(70):
        for number in (6, 5, 1):  # graph in attribute in node in graph
            graph = bytes([number << 3 | 2]) + varint(len(graph)) + graph
    return b"\x3a" + varint(len(graph)) + graph


def two_of_a_name() -> bytes:
    model = one()
    model.graph.node[1].output[0] = model.graph.node[0].output[0]
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no graph"),
        (b"\xff" * 40, "byte 0"),
        (one().SerializeToString()[:-7], "byte "),
        (circle(), "calls itself"),
        (doubling(80), "nested more than 64"),
        (deep(), "nested more than 64"),
        (two_of_a_name(), "two values"),
        (b"\x3a\x06\x0a\x04\x22\x02\xff\xfe", "not UTF-8"),
    ],
    ids=["empty", "noise", "cut", "circle", "calls", "deep", "twice", "text"],
)
def test_unsound_files_are_value_errors(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        count_attention(data)


def test_limits_are_limits() -> None:
    data = bert(3).SerializeToString()
    with pytest.raises(ValueError, match="fields"):
        dataflow_of_onnx(data, max_fields=100)
    with pytest.raises(ValueError, match="more than 50 operations"):
        dataflow_of_onnx(data, max_operations=50)
    for leaves in (True, False):
        with pytest.raises(ValueError, match="more than 1000 operations and calls"):
            dataflow_of_onnx(doubling(40, leaves=leaves), max_operations=1000)
    long = helper.make_node("A", ["x" * (MAX_TEXT_BYTES + 1)], ["y"])
    with pytest.raises(ValueError, match="a name of"):
        dataflow_of_onnx(
            helper.make_model(helper.make_graph([long], "g", [], [])).SerializeToString()
        )
