"""Ways in which models write attention, each with its number of blocks; and what is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from tests.attention_models import (
    BATCH,
    DEPTH,
    FLOAT,
    HEADS,
    LENGTH,
    WIDTH,
    Between,
    Net,
    attention,
    bert,
    last_axis,
    position_bias,
    projected,
    softcap,
)

X: dict[str, list[int | str]] = {"x": [BATCH, LENGTH, WIDTH]}


def vit(blocks: int) -> onnx.ModelProto:
    """Normalization in front, Q, K and V from one product, Q scaled before, no mask."""
    net, x = Net(), "x"
    for _ in range(blocks):
        qkv = net.linear(net.norm(x), outputs=3 * WIDTH)
        split = net("Reshape", qkv, net.constant([0, 0, 3, HEADS, DEPTH], np.int64))
        moved = net("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (net("Gather", moved, net.constant(at, np.int64), axis=0) for at in range(3))
        scores = net(
            "MatMul", net("Mul", q, net.constant(0.3)), net("Transpose", k, perm=[0, 1, 3, 2])
        )
        out = net("MatMul", net("Softmax", scores, axis=-1), v)
        x = _feed_forward(net, net("Add", x, net.linear(net.joined(out))))
    return net.model(dict(X), x)


def _feed_forward(net: Net, x: str) -> str:
    inner = net("Relu", net.linear(net.norm(x), outputs=4 * WIDTH))
    return net("Add", x, net.linear(inner, width=4 * WIDTH, outputs=WIDTH))


def gpt(blocks: int) -> onnx.ModelProto:
    """Causal mask by Where, keys and values joined to those of earlier turns."""
    net, x = Net(), "x"
    past: dict[str, list[int | str]] = {}
    mask = net("Cast", net("Trilu", net.constant(np.ones((1, 1, 8, 16)))), to=9)
    for number in range(blocks):
        packed = net.linear(net.norm(x), outputs=3 * WIDTH)
        parts = net.node("Split", [packed, net.constant([WIDTH] * 3, np.int64)], outputs=3, axis=2)
        q, k, v = (net.heads(each) for each in parts)
        for each in ("key", "value"):
            past[f"{each}.{number}"] = [BATCH, HEADS, "past", DEPTH]
        k = net("Concat", f"key.{number}", k, axis=2)
        v = net("Concat", f"value.{number}", v, axis=2)

        def masked(net: Net, scores: str) -> str:
            return net("Where", mask, scores, net.constant(-1e4))

        keys = net("Transpose", k, perm=[0, 1, 3, 2])
        out = attention(net, q, keys, v, between=masked, softmax=_in_float)
        x = _feed_forward(net, net("Add", x, net.linear(net.joined(out))))
    return net.model(X | past, x)


def _in_float(net: Net, scores: str) -> str:
    """Softmax as exporters of fp16 write it, and the dropout that is left of training."""
    wide = net("Softmax", net("Cast", scores, to=FLOAT), axis=-1)
    return net("Dropout", net("Cast", wide, to=FLOAT))


def whisper_decoder(layers: int) -> onnx.ModelProto:
    """Two blocks a layer: over its own past, and over what the encoder saw; heads in the batch."""
    net, x = Net(), "x"
    flat = net.constant([-1, LENGTH, DEPTH], np.int64)
    for _ in range(layers):
        for memory in (None, "audio"):
            q, k, v = projected(net, net.norm(x), memory)
            k = net("Reshape", k, net.constant([-1, DEPTH, LENGTH], np.int64))
            q, v = net("Reshape", q, flat), net("Reshape", v, flat)
            scores = net("Add", net("MatMul", q, k), net.weight(1, LENGTH, LENGTH))
            out = net("MatMul", net("Softmax", scores, axis=2), v)
            four = net("Reshape", out, net.constant([-1, HEADS, LENGTH, DEPTH], np.int64))
            x = net("Add", x, net.linear(net.joined(four)))
        x = _feed_forward(net, x)
    return net.model(X | {"audio": [BATCH, LENGTH, WIDTH]}, x)


def one(*, between: Between | None = None, softmax: Between | None = None) -> onnx.ModelProto:
    """One block in the middle of linear layers."""
    net = Net()
    out = attention(net, *projected(net, "x"), between=between, softmax=softmax)
    return net.model(dict(X), net.linear(net.joined(out)))


def written_out(net: Net, scores: str) -> str:
    """Softmax as Exp, ReduceSum and Div, less the largest."""
    largest = net("ReduceMax", scores, axes=[-1], keepdims=1)
    powers = net("Exp", net("Sub", scores, largest))
    return net("Div", powers, net("ReduceSum", powers, net.constant([-1], np.int64), keepdims=1))


def from_logarithms(net: Net, scores: str) -> str:
    """exp(scores - logsumexp(scores))."""
    return net("Exp", net("Sub", scores, net("ReduceLogSumExp", scores, axes=[-1], keepdims=1)))


def divided_late() -> onnx.ModelProto:
    """exp(QKᵀ)·V, divided by the sums at the end."""
    net = Net()
    q, k, v = projected(net, "x")
    powers = net("Exp", net("MatMul", q, k))
    sums = net("ReduceSum", powers, net.constant([-1], np.int64), keepdims=1)
    return net.model(dict(X), net("Div", net("MatMul", powers, v), sums), rank=4)


def talking_heads(net: Net, scores: str) -> str:
    """Scores mixed between heads by a learned matrix."""
    last = net("Transpose", scores, perm=[0, 2, 3, 1])
    return net("Transpose", net("MatMul", last, net.weight(HEADS, HEADS)), perm=[0, 3, 1, 2])


def einsums() -> onnx.ModelProto:
    """Both products as Einsum, V before the weights."""
    net = Net()
    q, k, v = (net.heads(net.linear("x")) for _ in range(3))
    weights = net("Softmax", net("Einsum", q, k, equation="bhid,bhjd->bhij"), axis=-1)
    return net.model(dict(X), net("Einsum", v, weights, equation="bhjd,bhij->bhid"), rank=4)


def learned_queries() -> onnx.ModelProto:
    """SigLIP's pooling: one learned query, repeated for each of the batch."""
    net = Net()
    _, k, v = projected(net, "x")
    batch = net("Gather", net("Shape", "x"), net.constant([0], np.int64))
    shape = net("Concat", batch, net.constant([HEADS, 1, DEPTH], np.int64), axis=0)
    query = net("Expand", net.weight(1, HEADS, 1, DEPTH), shape)
    return net.model(dict(X), attention(net, query, k, v), rank=4)


