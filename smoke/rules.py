"""The rules of the log gate: data in `rules.toml`, checked here, compiled when first used.

A pattern is RE2 with three additions, so that rules can be written about meaning: `<word>` is an
entry of the file's vocabulary, a space is one or more blanks, `<gap>` is any text inside one
sentence. A file is refused whole if one rule does not find its own example.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from planyard.core.errors import InputError
from planyard.core.findings import Severity

if TYPE_CHECKING:
    import re2

Stage = Literal["smoke", "build", "serve"]

RULES_FILE = Path(__file__).with_name("rules.toml")

UNIT = "\x1e"
"""Stands between two messages of one line (JSON strings, progress bar steps)."""
WRAP = "\x1d"
"""Stands where two lines were joined; counts as a blank."""

_BUILT_IN = {
    "gap": r"(?:[^.;\n\x1e]|\.[^ \n\x1d\x1e])*?",
    "far": r"[^\n\x1e]*?",
    "near": r"[^\n\x1d\x1e]*?(?:\x1d[^\n\x1d\x1e]*?){0,2}",
    "end": r"(?:[.,!;)\"'\n\x1d\x1e]|\z)",
}
_WORD = re.compile(r"<([a-z]+)>")
_BLANK_OR_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]| ")
_MAX_DEPTH = 5
# The automaton of all rules together needs about 10 MiB; RE2 falls to a slow path below that.
_AUTOMATON_BYTES = 24 << 20


class Scope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an allow entry holds: stages, and a glob over the name of the process."""

    stage: tuple[Stage, ...]
    process: str


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of loss. `seen` names libraries with the versions that print it."""

    id: str
    severity: Severity
    pattern: str
    why: str
    seen: tuple[str, ...]
    example: str
    source: str


class Allow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Words that look like a loss and are none. Only the matched words are taken out."""

    id: str
    pattern: str
    reason: str
    scope: Scope
    example: str


_Entry = TypeVar("_Entry", Rule, Allow)


class _RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: Literal[1]
    first_pass: str
    words: dict[str, str]
    rule: tuple[Rule, ...]
    allow: tuple[Allow, ...] = ()


class RuleSet:
    """Rules and allow list, patterns with their words filled in; compiled at the first search.

    Rules are ordered: failing ones first, then as in the file. The first that matches names a hit.
    """

    def __init__(self, rules: Iterable[Rule], allow: Iterable[Allow] = ()) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: rule.severity != "fail"))
        self.allow = tuple(allow)

    def for_scope(self, *, stage: Stage, process: str = "") -> RuleSet:
        """The same rules with the allow entries that hold for this stage and process."""
        allow = tuple(
            entry
            for entry in self.allow
            if stage in entry.scope.stage and fnmatchcase(process, entry.scope.process)
        )
        return self if allow == self.allow else RuleSet(self.rules, allow)

    @functools.cached_property
    def any_rule(self) -> re2._Regexp:
        """All rules as one alternation, for a first pass over a whole buffer of bytes."""
        return _compiled("|".join(f"(?:{rule.pattern})" for rule in self.rules))

    @functools.cached_property
    def _any_allow(self) -> re2._Regexp | None:
        patterns = "|".join(f"(?:{entry.pattern})" for entry in self.allow)
        return _compiled(patterns) if patterns else None

    @functools.cached_property
    def _set(self) -> re2.Set:
        import re2  # 20 ms that `planyard cells` must not pay

        searches = re2.Set.SearchSet(_options())
        for rule in self.rules:
            searches.Add(rule.pattern)
        searches.Compile()
        return searches

    def match(self, message: bytes) -> Rule | None:
        """The first rule that finds a loss in this one message (cleaned UTF-8), or None."""
        if self.any_rule.search(message) is None:
            return None
        if self._any_allow is not None:
            message = self._any_allow.sub(UNIT.encode(), message)
        found = self._set.Match(message)
        return self.rules[min(found)] if found else None

    def allowed_spans(self, message: bytes) -> list[tuple[int, int]]:
        """Where allow entries take words out of this message: offsets of their first and end."""
        if self._any_allow is None:
            return []
        return [found.span() for found in self._any_allow.finditer(message)]


def load_rules(path: Path = RULES_FILE) -> RuleSet:
    """Read and check a rules file. Raises InputError with every problem found."""
    return _load(path)


@functools.cache
def _load(path: Path) -> RuleSet:
    ruleset = read_rules(path.read_text(encoding="utf-8"), name=path.name)
    return ruleset


def read_rules(text: str, *, name: str = "rules.toml") -> RuleSet:
    """Parse the text of a rules file; patterns are compiled only when first used."""
    try:
        file = msgspec.convert(tomllib.loads(text), _RulesFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError([f"{name}: {error}"]) from None
    problems = list(_repeated_ids([*file.rule, *file.allow]))
    rules = [_filled(rule, file.words, problems) for rule in file.rule]
    allow = [_filled(entry, file.words, problems) for entry in file.allow]
    if problems:
        raise InputError([f"{name}: {problem}" for problem in problems])
    return RuleSet(rules, allow)


def problems_of(ruleset: RuleSet) -> list[str]:
    """What is wrong with the patterns themselves; costs their compilation, so tests ask for it."""
    import re2

    problems = []
    entry: Rule | Allow
    for entry in (*ruleset.rules, *ruleset.allow):
        try:
            found = _compiled(entry.pattern).search(entry.example.encode())
        except re2.error as error:
            problems.append(f"{entry.id}: RE2 refuses the pattern: {error}")
            continue
        if found is None:
            problems.append(f"{entry.id}: the pattern does not find its own example")
    return problems


def _repeated_ids(entries: Iterable[Rule | Allow]) -> Iterable[str]:
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            yield f"{entry.id}: this id is used twice"
        seen.add(entry.id)


def _filled(entry: _Entry, words: dict[str, str], problems: list[str]) -> _Entry:
    try:
        return msgspec.structs.replace(entry, pattern=expand(entry.pattern, words))
    except KeyError as error:
        problems.append(f"{entry.id}: no word <{error.args[0]}> in [words]")
    except RecursionError:
        problems.append(f"{entry.id}: words that contain each other")
    return entry


def expand(pattern: str, words: dict[str, str], *, depth: int = 0) -> str:
    """Fill in `<word>` and blanks. KeyError for an unknown word, RecursionError for a circle."""
    if depth > _MAX_DEPTH:
        raise RecursionError

    def word(found: re.Match[str]) -> str:
        name = found[1]
        if name in _BUILT_IN:
            return _BUILT_IN[name]
        return expand(words[name], words, depth=depth + 1)

    def blank(found: re.Match[str]) -> str:
        return r"(?:[ \x1d]+)" if found[0] == " " else found[0].replace(" ", r" \x1d")

    return _WORD.sub(word, _BLANK_OR_CLASS.sub(blank, pattern))


def _options() -> Any:
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = _AUTOMATON_BYTES
    return options


def _compiled(pattern: str) -> re2._Regexp:
    import re2

    return re2.compile(pattern, _options())
