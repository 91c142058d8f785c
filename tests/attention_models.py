"""ONNX models with attention, and with what only looks like it; small, and the same every time.

`bert` is the one that ONNX Runtime's optimizer fuses on the CPU, at its default level; each of the
`ODD` forms is attention that the optimizer leaves as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH, LENGTH, WIDTH, HEADS = "batch", 8, 16, 2
DEPTH = WIDTH // HEADS
FLOAT = TensorProto.FLOAT


class Net:
    """A graph that grows node by node; every method gives the name of what it makes."""

    def __init__(self, *, opset: int = 17, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.opset = opset
        self.prefix = prefix
        self.random = np.random.default_rng(5)

    def __call__(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        return self.node(operator, inputs, domain=domain, **attributes)[0]

    def node(
        self, operator: str, inputs: Sequence[str], *, outputs: int = 1, **attributes: Any
    ) -> list[str]:
        """A node with several outputs."""
        name = f"{self.prefix}{operator.lower()}-{len(self.nodes)}"
        made = [name if outputs == 1 else f"{name}.{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name=name, **attributes))
        return made

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """A weight with these numbers."""
        name = f"{self.prefix}weight-{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        """A weight of small random numbers."""
        return self.constant(self.random.standard_normal(shape) * 0.1)

    def linear(self, x: str, *, width: int = WIDTH, outputs: int | None = None) -> str:
        """`x·W + b`."""
        product = self("MatMul", x, self.weight(width, outputs or width))
        return self("Add", product, self.weight(outputs or width))

    def norm(self, x: str) -> str:
        """Layer normalization."""
        gain, bias = self.constant(np.ones(WIDTH)), self.constant(np.zeros(WIDTH))
        return self("LayerNormalization", x, gain, bias, axis=-1, epsilon=1e-5)

    def heads(self, x: str, *, keys: bool = False) -> str:
        """From (batch, length, width) to (batch, heads, length, depth); keys transposed."""
        split = self("Reshape", x, self.constant([0, 0, HEADS, DEPTH], np.int64))
        return self("Transpose", split, perm=[0, 2, 3, 1] if keys else [0, 2, 1, 3])

    def joined(self, x: str) -> str:
        """Back from heads."""
        back = self("Transpose", x, perm=[0, 2, 1, 3])
        return self("Reshape", back, self.constant([0, 0, WIDTH], np.int64))

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        output: str,
        *,
        integers: Sequence[str] = (),
        rank: int = 3,
    ) -> onnx.ModelProto:
        """A checked model; inputs are float32 but those of `integers`, which are int64."""
        values = [
            helper.make_tensor_value_info(
                name, TensorProto.INT64 if name in integers else FLOAT, shape
            )
            for name, shape in inputs.items()
        ]
        shape = [f"y{axis}" for axis in range(rank)]
        out = helper.make_tensor_value_info("y", FLOAT, shape)
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="y"))
        graph = helper.make_graph(self.nodes, "net", values, [out], self.weights)
        domains = {node.domain for node in self.nodes} | {each.domain for each in self.functions}
        opsets = [helper.make_opsetid(each, 1) for each in sorted(domains - {""})]
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset), *opsets],
            functions=self.functions,
            ir_version=10,
        )
        onnx.checker.check_model(model)
        return model


Between = Callable[[Net, str], str]


def attention(
    net: Net,
    q: str,
    k: str,
    v: str,
    *,
    between: Between | None = None,
    softmax: Between | None = None,
) -> str:
    """softmax(q·k / √depth, then `between`)·v; `k` is transposed already."""
    scores = net("Div", net("MatMul", q, k), net.constant(math.sqrt(DEPTH)))
    scores = between(net, scores) if between else scores
    weights = (softmax or last_axis(3))(net, scores)
    return net("MatMul", weights, v)


def projected(net: Net, x: str, memory: str | None = None) -> tuple[str, str, str]:
    """Q, K and V heads, made from `x`, or keys and values from `memory`."""
    memory = memory or x
    return (
        net.heads(net.linear(x)),
        net.heads(net.linear(memory), keys=True),
        net.heads(net.linear(memory)),
    )


def key_mask(net: Net) -> str:
    """BERT's mask as PyTorch exports it: 0 becomes -10000."""
    wide = net("Unsqueeze", net("Unsqueeze", "mask", axes=[1]), axes=[2])
    kept = net("Cast", wide, to=FLOAT)
    return net("Mul", net("Sub", net.constant(1.0), kept), net.constant(-10000.0))


def last_axis(axis: int) -> Between:
    """Softmax over the last of four axes, which ONNX calls 3, or -1."""
    return lambda net, scores: net("Softmax", scores, axis=axis)


def softcap(net: Net, scores: str) -> str:
    """Gemma's cap."""
    return net("Mul", net("Tanh", scores), net.constant(30.0))


def position_bias(net: Net, scores: str) -> str:
    """T5's bias."""
    return net("Add", scores, net.weight(HEADS, LENGTH, LENGTH))


ODD: dict[str, dict[str, Between]] = {
    "softcap": {"between": softcap},
    "position-bias": {"between": position_bias},
    "negative-axis": {"softmax": last_axis(-1)},
}
"""Forms of `bert` that ONNX Runtime does not fuse: an extra node, an odd mask, -1 instead of 3."""


def bert(blocks: int = 1, *, odd: Sequence[str] = ()) -> onnx.ModelProto:
    """Encoder blocks with layer normalization behind, opset 12; the last ones in `odd` forms."""
    net = Net(opset=12)
    mask = key_mask(net)
    x = _norm_12(net, "x")
    for form in [*[""] * (blocks - len(odd)), *odd]:
        extra = ODD.get(form, {})
        out = attention(
            net,
            *projected(net, x),
            between=_then_mask(mask, extra.get("between")),
            softmax=extra.get("softmax"),
        )
        x = _norm_12(net, net("Add", net.linear(net.joined(out)), x))
    return net.model({"x": [BATCH, LENGTH, WIDTH], "mask": [BATCH, LENGTH]}, x, integers=["mask"])


def _then_mask(mask: str, before: Between | None) -> Between:
    return lambda net, scores: net("Add", before(net, scores) if before else scores, mask)


def _norm_12(net: Net, x: str) -> str:
    """Layer normalization before it was an operator."""
    centred = net("Sub", x, net("ReduceMean", x, axes=[-1]))
    variance = net("ReduceMean", net("Pow", centred, net.constant(2.0)), axes=[-1])
    deviation = net("Sqrt", net("Add", variance, net.constant(1e-5)))
    scaled = net("Mul", net("Div", centred, deviation), net.constant(np.ones(WIDTH)))
    return net("Add", scaled, net.constant(np.zeros(WIDTH)))
