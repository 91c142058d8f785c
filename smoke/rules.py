"""The rules of the log gate: data in `rules.toml`, checked here, compiled when first used.

A pattern is RE2 with three additions, so that rules can be written about meaning: `<word>` is an
entry of the file's vocabulary, a space is one or more blanks, `<gap>` is any text inside one
sentence. A file is refused whole if one rule does not find its own example.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from planyard.core.errors import InputError
from planyard.core.findings import Severity
from smoke.log_text import UNIT
from smoke.prefilter import ESCAPES, SEPARATOR, Prefilter

if TYPE_CHECKING:
    import re2

Stage = Literal["smoke", "build", "serve"]

RULES_FILE = Path(__file__).with_name("rules.toml")


_BUILT_IN = {
    "gap": r"(?:[^.;\n\x1e]|\.[^ \n\x1d\x1e])*?",
    "far": r"[^\n\x1e]*?",
    "near": r"[^\n\x1d\x1e]*?(?:\x1d[^\n\x1d\x1e]*?){0,2}",
    "sep": SEPARATOR,
    "escape": ESCAPES,
    "end": r"(?:[.,!;)\"'\n\x1d\x1e]|\z)",
}
GROUP = 6
"""Rules searched for at once: fewer searches, and their automaton is still small."""
Words = Mapping[str, tuple[str, ...]]
"""The vocabulary: each word with its wordings."""

_WORD = re.compile(r"<([a-z]+)>")
_BLANK_OR_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]| ")
_MAX_DEPTH = 5


class Scope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an allow entry holds: stages, and a glob over the name of the process."""

    stage: tuple[Stage, ...]
    process: str


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of loss, in several wordings. `seen` names libraries and versions that print it."""

    id: str
    severity: Severity
    patterns: tuple[str, ...]
    why: str
    seen: tuple[str, ...]
    example: str
    source: str


class Allow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Words that look like a loss and are none. Only the matched words are taken out."""

    id: str
    patterns: tuple[str, ...]
    reason: str
    scope: Scope
    example: str


_Entry = TypeVar("_Entry", Rule, Allow)


class _RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: Literal[1]
    anchors: tuple[str, ...]
    first_pass: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    rule: tuple[Rule, ...]
    allow: tuple[Allow, ...] = ()


