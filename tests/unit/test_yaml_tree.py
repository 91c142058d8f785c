import tracemalloc

import pytest
import yaml

from planyard.core.located import MAX_PROBLEMS
from planyard.core.yaml_nodes import (
    DamagedNode,
    MappingNode,
    ScalarNode,
    SequenceNode,
    position_of,
)
from planyard.core.yaml_tree import DEFAULT_LOADER, MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_tree

LOADERS = pytest.mark.parametrize("loader", [DEFAULT_LOADER, yaml.SafeLoader])


def plain(node):
    """The texts of a tree, as dicts, lists and strings."""
    if isinstance(node, MappingNode):
        return {key.text: plain(value) for key, value in node.entries}
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    return node.text if isinstance(node, ScalarNode) else None


def problems(text, **kwargs):
    data = text if isinstance(text, bytes) else text.encode()
    return [problem.text("m.yaml") for problem in parse_tree(data, **kwargs).problems]


def laughs(levels):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefghijklmnop"[:levels], "bcdefghijklmnopq"[:levels], strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    return "\n".join(lines).encode()


@LOADERS
def test_a_tree_keeps_texts_and_places(loader):
    tree = parse_tree(b"a: 8.10\n'b': [x, \"y\"]\nc:\n  - d: |\n      on\n", loader=loader)
    assert tree.problems == ()
    assert plain(tree.root) == {"a": "8.10", "b": ["x", "y"], "c": [{"d": "on\n"}]}
    (a_key, a), (b_key, b), (_c, c) = tree.root.entries
    assert (a_key.line, a_key.column, a.line, a.column, a.quoted) == (1, 1, 1, 4, False)
    assert (b_key.quoted, b.items[0].quoted, b.items[1].quoted) == (True, False, True)
    assert c.items[0].entries[0][1].quoted
    assert position_of(tree.root, ("b", 1)) == (2, 10)
    assert position_of(tree.root, ("c", 0, "d")) == (4, 5)
    assert position_of(tree.root, ("c", 0, "missing", "deeper")) == (4, 5)


@LOADERS
def test_columns_count_characters_and_a_byte_order_mark_is_none(loader):
    tree = parse_tree("\ufeffé: {ü: 1}".encode(), loader=loader)
    assert position_of(tree.root, ("é", "ü")) == (1, 5)


@LOADERS
@pytest.mark.parametrize("tag", ["!!str", "!", "!<tag:yaml.org,2002:str>"])
def test_the_text_tag_quotes(loader, tag):
    value = parse_tree(f"a: {tag} 8.10".encode(), loader=loader).root.entries[0][1]
    assert (value.text, value.quoted) == ("8.10", True)


def test_core_tags_that_fit_change_nothing():
    tree = parse_tree(b"!!map {a: !!int '5', b: !!seq [!!bool true, !!null ~, !!float 0.5]}")
    assert tree.problems == ()
    assert not tree.root.entries[0][1].quoted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!python/object/apply:os.system [id]", 'm.yaml:1:4 a: the tag "!!python/object/ap'),
        ("a: !!python/none", 'm.yaml:1:4 a: the tag "!!python/none" is not read: remove it'),
        ("a: !mine x", 'm.yaml:1:4 a: the tag "!mine" is not read'),
        ("a: !!int five", 'm.yaml:1:4 a: "five" does not fit its tag'),
        ("a: !!set {b: }", 'm.yaml:1:4 a: the tag "!!set" is not read'),
        ("x:\n  a: 1\n  b: 2\n  a: 3", "m.yaml:4:3 x.a: this key is there already, in line 2"),
        ("{a: 1, 'a': 2}", "m.yaml:1:8 a: this key is there already, in line 1"),
        ("b: &b {x: 1}\na:\n  <<: *b", 'm.yaml:3:3 a."<<": merge keys (<<) are not read'),
        ("? [a, b]\n: 1", "m.yaml:1:3 (top level): a key may not be a list or a mapping"),
        ("? {a: b}\n: 1", "m.yaml:1:3 (top level): a key may not be a list or a mapping"),
        ("a: &a [*a]", "m.yaml:1:8 a[0]: the alias *a contains itself"),
        ("a: [*b]", "m.yaml:1:5 a[0]: no anchor &b comes before *b"),
        ("a: 1\n---\nb: 2", "m.yaml:2:1 (top level): a second document begins here"),
        ('a: "x\\0y"', "m.yaml:1:4 a: the character U+0000 may not stand in a value"),
        ("", "m.yaml:1:1 (top level): the file is empty"),
        ("# nothing\n", "m.yaml:1:1 (top level): the file is empty"),
    ],
)
@LOADERS
def test_what_is_refused_is_located(loader, text, expected):
    (problem,) = problems(text, loader=loader)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a: b\nc: \xff", "m.yaml:2:4 (top level): the byte 0xff is not UTF-8"),
        ("a: é\x00".encode(), "m.yaml:1:5 (top level): the character U+0000 may not stand"),
        (b"a: \x1b[31m", "m.yaml:1:4 (top level): the character U+001B may not stand"),
        ("a: b".encode("utf-16"), "m.yaml:1:1 (top level): the byte 0xff is not UTF-8"),
        (b"a: \xed\xa0\x80", "m.yaml:1:4 (top level): the byte 0xed is not UTF-8"),
    ],
)
def test_bytes_that_are_no_text_are_refused(data, expected):
    (problem,) = problems(data)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("text", "place", "advice"),
    [
        ("a: [1, 2\nb: 3\n", "m.yaml:2:2", "that begins in line 1): close the list with ]"),
        ("a: {b: 2\nc", "m.yaml:2:2", "close the mapping with }"),
        ("a:\n\tb: 1", "m.yaml:2:1", "indent with spaces, not with tabs"),
        ("a: b: c", "m.yaml:1:5", "quote a value that contains ': '"),
        ("a: @b", "m.yaml:1:4", "put the value in quotes"),
        ("a: 'b\nc: d", "m.yaml:2:5", "close the quote that is open here"),
        ('a: "C:\\Users"', "m.yaml:1:", "single quotes"),
        ("a: 1\n b: 2", "m.yaml:2:3", "check the indentation"),
        ("- a\nb: 1", "m.yaml:2:1", "start every item of a list in the same column"),
        ("a: *", "m.yaml:1:", "begins with & or *"),
    ],
)
def test_a_syntax_error_says_where_and_what_to_do(text, place, advice):
    (problem,) = problems(text)
    assert problem.startswith(place)
    assert advice in problem


