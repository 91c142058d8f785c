"""The rules of secrets.toml, and the search for them in text that streams past.

Only the rule and the line are kept, never the secret. Patterns are RE2: its time is linear in the
text, whatever the text is.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from planyard.core.contents import SecretHit

if TYPE_CHECKING:
    import re2

RULES_FILE = Path(__file__).parent / "secrets.toml"
_OVERLAP_BYTES = 2048
"""What is searched again with the next piece: the longest match that counts."""
_SEARCHED_BYTES = 64 * 2**10
_MOST_HITS = 100


class SecretRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one kind of secret looks like, where it is looked for, and why it matters."""

    id: str
    pattern: str
    why: str
    source: str
    example: tuple[str, ...]
    unless: str = ""
    paths: tuple[str, ...] = ()
    settings: bool = False

    def holds_for(self, path: str) -> bool:
        """Whether files of that path are searched."""
        return not self.paths or any(fnmatch.fnmatchcase(path, each) for each in self.paths)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal[1]
    rule: tuple[SecretRule, ...]


@functools.cache
def secret_rules() -> tuple[SecretRule, ...]:
    """All rules, in the order of the file."""
    return msgspec.convert(tomllib.loads(RULES_FILE.read_text(encoding="utf-8")), _File).rule


class SecretWatch:
    """Finds secrets in the text of one file. Keeps about 70 KiB between pieces."""

    def __init__(self, path: str) -> None:
        self._own = _named(path)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._line = 1  # the number of the first line that waits
        self._cut = False  # whether that line lacks its beginning
        self._hits: dict[SecretHit, None] = {}

    def feed(self, data: bytes) -> None:
        """The next bytes of the file."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _SEARCHED_BYTES:
            self._search(is_end=False)

    def finish(self) -> tuple[SecretHit, ...]:
        """Each rule and line once, by line."""
        self._search(is_end=True)
        found = sorted(self._hits, key=lambda hit: (hit.line, hit.rule))
        return tuple(found[:_MOST_HITS])

    def _search(self, *, is_end: bool) -> None:
        """Search what waits, and let go of all but its end, where a secret may be cut in two."""
        data = b"".join(self._waiting)
        if len(self._hits) < _MOST_HITS:
            rules = (*self._own, *(_everywhere() if _first_pass().search(data) else ()))
            for start, end, rule in _matches(rules, data):
                # At a border a match may be part of a longer word: the other search sees all of it.
                if (is_end or end < len(data)) and (start or not self._cut):
                    line = self._line + data.count(b"\n", 0, start)
                    self._hits[SecretHit(rule=rule, line=line)] = None
        keep = max(0, len(data) - _OVERLAP_BYTES)
        start = data.rfind(b"\n", 0, keep) + 1
        if keep - start > _OVERLAP_BYTES:  # a long line
            start = keep
        self._cut = start > 0 and data[start - 1 : start] != b"\n"
        self._line += data.count(b"\n", 0, start)
        self._waiting = [data[start:]]
        self._waiting_bytes = 0


def find_in_setting(text: str) -> tuple[str, ...]:
    """The ids of the rules that find something in a setting of an image: `NAME=value`, a label."""
    rules = (rule for rule in secret_rules() if rule.settings)
    found = _matches(rules, text.encode("utf-8", "replace"))
    return tuple(dict.fromkeys(rule for _, _, rule in found))


def _matches(rules: Iterable[SecretRule], data: bytes) -> Iterator[tuple[int, int, str]]:
    """Where each match starts and ends, blanks before it left out, and its rule's id."""
    for rule in rules:
        found = compile_pattern(rule.pattern).finditer(data)
        for match in itertools.islice(found, _MOST_HITS):
            text = match[0]
            if not (rule.unless and compile_pattern(rule.unless).search(text)):
                yield match.end() - len(text.lstrip()), match.end(), rule.id


def _named(path: str) -> tuple[SecretRule, ...]:
    """The rules that look into files of this path besides those for all files."""
    if not _any_path().match(path):
        return ()
    return tuple(rule for rule in secret_rules() if rule.paths and rule.holds_for(path))


@functools.cache
def _any_path() -> re.Pattern[str]:
    """All patterns of paths in one: thousands of files have none of them."""
    return re.compile("|".join(fnmatch.translate(x) for rule in secret_rules() for x in rule.paths))


@functools.cache
def _everywhere() -> tuple[SecretRule, ...]:
    return tuple(rule for rule in secret_rules() if not rule.paths)


@functools.cache
def _first_pass() -> re2._Regexp:
    """Finds what any of the rules for all files finds; hardly any text has one."""
    return compile_pattern("|".join(f"(?:{rule.pattern})" for rule in _everywhere()))


@functools.cache
def compile_pattern(pattern: str) -> re2._Regexp:
    """A pattern over bytes, `^` and `$` at every line. Raises re2.error."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(f"(?m){pattern}".encode("ascii"), options)
