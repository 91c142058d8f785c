"""Allow entries of one's own: harmless words of a program that only its owner knows.

A file of `[[allow]]` entries as in `rules.toml`, each with a reason and a scope. They can only take
words out of a message; rules cannot be changed or turned off.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from planyard.core.errors import InputError
from smoke.rules import Allow, RuleSet, compile_patterns, expand


class _AllowFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: Literal[1]
    allow: tuple[Allow, ...]


def with_allow_file(rules: RuleSet, path: Path) -> RuleSet:
    """The rules with the entries of a file. Raises InputError with every problem found."""
    try:
        file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _AllowFile)
    except OSError as error:
        raise InputError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError([f"{path}: {error}"]) from None
    known = {entry.id for entry in rules.allow}
    problems, entries = [], []
    for entry in file.allow:
        found = _problem_of(entry, known=known)
        known.add(entry.id)
        if found:
            problems.append(f"{path}: {entry.id}: {found}")
        else:
            patterns = tuple(expand(text, {}) for text in entry.patterns)
            entries.append(msgspec.structs.replace(entry, patterns=patterns))
    if problems:
        raise InputError(problems)
    return rules.with_allow(entries)


def _problem_of(entry: Allow, *, known: set[str]) -> str | None:
    if entry.id in known:
        return "this id is used already"
    if not entry.reason.strip():
        return "say why these words are harmless in `reason`"
    if not entry.scope.stage or not entry.scope.process:
        return 'say where they are in `scope`, like { stage = ["serve"], process = "*" }'
    return _pattern_problem(entry)


def _pattern_problem(entry: Allow) -> str | None:
    import re2

    try:
        pattern = compile_patterns(expand(text, {}) for text in entry.patterns)
    except KeyError as error:
        return f"<{error.args[0]}> is no word here; write it out"
    except (re2.error, UnicodeEncodeError) as error:
        return f"the pattern is not RE2 in ASCII: {error}"
    found = pattern.search(entry.example.encode())
    if found is None:
        return "the pattern does not find its own example"
    if pattern.search(b"") is not None:
        return "the pattern matches nothing at all, so it would take out everything"
    return None
