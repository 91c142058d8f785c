"""What flows into what in an ONNX file: its operations with subgraphs and functions laid flat.

Values are numbers, 0 is an absent one. A call of a function the file brings itself is replaced by
that function's body, each time. Subgraphs are joined to the node that holds them by `Identity`
operations, so that what goes into or comes out of an If, Loop or Scan is followed; both branches of
an If are there. Weights are never read. Fails closed: ValueError, with the byte where there is one.

Field numbers: onnx/onnx-ml.proto of ONNX 1.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from planyard.core.onnx_outline import MAX_GRAPH_DEPTH
from planyard.core.protobuf_wire import Span, Wire, refuse

MAX_FIELDS = 5_000_000
MAX_OPERATIONS = 200_000
IDENTITY = "Identity"
_INITIALIZER = "Constant"
_Key = tuple[str, str, str]


class Operation(NamedTuple):
    """A node: its type without the domain, the numbers of what goes in and what comes out."""

    type: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class _Node:
    key: _Key = ("", "", "")
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list[_Graph] = field(default_factory=list)


@dataclass
class _Graph:
    """A graph, or the body of a function."""

    nodes: list[_Node] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def dataflow_of_onnx(
    data: bytes | memoryview,
    *,
    max_fields: int = MAX_FIELDS,
    max_operations: int = MAX_OPERATIONS,
) -> list[Operation]:
    """The operations of a ModelProto's graph; initializers are operations without inputs.

    Raises ValueError for what is no ONNX model, too large, or calls its functions in a circle.
    """
    wire = Wire(data, max_fields=max_fields)
    main: _Graph | None = None
    functions: dict[_Key, _Graph] = {}
    for number, span in wire.messages(wire.whole):
        if number == 7:
            main = _read_graph(wire, span, depth=1, into=main)
        elif number == 25:
            key, body = _read_function(wire, span)
            functions[key] = body
    if main is None:
        refuse(0, "it holds no graph, so it is not an ONNX model")
    flat = _Flat(functions, max_operations=max_operations)
    flat.lay(main, _Scope(), calls=(), depth=1)
    return flat.operations


def _read_graph(wire: Wire, span: Span, *, depth: int, into: _Graph | None = None) -> _Graph:
    """GraphProto: node 1, initializer 5, input 11, output 12, sparse_initializer 15."""
    if depth > MAX_GRAPH_DEPTH:
        refuse(span[0], f"graphs are nested more than {MAX_GRAPH_DEPTH} deep")
    graph = into or _Graph()
    for number, inner in wire.messages(span):
        if number == 1:
            graph.nodes.append(_read_node(wire, inner, depth=depth))
        elif number == 5:
            graph.initializers.append(_text_field(wire, inner, 8))
        elif number == 11:
            graph.inputs.append(_text_field(wire, inner, 1))
        elif number == 12:
            graph.outputs.append(_text_field(wire, inner, 1))
        elif number == 15:
            values = [each for field, each in wire.messages(inner) if field == 1]
            graph.initializers += [_text_field(wire, each, 8) for each in values]
    return graph


def _read_node(wire: Wire, span: Span, *, depth: int) -> _Node:
    """NodeProto: input 1, output 2, op_type 4, attribute 5, domain 7, overload 8."""
    node = _Node()
    texts = {4: "", 7: "", 8: ""}
    attributes = []
    for number, inner in wire.messages(span):
        if number == 1:
            node.inputs.append(wire.text(inner))
        elif number == 2:
            node.outputs.append(wire.text(inner))
        elif number in texts:
            texts[number] = wire.text(inner)
        elif number == 5:
            attributes.append(inner)
    node.key = _key(texts[7], texts[4], texts[8])
    for attribute in attributes if texts[4] != _INITIALIZER else ():
        for number, inner in wire.messages(attribute):
            if number in {6, 11}:
                node.graphs.append(_read_graph(wire, inner, depth=depth + 1))
    return node


def _read_function(wire: Wire, span: Span) -> tuple[_Key, _Graph]:
    """FunctionProto: name 1, input 4, output 5, node 7, domain 10, overload 13."""
    body = _Graph()
    texts = {1: "", 10: "", 13: ""}
    for number, inner in wire.messages(span):
        if number == 4:
            body.inputs.append(wire.text(inner))
        elif number == 5:
            body.outputs.append(wire.text(inner))
        elif number == 7:
            body.nodes.append(_read_node(wire, inner, depth=1))
        elif number in texts:
            texts[number] = wire.text(inner)
    return _key(texts[10], texts[1], texts[13]), body


def _key(domain: str, name: str, overload: str) -> _Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _text_field(wire: Wire, span: Span, wanted: int) -> str:
    found = ""
    for number, inner in wire.messages(span):
        if number == wanted:
            found = wire.text(inner)
    return found


class _Scope:
    """Names and their numbers in one graph; what is not here is looked up around it."""

    def __init__(self, around: _Scope | None = None) -> None:
        self.around = around
        self.numbers: dict[str, int] = {"": 0}

    def find(self, name: str) -> int | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.numbers:
                return scope.numbers[name]
            scope = scope.around
        return None


class _Flat:
    """The operations laid flat so far."""

    def __init__(self, functions: dict[_Key, _Graph], *, max_operations: int) -> None:
        self.functions = functions
        self.max_operations = self.left = max_operations
        self.operations: list[Operation] = []
        self.values = 0

    def lay(self, graph: _Graph, scope: _Scope, *, calls: tuple[_Key, ...], depth: int) -> None:
        """Lay out a graph whose inputs may already have numbers in `scope`."""
        if depth > MAX_GRAPH_DEPTH:
            raise ValueError(f"graphs and functions are nested more than {MAX_GRAPH_DEPTH} deep")
        self._declare(scope, (name for name in graph.inputs if name not in scope.numbers))
        # Files of before 2019 list their initializers among the inputs, too.
        new = [name for name in graph.initializers if name not in scope.numbers]
        self._declare(scope, new)
        for name in graph.initializers:
            self._add(_INITIALIZER, (), (scope.numbers[name],))
        for node in graph.nodes:
            self._declare(scope, (name for name in node.outputs if name))
        for node in graph.nodes:
            self._lay_node(node, scope, calls=calls, depth=depth)

    def _lay_node(self, node: _Node, scope: _Scope, *, calls: tuple[_Key, ...], depth: int) -> None:
        inputs = tuple(self._number(scope, name) for name in node.inputs)
        outputs = tuple(scope.numbers[name] for name in node.outputs)
        body = self.functions.get(node.key)
        if body is None:
            self._add(node.key[1], inputs, outputs)
            for graph in node.graphs:
                inner = _Scope(scope)
                self.lay(graph, inner, calls=calls, depth=depth + 1)
                self._join(node.key[1], graph, inner, inputs=inputs, outputs=outputs)
            return
        if node.key in calls:
            raise ValueError(f"function {node.key[1]!r} calls itself")
        self._spend()
        inner = _Scope()
        inner.numbers |= dict(zip(body.inputs, inputs, strict=False))
        self.lay(body, inner, calls=(*calls, node.key), depth=depth + 1)
        self._link((self._number(inner, name) for name in body.outputs), outputs)

    def _join(
        self,
        holder: str,
        graph: _Graph,
        inner: _Scope,
        *,
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        """What goes into a subgraph and comes out, by the positions that If, Loop and Scan give."""
        entries = [inner.numbers[name] for name in graph.inputs]
        results = [self._number(inner, name) for name in graph.outputs]
        if holder == "Loop":
            self._link(results[1:], entries[2:])  # what it carries from turn to turn
            results = results[1:]
        self._link(inputs, entries)
        self._link(results, outputs)

    def _link(self, sources: Iterable[int], targets: Iterable[int]) -> None:
        for source, target in zip(sources, targets, strict=False):
            if source and target:
                self._add(IDENTITY, (source,), (target,))

    def _add(self, kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        self._spend()
        self.operations.append(Operation(kind, inputs, outputs))

    def _spend(self) -> None:
        """A call costs as well: functions without operations could call each other for ever."""
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"more than {self.max_operations} operations and calls of functions")

    def _declare(self, scope: _Scope, names: Iterable[str]) -> None:
        for name in names:
            if name in scope.numbers:
                raise ValueError(f"two values are called {name[:80]!r}")
            self.values += 1
            scope.numbers[name] = self.values

    def _number(self, scope: _Scope, name: str) -> int:
        """The number of a value; one that nothing makes has a number of its own."""
        found = scope.find(name)
        if found is None:
            self.values += 1
            found = scope.numbers[name] = self.values
        return found
