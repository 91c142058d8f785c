"""Counting attention: sums over any mixture, the same under any rewriting, a count or ValueError.

ONNX's own test models for its Attention operators, as operators and written out, are counted too.
"""

from __future__ import annotations

import contextlib
import random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from planyard.core.attention import count_attention
from tests.attention_forms import ATTENTION, LOOKALIKES, written_out
from tests.attention_models import (
    DEPTH,
    HEADS,
    LENGTH,
    Between,
    Net,
    attention,
    last_axis,
    projected,
    softcap,
)
from tests.attention_models import position_bias as bias

BETWEEN: list[Between] = [
    softcap,
    bias,
    lambda net, scores: net("Cast", net("Cast", scores, to=TensorProto.DOUBLE), to=1),
    lambda net, scores: net("Mul", scores, net.constant(0.5)),
    lambda net, scores: net("Where", net.constant(True, bool), scores, net.constant(-1e4)),
    lambda net, scores: net("Identity", scores),
    lambda net, scores: net(
        "Reshape",
        net("Reshape", scores, net.constant([-1, LENGTH, LENGTH], np.int64)),
        net.constant([-1, HEADS, LENGTH, LENGTH], np.int64),
    ),
    lambda net, scores: net(
        "Transpose", net("Transpose", scores, perm=[0, 1, 3, 2]), perm=[0, 1, 3, 2]
    ),
    lambda net, scores: net("Clip", scores, net.constant(-9.0), net.constant(9.0)),
    lambda net, scores: net("Squeeze", net("Unsqueeze", scores, axis(net)), axis(net)),
]
SOFTMAXES: list[Between] = [last_axis(3), last_axis(-1), written_out]
NO_SOFTMAX: list[Between] = [
    lambda net, scores: net("Sigmoid", scores),
    lambda net, scores: net("Mul", scores, net.constant(0.1)),
    lambda net, scores: net("Relu", scores),
]


def axis(net: Net) -> str:
    return net.constant([0], np.int64)


def chain(steps: list[Between]) -> Between:
    """All of them, one after another."""

    def together(net: Net, scores: str) -> str:
        for step in steps:
            scores = step(net, scores)
        return scores

    return together


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """Blocks with anything between their products, and what is none; with how many blocks."""
    net, x, count = Net(), "x", 0
    for _ in range(draw(st.integers(0, 4))):
        is_block = draw(st.booleans())
        softmax = draw(st.sampled_from(SOFTMAXES if is_block else NO_SOFTMAX))
        before = chain(draw(st.lists(st.sampled_from(BETWEEN), max_size=4)))
        behind = chain(draw(st.lists(st.sampled_from(BETWEEN), max_size=3)))
        out = attention(
            net, *projected(net, net.norm(x)), between=before, softmax=chain([softmax, behind])
        )
        x = net("Add", x, net.linear(net.joined(out)))
        count += is_block
    if draw(st.booleans()):
        x = net("Softmax", net.linear(net.norm(x)), axis=-1)
    return net.model({"x": ["batch", LENGTH, HEADS * DEPTH]}, x), count


@settings(deadline=None)
@given(mixtures())
def test_only_blocks_count_whatever_is_between(mixture: tuple[onnx.ModelProto, int]) -> None:
    model, blocks = mixture
    assert count_attention(model.SerializeToString()) == blocks


def renamed(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph with its nodes in any order, and no name left as it was."""
    dice, graph = random.Random(seed), onnx.ModelProto()
    graph.CopyFrom(model)
    names: dict[str, str] = {"": ""}

    def new(name: str) -> str:
        return names.setdefault(name, f"v{dice.getrandbits(64)}")

    def rename(part: onnx.GraphProto) -> None:
        for value in (*part.input, *part.output, *part.initializer):
            value.name = new(value.name)
        for node in part.node:
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            node.name = ""
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)
        nodes = list(part.node)
        dice.shuffle(nodes)
        del part.node[:]
        part.node.extend(nodes)

    rename(graph.graph)
    return graph


EVERY = {**ATTENTION, **{name: (model, 0) for name, model in LOOKALIKES.items()}}


@settings(deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.integers(0, 2**32))
def test_names_and_order_do_not_matter(name: str, seed: int) -> None:
    model, blocks = EVERY[name]
    assert count_attention(renamed(model(), seed).SerializeToString()) == blocks


@given(st.binary(max_size=300))
def test_any_bytes_give_a_count_or_a_value_error(data: bytes) -> None:
    count_or_refuse(data)


@settings(deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.data())
def test_any_damage_gives_a_count_or_a_value_error(name: str, data: st.DataObject) -> None:
    whole = bytearray(EVERY[name][0]().SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    count_or_refuse(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def count_or_refuse(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert count_attention(data) >= 0


def onnx_cases() -> dict[str, onnx.ModelProto]:
    """ONNX's test models of Attention and FlexAttention: operators, and their definitions."""
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import attention as first
    from onnx.backend.test.case.node import flexattention as second

    assert first
    assert second
    return {
        case.name: case.model
        for case in node._NodeTestCases
        if case.model is not None and "attention" in case.name
    }


def test_onnxs_own_attention_models_have_one_block_each() -> None:
    cases = onnx_cases()
    counts = {name: count_attention(model.SerializeToString()) for name, model in cases.items()}
    assert len(counts) > 150
    assert sum(name.endswith("_expanded") for name in counts) > 70
    assert {name: count for name, count in counts.items() if count != 1} == {}


def test_weights_of_any_size_change_nothing() -> None:
    model, blocks = ATTENTION["bert"]
    heavy = model()
    for number in range(20):
        array = np.zeros(200_000, "float32")
        heavy.graph.initializer.append(numpy_helper.from_array(array, f"heavy-{number}"))
    assert count_attention(heavy.SerializeToString()) == blocks


def test_the_models_here_are_sound() -> None:
    for model, _ in EVERY.values():
        onnx.checker.check_model(model())
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(helper.make_model(helper.make_graph([], "", [], [])))
