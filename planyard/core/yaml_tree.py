"""A YAML file as a tree of located nodes, built from the parser's events, never its constructors.

Nothing is ever made from a tag, and nothing is guessed: a scalar stays the text that was written.
Aliases share their nodes and are charged at their expanded size, so a file that would grow to
millions of values is refused after a few lines. Problems are collected; only a syntax error, too
deep a file or too large a one ends the reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import yaml

from planyard.core.located import MAX_PROBLEMS, KeyPath, Problem, quoted
from planyard.core.yaml_advice import advice_for
from planyard.core.yaml_nodes import (
    DamagedNode,
    MappingNode,
    Node,
    ScalarNode,
    SequenceNode,
    Tree,
    moved,
)

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 100_000
_CHARACTERS_A_NODE = 256
"""A long text counts once more for each of these, so aliases cannot multiply it either."""

DEFAULT_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser where PyYAML was built with it; only its events are used."""

_FORBIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
"""What YAML 1.2 leaves out, chapter 5.1; surrogates are no UTF-8 in the first place."""
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_NEVER_TEXT = re.compile("[\0\ud800-\udfff]")
"""What only an escape can write: no argument or file name can hold it."""
_TAG = "tag:yaml.org,2002:"
_COLLECTION_TAGS = frozenset({"!", _TAG + "map", _TAG + "seq"})
_TEXT_TAGS = frozenset({"!", _TAG + "str"})
_PLAIN_TAGS = {
    _TAG + "int": re.compile(r"[-+]?[0-9]+"),
    _TAG + "float": re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"),
    _TAG + "bool": re.compile("true|false"),
    _TAG + "null": re.compile("null|~|"),
}
"""Tags of values that are no text, each with what they may stand before."""

_MERGE = "merge keys (<<) are not read: write the keys out, or alias whole values"
_COMPLEX_KEY = "a key may not be a list or a mapping: write one word before the colon"

_Note: TypeAlias = Callable[[int, int, str], None]


class _StopReadingError(Exception):
    """The rest of the file is not read; what is wrong has been noted."""


def parse_tree(data: bytes, *, loader: Any = DEFAULT_LOADER) -> Tree:
    """Read `data` into nodes, with every problem found; raises nothing, whatever the bytes are."""
    problem = _unreadable(data)
    if problem:
        return Tree(None, (problem,))
    builder = _Builder()
    try:
        builder.run(loader(data))
    except _StopReadingError:
        pass
    except yaml.MarkedYAMLError as error:
        builder.give_up(*_syntax_problem(error, data))
    except (yaml.YAMLError, ValueError, OverflowError):  # the pure parser, on "\UFFFFFFFF"
        builder.give_up(1, 1, "an escape names no character: use single quotes for backslashes")
    if builder.root is None and not builder.problems:
        builder.note(1, 1, "the file is empty: write schema: 1 and the rest of the matrix")
    return Tree(builder.root, tuple(builder.problems))


def _syntax_problem(error: yaml.MarkedYAMLError, data: bytes) -> tuple[int, int, str]:
    """Line, column and message of a syntax error: what was met, where it began, what to do."""
    found, begun = error.problem or "it cannot be parsed", ""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 1, 1, f"this is not YAML ({found}): {advice_for(found)}"
    if error.context_mark is not None and error.context_mark.line < mark.line:
        begun = f" {error.context} that begins in line {error.context_mark.line + 1}"
    lines = _LINE_BREAK.split(data.decode("utf-8-sig"))
    row = min(mark.line, len(lines) - 1)  # the end of the file may be placed one line after it
    column = mark.column if row == mark.line else len(lines[row])
    at = lines[row][column : column + 1]
    advice = advice_for(found, context=error.context or "", at=at)
    return row + 1, column + 1, f"this is not YAML ({found}{begun}): {advice}"


