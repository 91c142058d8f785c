"""Models that int8 and fp16 are tried on, and calibration data that fits or does not."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from planyard.core.digest import digest_of_bytes
from planyard.core.matrix import Calibration, Model, ShapeRange, Source, TensorSpec, Tolerance

SIDE = 16
SAMPLES = 16
LIMITS = Tolerance(max_abs=0.1, mean_abs=0.02, cosine=0.999, psnr_db=40)
"""What the net below keeps in int8, with room; see docs/precision.md."""


def net(*, opset: int = 18, width: int = 16) -> onnx.ModelProto:
    """Three convolutions with seeded weights: `x` (n, 3, 16, 16) to `y` (n, 4, 16, 16)."""
    return _chain(
        [_weights(width, 3, 3), _weights(width, width, 3), _weights(4, width, 1)], opset=opset
    )


def biased_net() -> onnx.ModelProto:
    """The same, with a bias in its first convolution."""
    model = net()
    model.graph.initializer.append(numpy_helper.from_array(np.full(16, 0.1, "float32"), "bias"))
    model.graph.node[0].input.append("bias")
    return model


def net_with_logarithm() -> onnx.ModelProto:
    """The same, and -inf where nothing is left of the input: in fp32 as well."""
    model = net()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    model.graph.node.append(helper.make_node("Mul", ["r0", "zero"], ["nothing"]))
    model.graph.node.append(helper.make_node("Log", ["nothing"], ["log"]))
    return model


def overflowing_net() -> onnx.ModelProto:
    """Weights of at most 60 and outputs of some tens, and 92,160 between them: fp16 ends at 65504.

    With an input of ones, that is; the last layer scales down what the two before scaled up.
    """
    layers = [np.full((64, 3, 1, 1), 8.0), np.full((64, 64, 1, 1), 60.0)]
    return _chain([*layers, np.full((4, 64, 1, 1), 1e-5)], opset=18)


def _weights(made: int, read: int, kernel: int) -> np.ndarray:
    random = np.random.Generator(np.random.PCG64(1000 * made + read))
    spread = np.sqrt(2 / (read * kernel * kernel))
    return random.standard_normal((made, read, kernel, kernel)) * spread


def _chain(weights: list[np.ndarray], *, opset: int) -> onnx.ModelProto:
    """Convolutions one after another, with a Relu between them."""
    nodes, constants, now = [], [], "x"
    for number, weight in enumerate(weights):
        name, last = f"w{number}", number == len(weights) - 1
        constants.append(numpy_helper.from_array(weight.astype("float32"), name))
        pad = weight.shape[2] // 2
        made = "y" if last else f"c{number}"
        nodes.append(helper.make_node("Conv", [now, name], [made], pads=[pad] * 4))
        if not last:
            nodes.append(helper.make_node("Relu", [made], [f"r{number}"]))
        now = f"r{number}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, SIDE, SIDE])
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10  # what ONNX Runtime reads
    return model


def samples(count: int = SAMPLES, *, scale: float = 1.0) -> np.ndarray:
    """Uniform numbers in ±scale, samples first: with 1, what a smoke run is asked."""
    random = np.random.Generator(np.random.PCG64(7))
    return (random.uniform(-1, 1, (count, 3, SIDE, SIDE)) * scale).astype("float32")


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file; the same bytes for the same arrays."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


RIGHT = npz({"x": samples()})
WRONG = {
    "zeros": npz({"x": np.zeros_like(samples())}),
    "a thousand times too small": npz({"x": samples(scale=1e-3)}),
    "a thousand times too large": npz({"x": samples(scale=1e3)}),
}
"""Calibration data that would make a model nobody can use."""


def declared(
    data: bytes, *, calibration: bytes | None = RIGHT, file: str = "models/samples.npz"
) -> Model:
    """What a matrix says of a net with these bytes at `models/net.onnx`."""
    shape = (1, 3, SIDE, SIDE)
    asked = Calibration(file=file, sha256=digest_of_bytes(calibration)) if calibration else None
    return Model(
        source=Source(file="models/net.onnx"),
        sha256=digest_of_bytes(data),
        inputs={"x": TensorSpec(dtype="float32", shape=("n", 3, SIDE, SIDE))},
        profiles={"16": {"x": ShapeRange(min=shape, opt=shape, max=(4, 3, SIDE, SIDE))}},
        tolerance={"fp16": Tolerance(max_abs=0.1, mean_abs=0.01), "int8": LIMITS},
        calibration=asked,
    )
