"""One reader for each kind of value that holds others: a list, a mapping, a struct, a union.

Like the leaf readers they give the value or `BAD`, and they go on after a problem, so that one
reading finds everything that is wrong.
"""

from __future__ import annotations

from typing import Any

import msgspec

from planyard.core.leaf_readers import BAD, Reader, Report, Spot
from planyard.core.located import Part, closest, did_you_mean, quoted
from planyard.core.yaml_nodes import MappingNode, Node, ScalarNode, SequenceNode


class ListReader(msgspec.Struct, frozen=True, kw_only=True):
    """A list of values of one kind, as a tuple."""

    wants: str
    item: Reader
    min_length: int = 0
    max_length: int | None = None

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The tuple, or `BAD`."""
        if type(node) is not SequenceNode:
            return report.wrong_kind(node, spot, self.wants)
        read = self.item.read
        values = tuple(
            [
                read(child, Spot(spot, index, child), report)
                for index, child in enumerate(node.items)
            ]
        )
        length = len(values)
        if length < self.min_length or (self.max_length is not None and length > self.max_length):
            return report.bad(spot, f"the list has {length} items: write {self.wants}")
        return BAD if BAD in values else values


class MapReader(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping with keys that the writer chooses."""

    wants: str
    key: Reader
    value: Reader
    min_length: int = 0

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The dict, in the order written, or `BAD`."""
        if type(node) is not MappingNode:
            return report.wrong_kind(node, spot, self.wants)
        values: dict[Any, Any] = {}
        good = not node.damaged
        for key_node, child in node.entries:
            here = Spot(spot, key_node.text, key_node)
            key = self.key.read(key_node, here, report)
            value = self.value.read(child, here, report)
            if key is BAD or value is BAD:
                good = False
            else:
                values[key] = value
        if len(node.entries) < self.min_length and not node.damaged:
            return report.bad(spot, f"the mapping is empty: write {self.wants}")
        return values if good else BAD


class StructReader(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping with the fields of a struct; `kept` says that its rules are checked later."""

    wants: str
    kind: type
    fields: dict[str, Reader]
    required: tuple[str, ...]
    kept: bool

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The struct, or `BAD`."""
        if type(node) is MappingNode:
            value = self._read_fields(node, spot, report)
        else:
            value = report.wrong_kind(node, spot, self.wants)
        if self.kept:
            report.parts.append(Part(spot.path(), self.kind, None if value is BAD else value))
        return value

    def _read_fields(self, node: MappingNode, spot: Spot, report: Report) -> Any:
        values: dict[str, Any] = {}
        meant: set[str | None] = set()
        good = not node.damaged
        for key_node, child in node.entries:
            name = key_node.text
            here = Spot(spot, name, key_node)
            field = self.fields.get(name)
            if field is None:
                meant.add(self._unknown(here, report))
                good = False
                continue
            values[name] = value = field.read(child, here, report)
            if value is BAD:
                good = False
        if not node.damaged:
            for name in self.required:
                if name not in values and name not in meant:
                    wants = self.fields[name].wants
                    report.bad(spot, f"the key {name} is missing: add {name}: with {wants}")
                    good = False
        return self.kind(**values) if good else BAD

    def _unknown(self, spot: Spot, report: Report) -> str | None:
        """Report a key that no field has; the field that was meant, so that none is missed."""
        name = str(spot.step)
        advice = did_you_mean(name, self.fields) or f"write one of {', '.join(self.fields)}"
        report.bad(spot, f"there is no key {quoted(name)} here: {advice}")
        return closest(name, self.fields)


class OptionalReader(msgspec.Struct, frozen=True, kw_only=True):
    """A value that may be left out, or written `null`."""

    inner: Reader

    @property
    def wants(self) -> str:
        """What the value would be."""
        return self.inner.wants

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The value, None for `null`, or `BAD`."""
        if type(node) is ScalarNode and not node.quoted and node.text == "null":
            return None
        return self.inner.read(node, spot, report)


class WholeOrTextReader(msgspec.Struct, frozen=True, kw_only=True):
    """A whole number when unquoted and numeric, text otherwise."""

    wants: str
    whole: Reader
    text: Reader

    def read(self, node: Node, spot: Spot, report: Report) -> Any:
        """The number or the text, or `BAD`."""
        if type(node) is not ScalarNode or not (node.text or node.quoted):
            return report.wrong_kind(node, spot, self.wants)
        if not node.quoted and node.text[:1] in "0123456789+-.":
            return self.whole.read(node, spot, report)
        return self.text.read(node, spot, report)
