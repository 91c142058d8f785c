"""A model of 3 kB for those who have none at hand, written in protobuf's wire format.

A convolution, a pool and a linear layer over pictures of any size, float32, ONNX opset 17. Its
weights come from a fixed sequence: the file is the same bytes everywhere. It classifies nothing.
Field numbers: onnx/onnx-ml.proto of ONNX 1.23.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_FLOAT = 1  # TensorProto.DataType
_INTS = 7  # AttributeProto.AttributeType
_INT = 2
_CHANNELS, _FILTERS, _CLASSES, _KERNEL = 3, 16, 10, 3


def example_model() -> bytes:
    """A ModelProto: `picture` [batch, 3, height, width] to `scores` [batch, 10]."""
    nodes = (
        _node("Conv", ("picture", "kernel", "shift"), "maps", pads=(1, 1, 1, 1)),
        _node("Relu", ("maps",), "positive"),
        _node("GlobalAveragePool", ("positive",), "pooled"),
        _node("Flatten", ("pooled",), "flat"),
        _node("Gemm", ("flat", "matrix", "offset"), "scores"),
    )
    weights = (
        _tensor("kernel", (_FILTERS, _CHANNELS, _KERNEL, _KERNEL), seed=1),
        _tensor("shift", (_FILTERS,), seed=2),
        _tensor("matrix", (_FILTERS, _CLASSES), seed=3),
        _tensor("offset", (_CLASSES,), seed=4),
    )
    graph = b"".join(
        (
            *(_field(1, node) for node in nodes),
            _field(2, b"example"),
            *(_field(5, tensor) for tensor in weights),
            _field(11, _value("picture", ("batch", _CHANNELS, "height", "width"))),
            _field(12, _value("scores", ("batch", _CLASSES))),
        )
    )
    opset = _number(2, 17)
    return _number(1, 8) + _field(2, b"planyard init") + _field(7, graph) + _field(8, opset)


def _node(operator: str, inputs: Sequence[str], output: str, *, pads: Sequence[int] = ()) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    attribute = _field(1, b"pads") + b"".join(_number(8, pad) for pad in pads) + _number(20, _INTS)
    return names + _field(4, operator.encode()) + (_field(5, attribute) if pads else b"")


def _tensor(name: str, shape: Sequence[int], *, seed: int) -> bytes:
    count = 1
    for size in shape:
        count *= size
    data = struct.pack(f"<{count}f", *_weights(count, seed=seed))
    dims = b"".join(_number(1, size) for size in shape)
    return dims + _number(2, _FLOAT) + _field(8, name.encode()) + _field(9, data)


def _weights(count: int, *, seed: int) -> Iterable[float]:
    """Numbers within half of zero, from a linear congruential sequence (Numerical Recipes')."""
    state = seed
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        yield state / (1 << 32) - 0.5


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    """ValueInfoProto of a float32 tensor."""
    dims = b"".join(
        _field(1, _number(1, size) if isinstance(size, int) else _field(2, size.encode()))
        for size in shape
    )
    tensor = _number(1, _FLOAT) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    """A field with a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """A field that is a whole number."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
