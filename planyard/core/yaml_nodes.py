"""The nodes of a YAML file: what was written, and where (1-based line and column, in characters).

An alias gives a node of its own, at the place of the alias, that shares its anchor's children.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from planyard.core.located import KeyPath, Problem


class ScalarNode(msgspec.Struct, gc=False):
    """One value as it was written; `quoted` is also true for block text and `!!str`."""

    line: int
    column: int
    text: str
    quoted: bool


class SequenceNode(msgspec.Struct, gc=False):
    """A list."""

    line: int
    column: int
    items: list[Node]


class MappingNode(msgspec.Struct, gc=False):
    """A mapping; `damaged` says that entries were refused and left out."""

    line: int
    column: int
    entries: list[tuple[ScalarNode, Node]]
    damaged: bool = False


class DamagedNode(msgspec.Struct, gc=False):
    """What stands here was refused already; nothing more is said about it."""

    line: int
    column: int


Node: TypeAlias = ScalarNode | SequenceNode | MappingNode | DamagedNode


class Tree(NamedTuple):
    """What was read; `root` is None when there is nothing to go on with."""

    root: Node | None
    problems: tuple[Problem, ...]


def moved(node: Node, *, line: int, column: int) -> Node:
    """The same node at another place: what an alias stands for. Children are shared."""
    if isinstance(node, ScalarNode):
        return ScalarNode(line, column, node.text, node.quoted)
    if isinstance(node, SequenceNode):
        return SequenceNode(line, column, node.items)
    if isinstance(node, MappingNode):
        return MappingNode(line, column, node.entries, node.damaged)
    return DamagedNode(line, column)


def position_of(root: Node, path: KeyPath) -> tuple[int, int]:
    """Line and column of what stands at `path`: of a key, of an item.

    Where the path leads past what was written, the place of the last step that was.
    """
    node, place = root, (root.line, root.column)
    for step in path:
        if isinstance(node, MappingNode):
            entry = next((entry for entry in node.entries if entry[0].text == step), None)
            if entry is None:
                break
            place, node = (entry[0].line, entry[0].column), entry[1]
        elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
            place = (node.line, node.column)
        else:
            break
    return place
