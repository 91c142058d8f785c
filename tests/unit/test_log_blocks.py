"""A log cut into blocks loses no byte, and losses keep their line numbers across them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoke.gates.logs import LogHit, LogScanner
from smoke.log_text import BLOCK_BYTES, BlockCutter, count_lines
from smoke.rules import load_rules

LOSS = b"Failed to create CUDAExecutionProvider.\n"
PLAIN = b"I0101 request done in 12 ms, next\n"
WRAPPED = b"Failed to create\n   TensorrtExecutionProvider\n"


def fed(pieces: list[bytes]) -> list[LogHit]:
    scanner = LogScanner(load_rules())
    return [*(hit for piece in pieces for hit in scanner.feed(piece)), *scanner.close()]


def test_losses_are_found_at_their_lines_whatever_the_pieces() -> None:
    kinds = [PLAIN] * 2000 + [LOSS, WRAPPED]
    log = b"".join(random.Random(5).choices(kinds, k=130_000))
    assert len(log) > 4 * BLOCK_BYTES
    wanted = [log[: at + 1].count(b"\n") + 1 for at in starts_of(log, b"Failed to create")]
    for size in (BLOCK_BYTES, 3 * BLOCK_BYTES, 50_000):
        pieces = [log[at : at + size] for at in range(0, len(log), size)]
        assert [hit.line for hit in fed(pieces)] == wanted


def starts_of(log: bytes, words: bytes) -> Iterator[int]:
    at = log.find(words)
    while at >= 0:
        yield at - 1
        at = log.find(words, at + 1)


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
