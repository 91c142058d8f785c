"""The outline of an ONNX file, read from the protobuf wire format before any ONNX parser sees it.

Fails closed: whatever is truncated, malformed or out of bounds is a ValueError naming the byte.
Where parsers could disagree it takes the wider reading: a tensor with `external_data` entries
counts as external whatever its `data_location` says, and every `location` counts, not the last.
Of a tensor's own bytes only the length is read, so a mapped file of 2 GB costs no memory.

Field numbers: onnx/onnx-ml.proto of ONNX 1.23.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from planyard.core.protobuf_wire import BYTES, MAX_FIELDS, VARINT, Span, Wire, refuse, signed

MAX_GRAPH_DEPTH = 64

# onnxruntime and OpenVINO read this location as an address in their own memory.
MEMORY_LOCATION = "*/_ORT_MEM_ADDR_/"

_EXTERNAL = 1
# TensorProto.DataType, in the names NumPy and ml_dtypes use.
# fmt: off
_DTYPES = {
    0: "undefined", 1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32",
    7: "int64", 8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz",
    19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4_e2m1fn",
    24: "float8_e8m0fnu", 25: "uint2", 26: "int2",
    27: "float6_e2m3fn", 28: "float6_e3m2fn",
}
# fmt: on
# The other choices of TypeProto, by field number.
_OTHER_TYPES = {4: "sequence", 5: "map", 7: "opaque", 8: "sparse_tensor", 9: "optional"}
_NUMBER = re.compile(r"[0-9]{1,19}")

Shape = tuple[int | str | None, ...]


class ValueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output: numbers are fixed dimensions, text names dynamic ones, None is unnamed.

    `shape` is None when the file gives no shape at all.
    """

    name: str
    dtype: str
    shape: Shape | None


class ExternalLocation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tensor's bytes lie outside the model file, exactly as the file says it."""

    tensor: str
    location: str
    offset_bytes: int = 0
    length_bytes: int | None = None


class OnnxOutline(msgspec.Struct, frozen=True, kw_only=True):
    """What an ONNX file says about itself.

    `inputs` leaves initializers out. `opsets` maps a domain ("" is ONNX's own) to its version.
    `operators` counts nodes by type, `domain::Type` outside ONNX's own domain, in all subgraphs,
    functions and training graphs.
    """

    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    opsets: dict[str, int]
    external: tuple[ExternalLocation, ...]
    operators: dict[str, int]


def outline_of_onnx(data: bytes | memoryview, *, max_fields: int = MAX_FIELDS) -> OnnxOutline:
    """Read the outline of a ModelProto; raises ValueError with the byte where it is not one."""
    return _Walk(Wire(data, max_fields=max_fields)).model()


def check_external_locations(outline: OnnxOutline) -> tuple[str, ...]:
    """Why external locations are refused, one line a location; empty when all are plain.

    A plain location is a relative path with `/` that stays below the model's folder.
    """
    first_tensor = {place.location: place.tensor for place in reversed(outline.external)}
    return tuple(
        f"tensor {tensor!r} lies at {location!r}: {reason}"
        for location, tensor in sorted(first_tensor.items())
        if (reason := why_not_plain(location))
    )


def why_not_plain(location: str) -> str:
    """Why `location` cannot be a path below a folder; empty when it can."""
    parts = location.split("/")
    reasons = (
        (not location, "it names no file"),
        (location.startswith(MEMORY_LOCATION), "it is an address in memory, not a file"),
        (any(one < " " or one == "\x7f" for one in location), "it holds a control character"),
        ("\\" in location, "it holds a backslash"),
        (location.startswith("/"), "it is an absolute path"),
        (re.match(r"[A-Za-z]:", location) is not None, "it starts with a drive letter"),
        (".." in parts, "it leaves the model's folder through '..'"),
        ("" in parts or parts[-1] == ".", "it does not name a file"),
    )
    return next((reason for is_bad, reason in reasons if is_bad), "")


def plain_path(location: str) -> str:
    """One spelling for each plain location: without `.` components."""
    return "/".join(part for part in location.split("/") if part != ".")