@pytest.mark.parametrize("text", ['a: "\\UFFFFFFFF"', 'a: "\\ud800"', 'a: "\\x0"', "a: !<\n"])
@LOADERS
def test_strange_escapes_are_problems_in_both_parsers(loader, text):
    assert len(problems(text, loader=loader)) == 1


def test_several_problems_come_together_and_the_tree_goes_on():
    tree = parse_tree(b"a: 1\na: 2\nb: !x 3\n<<: {c: 4}\nd: *e\nf: 6\n")
    assert [problem.line for problem in tree.problems] == [2, 3, 4, 5]
    assert isinstance(tree.root.entries[1][1], DamagedNode)
    assert tree.root.damaged
    assert plain(tree.root) == {"a": "1", "b": None, "d": None, "f": "6"}


def test_an_alias_shares_its_anchor_and_has_its_own_place():
    tree = parse_tree(b"a: &a {x: [1]}\nb:\n  - *a\nc: *a\n")
    assert plain(tree.root) == {"a": {"x": ["1"]}, "b": [{"x": ["1"]}], "c": {"x": ["1"]}}
    (_, a), _, (_, c) = tree.root.entries
    assert c.entries is a.entries
    assert position_of(tree.root, ("b", 0)) == (3, 5)
    assert (c.line, c.column) == (4, 4)


@LOADERS
@pytest.mark.parametrize("levels", [4, 9, 15])
def test_an_alias_bomb_is_refused_in_little_memory(loader, levels):
    bomb = laughs(levels)
    tracemalloc.start()
    tree = parse_tree(bomb, loader=loader)
    _now, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tree.root is None
    assert "more than 100,000 values once its aliases are expanded" in tree.problems[0].message
    assert peak_bytes < 16 << 20


def test_aliases_are_charged_exactly():
    inner = 10
    uses = (MAX_NODES - 3 - 1 - 1 - inner - 1 - 1) // (inner + 1)
    fits = f"a: &a [{', '.join('x' * inner)}]\nb: [{', '.join(['*a'] * uses)}]\n"
    assert parse_tree(fits.encode()).problems == ()
    over = f"a: &a [{', '.join('x' * inner)}]\nb: [{', '.join(['*a'] * (uses + 1))}]\n"
    assert parse_tree(over.encode()).root is None


def test_aliases_cannot_multiply_a_long_text_either():
    text = f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
    assert "aliases are expanded" in problems(text)[0]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_depth_is_limited(opening):
    close = {"[": "]", "{a: ": "}"}.get(opening, "")
    assert problems(opening * MAX_DEPTH + "x" + close * MAX_DEPTH) == []
    (problem,) = problems(opening * (MAX_DEPTH + 1) + "x" + close * (MAX_DEPTH + 1))
    assert "nested more than 50 deep" in problem


def test_size_is_limited():
    fits = b"#" * MAX_BYTES
    assert "is empty" in problems(fits)[0]
    assert "the file has 1,048,577 bytes" in problems(fits + b"#")[0]


def test_so_many_problems_are_cut():
    assert len(problems("a: 1\n" * 5000)) == MAX_PROBLEMS + 1
