"""The log gate: words of loss in what a run printed, and no words at all, are findings.

One pass of all rules over a block finds suspects; each suspect is then judged message by message,
with the allow list, alone and joined with the one or two lines that may carry on its sentence.
Memory is bounded by the block, whatever the line length. A clean log proves nothing: the provider
gate looks at the same run independently.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from planyard.core.findings import Finding, Severity
from planyard.core.results import SmokeRun
from smoke.log_text import (
    BLOCK_BYTES,
    LINES_OF_A_MESSAGE,
    UNIT,
    WRAP,
    Block,
    BlockCutter,
    clean_block,
    count_lines,
    join_wrapped,
    messages_of,
)
from smoke.rules import Rule, RuleSet

MAX_TEXT = 400
"""Characters of a hit that are kept."""
MAX_PER_RULE = 20
"""Findings that one rule makes in one stream; the log itself has the rest."""
_LINE_END = re.compile(rb"[\n\x1d]")


class LogHit(msgspec.Struct, frozen=True, kw_only=True):
    """A loss in a log: the rule, the 1-based line its message begins on, the cleaned text."""

    rule: str
    line: int
    text: str
    severity: Severity
    why: str


class LogScanner:
    """Finds losses in a stream fed in pieces of any size; `close` judges the unfinished last line.

    A line fed whole is judged at once; a message wrapped over lines when its last line is fed.
    """

    def __init__(self, rules: RuleSet, *, exact: bool = False) -> None:
        """`exact` judges all there is, without looking for anchors first: the tests compare."""
        self._rules = rules
        self._exact = exact
        self._cutter = BlockCutter()
        self._line = 1  # number of the first line in the next block
        self._reported: set[int] = set()

    def feed(self, data: bytes) -> list[LogHit]:
        """Take the next bytes; the hits that are certain now."""
        return self._judge_all(self._cutter.feed(data))

    def close(self) -> list[LogHit]:
        """The hits of a last line without a newline."""
        return self._judge_all(self._cutter.close())

    def _judge_all(self, blocks: Iterable[Block]) -> list[LogHit]:
        return [hit for block in blocks for hit in self._judge(block)]

    def _judge(self, block: Block) -> list[LogHit]:
        """The hits in the parts of the next block that may hold a loss."""
        text, line, counted = block.text, self._line, 0
        end = len(text)
        spans = [(0, end)] if self._exact else self._rules.prefilter.regions(text, end)
        news = line + count_lines(text, 0, block.context_bytes)
        hits = []
        for start, stop in spans:
            line += count_lines(text, counted, start)
            counted = start
            for hit, lines in _scan_block(text[start:stop], self._rules, first_line=line):
                # What lies in the context alone was judged with the block before.
                if lines.stop > news and self._reported.isdisjoint(lines):
                    self._reported.update(lines)
                    hits.append(hit)
        if block.kept_at < counted:
            self._line = line - count_lines(text, block.kept_at, counted)
        else:
            self._line = line + count_lines(text, counted, block.kept_at)
        self._reported = {line for line in self._reported if line >= self._line}
        return hits


def scan_lines(lines: Iterable[bytes], rules: RuleSet) -> Iterator[LogHit]:
    """Find losses in lines (with or without their newline) of any number, in bounded memory.

    Lines are judged a block at a time; where each must be judged at once, feed a LogScanner.
    """
    scanner = LogScanner(rules)
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line if line.endswith(b"\n") else line + b"\n")
        size += len(line) + 1
        if size >= BLOCK_BYTES:
            yield from scanner.feed(b"".join(batch))
            batch, size = [], 0
    yield from scanner.feed(b"".join(batch))
    yield from scanner.close()


def scan_text(text: str | bytes, rules: RuleSet) -> tuple[LogHit, ...]:
    """Find losses in a whole log."""
    data = text.encode("utf-8", "ignore") if isinstance(text, str) else text
    scanner = LogScanner(rules)
    # The newline lets the last two lines be judged together.
    return (*scanner.feed(data if data.endswith(b"\n") else data + b"\n"), *scanner.close())


def check_logs(run: SmokeRun, *, rules: RuleSet) -> tuple[Finding, ...]:
    """The findings in both streams of a run. A run that printed nothing fails: no evidence."""
    if not run.stdout.strip() and not run.stderr.strip():
        message = "the run printed nothing, so its log says nothing about fallbacks"
        return (Finding(gate="logs", rule="logs.no-evidence", message=message, where=run.cell),)
    rules = rules.for_scope(stage="smoke", process="smoke")
    streams = (("stdout", run.stdout), ("stderr", run.stderr))
    return tuple(
        _finding_of(hit, stream=stream, run=run)
        for stream, text in streams
        for hit in _first_of_each_rule(scan_text(text, rules))
    )


def _first_of_each_rule(hits: Iterable[LogHit]) -> Iterator[LogHit]:
    """The first MAX_PER_RULE hits of each rule; one node a line can make thousands."""
    seen: Counter[str] = Counter()
    for hit in hits:
        seen[hit.rule] += 1
        if seen[hit.rule] <= MAX_PER_RULE:
            yield hit


def _finding_of(hit: LogHit, *, stream: str, run: SmokeRun) -> Finding:
    return Finding(
        gate="logs",
        rule=hit.rule,
        message=f"{stream} line {hit.line}: {hit.why}",
        where=run.cell,
        severity=hit.severity,
        evidence=(hit.text,),
        line=hit.line,
    )


def _scan_block(block: bytes, rules: RuleSet, *, first_line: int) -> Iterator[tuple[LogHit, range]]:
    """The hits of a block of whole lines, each with the numbers of the lines it was seen in."""
    joined = join_wrapped(clean_block(block))
    counted, number, position = 0, first_line, 0
    while suspect := rules.suspect(joined, position):
        # A match may end with the newline itself; it belongs to the line that it ends.
        start = _line_start(joined, suspect[0] + 1)
        position = _line_stop(joined, max(suspect[1] - 1, suspect[0]))
        number += _lines_in(joined, counted, start)
        counted = start
        before, after = _message_around(joined, start, position)
        alone = (before, after) == (start, position)
        if alone or rules.may_match(joined[start:after]):
            yield from _judge_lines(
                _LINE_END.split(joined[before:after]),
                judged=range(
                    number - _lines_in(joined, before, start),
                    number + _lines_in(joined, start, position) + 1,
                ),
                first=number,
                rules=rules,
            )
        position += 1
        if position >= len(joined):
            return


def _line_start(joined: bytes, position: int) -> int:
    return max(joined.rfind(b"\n", 0, position), joined.rfind(WRAP, 0, position)) + 1


def _line_stop(joined: bytes, position: int) -> int:
    border = _LINE_END.search(joined, position)
    return border.start() if border else len(joined)


def _lines_in(joined: bytes, start: int, stop: int) -> int:
    return joined.count(b"\n", start, stop) + joined.count(WRAP, start, stop)


def _message_around(joined: bytes, start: int, stop: int) -> tuple[int, int]:
    """Widen a span of whole lines by the lines that may belong to the same message."""
    for _ in range(LINES_OF_A_MESSAGE - 1):
        if start and joined.startswith(WRAP, start - 1):
            start = _line_start(joined, start - 1)
        if joined.startswith(WRAP, stop):
            stop = _line_stop(joined, stop + 1)
    return start, stop


def _judge_lines(
    lines: list[bytes], *, judged: range, first: int, rules: RuleSet
) -> Iterator[tuple[LogHit, range]]:
    """Judge the lines from number `first` on, each alone, then two or three joined.

    `judged.start` is the number of `lines[0]`; lines after `judged.stop` only carry on a sentence.
    """
    taken: set[int] = set()
    for size in range(1, LINES_OF_A_MESSAGE + 1):
        for number in range(first, judged.stop):
            window = range(number, number + size)
            index = number - judged.start
            if index + size > len(lines) or not taken.isdisjoint(window):
                continue
            found = _judge(WRAP.join(lines[index : index + size]), rules)
            if found is not None and not _allowed_as_part(lines, index, size, rules):
                taken.update(window)
                yield _hit_of(*found, line=number), window


def _allowed_as_part(lines: list[bytes], index: int, size: int, rules: RuleSet) -> bool:
    """Whether a loss in some lines is harmless words once the lines around them are read too."""
    if size == len(lines):
        return False
    reach = LINES_OF_A_MESSAGE - 1
    for start in range(max(0, index - reach), index + 1):
        for stop in range(index + size, min(len(lines), index + size + reach) + 1):
            text = WRAP.join(lines[start:stop])
            begin = len(WRAP.join(lines[start:index]))
            end = begin + len(WRAP.join(lines[index : index + size])) + 1
            # Only an allow entry that itself reaches over a border can speak for these lines.
            over = any(
                from_ < end and to > begin and WRAP in text[from_:to]
                for from_, to in rules.allowed_spans(text)
            )
            if over and _judge(text, rules) is None:
                return True
    return False


def _judge(line: bytes, rules: RuleSet) -> tuple[Rule, bytes] | None:
    """The gravest rule that one of the line's messages breaks, with that message."""
    found = [(rule, text) for text in messages_of(line) if (rule := rules.match(text))]
    return min(found, key=lambda pair: rules.rules.index(pair[0]), default=None)


def _hit_of(rule: Rule, message: bytes, *, line: int) -> LogHit:
    text = " ".join(message.replace(WRAP, b" ").replace(UNIT, b" ").decode("utf-8").split())
    return LogHit(
        rule=rule.id, line=line, text=text[:MAX_TEXT], severity=rule.severity, why=rule.why
    )