def quantized() -> onnx.ModelProto:
    """Explicit Q/DQ around both products."""
    net = Net()
    scale, zero = net.constant(0.02), net.constant(0, np.int8)

    def both(value: str) -> str:
        return net("DequantizeLinear", net("QuantizeLinear", value, scale, zero), scale, zero)

    q, k, v = (both(each) for each in projected(net, "x"))
    weights = both(net("Softmax", both(net("MatMul", q, k)), axis=-1))
    return net.model(dict(X), net("MatMul", weights, v), rank=4)


def called(times: int) -> onnx.ModelProto:
    """Attention in a function of the file's own, whose softmax is another; called some times."""
    net, inner = Net(), helper.make_opsetid("", 17)
    own = helper.make_opsetid("ours", 1)
    soft = helper.make_function(
        "ours", "Soft", ["s"], ["p"], [helper.make_node("Softmax", ["s"], ["p"], axis=-1)], [inner]
    )
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Soft", ["s"], ["p"], domain="ours"),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
    ]
    attend = helper.make_function("ours", "Attention", ["q", "k", "v"], ["o"], nodes, [inner, own])
    net.functions += [soft, attend]
    out = [net("Attention", *projected(net, "x"), domain="ours") for _ in range(times)]
    return net.model(dict(X), net("Sum", *out), rank=4)


def branches() -> onnx.ModelProto:
    """An If: softmax in one branch with a mask, in the other without; products outside."""
    net = Net()
    q, k, v = projected(net, "x")
    scores = net("MatMul", q, k)
    out = helper.make_tensor_value_info("p", FLOAT, None)
    masked = [
        helper.make_node("Add", [scores, net.weight(LENGTH, LENGTH)], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
    ]
    plain = [helper.make_node("Softmax", [scores], ["p"], axis=-1)]
    graphs = [
        helper.make_graph(nodes, name, [], [out]) for nodes, name in ((masked, "a"), (plain, "b"))
    ]
    sign = net("ReduceSum", "x", keepdims=0)
    condition = net("Greater", sign, net.constant(0.0))
    weights = net("If", condition, then_branch=graphs[0], else_branch=graphs[1])
    return net.model(dict(X), net("MatMul", weights, v), rank=4)


def operators() -> onnx.ModelProto:
    """Attention as ONNX Runtime's operator, in a model that also has a block of its own."""
    net = Net()
    fused = net(
        "MultiHeadAttention",
        *(net.linear("x") for _ in range(3)),
        domain="com.microsoft",
        num_heads=2,
    )
    out = net.joined(attention(net, *projected(net, fused)))
    return net.model(dict(X), out)


ATTENTION: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    "bert": (lambda: bert(12), 12),
    "bert, odd forms": (lambda: bert(3, odd=["softcap", "position-bias", "negative-axis"]), 3),
    "vit": (lambda: vit(12), 12),
    "gpt": (lambda: gpt(12), 12),
    "whisper decoder": (lambda: whisper_decoder(4), 8),
    "softcap": (lambda: one(between=softcap), 1),
    "position bias": (lambda: one(between=position_bias), 1),
    "talking heads": (lambda: one(between=talking_heads), 1),
    "written out": (lambda: one(softmax=written_out), 1),
    "from logarithms": (lambda: one(softmax=from_logarithms), 1),
    "exp of log-softmax": (
        lambda: one(softmax=lambda net, s: net("Exp", net("LogSoftmax", s, axis=-1))),
        1,
    ),
    "other axis": (lambda: one(softmax=last_axis(2)), 1),
    "divided late": (divided_late, 1),
    "einsums": (einsums, 1),
    "learned queries": (learned_queries, 1),
    "quantized": (quantized, 1),
    "function, called 5 times": (lambda: called(5), 5),
    "both branches of an If": (branches, 2),
    "operators": (operators, 2),
}
"""How a model writes attention, and how many blocks it has."""


