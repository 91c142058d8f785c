"""Every wording of every rule holds an anchor: shown from the parse trees, then on strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from smoke.prefilter import Ends, _hyperscan, _re2
from smoke.rules import Rule, load_rules

parser = pytest.importorskip("re._parser")
RULES = load_rules()
ANCHORS = [re.compile(anchor) for anchor in RULES.prefilter.anchors]
MANY_TEXTS = 3000
OPEN = "\0"
"""Ends a text that goes on in a way that is not listed."""


def texts_of(tree: Any) -> list[str]:
    """Every text of a tree, one blank for any number, cut off at OPEN where they are too many."""
    texts = {""}
    for name, value in tree:
        more = choices(str(name), value)
        if len(texts) * len(more) > MANY_TEXTS:
            more = [OPEN]
        texts = {text if text.endswith(OPEN) else text + end for text in texts for end in more}
    return sorted(texts)


def choices(name: str, value: Any) -> list[str]:  # noqa: PLR0911 - one for each kind of node
    if name == "LITERAL":
        return [chr(value).lower()]
    if name == "AT":
        return [""]
    if name == "IN":
        return class_of(value)
    if name == "SUBPATTERN":
        return texts_of(value[3])
    if name == "BRANCH":
        return [text for branch in value[1] for text in texts_of(branch)]
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        # Once stands for more often: no anchor looks further than to the next word.
        low, _, inner = value
        once = texts_of(inner)
        return once if low else ["", *once]
    return [OPEN]


def class_of(items: Any) -> list[str]:
    if [str(name) for name, _ in items] == ["RANGE"]:
        return [chr(items[0][1][0])]
    if [str(value) for _, value in items] == ["CATEGORY_WORD"]:
        return ["w"]
    if any(str(name) != "LITERAL" for name, _ in items):
        return [OPEN]
    letters = {chr(value).lower() for _, value in items}
    return sorted({" " if letter == "\x1d" else letter for letter in letters})


def anchored(text: str, *, whole: bool) -> bool:
    """Whether an anchor stands in the text, and stays there if a word goes on behind its end."""
    shown = text.removesuffix(OPEN)
    fixed = whole and shown == text
    return any(
        fixed or found.end() < len(shown) or not anchor.pattern.endswith(r"\b")
        for anchor in ANCHORS
        for found in anchor.finditer(shown)
    )


def proved(tree: Any) -> bool:
    """Whether each text that the tree matches holds an anchor."""
    items = list(tree)
    if any(proved_item(str(name), value) for name, value in items):
        return True
    for start in range(len(items)):
        for stop in range(start + 1, min(start + 24, len(items)) + 1):
            texts = texts_of(items[start:stop])
            whole = str(items[stop - 1][0]) == "AT"
            if all(anchored(text, whole=whole) for text in texts):
                return True
    return False


def proved_item(name: str, value: Any) -> bool:
    if name == "SUBPATTERN":
        return proved(value[3])
    if name == "BRANCH":
        return all(proved(branch) for branch in value[1])
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        return bool(value[0] >= 1) and proved(value[2])
    return False


def parsed(pattern: str) -> Any:
    return parser.parse(pattern.replace(r"\z", r"\Z"), re.IGNORECASE)


@pytest.mark.parametrize("rule", RULES.rules, ids=lambda rule: rule.id)
def test_every_wording_of_a_rule_holds_an_anchor(rule: Rule) -> None:
    assert [pattern for pattern in rule.patterns if not proved(parsed(pattern))] == []


@pytest.mark.parametrize(
    "pattern",
    [r"\bgpu works", r"(?:not|may) run", r"not\w+", "now?", r"default \w+", "(?:fail)?ed"],
)
def test_the_proof_refuses_a_wording_without_anchor(pattern: str) -> None:
    assert not proved(parsed(pattern))


@pytest.mark.parametrize("engine", [_hyperscan, _re2])
def test_both_engines_find_an_anchor_in_every_example(engine: Callable[..., Ends]) -> None:
    ends = engine(RULES.prefilter.patterns)
    assert [rule.id for rule in RULES.rules if not ends(rule.example.encode())] == []
    assert (
        ends(b"2026-01-01 INFO weights loaded in 3.1 s\n[MemUsageChange] CPU +12, GPU +0\n") == []
    )