class _Walk:
    """One pass over a file, and what was found so far."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.inputs: list[ValueInfo] = []
        self.outputs: list[ValueInfo] = []
        self.initializers: set[str] = set()
        self.opsets: dict[str, int] = {}
        self.external: list[ExternalLocation] = []
        self.operators: Counter[str] = Counter()

    def model(self) -> OnnxOutline:
        """ModelProto; a field that repeats is merged, as protobuf does it."""
        has_graph = False
        for number, inner in self.wire.messages(self.wire.whole):
            if number == 7:
                has_graph = True
                self._main_graph(inner)
            elif number == 8:
                self._opset(inner)
            elif number == 20:
                self._training(inner)
            elif number == 25:
                self._function(inner)
        if not has_graph:
            refuse(0, "it holds no graph, so it is not an ONNX model")
        return OnnxOutline(
            inputs=tuple(value for value in self.inputs if value.name not in self.initializers),
            outputs=tuple(self.outputs),
            opsets=self.opsets,
            external=tuple(self.external),
            operators=dict(sorted(self.operators.items())),
        )

    def _main_graph(self, span: Span) -> None:
        """GraphProto of the model: what every graph holds, and its inputs and outputs."""
        for number, inner in self.wire.messages(span):
            if number == 11:
                self.inputs.append(self._value_info(inner))
            elif number == 12:
                self.outputs.append(self._value_info(inner))
            else:
                self.initializers.add(self._graph_field(number, inner, depth=1))

    def _graph(self, span: Span, *, depth: int) -> None:
        """GraphProto anywhere else."""
        if depth > MAX_GRAPH_DEPTH:
            refuse(span[0], f"graphs are nested more than {MAX_GRAPH_DEPTH} deep")
        for number, inner in self.wire.messages(span):
            self._graph_field(number, inner, depth=depth)

    def _graph_field(self, number: int, span: Span, *, depth: int) -> str:
        """A node, or an initializer, whose name is returned."""
        if number == 1:
            self._node(span, depth)
        elif number == 5:
            return self._tensor(span)
        elif number == 15:
            return self._sparse_tensor(span)
        return ""

    def _node(self, span: Span, depth: int) -> None:
        """NodeProto: its type is counted, its attributes are walked."""
        operator = domain = ""
        for number, inner in self.wire.messages(span):
            if number == 4:
                operator = self.wire.text(inner)
            elif number == 7:
                domain = self.wire.text(inner)
            elif number == 5:
                self._attribute(inner, depth)
        self.operators[operator if domain in {"", "ai.onnx"} else f"{domain}::{operator}"] += 1

    def _attribute(self, span: Span, depth: int) -> None:
        """AttributeProto: t 5, tensors 10, g 6, graphs 11, sparse_tensor 22, sparse_tensors 23."""
        for number, inner in self.wire.messages(span):
            if number in {5, 10}:
                self._tensor(inner)
            elif number in {6, 11}:
                self._graph(inner, depth=depth + 1)
            elif number in {22, 23}:
                self._sparse_tensor(inner)

    def _function(self, span: Span) -> None:
        """FunctionProto: its nodes 7 and the defaults of its attributes 11."""
        for number, inner in self.wire.messages(span):
            if number == 7:
                self._node(inner, 1)
            elif number == 11:
                self._attribute(inner, 1)

    def _training(self, span: Span) -> None:
        """TrainingInfoProto: two graphs."""
        for number, inner in self.wire.messages(span):
            if number in {1, 2}:
                self._graph(inner, depth=1)

    def _sparse_tensor(self, span: Span) -> str:
        """SparseTensorProto: values 1, whose name is returned, and indices 2."""
        names = {1: "", 2: ""}
        for number, inner in self.wire.messages(span):
            if number in names:
                names[number] = self._tensor(inner) or names[number]
        return names[1]

    def _tensor(self, span: Span) -> str:
        """TensorProto: notes where its bytes lie when not here, returns its name."""
        name, is_external = "", False
        entries: list[tuple[str, str, int]] = []
        for number, kind, begin, end in self.wire.fields(span):
            if kind == BYTES and number == 8:
                name = self.wire.text((begin, end))
            elif kind == BYTES and number == 13:
                entries.append((*self._entry((begin, end)), begin))
            elif kind == VARINT and number == 14:
                is_external = begin & 0xFFFFFFFF == _EXTERNAL
        if entries or is_external:
            self._note_external(name, entries)
        return name

    def _note_external(self, tensor: str, entries: list[tuple[str, str, int]]) -> None:
        """One location for each `location` entry; none at all is the empty location."""
        numbers: dict[str, int] = {}
        for key, value, at in entries:
            if key in {"offset", "length"}:
                if not _NUMBER.fullmatch(value):
                    refuse(at, f"{key} {value[:40]!r} of tensor {tensor!r} is not a number")
                numbers[key] = int(value)
        for location in [value for key, value, _ in entries if key == "location"] or [""]:
            self.external.append(
                ExternalLocation(
                    tensor=tensor,
                    location=location,
                    offset_bytes=numbers.get("offset", 0),
                    length_bytes=numbers.get("length"),
                )
            )

    def _entry(self, span: Span) -> tuple[str, str]:
        """StringStringEntryProto."""
        texts = {1: "", 2: ""}
        for number, inner in self.wire.messages(span):
            if number in texts:
                texts[number] = self.wire.text(inner)
        return texts[1], texts[2]

    def _opset(self, span: Span) -> None:
        """OperatorSetIdProto."""
        domain, version = "", 0
        for number, kind, begin, end in self.wire.fields(span):
            if kind == BYTES and number == 1:
                domain = self.wire.text((begin, end))
            elif kind == VARINT and number == 2:
                version = signed(begin)
        self.opsets[domain] = version

    def _value_info(self, span: Span) -> ValueInfo:
        """ValueInfoProto, down through TypeProto to the tensor's element type and shape."""
        name, dtype = "", "undefined"
        shape: Shape | None = None
        for number, inner in self.wire.messages(span):
            if number == 1:
                name = self.wire.text(inner)
            for choice, chosen in self.wire.messages(inner) if number == 2 else ():
                if choice == 1:
                    dtype, shape = self._tensor_type(chosen)
                elif choice in _OTHER_TYPES:
                    dtype, shape = _OTHER_TYPES[choice], None
        return ValueInfo(name=name, dtype=dtype, shape=shape)

    def _tensor_type(self, span: Span) -> tuple[str, Shape | None]:
        """TypeProto.Tensor: element type 1, shape 2."""
        dtype = "undefined"
        shape: Shape | None = None
        for number, kind, begin, end in self.wire.fields(span):
            if kind == VARINT and number == 1:
                dtype = _DTYPES.get(begin, f"type_{begin}")
            elif kind == BYTES and number == 2:
                inside = self.wire.messages((begin, end))
                shape = tuple(self._dimension(one) for field, one in inside if field == 1)
        return dtype, shape

    def _dimension(self, span: Span) -> int | str | None:
        """TensorShapeProto.Dimension: a value 1 or a name 2, whichever comes last."""
        dimension: int | str | None = None
        for number, kind, begin, end in self.wire.fields(span):
            if kind == VARINT and number == 1:
                dimension = signed(begin)
            elif kind == BYTES and number == 2:
                dimension = self.wire.text((begin, end)) or None
        return dimension
