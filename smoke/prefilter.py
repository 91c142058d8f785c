"""Which lines of raw log bytes may hold a loss: one search for anchors, before anything is cleaned.

A rule matches only where one of its anchors (`rules.toml`) stands, so lines without one are never
cleaned or judged. Cleaning can make an anchor out of bytes that do not show it, a colour code
inside a word for one; what could do that is a mark, and a marked line is judged like an anchored
one. Nothing may be lost here: tests/property/test_log_prefilter.py holds it against judging all.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Callable
from typing import Any

ESCAPE = r"\x1b\[[0-?]*m"
JSON_ESCAPE = r"\\u001b\[[0-?]*m"
ESCAPES = rf"(?:{ESCAPE}|{JSON_ESCAPE})"
SEPARATOR = rf"(?:{ESCAPES}|\\[nrtf]|[^0-9A-Za-z_])+"
"""What may stand between two neighbouring words of a message in raw bytes."""

# What cleaning takes out of the middle of a word. Each lets its line be judged.
_MARKS = (
    # One inside a word; one that is no colour, or never ends. Together they are searched faster.
    rf"[\w'-](?:{ESCAPE})+[\w'-]|\x1b(?:[^\[]|\[[0-?]*[^0-?m])",
    rf"[\w'-](?:{JSON_ESCAPE})+[\w'-]",
    r"[\x00-\x08\x0e-\x1a\x1c\x1f\x7f]",
    r"\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xaf]|\xc2\xad",
    r"\xef\xbb\xbf|\xe1\xa0\x8e|\xef\xbf\xbd",
    r"n(?:\xe2\x80[\x98\x99]|\xca\xbc)t",
    r"\\u(?:[1-9a-f]|0[1-9a-f]|00[02-9a-f]|001[0-9ac-f])",
    r"\\u001b(?:[^\[]|\[[0-?]*[^0-?m])",
    r"\\b",
)
_DECODED_BYTES = 1 << 16
_REACH = 4
"""Lines on each side of a suspect: two of its message, and two that an allow entry may need."""

Ends = Callable[[bytes | memoryview], list[int]]
"""A search: raw bytes to ascending offsets behind what was found, at least one for each line."""


class Prefilter:
    """The anchors of a rule set, compiled at the first search."""

    def __init__(self, anchors: tuple[str, ...]) -> None:
        self.anchors = anchors
        self.patterns = (*anchors, *_MARKS)

    def regions(self, text: bytes, end: int) -> list[tuple[int, int]]:
        """Spans of whole lines of `text[:end]`, ascending and apart.

        No loss begins or ends outside of them.
        """
        with memoryview(text) as view, view[:end] as block:
            # Dropping an invalid byte may join a word anywhere, so then all is judged.
            found = self.ends(block) if text.isascii() or _is_utf8(block) else None
        if found is None:
            return [(0, end)]
        spans: list[tuple[int, int]] = []
        line_stop = -1
        for position in found:
            if position - 1 < line_stop:
                continue
            start = _lines_back(text, position - 1)
            line_stop, stop = _lines_on(text, position - 1, end)
            if spans and start <= spans[-1][1]:
                start = spans.pop()[0]
            spans.append((start, stop))
        return spans

    @functools.cached_property
    def ends(self) -> Ends:
        """Hyperscan where its wheel is installed; otherwise RE2, slower, with the same finds."""
        try:
            return _hyperscan(self.patterns)
        except ImportError:
            return _re2(self.patterns)


def _is_utf8(block: memoryview) -> bool:
    position = 0
    try:
        while position < len(block):  # in parts: whole, the text may be four times the block
            part = block[position : position + _DECODED_BYTES]
            last = position + len(part) == len(block)
            position += codecs.utf_8_decode(part, "strict", last)[1]
    except UnicodeDecodeError:
        return False
    return True


def _lines_back(text: bytes, position: int) -> int:
    """Where the line `_REACH` lines before that of `position` begins."""
    start = position
    for _ in range(_REACH + 1):
        start = text.rfind(b"\n", 0, start)
        if start < 0:
            return 0
    return start + 1


def _lines_on(text: bytes, position: int, end: int) -> tuple[int, int]:
    """Behind the line of `position`, and behind the line `_REACH` lines further on."""
    stop = line_stop = position
    for step in range(_REACH + 1):
        stop = text.find(b"\n", stop, end) + 1
        if stop == 0:
            return (line_stop if step else end), end
        line_stop = line_stop if step else stop
    return line_stop, stop


def _hyperscan(patterns: tuple[str, ...]) -> Ends:
    import hyperscan

    database: Any = hyperscan.Database()  # its types say bytes, it takes any buffer
    count = len(patterns)
    database.compile(
        expressions=[pattern.encode("ascii") for pattern in patterns],
        ids=list(range(count)),
        elements=count,
        flags=[hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_DOTALL] * count,
    )

    def ends(block: bytes | memoryview) -> list[int]:
        found: list[int] = []
        keep = found.append
        database.scan(block, match_event_handler=lambda _id, _from, to, _flags, _context: keep(to))
        found.sort()
        return found

    return ends


def _re2(patterns: tuple[str, ...]) -> Ends:
    from smoke.rules import compile_patterns

    alternation = compile_patterns(patterns)

    def ends(block: bytes | memoryview) -> list[int]:
        found: list[int] = []
        position = 0
        block = bytes(block)
        while hit := alternation.search(block, position):
            found.append(hit.end())
            position = block.find(b"\n", hit.end() - 1) + 1
            if position == 0:
                break
        return found

    return ends
