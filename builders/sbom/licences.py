"""What packages say of their licence, held against SPDX's list. Nothing is guessed.

Words that are no SPDX expression stay as they stand: "BSD" could be any of five licences.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from builders.audit.visible import visible

if TYPE_CHECKING:
    from license_expression import LicenseExpression, Licensing

_LONGEST_EXPRESSION = 500
_LONGEST_TEXT = 64 << 10
_LONGEST_TITLE = 120
_REFERENCE = re.compile(r"LicenseRef-[A-Za-z0-9.-]{1,100}")
_NOT_SAID = frozenset(("", "unknown", "noassertion"))


class Licence(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A licence as declared: an SPDX `expression` if it is one, always the `words` themselves."""

    words: str
    expression: str = ""

    @property
    def title(self) -> str:
        """A line for a name: the words, or the beginning of a long text."""
        return visible(" ".join(self.words.split()), limit=_LONGEST_TITLE)

    @property
    def reference(self) -> str:
        """The name under which an SPDX document refers to words that are not on its list."""
        if _REFERENCE.fullmatch(self.words):
            return self.words
        stem = re.sub(r"[^A-Za-z0-9.]+", "-", self.words[:40]).strip("-") or "text"
        return f"LicenseRef-{stem}-{hashlib.sha256(self.words.encode()).hexdigest()[:8]}"

    @property
    def term(self) -> str:
        """What stands for it in a longer SPDX expression."""
        return f"({self.expression})" if " " in self.expression else self.expression


def licences_of(said: Sequence[str]) -> tuple[Licence, ...]:
    """The licences that a package declares, each once and sorted; all of them apply."""
    found: dict[str, Licence] = {}
    for words in sorted(said):
        if words.strip().lower() not in _NOT_SAID:
            licence = _licence_of(_kept(words))
            found.setdefault(licence.expression or licence.words, licence)
    return tuple(sorted(found.values()))


def joined(terms: Sequence[str]) -> LicenseExpression:
    """All of these terms together, as SPDX's library has it."""
    return _licensing().parse(" AND ".join(terms))


def _kept(words: str) -> str:
    """The words with what cannot be encoded replaced; line breaks stay, in long texts."""
    lines = words.strip()[:_LONGEST_TEXT].splitlines()
    return "\n".join(visible(line, limit=_LONGEST_TEXT) for line in lines)


@lru_cache(maxsize=1024)
def _licence_of(words: str) -> Licence:
    from license_expression import ExpressionError, ParseError

    if len(words) > _LONGEST_EXPRESSION or "\n" in words:
        return Licence(words=words)
    try:
        parsed = _licensing().parse(words, validate=True, strict=True)
    except (ExpressionError, ParseError, ValueError, RecursionError):
        return Licence(words=words)
    if parsed is None:
        return Licence(words=words)
    # The library also knows keys of its own, which no reader of SPDX has to know.
    expression = str(parsed)
    return Licence(words=words, expression="" if "LicenseRef-" in expression else expression)


@lru_cache(maxsize=1)
def _licensing() -> Licensing:
    """The library's list of SPDX licences; it takes 0.2 s to read, so once."""
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()
