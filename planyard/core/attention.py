"""How many attention blocks an ONNX graph has: softmax(Q·Kᵀ)·V, however it is written.

A block is a softmax whose scores come from a product of two computed values, through arithmetic
(scale, mask, bias, softcap), changes of shape or type, and at most one learned layer (talking
heads); and whose probabilities go, the same way, into another product. The softmax is an operator
or written out with Exp. The keys must be computed: a learned matrix there is a linear layer, and a
softmax after it a classifier or a gate. Operators that are attention already count as they are.

Every block of the file counts: both branches of an If, a loop's body once, a function at each call.
Where it is a question of taste the count is the higher one: a gate asks that each block is fused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from planyard.core.onnx_dataflow import Operation, dataflow_of_onnx

SOFTMAX = "Softmax"
WRITTEN_OUT = "Exp"

# Attention as one operator: ONNX 23, ONNX Runtime's contrib operators of 1.31, plugins of TensorRT.
ATTENTION = frozenset(
    (
        *("Attention", "DecoderAttention", "DecoderMaskedMultiHeadAttention"),
        *("DecoderMaskedSelfAttention", "DynamicSparseAttention", "FlexAttention"),
        *("GroupQueryAttention", "LongformerAttention", "MultiHeadAttention", "PackedAttention"),
        *("PackedMultiHeadAttention", "PagedAttention", "QAttention", "QOrderedAttention"),
        *("QOrderedLongformerAttention", "SparseAttention", "SparsePagedAttention"),
        *("AttentionPlugin", "CustomQKVToContextPluginDynamic", "fMHA_V2", "fMHCA"),
    )
)
_SOFTMAXES = frozenset({SOFTMAX, "BiasSoftmax", "QLinearSoftmax"})
# Products of two tensors, and where the second one stands among the inputs.
_PRODUCTS = {
    **dict.fromkeys(("MatMul", "Gemm", "Einsum", "MatMulInteger"), 1),
    **dict.fromkeys(("FusedMatMul", "FusedMatMulActivation", "FusedGemm", "TransposeMatMul"), 1),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "GemmFloat8"), 1),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), 1),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), 3),
}
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
# What only moves its first input, or writes the same numbers another way.
_MOVES = frozenset(
    (
        *("Cast", "CastLike", "DepthToSpace", "DequantizeLinear", "Dropout", "Expand", "Flatten"),
        *("Identity", "Pad", "QuantizeLinear", "Reshape", "Slice", "SpaceToDepth", "Split"),
        *("Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"),
    )
)
_PASSES = _MOVES.union(
    ("Add", "Clip", "Concat", "Div", "LeakyRelu", "LogSoftmax", "Max", "Min", "Mul", "Neg", "Relu"),
    ("DisentangledAttention_TRT", "DynamicQuantizeLinear", "Sub", "Sum", "Tanh", "Where"),
    ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"),
    ("QLinearAdd", "QLinearConcat", "QLinearMul", "QLinearWhere"),
)
_SUMS = frozenset({"ReduceSum", "ReduceL1"})
_LOGARITHMS = frozenset({"Log", "LogSoftmax", "ReduceLogSumExp"})
_CONSTANTS = frozenset({"Constant", "ConstantOfShape"})
_RANDOM = ("Random", "Bernoulli", "Multinomial")
_LAYERS_BETWEEN = 1

_Edges = Mapping[int, Sequence[Operation]]


class AttentionBlocks(msgspec.Struct, frozen=True, kw_only=True):
    """Attention blocks of a graph, by what they are: `Softmax`, `Exp` (written out), operators."""

    kinds: dict[str, int]

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.kinds.values())


def count_attention(data: bytes | memoryview) -> int:
    """How many attention blocks an ONNX file has; ValueError where it is no sound ONNX."""
    return find_attention(data).count


def find_attention(data: bytes | memoryview) -> AttentionBlocks:
    """The attention blocks of an ONNX file; weights outside it are not needed, nor those in it.

    Raises ValueError for what is truncated, malformed, or too large to count.
    """
    graph = _Graph(dataflow_of_onnx(data))
    kinds = Counter(each.type for each in graph.operations if each.type in ATTENTION)
    kinds[SOFTMAX] += sum(graph.is_block(each) for each in graph.softmaxes)
    kinds[WRITTEN_OUT] += sum(graph.is_written_out(each) for each in graph.exponentials)
    return AttentionBlocks(kinds={kind: n for kind, n in sorted(kinds.items()) if n})


class _Graph:
    """Operations, who makes and who takes each value, and what can be reached from where."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.softmaxes = [each for each in operations if each.type in _SOFTMAXES]
        self.exponentials = [each for each in operations if each.type == "Exp"]
        if not self.softmaxes and not self.exponentials:
            return
        self.makers = _edges((each, each.outputs) for each in operations)
        self.takers = _edges((each, each.inputs) for each in operations)
        self.constants = _constants(operations, makers=self.makers, takers=self.takers)
        products = [each for each in operations if _is_product(each)]
        pairs = [each.outputs for each in products if not self._is_layer(each)]
        operands = [(each.inputs[0], each.inputs[_PRODUCTS[each.type]]) for each in products]
        self.scores = self._from(pairs, layers=_LAYERS_BETWEEN)
        self.weights = self._towards(operands, layers=_LAYERS_BETWEEN)
        self.summed = self._towards(each.inputs[:1] for each in operations if each.type in _SUMS)
        self.logarithms = self._from(
            each.outputs for each in operations if each.type in _LOGARITHMS
        )

    def is_block(self, softmax: Operation) -> bool:
        """Whether products stand before and behind."""
        return (
            softmax.inputs[:1] != ()
            and softmax.inputs[0] in self.scores
            and any(each in self.weights for each in softmax.outputs)
        )

    def is_written_out(self, exponential: Operation) -> bool:
        """Whether it is a block's softmax: what it makes is summed, or its sum was taken before."""
        normal = exponential.inputs[:1] != () and exponential.inputs[0] in self.logarithms
        summed = any(each in self.summed for each in exponential.outputs)
        return (normal or summed) and self.is_block(exponential)

    def _is_layer(self, operation: Operation) -> bool:
        """Whether it multiplies by learned weights."""
        place = _CONVOLUTIONS.get(operation.type) or _PRODUCTS.get(operation.type)
        return place is not None and (
            len(operation.inputs) > place and operation.inputs[place] in self.constants
        )

    def _from(self, starts: Iterable[Sequence[int]], *, layers: int = 0) -> set[int]:
        """What these values flow into."""

        def onwards(value: int) -> Iterable[tuple[Operation, Sequence[int]]]:
            return ((each, each.outputs) for each in self.takers.get(value, ()))

        return self._spread(starts, onwards, layers=layers)

    def _towards(self, starts: Iterable[Sequence[int]], *, layers: int = 0) -> set[int]:
        """What flows into these values."""

        def backwards(value: int) -> Iterable[tuple[Operation, Sequence[int]]]:
            for each in self.makers.get(value, ()):
                yield each, each.inputs[:1] if self._is_layer(each) else each.inputs

        return self._spread(starts, backwards, layers=layers)

    def _spread(
        self,
        starts: Iterable[Sequence[int]],
        step: Callable[[int], Iterable[tuple[Operation, Sequence[int]]]],
        *,
        layers: int,
    ) -> set[int]:
        """Every value that can be reached through operations that pass, and so many layers."""
        found: dict[int, int] = {value: layers for values in starts for value in values}
        waiting = deque(found)
        while waiting:
            value = waiting.popleft()
            for operation, reached in step(value):
                left = found[value] - (not _passes(operation))
                if left < 0 or not (_passes(operation) or self._is_layer(operation)):
                    continue
                for each in reached:
                    if each and found.get(each, -1) < left:
                        found[each] = left
                        waiting.append(each)
        return set(found)


