"""Reading `matrix.yaml` into its frozen types, with every problem in one go.

The types are the only description: the walk over them is worked out once, and then followed along
the tree of nodes. Structs that could be read are checked by `matrix_rules.py` even where others
could not, so a misspelt key in one place hides no wrong shape in another.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as types
from msgspec.structs import replace

from planyard.core.errors import InputError
from planyard.core.leaf_readers import (
    BAD,
    ChoiceReader,
    FlagReader,
    ParsedReader,
    Reader,
    RealReader,
    Report,
    Spot,
    TextReader,
    TooManyProblemsError,
    WholeReader,
)
from planyard.core.located import KeyPath, Part, Problem, in_order
from planyard.core.matrix import Matrix
from planyard.core.matrix_rules import RULED_TYPES, broken_rules
from planyard.core.node_readers import (
    ListReader,
    MapReader,
    OptionalReader,
    StructReader,
    WholeOrTextReader,
)
from planyard.core.units import ByteSize
from planyard.core.yaml_nodes import Node, position_of
from planyard.core.yaml_tree import parse_tree

_PARSED: dict[type, tuple[Callable[[str], Any], str]] = {
    ByteSize: (ByteSize.parse, "a number and a unit, like 140 MB or 4 GiB"),
}
"""Types that read themselves from text, and what to write for them."""

_LARGEST_WHOLE = 10**18 - 1


class LoadedMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """A matrix and the places of everything in its file."""

    matrix: Matrix
    name: str
    root: Node

    def where(self, path: KeyPath) -> tuple[int, int]:
        """Line and column (1-based) of the key at `path`, such as `("images", "rtx", "base")`.

        What the file leaves out is placed at the last step of the path that it has.
        """
        return position_of(self.root, path)


def read_matrix(data: bytes, *, name: str = "matrix.yaml") -> Matrix:
    """The matrix in `data`; raises `InputError` with every problem, each named by its place."""
    return load_matrix(data, name=name).matrix


def load_matrix(data: bytes, *, name: str = "matrix.yaml") -> LoadedMatrix:
    """Like `read_matrix`, with the place of every key; `name` is the file in the messages."""
    loaded, problems = examine_matrix(data, name=name)
    if loaded is None or problems:
        raise InputError(
            [problem.text(name) for problem in problems], mend=f"mend {name} and run this again"
        )
    return loaded


def examine_matrix(
    data: bytes, *, name: str = "matrix.yaml"
) -> tuple[LoadedMatrix | None, tuple[Problem, ...]]:
    """The matrix, or every problem in the order of the file; one of the two is empty."""
    root, found = parse_tree(data)
    if root is None:
        return None, in_order(found)
    matrix, problems, parts = read_value(root, Matrix, kept=RULED_TYPES)
    problems = [*found, *problems]
    for path, message in broken_rules(parts):
        problems.append(Problem(path, *position_of(root, path), message))
    if problems:
        return None, in_order(problems)
    return LoadedMatrix(matrix=matrix, name=name, root=root), ()


def read_value(
    root: Node, kind: type, *, kept: frozenset[type] = frozenset()
) -> tuple[Any, list[Problem], list[Part]]:
    """A value of `kind` (meaningless when there are problems), the problems, the kept structs."""
    report = Report()
    try:
        value = reader_of(kind, kept).read(root, Spot(None, "", root), report)
    except TooManyProblemsError:
        value = BAD
    return value, report.problems, report.parts


@functools.cache
def reader_of(kind: type, kept: frozenset[type] = frozenset()) -> Reader:
    """The reader of a type; raises TypeError for a type that no reader is written for."""
    return _reader(types.type_info(kind), kept, "")


def _reader(info: types.Type, kept: frozenset[type], description: str) -> Reader:
    """The reader of a type as msgspec describes it."""
    match info:
        case types.Metadata(type=inner, extra_json_schema=extra):
            return _reader(inner, kept, str((extra or {}).get("description", description)))
        case types.StructType():
            return _struct_reader(info, kept)
        case types.DictType():
            return _map_reader(info, kept, description)
        case types.VarTupleType():
            return _list_reader(info, kept, description)
        case types.UnionType():
            return _union_reader(info, kept, description)
        case _:
            return _single_reader(info, description)


def _single_reader(info: types.Type, description: str) -> Reader:
    """The reader of text, a number, a boolean, a choice or a type that parses itself."""
    match info:
        case types.LiteralType(values=values):
            choices = {str(value): value for value in values}
            few = "one of " if len(choices) > 1 else ""
            return ChoiceReader(wants=few + ", ".join(sorted(choices)), values=choices)
        case types.CustomType(cls=cls) if cls in _PARSED:
            parse, wants = _PARSED[cls]
            return ParsedReader(wants=wants, parse=parse)
        case types.StrType(pattern=pattern):
            return TextReader(
                wants=description or (f"text that matches {pattern}" if pattern else "text"),
                pattern=re.compile(pattern) if pattern else None,
                min_length=info.min_length,
                max_length=info.max_length,
            )
        case types.IntType():
            wants = description or "a whole number" + _range_text(info)
            return WholeReader(wants=wants, fits=_range(info))
        case types.FloatType():
            return RealReader(
                wants=description or "a number" + _range_text(info), fits=_range(info)
            )
        case types.BoolType():
            return FlagReader()
        case _:
            raise TypeError(f"no reader is written for {info!r}")


def _range(info: types.IntType | types.FloatType) -> Callable[[float], bool]:
    """Whether a number is within the bounds of its type."""
    if info.gt is not None or info.lt is not None or info.multiple_of is not None:
        raise TypeError(f"no reader is written for the bounds of {info!r}")
    least = -_LARGEST_WHOLE if info.ge is None else info.ge
    most = float("inf") if info.le is None else info.le
    return lambda value: least <= value <= most


def _range_text(info: types.IntType | types.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:g} to {info.le}"
    return f", at least {info.ge}" if info.ge is not None else ""


def _struct_reader(info: types.StructType, kept: frozenset[type]) -> Reader:
    fields = {field.encode_name: _reader(field.type, kept, "") for field in info.fields}
    return StructReader(
        wants=f"a mapping with the keys {', '.join(fields)}",
        kind=info.cls,
        fields=fields,
        required=tuple(field.encode_name for field in info.fields if field.required),
        kept=info.cls in kept,
    )


def _map_reader(info: types.DictType, kept: frozenset[type], description: str) -> Reader:
    key, value = _reader(info.key_type, kept, ""), _reader(info.value_type, kept, "")
    some = "a mapping with at least one key" if info.min_length else "a mapping"
    return MapReader(
        wants=description or f"{some}: {key.wants}, each with {value.wants}",
        key=key,
        value=value,
        min_length=info.min_length or 0,
    )


def _list_reader(info: types.VarTupleType, kept: frozenset[type], description: str) -> Reader:
    item = _reader(info.item_type, kept, "")
    least, most = info.min_length or 0, info.max_length
    some = f"a list of {'at least one' if least == 1 else 'values'}"
    return ListReader(
        wants=description or f"{some}, each {item.wants}",
        item=item,
        min_length=least,
        max_length=most,
    )


def _union_reader(info: types.UnionType, kept: frozenset[type], description: str) -> Reader:
    """The reader of `X | None`, or of a whole number or text."""
    inner = [part for part in info.types if not isinstance(part, types.NoneType)]
    if len(inner) < len(info.types):
        rest = inner[0] if len(inner) == 1 else replace(info, types=tuple(inner))
        return OptionalReader(inner=_reader(rest, kept, description))
    readers = [_reader(part, kept, "") for part in inner]
    match readers:
        case [WholeReader() as whole, TextReader() as text]:
            wants = description or f"{whole.wants}, or {text.wants}"
            return WholeOrTextReader(
                wants=wants,
                whole=replace(whole, wants=wants),
                text=replace(text, wants=wants),
            )
        case _:
            raise TypeError(f"no reader is written for {info!r}")
