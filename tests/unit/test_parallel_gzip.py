"""The compressed stream depends on the input alone, and any gzip reader reads it."""

from __future__ import annotations

import gzip
import io
import random
import zlib

import pytest

from builders.parallel_gzip import ParallelGzip
from planyard.core.digest import digest_of_bytes

MIXED = random.Random(7).randbytes(700_000) + b"plan" * 600_000


def compress(*pieces: bytes, threads: int | None = None, level: int = 6) -> tuple[bytes, str, int]:
    sink = io.BytesIO()
    stream = ParallelGzip(sink, threads=threads, level=level)
    for piece in pieces:
        stream.write(piece)
    stream.close()
    return sink.getvalue(), stream.digest, stream.size_bytes


@pytest.mark.parametrize("data", [b"", b"x", bytes(1 << 20), bytes((1 << 20) + 1), MIXED])
def test_gzip_reads_it_back(data: bytes) -> None:
    packed, digest, size_bytes = compress(data)
    assert gzip.decompress(packed) == data
    assert digest == digest_of_bytes(packed)
    assert size_bytes == len(packed)


def test_the_number_of_threads_changes_nothing() -> None:
    assert compress(MIXED, threads=1) == compress(MIXED, threads=4)


def test_how_it_was_written_changes_nothing() -> None:
    pieces = [MIXED[at : at + 99_991] for at in range(0, len(MIXED), 99_991)]
    assert compress(*pieces) == compress(MIXED)


def test_the_header_has_no_time_and_no_name() -> None:
    packed, _, _ = compress(b"x")
    assert packed[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def test_blocks_share_their_window() -> None:
    """Without the 32 KiB before it, the second block would not find the text of the first."""
    block = random.Random(1).randbytes(30 << 10)
    data = bytes((1 << 20) - len(block)) + block + block
    packed, _, _ = compress(data)
    assert len(packed) < len(block) * 1.2


def test_a_spliced_stream_is_part_of_the_content() -> None:
    content = b"library" * 50_000
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = packer.compress(content) + packer.flush()
    sink = io.BytesIO()
    stream = ParallelGzip(sink)
    stream.write(b"before ")
    pieces = (deflated[:100], deflated[100:])
    stream.splice(pieces, crc=zlib.crc32(content), size_bytes=len(content))
    stream.write(b" after")
    stream.close()
    assert gzip.decompress(sink.getvalue()) == b"before " + content + b" after"
    assert deflated in sink.getvalue()
    assert stream.digest == digest_of_bytes(sink.getvalue())


def test_a_stream_given_up_ends_its_threads() -> None:
    sink = io.BytesIO()
    stream = ParallelGzip(sink, threads=2)
    stream.write(MIXED)
    stream.abort()
    with pytest.raises(RuntimeError, match="shutdown"):
        stream.write(MIXED)
    with pytest.raises(EOFError):
        gzip.decompress(sink.getvalue())
