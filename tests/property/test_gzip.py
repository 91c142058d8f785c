"""The parallel gzip: any chunking and any number of threads give the one stream."""

from __future__ import annotations

import gzip
import io
import itertools
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from builders.parallel_gzip import ParallelGzip

# Blocks are 1 MiB: contents around that size come from a short seed, repeated.
contents = st.builds(
    lambda seed, size: (seed * (size // len(seed) + 1))[:size],
    st.binary(min_size=1, max_size=300),
    st.one_of(
        st.integers(0, 5000),
        st.sampled_from([(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 17]),
    ),
)
cuts = st.lists(st.floats(0, 1), max_size=5)


def chunks(data: bytes, where: list[float]) -> list[bytes]:
    """`data` cut at these fractions of its length; some pieces may be empty."""
    edges = [0, *sorted(int(cut * len(data)) for cut in where), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


def compress(pieces: list[bytes], *, threads: int) -> bytes:
    sink = io.BytesIO()
    stream = ParallelGzip(sink, threads=threads, level=1)
    for piece in pieces:
        stream.write(piece)
    stream.close()
    return sink.getvalue()


@given(contents, cuts, cuts)
@settings(max_examples=30, deadline=None)
def test_one_content_is_one_stream(data: bytes, one: list[float], other: list[float]) -> None:
    packed = compress(chunks(data, one), threads=1)
    assert gzip.decompress(packed) == data
    assert compress(chunks(data, other), threads=4) == packed


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=2000)), max_size=8))
@settings(max_examples=40, deadline=None)
def test_spliced_and_written_content_read_as_one(parts: list[tuple[bool, bytes]]) -> None:
    packed = []
    for threads in (1, 4):
        sink = io.BytesIO()
        stream = ParallelGzip(sink, threads=threads, level=1)
        for spliced, data in parts:
            if spliced:
                packer = zlib.compressobj(9, zlib.DEFLATED, -15)
                pieces = [packer.compress(data), packer.flush()]
                stream.splice(pieces, crc=zlib.crc32(data), size_bytes=len(data))
            else:
                stream.write(data)
        stream.close()
        packed.append(sink.getvalue())
    assert packed[0] == packed[1]
    assert gzip.decompress(packed[0]) == b"".join(data for _, data in parts)