def classifier() -> onnx.ModelProto:
    """Scores of classes, as probabilities."""
    net = Net()
    return net.model(dict(X), net("Softmax", net.linear("x", outputs=10), axis=-1))


def zero_shot() -> onnx.ModelProto:
    """CLIP's classifier: a product of two computed values, softmax, and no V."""
    net = Net()
    classes = net("Transpose", net.linear("words"), perm=[0, 2, 1])
    scores = net("Softmax", net("MatMul", net.linear("x"), classes), axis=-1)
    return net.model(X | {"words": [BATCH, LENGTH, WIDTH]}, scores)


def squeeze_excite() -> onnx.ModelProto:
    """Channels weighed by a softmax over two small layers."""
    net = Net()
    mean = net("ReduceMean", "x", axes=[1], keepdims=1)
    weights = net("Softmax", net.linear(net("Relu", net.linear(mean))), axis=-1)
    return net.model(dict(X), net("Mul", "x", weights))


def expert_gate() -> onnx.ModelProto:
    """A soft mixture: the keys are learned, so it is a linear layer and a sum."""
    net = Net()
    gate = net("Softmax", net.linear("x", outputs=LENGTH), axis=-1)
    return net.model(dict(X), net("MatMul", gate, net.linear("x")))


def repeated_gate() -> onnx.ModelProto:
    """The same with its weights repeated for each of the batch."""
    net = Net()
    batch = net("Gather", net("Shape", "x"), net.constant([0], np.int64))
    shape = net("Concat", batch, net.constant([WIDTH, LENGTH], np.int64), axis=0)
    scores = net("MatMul", net.linear("x"), net("Expand", net.weight(WIDTH, LENGTH), shape))
    return net.model(dict(X), net("MatMul", net("Softmax", scores, axis=-1), net.linear("x")))


def pooled() -> onnx.ModelProto:
    """A sum of the sequence by one learned score each."""
    net = Net()
    scores = net("Transpose", net.linear("x", outputs=1), perm=[0, 2, 1])
    return net.model(dict(X), net("MatMul", net("Softmax", scores, axis=-1), "x"))


def linear_attention() -> onnx.ModelProto:
    """softmax(Q)·(softmax(K)ᵀ·V), block after block: no scores of pairs."""
    net, x = Net(), "x"
    for _ in range(3):
        q, k, v = projected(net, x)
        context = net("MatMul", net("Softmax", k, axis=-1), v)
        out = net("MatMul", net("Softmax", q, axis=-1), context)
        x = net("Add", x, net.linear(net.joined(out)))
    return net.model(dict(X), x)


def exponential_features() -> onnx.ModelProto:
    """Performer: exp of learned features of Q and of K, sums, and no softmax over pairs."""
    net, x = Net(), "x"
    for _ in range(2):
        q, k, v = projected(net, x)
        q, k = (net("Exp", net("MatMul", q, net.weight(DEPTH, DEPTH))), net("Exp", k))
        sums = net("ReduceSum", q, net.constant([-1], np.int64), keepdims=1)
        out = net("Div", net("MatMul", q, net("MatMul", k, v)), sums)
        x = net("Add", x, net.linear(net.joined(out)))
    return net.model(dict(X), x)


def box_distances() -> onnx.ModelProto:
    """YOLO's boxes: softmax over bins, times their numbers."""
    net = Net()
    bins = net("Softmax", net.linear("x"), axis=-1)
    return net.model(dict(X), net("MatMul", bins, net.constant(np.arange(WIDTH).reshape(-1, 1))))


def maps_only() -> onnx.ModelProto:
    """Attention weights that go nowhere."""
    net = Net()
    q, k, _ = projected(net, "x")
    return net.model(dict(X), net("Softmax", net("MatMul", q, k), axis=-1), rank=4)


LOOKALIKES: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": classifier,
    "zero-shot classifier": zero_shot,
    "squeeze and excite": squeeze_excite,
    "gate of experts": expert_gate,
    "gate of experts, repeated": repeated_gate,
    "pooling by learned scores": pooled,
    "linear attention": linear_attention,
    "exponential features": exponential_features,
    "sigmoid attention": lambda: one(softmax=lambda net, scores: net("Sigmoid", scores)),
    "no softmax": lambda: one(softmax=lambda net, scores: net("Mul", scores, net.constant(0.1))),
    "exp that is not divided": lambda: one(softmax=lambda net, scores: net("Exp", scores)),
    "box distances": box_distances,
    "weights that go nowhere": maps_only,
}
"""What has softmax or products, and no attention block."""
