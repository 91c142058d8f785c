"""A log cut into blocks loses no byte; the scan with two threads finds what the plain one does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke.gates.logs import LogHit, LogScanner
from smoke.log_text import BLOCK_BYTES, BlockCutter, count_lines
from smoke.rules import RuleSet, load_rules

LOSS = b"Failed to create CUDAExecutionProvider.\n"
PLAIN = b"I0101 request done in 12 ms, next\n"
WRAPPED = b"Failed to create\n   TensorrtExecutionProvider\n"


def fed(pieces: list[bytes]) -> list[LogHit]:
    scanner = LogScanner(load_rules())
    return [*(hit for piece in pieces for hit in scanner.feed(piece)), *scanner.close()]


def scanned(pieces: list[bytes]) -> list[LogHit]:
    return [hit for hits in LogScanner(load_rules()).scan(iter(pieces)) for hit in hits]


@settings(deadline=None, max_examples=50)
@given(
    lines=st.lists(st.sampled_from([LOSS, PLAIN, WRAPPED, b"\n", b"no newline"]), max_size=40),
    cuts=st.lists(st.integers(0, 1500), max_size=8),
)
def test_two_threads_find_what_one_finds(lines: list[bytes], cuts: list[int]) -> None:
    log = b"".join(lines)
    ends = sorted(min(cut, len(log)) for cut in cuts)
    pieces = [log[a:b] for a, b in zip([0, *ends], [*ends, len(log)], strict=True)]
    assert scanned(pieces) == fed(pieces)


def test_large_pieces_give_the_same_hits_at_the_same_lines() -> None:
    kinds = [PLAIN] * 2000 + [LOSS, WRAPPED]
    log = b"".join(random.Random(5).choices(kinds, k=130_000))
    assert len(log) > 4 * BLOCK_BYTES
    pieces = [log[at : at + BLOCK_BYTES] for at in range(0, len(log), BLOCK_BYTES)]
    found = scanned(pieces)
    assert found == fed(pieces)
    places = [hit.line for hit in found]
    wanted = [log[: at + 1].count(b"\n") + 1 for at in starts_of(log, b"Failed to create")]
    assert places == wanted


def starts_of(log: bytes, words: bytes) -> Iterator[int]:
    at = log.find(words)
    while at >= 0:
        yield at - 1
        at = log.find(words, at + 1)


def test_the_hits_of_a_small_piece_come_before_the_next_is_read() -> None:
    """A log that is still being written: nobody waits for more of it."""
    read: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(3):
            read.append(number)
            yield LOSS

    hits = LogScanner(load_rules()).scan(pieces())
    assert [len(next(hits)), len(read)] == [1, 1]
    assert [len(next(hits)), len(read)] == [1, 2]


def test_an_error_of_the_search_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def regions(self, text: bytes, end: int) -> list[tuple[int, int]]:
            raise RuntimeError("the engine ended")

    rules = RuleSet(load_rules().rules, first_pass=(), prefilter=Broken())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the engine ended"):
        list(LogScanner(rules).scan(iter([PLAIN])))


@settings(deadline=None, max_examples=50)
@given(
    text=st.binary(max_size=200).map(lambda data: data.replace(b"a", b"\n") * 500), data=st.data()
)
def test_lines_are_counted(text: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    assert count_lines(text, start, stop) == text.count(b"\n", start, stop)


@pytest.mark.parametrize("piece_bytes", [1000, 65536, BLOCK_BYTES, 5 * BLOCK_BYTES])
@pytest.mark.parametrize("line", [b"x" * 70 + b"\n", b"y" * (3 * BLOCK_BYTES) + b"\n", b"z" * 5000])
def test_blocks_are_the_log_and_bounded(piece_bytes: int, line: bytes) -> None:
    log = line * (5 * BLOCK_BYTES // len(line) + 1)
    cutter = BlockCutter()
    pieces = [log[at : at + piece_bytes] for at in range(0, len(log), piece_bytes)]
    blocks = [block for piece in pieces for block in cutter.feed(piece)] + list(cutter.close())
    assert b"".join(block.text[block.context_bytes :] for block in blocks) == log
    assert all(len(block.text) <= 2 * BLOCK_BYTES + 4096 for block in blocks)
    for before, block in itertools.pairwise(blocks):
        assert before.text[before.kept_at :] == block.text[: block.context_bytes]
