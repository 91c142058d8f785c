"""Small ONNX models for tests, as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from planyard.core.digest import digest_of_bytes
from planyard.core.matrix import Model, ShapeRange, Source, TensorSpec

WEIGHTS = bytes(range(256)) * 16


def plain_model(shape: Sequence[int | str | None] = ("n", 3, "h", "w")) -> onnx.ModelProto:
    """`y = relu(x) + bias`, one float32 input `x`, one initializer that is also an input."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    bias = helper.make_tensor("bias", TensorProto.FLOAT, [1], [0.5])
    bias_input = helper.make_tensor_value_info("bias", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "bias"], ["y"])]
    graph = helper.make_graph(nodes, "plain", [x, bias_input], [y], [bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def external_tensor(
    location: str, *, name: str = "w", offset: int = 0, length: int = len(WEIGHTS)
) -> TensorProto:
    """A float32 tensor whose bytes lie at `location`."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[length // 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def external_model(location: str = "weights.bin", **rest: int) -> onnx.ModelProto:
    """`plain_model` with one more initializer, outside at `location`."""
    model = plain_model()
    model.graph.initializer.append(external_tensor(location, **rest))
    return model


def constant_node(attribute: onnx.AttributeProto) -> onnx.NodeProto:
    """A node that holds `attribute`."""
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(attribute)
    return node


def _sparse(values: TensorProto) -> onnx.SparseTensorProto:
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[8])


def _in_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(constant_node(helper.make_attribute("value", tensor)))


def _in_tensors(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(constant_node(helper.make_attribute("values", [tensor])))


def _graph_with(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [], [tensor])


def _in_subgraph(model: onnx.ModelProto, tensor: TensorProto) -> None:
    inner = helper.make_graph(
        [constant_node(helper.make_attribute("then_branch", _graph_with(tensor)))], "i", [], []
    )
    model.graph.node.append(constant_node(helper.make_attribute("body", inner)))


def _in_graphs(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(constant_node(helper.make_attribute("g", [_graph_with(tensor)])))


def _in_sparse_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(constant_node(helper.make_attribute("s", _sparse(tensor))))


def _in_sparse_attributes(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(constant_node(helper.make_attribute("s", [_sparse(tensor)])))


def _in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = constant_node(helper.make_attribute("value", tensor))
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "F", [], ["c"], [node], opsets))


def _in_function_default(model: onnx.ModelProto, tensor: TensorProto) -> None:
    function = helper.make_function("own", "F", [], [], [], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(helper.make_attribute("value", tensor))
    model.functions.append(function)


def _in_training(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add(algorithm=_graph_with(tensor))


def _in_initialization(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add(initialization=_graph_with(tensor))


def _in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def _in_sparse_values(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.append(_sparse(tensor))


def _in_sparse_indices(model: onnx.ModelProto, tensor: TensorProto) -> None:
    sparse = onnx.SparseTensorProto(values=helper.make_tensor("v", 1, [1], [0.0]), indices=tensor)
    model.graph.sparse_initializer.append(sparse)


PLACES: dict[str, Callable[[onnx.ModelProto, TensorProto], None]] = {
    "initializer": _in_initializer,
    "sparse values": _in_sparse_values,
    "sparse indices": _in_sparse_indices,
    "attribute t": _in_attribute,
    "attribute tensors": _in_tensors,
    "attribute g": _in_subgraph,
    "attribute graphs": _in_graphs,
    "attribute sparse_tensor": _in_sparse_attribute,
    "attribute sparse_tensors": _in_sparse_attributes,
    "function": _in_function,
    "function default": _in_function_default,
    "training algorithm": _in_training,
    "training initialization": _in_initialization,
}
"""Every place of a model where a tensor can hide; each puts one there."""


def declared(
    data: bytes, source: Source, *, external: dict[str, bytes] | None = None, **inputs: TensorSpec
) -> Model:
    """What a matrix says of a model with these bytes; `x` is declared as `plain_model` has it."""
    spec = TensorSpec(dtype="float32", shape=("n", 3, "h", "w"))
    size = (1, 3, 32, 32)
    return Model(
        source=source,
        sha256=digest_of_bytes(data),
        external_data={file: digest_of_bytes(body) for file, body in (external or {}).items()},
        inputs=inputs or {"x": spec},
        profiles={"small": {"x": ShapeRange(min=size, opt=size, max=size)}},
    )


def big_model(size: int = 4 << 20) -> bytes:
    """A sound model with `size` bytes of its own in one tensor, other ones each time."""
    model = plain_model()
    model.graph.initializer.add(name="big", data_type=2, dims=[size], raw_data=os.urandom(size))
    return model.SerializeToString()


def visible(cache: Path) -> list[str]:
    """Everything in the model cache that a reader could take for an entry."""
    return sorted(one.name for one in (cache / "models").glob("[!.]*"))


def left_behind(cache: Path) -> list[str]:
    """What unfinished fetches left in the model cache."""
    return sorted(one.name for one in (cache / "models").glob(".work-*"))
