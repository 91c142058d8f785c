"""Log bytes as plain text, so that rules see words: no colours, no encodings, no JSON.

Everything here keeps the number of newlines, so line numbers stay those of the file. Cleaning may
only remove what a reader does not see; a message must not disappear with it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

UNIT = b"\x1e"
"""Stands between two messages of one line: strings of a JSON object, steps of a progress bar."""
WRAP = b"\x1d"
"""Stands where two lines of one message were joined."""

BLOCK_BYTES = 1 << 20
LINES_OF_A_MESSAGE = 3
"""Lines that one message may be wrapped over."""
_CONTEXT_BYTES = 4096
_COUNTED_BYTES = 1 << 15

_BLANKS = b"\t\x0b\x0c"
_DROPPED = bytes(set(range(0x20)) - set(b"\t\n\x0b\x0c\x1d\x1e")) + b"\x7f"
_TO_BLANK = bytes.maketrans(_BLANKS, b" " * len(_BLANKS))
_OWN_MARKS = bytes.maketrans(WRAP + UNIT, b"  ")

# CSI; OSC, DCS, APC, PM with their terminator on the same line; any other two-byte escape. An
# unterminated OSC loses only its two first bytes: the text behind it stays to be judged.
_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P_^X][^\x07\x1b\n]{0,4096}(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-~])?"
)
_ODD_BLANK = "(?:\xa0|\u1680|[\u2000-\u200a]|\u2028|\u2029|\u202f|\u205f|\u3000|\x85)"
_UNSEEN = "(?:[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f]|\xad|\ufeff|\u180e|\ufffd)"
_ODD = re.compile(rf"({_ODD_BLANK})|({_UNSEEN})|([\u2018\u2019\u02bc])|([\u2010-\u2015\u2212])")
_ODD_TO = {1: " ", 2: "", 3: "'", 4: "-"}
_LATIN1_BLANK = re.compile(rb"(?<![\x80-\xff])\xa0(?![\x80-\xff])")
# First bytes of all the characters above, in UTF-8: a block without them needs no decoding.
_ODD_LEADS = (
    *(b"\xc2", b"\xca", b"\xe1", b"\xef"),
    *(b"\xe2\x80", b"\xe2\x81", b"\xe2\x88", b"\xe3\x80"),
)
_ASCII = bytes(range(0x80))

_JSON_START = re.compile(rb'\{ ?"')
_JSON = json.JSONDecoder()
_MAX_JSON_DEPTH = 20

# What begins a message of its own. A next line that begins so, or follows the end of a sentence,
# is not the rest of the line before.
_HEAD = (
    rb"[{<=#*|+>~$]|\[(?!['\"])|-[- ]|\d{1,4}[-/:.]\d|[IWEFD](?:\d{4})? |\Z|"
    rb"(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL|SEVERE)\b|"
    rb"(?:debug|info|warning): |(?:time|ts|level)="
)
_WRAPPED = re.compile(rb"\n(?<![.!?;}\n\x1e]\n)(?= *[^ \n])(?! *(?:" + _HEAD + rb"))")


class LogDecoder:
    """Bytes of a stream to UTF-8 bytes: UTF-16 by its mark, or by its zero bytes without one."""

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._known = False

    def feed(self, data: bytes) -> bytes:
        """The next bytes in UTF-8; those of an unfinished UTF-16 character are kept back."""
        if not self._known and data:
            self._known = True
            encoding = _utf16_of(data[:16])
            if encoding:
                self._decoder = codecs.getincrementaldecoder(encoding)("ignore")
        if self._decoder is None:
            return data
        return self._decoder.decode(data).encode("utf-8", "ignore")


def _utf16_of(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0::2], head[1::2]
    if len(odd) >= 4 and not any(odd) and all(even):
        return "utf-16-le"
    if len(odd) >= 4 and not any(even) and all(odd):
        return "utf-16-be"
    return None


class Block(NamedTuple):
    """A part of a log: lines that were in the block before, from there on its own.

    `kept_at` is where the lines begin that the next block repeats.
    """

    text: bytes
    context_bytes: int
    kept_at: int


class BlockCutter:
    """Cuts a stream that comes in pieces of any size into blocks of whole lines.

    Each begins with the end of the one before, so that a message over their border is whole in one.
    A line longer than BLOCK_BYTES is cut; so memory is bounded, whatever the stream.
    """

    def __init__(self) -> None:
        self._decoder = LogDecoder()
        self._context = b""
        self._pending = bytearray()  # of an unfinished line: no newline is in it between two calls

    def feed(self, data: bytes) -> Iterator[Block]:
        """Take the next bytes; what they make whole."""
        data = self._decoder.feed(data)
        end = data.rfind(b"\n") + 1
        # Twice the block, so that blocks read from a file are not cut in two.
        if end and len(self._pending) + len(data) <= 2 * BLOCK_BYTES:
            block = self._block(self._pending, data, end)
            self._pending = bytearray(data[end:])
            yield block
        else:
            self._pending += data
        while (size := len(self._pending)) >= BLOCK_BYTES:
            reach = size if size <= 2 * BLOCK_BYTES else BLOCK_BYTES
            end = self._pending.rfind(b"\n", 0, reach) + 1 or BLOCK_BYTES
            block = self._block(b"", self._pending, end)
            del self._pending[:end]
            yield block

    def close(self) -> Iterator[Block]:
        """A last line without a newline."""
        if self._pending:
            yield self._block(self._pending, b"", 0)
            self._pending = bytearray()

    def _block(self, first: bytes | bytearray, data: bytes | bytearray, end: int) -> Block:
        before = len(self._context)
        with memoryview(data) as view, view[:end] as news:
            text = b"".join((self._context, first, news))
        kept_at = _kept_at(text)
        self._context = text[kept_at:]
        return Block(text, before, kept_at)


def _kept_at(text: bytes) -> int:
    """Where the last two lines of a block begin, or the end of a longer one."""
    least = max(0, len(text) - _CONTEXT_BYTES)
    start = len(text)
    for _ in range(LINES_OF_A_MESSAGE if text.endswith(b"\n") else 1):
        start = text.rfind(b"\n", least, max(start - 1, 0)) + 1
        if start == 0:
            return least
    return start


def count_lines(text: bytes, start: int, stop: int) -> int:
    """The newlines in `text[start:stop]`, by deleting them: twice as fast as counting."""
    count = 0
    for at in range(start, stop, _COUNTED_BYTES):
        part = text[at : min(at + _COUNTED_BYTES, stop)]
        count += len(part) - len(part.replace(b"\n", b""))
    return count


def clean_block(block: bytes) -> bytes:
    """Whole lines as plain UTF-8 text with as many newlines; UNIT between messages of a line."""
    if WRAP in block or UNIT in block:
        block = block.translate(_OWN_MARKS)
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", UNIT)
    if b'{"' in block or b'{ "' in block:
        block = _without_json_escapes(block)
    return _plain(block)


def _plain(block: bytes) -> bytes:
    if b"\x1b" in block:
        block = _ESCAPES.sub(b"", block)
    if not block.isascii():
        block = _plain_characters(block)
    return block.translate(_TO_BLANK, _DROPPED)


def _plain_characters(block: bytes) -> bytes:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        text = _LATIN1_BLANK.sub(b" ", block).decode("utf-8", "ignore")
        block = text.encode()
    high = block.translate(None, _ASCII)
    if any(lead in high for lead in _ODD_LEADS):
        text = _ODD.sub(lambda found: _ODD_TO[found.lastindex or 0], text)
        return text.encode()
    return block


def _without_json_escapes(block: bytes) -> bytes:
    """Replace JSON lines that hold escapes, and Docker's records, by the messages in them."""
    parts: list[bytes] = []
    done = escape = docker = 0
    while True:
        # Two plain searches are ten times as fast as one pattern with both.
        escape = _next(block, b"\\", escape, done)
        docker = _next(block, b'{"log":', docker, done)
        found = min(escape, docker)
        if found == len(block):
            return b"".join([*parts, block[done:]])
        start = block.rfind(b"\n", 0, found + 1) + 1
        stop = block.find(b"\n", found)
        stop = len(block) if stop < 0 else stop
        line = block[start:stop]
        if _JSON_START.search(line):
            line = UNIT.join(_json_messages(line)).replace(b"\n", b" ")
        parts += [block[done:start], line]
        done = stop