def _passes(operation: Operation) -> bool:
    return operation.type in _PASSES or (operation.type == "Einsum" and len(operation.inputs) == 1)


def _is_product(operation: Operation) -> bool:
    place = _PRODUCTS.get(operation.type)
    return place is not None and len(operation.inputs) > place


def _edges(pairs: Iterable[tuple[Operation, Sequence[int]]]) -> _Edges:
    """The operations at each value."""
    found: dict[int, list[Operation]] = {}
    for operation, values in pairs:
        for value in values:
            if value:
                found.setdefault(value, []).append(operation)
    return found


def _constants(operations: list[Operation], *, makers: _Edges, takers: _Edges) -> set[int]:
    """Values that follow from the file alone, whatever it is asked.

    What is moved stays constant wherever it is moved to: a learned query, once for each of a batch.
    """
    waits = {id(each): sum(map(bool, _numbers_from(each))) for each in operations}
    unmade = {value: len(made) for value, made in makers.items()}
    ready = deque(each for each in operations if each.type in _CONSTANTS)
    found: set[int] = set()
    while ready:
        for value in filter(None, ready.popleft().outputs):
            unmade[value] -= 1
            if unmade[value]:
                continue
            found.add(value)
            for taker in takers.get(value, ()):
                waits[id(taker)] -= value in _numbers_from(taker)
                if waits[id(taker)] == 0 and not taker.type.startswith(_RANDOM):
                    ready.append(taker)
    return found


def _numbers_from(operation: Operation) -> tuple[int, ...]:
    """The inputs whose numbers are in the output."""
    if operation.type in _CONSTANTS:
        return ()
    return operation.inputs[:1] if operation.type in _MOVES else operation.inputs