def _unreadable(data: bytes) -> Problem | None:
    """Why these bytes are not even tried as YAML."""
    if len(data) > MAX_BYTES:
        message = f"the file has {len(data):,} bytes: write at most {MAX_BYTES:,}, or split it"
        return Problem((), 1, 1, message)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        return Problem((), *_place_after(data[: error.start].decode("utf-8")), message)
    found = _FORBIDDEN.search(text)
    if not found:
        return None
    message = f"the character U+{ord(found[0]):04X} may not stand in YAML: remove it"
    return Problem((), *_place_after(text[: found.start()]), message)


def _place_after(before: str) -> tuple[int, int]:
    lines = _LINE_BREAK.split(before.removeprefix("\ufeff"))
    return len(lines), len(lines[-1]) + 1


class _OpenSequence:
    """A list whose end has not come yet; `before` is the count of nodes when it began."""

    __slots__ = ("anchor", "before", "node")

    def __init__(self, node: SequenceNode, anchor: str | None, before: int) -> None:
        self.node, self.anchor, self.before = node, anchor, before

    def step(self) -> KeyPath:
        return (len(self.node.items),)

    def add(self, node: Node, _note: _Note) -> None:
        self.node.items.append(node)


class _OpenMapping:
    """A mapping whose end has not come yet; keys and values come in turn."""

    __slots__ = ("anchor", "before", "first_lines", "keep", "key", "node")

    def __init__(self, node: MappingNode, anchor: str | None, before: int) -> None:
        self.node, self.anchor, self.before = node, anchor, before
        self.key: ScalarNode | None = None
        self.keep = True
        self.first_lines: dict[str, int] = {}

    def step(self) -> KeyPath:
        return (self.key.text,) if self.key else ()

    def add(self, node: Node, _note: _Note) -> None:
        if self.key is None:
            self._begin(node, _note)
            return
        if self.keep:
            self.node.entries.append((self.key, node))
        self.key, self.keep = None, True

    def _begin(self, node: Node, note: _Note) -> None:
        """Take a key; one that is refused still waits for its value."""
        if type(node) is not ScalarNode:
            if type(node) is not DamagedNode:
                note(node.line, node.column, _COMPLEX_KEY)
            self.node.damaged, self.keep = True, False
            self.key = ScalarNode(node.line, node.column, "?", True)
            return
        self.key = node
        first = self.first_lines.get(node.text)
        if node.text == "<<" and not node.quoted:
            self.node.damaged, self.keep = True, False
            note(node.line, node.column, _MERGE)
        elif first is not None:
            self.keep = False
            note(node.line, node.column, f"this key is there already, in line {first}: keep one")
        else:
            self.first_lines[node.text] = node.line