class RuleSet:
    """Rules and allow list, patterns with their words filled in; compiled at the first search.

    Rules are ordered: failing ones first, then as in the file. The first that matches names a hit.
    `first_pass` are patterns of which one matches wherever a rule does; `prefilter` is the same
    for raw bytes.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        allow: Iterable[Allow] = (),
        *,
        first_pass: Iterable[str],
        prefilter: Prefilter,
    ) -> None:
        self.prefilter = prefilter
        self.rules = tuple(sorted(rules, key=lambda rule: rule.severity != "fail"))
        self.allow = tuple(allow)
        self.first_pass = tuple(first_pass)

    def for_scope(self, *, stage: Stage, process: str = "") -> RuleSet:
        """The same rules with the allow entries that hold for this stage and process."""
        allow = tuple(
            entry
            for entry in self.allow
            if stage in entry.scope.stage and fnmatchcase(process, entry.scope.process)
        )
        return self if allow == self.allow else self._allowing(allow)

    def with_allow(self, entries: Iterable[Allow]) -> RuleSet:
        """The same rules with more allow entries."""
        return self._allowing((*self.allow, *entries))

    def _allowing(self, allow: tuple[Allow, ...]) -> RuleSet:
        return RuleSet(self.rules, allow, first_pass=self.first_pass, prefilter=self.prefilter)

    def suspect(self, block: bytes, position: int) -> tuple[int, int] | None:
        """The next span at or after `position` in whole cleaned lines that may hold a loss."""
        found = self._first_pass.search(block, position)
        return found.span() if found else None

    def may_match(self, text: bytes) -> bool:
        """Whether any rule finds something in the text, allowed or not."""
        return any(pattern.search(text) for pattern in self._groups)

    def match(self, message: bytes) -> Rule | None:
        """The first rule that finds a loss in this one message (cleaned UTF-8), or None."""
        if self._allow is not None:
            message = self._allow.sub(UNIT, message)
        for start, group in zip(range(0, len(self.rules), GROUP), self._groups, strict=True):
            if group.search(message):
                for number in range(start, min(start + GROUP, len(self.rules))):
                    if self._patterns[number].search(message):
                        return self.rules[number]
        return None

    def allowed_spans(self, message: bytes) -> list[tuple[int, int]]:
        """Where allow entries take words out of this message: offsets of their first and end."""
        if self._allow is None:
            return []
        return [found.span() for found in self._allow.finditer(message)]

    @functools.cached_property
    def _first_pass(self) -> re2._Regexp:
        return compile_patterns(self.first_pass)

    @functools.cached_property
    def _groups(self) -> tuple[re2._Regexp, ...]:
        starts = range(0, len(self.rules), GROUP)
        groups = (self.rules[start : start + GROUP] for start in starts)
        return tuple(
            compile_patterns(text for rule in group for text in rule.patterns) for group in groups
        )

    @functools.cached_property
    def _patterns(self) -> tuple[re2._Regexp, ...]:
        # One by one: the automaton of all together takes seconds to fill and 100 MiB to keep.
        return tuple(compile_patterns(rule.patterns) for rule in self.rules)

    @functools.cached_property
    def _allow(self) -> re2._Regexp | None:
        if not self.allow:
            return None
        return compile_patterns(pattern for entry in self.allow for pattern in entry.patterns)


def load_rules(path: Path = RULES_FILE) -> RuleSet:
    """Read and check a rules file. Raises InputError with every problem found."""
    return _load(path)


@functools.cache
def _load(path: Path) -> RuleSet:
    return read_rules(path.read_text(encoding="utf-8"), name=path.name)


def read_rules(text: str, *, name: str = "rules.toml") -> RuleSet:
    """Parse the text of a rules file; patterns are compiled only when first used."""
    try:
        file = msgspec.convert(tomllib.loads(text), _RulesFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError([f"{name}: {error}"]) from None
    problems = list(_repeated_ids([*file.rule, *file.allow]))
    first_pass = [
        _filled_pattern("first_pass", text, file.words, problems) for text in file.first_pass
    ]
    anchors = [_filled_pattern("anchors", text, file.words, problems) for text in file.anchors]
    rules = [_filled(rule, file.words, problems) for rule in file.rule]
    allow = [_filled(entry, file.words, problems) for entry in file.allow]
    if problems:
        raise InputError([f"{name}: {problem}" for problem in problems])
    return RuleSet(rules, allow, first_pass=first_pass, prefilter=Prefilter(tuple(anchors)))


def problems_of(ruleset: RuleSet) -> list[str]:
    """What is wrong with the patterns themselves; costs their compilation, so tests ask for it."""
    import re2

    problems = []
    entries: list[Rule | Allow] = [*ruleset.rules, *ruleset.allow]
    for entry in entries:
        example = entry.example.encode()
        try:
            found = compile_patterns(entry.patterns).search(example)
        except re2.error as error:
            problems.append(f"{entry.id}: RE2 refuses the pattern: {error}")
            continue
        if found is None:
            problems.append(f"{entry.id}: the pattern does not find its own example")
        elif isinstance(entry, Rule) and ruleset.suspect(example, 0) is None:
            problems.append(f"{entry.id}: first_pass does not find its example")
        elif isinstance(entry, Rule) and not ruleset.prefilter.ends(example):
            problems.append(f"{entry.id}: no anchor stands in its example")
        elif isinstance(entry, Allow) and ruleset.match(example) is not None:
            problems.append(f"{entry.id}: a rule still finds something in its example")
    return problems


def _repeated_ids(entries: Iterable[Rule | Allow]) -> Iterable[str]:
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            yield f"{entry.id}: this id is used twice"
        seen.add(entry.id)


def _filled(entry: _Entry, words: Words, problems: list[str]) -> _Entry:
    patterns = (_filled_pattern(entry.id, text, words, problems) for text in entry.patterns)
    return msgspec.structs.replace(entry, patterns=tuple(patterns))


def _filled_pattern(where: str, pattern: str, words: Words, problems: list[str]) -> str:
    try:
        return expand(pattern, words)
    except KeyError as error:
        problems.append(f"{where}: no word <{error.args[0]}> in [words]")
    except RecursionError:
        problems.append(f"{where}: words that contain each other")
    return pattern


def expand(pattern: str, words: Words, *, depth: int = 0) -> str:
    """Fill in `<word>` and blanks. KeyError for an unknown word, RecursionError for a circle."""
    if depth > _MAX_DEPTH:
        raise RecursionError

    def word(found: re.Match[str]) -> str:
        name = found[1]
        if name in _BUILT_IN:
            return _BUILT_IN[name]
        wordings = (expand(text, words, depth=depth + 1) for text in words[name])
        return f"(?:{'|'.join(wordings)})"

    def blank(found: re.Match[str]) -> str:
        return r"(?:[ \x1d]+)" if found[0] == " " else found[0].replace(" ", r" \x1d")

    return _WORD.sub(word, _BLANK_OR_CLASS.sub(blank, pattern))


def compile_patterns(patterns: Iterable[str]) -> re2._Regexp:
    """Compile expanded patterns into one that finds any of them in cleaned bytes; re2.error."""
    import re2  # here, because the commands that search no log must not pay its 20 ms

    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    # Bytes: patterns are ASCII, and an automaton over UTF-8 would be three times as large.
    options.encoding = re2.Options.Encoding.LATIN1
    alternation = "|".join(f"(?:{pattern})" for pattern in patterns)
    return re2.compile(alternation.encode("ascii"), options)