def _next(block: bytes, what: bytes, known: int, position: int) -> int:
    """Where `what` comes next at or after `position`; `known` is the last answer."""
    if known >= position and known:
        return known
    found = block.find(what, position)
    return len(block) if found < 0 else found


def messages_of(line: bytes) -> Iterator[bytes]:
    """The messages of one cleaned line: strings of its JSON object, steps of a progress bar."""
    for unit in line.split(UNIT):
        if _JSON_START.search(unit):
            yield from _json_messages(unit)
        else:
            yield unit


def _json_messages(line: bytes) -> Iterator[bytes]:
    """What stands before the JSON object, its strings, what stands behind; the line if broken."""
    start = _JSON_START.search(line)
    text = line.decode("utf-8", "ignore")
    if start is None:
        yield line
        return
    begin = len(line[: start.start()].decode("utf-8", "ignore"))
    try:
        value, end = _JSON.raw_decode(text, begin)
    except (ValueError, RecursionError):
        yield line.replace(b"\\n", b" ").replace(b"\\t", b" ")
        return
    if isinstance(value, dict) and isinstance(value.get("log"), str) and "stream" in value:
        value = value["log"].rstrip()  # Docker's own record; its other fields are not the program's
    for part in (text[:begin], *_strings_of(value, _MAX_JSON_DEPTH), text[end:]):
        if part.strip():
            yield part.replace("\r", " ").replace("\n", " ").encode("utf-8", "ignore")


def _strings_of(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth > 0 and isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings_of(inner, depth - 1)


def join_wrapped(block: bytes) -> bytes:
    """The block with WRAP for each newline inside a message; every offset stays the same."""
    return _WRAPPED.sub(WRAP, block)