class _Builder:
    """Turns events into nodes, counting every node an alias stands for."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._open: list[_OpenSequence | _OpenMapping] = []
        self._anchors: dict[str, tuple[Node, int] | None] = {}
        self._count = 0
        self._documents = 0

    def run(self, parser: Any) -> None:
        """Read the events of `parser` to the end of the first document."""
        steps: dict[type, Callable[[Any], None]] = {
            yaml.ScalarEvent: self._scalar,
            yaml.SequenceStartEvent: self._begin_sequence,
            yaml.SequenceEndEvent: self._end,
            yaml.MappingStartEvent: self._begin_mapping,
            yaml.MappingEndEvent: self._end,
            yaml.AliasEvent: self._alias,
            yaml.DocumentStartEvent: self._document,
        }
        get_event = parser.get_event
        while (event := get_event()) is not None:
            step = steps.get(type(event))
            if step:
                step(event)

    def note(self, line: int, column: int, message: str) -> None:
        """Keep a problem, under the key path that is open now."""
        path = tuple(step for part in self._open for step in part.step())
        if len(self.problems) <= MAX_PROBLEMS:
            self.problems.append(Problem(path, line, column, message))

    def give_up(self, line: int, column: int, message: str) -> None:
        """Keep a problem after which nothing of the file can be used."""
        self.note(line, column, message)
        self.root = None

    def _stop(self, event: Any, message: str) -> None:
        self.give_up(event.start_mark.line + 1, event.start_mark.column + 1, message)
        raise _StopReadingError

    def _document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            message = "a second document begins here: keep one, and remove the line ---"
            self.note(event.start_mark.line + 1, event.start_mark.column + 1, message)
            raise _StopReadingError

    def _scalar(self, event: Any) -> None:
        mark, text, style = event.start_mark, event.value, event.style
        written = ScalarNode(mark.line + 1, mark.column + 1, text, bool(style))
        node: Node = written
        if style == '"' or event.tag is not None:
            node = self._checked(written, event)
        nodes = 1 + len(text) // _CHARACTERS_A_NODE
        self._count += nodes
        if self._count > MAX_NODES:
            self._charge(event, 0)
        if event.anchor is not None:
            self._anchors[event.anchor] = (node, nodes)
        if self._open:  # as in _place: this runs once for every word of the file
            self._open[-1].add(node, self.note)
        else:
            self.root = node

    def _checked(self, node: ScalarNode, event: Any) -> Node:
        """A scalar with a tag or escapes: the node it becomes."""
        found = _NEVER_TEXT.search(node.text)
        if found:
            message = f"the character U+{ord(found[0]):04X} may not stand in a value: remove it"
        elif event.tag is None or event.tag in _TEXT_TAGS:
            return ScalarNode(node.line, node.column, node.text, True)
        elif event.tag not in _PLAIN_TAGS:
            message = _tag_message(event.tag)
        elif _PLAIN_TAGS[event.tag].fullmatch(node.text):
            return ScalarNode(node.line, node.column, node.text, False)
        else:
            message = f"{quoted(node.text)} does not fit its tag: remove the tag"
        self.note(node.line, node.column, message)
        return DamagedNode(node.line, node.column)

    def _begin_sequence(self, event: Any) -> None:
        mark = event.start_mark
        self._begin(event)
        node = SequenceNode(mark.line + 1, mark.column + 1, [])
        self._open.append(_OpenSequence(node, event.anchor, self._count - 1))

    def _begin_mapping(self, event: Any) -> None:
        mark = event.start_mark
        self._begin(event)
        node = MappingNode(mark.line + 1, mark.column + 1, [])
        self._open.append(_OpenMapping(node, event.anchor, self._count - 1))

    def _begin(self, event: Any) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._stop(event, f"this is nested more than {MAX_DEPTH} deep: write it flatter")
        if event.tag is not None and event.tag not in _COLLECTION_TAGS:
            mark = event.start_mark
            self.note(mark.line + 1, mark.column + 1, _tag_message(event.tag))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._charge(event, 1)

    def _end(self, _event: Any) -> None:
        ended = self._open.pop()
        if ended.anchor is not None:
            self._anchors[ended.anchor] = (ended.node, self._count - ended.before)
        self._place(ended.node)

    def _alias(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        name = "*" + event.anchor
        anchored = self._anchors.get(event.anchor)
        if anchored is not None:
            self._charge(event, anchored[1])
            self._place(moved(anchored[0], line=line, column=column))
            return
        if event.anchor in self._anchors:
            self.note(line, column, f"the alias {name} contains itself: write the value out")
        else:
            self.note(line, column, f"no anchor &{event.anchor} comes before {name}: write one")
        self._place(DamagedNode(line, column))

    def _charge(self, event: Any, nodes: int) -> None:
        self._count += nodes
        if self._count > MAX_NODES:
            message = f"the file has more than {MAX_NODES:,} values once its aliases are expanded"
            self._stop(event, f"{message}: write fewer, or split the file")

    def _place(self, node: Node) -> None:
        if self._open:
            self._open[-1].add(node, self.note)
        else:
            self.root = node


def _tag_message(tag: str) -> str:
    shown = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
    return f"the tag {quoted(shown)} is not read: remove it and write the plain value"
