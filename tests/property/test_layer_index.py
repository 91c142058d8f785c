"""The index of any layer: exact sums, the same view as tarfile's, however it is cut and packed."""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import zlib

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.audit.layer_index import no_facts
from builders.audit.unpacking import Unpacking
from builders.layers import rewrite_layer
from builders.parallel_gzip import ParallelGzip
from planyard.core.contents import LayerIndex
from planyard.core.errors import InputError, IntegrityError
from tests import tars
from tests.audited import index_of_tar
from tests.property.test_gzip import contents, cuts
from tests.property.test_layers import layers

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hardlink",
    tarfile.FIFOTYPE: "pipe",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
}
packings = st.sampled_from(["plain", "gzip", "stored", "members"])


def pack(data: bytes, how: str) -> bytes:
    if how == "plain":
        return data
    if how == "members":
        middle = len(data) // 3
        return (
            gzip.compress(data[:middle], 9, mtime=0)
            + gzip.compress(b"", mtime=0)
            + gzip.compress(data[middle:], 1, mtime=0)
        )
    return gzip.compress(data, 0 if how == "stored" else 6)


def path_of(name: str) -> str:
    return posixpath.normpath("/" + name.strip("/"))


@given(layers, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), packings)
@settings(max_examples=200, deadline=None)
def test_it_is_what_tarfile_sees_and_adds_up(layer: list[tars.Member], kind: int, how: str) -> None:
    for info, _ in layer:
        info.mtime = max(info.mtime, 0)
        if kind == tarfile.GNU_FORMAT:
            info.pax_headers = {}
    data = tars.tar(layer, kind=kind)
    packed = pack(data, how)
    index = index_of_tar(data, packed=packed, watch=no_facts)
    seen = [
        (
            path_of(info.name),
            KINDS[info.type],
            len(body),
            (info.mode, info.uid, info.gid),
            blake3(body).hexdigest()[:32] if info.isreg() else "",
            info.linkname if info.issym() else path_of(info.linkname) if info.islnk() else "",
            "SCHILY.xattr.security.capability" in info.pax_headers,
        )
        for info, body in tars.read(data)
        if not posixpath.basename(path_of(info.name)).startswith(".wh.")
    ]
    assert [
        (
            each.path,
            each.kind,
            each.size_bytes,
            (each.mode, each.uid, each.gid),
            each.digest,
            each.link,
            each.capabilities,
        )
        for each in index.files
    ] == seen
    assert_exact(index, packed)


def assert_exact(index: LayerIndex, packed: bytes) -> None:
    shares = [each.pull_bytes for each in index.files]
    assert min([index.rest_bytes, *shares]) >= 0
    assert sum(shares) + index.rest_bytes == index.pull_bytes == len(packed)
    assert index.unpacked_bytes == sum(each.size_bytes for each in index.files)


@given(layers, packings, st.integers(40, 3000))
@settings(max_examples=40, deadline=None)
def test_how_a_layer_is_cut_does_not_count(
    layer: list[tars.Member], how: str, piece_bytes: int
) -> None:
    data = tars.tar(layer)
    packed = pack(data, how)
    whole = index_of_tar(data, packed=packed, piece_bytes=1 << 30)
    assert index_of_tar(data, packed=packed, piece_bytes=piece_bytes) == whole


@given(st.lists(st.tuples(st.booleans(), contents), max_size=5), st.integers(1000, 200_000))
@settings(max_examples=40, deadline=None)
def test_the_marks_of_writing_are_those_of_reading(
    parts: list[tuple[bool, bytes]], piece_bytes: int
) -> None:
    """So an index made while a layer is written is the one that anybody makes who reads it."""
    sink = io.BytesIO()
    stream = ParallelGzip(sink)
    edges, at = [0], 0
    for spliced, data in parts:
        at += len(data)
        edges.append(at)
        if spliced:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            pieces = [packer.compress(data), packer.flush()]
            stream.splice(pieces, crc=zlib.crc32(data), size_bytes=len(data))
        else:
            stream.write(data)
    stream.close()
    packed = sink.getvalue()
    reading = Unpacking(
        packed[begin : begin + piece_bytes] for begin in range(0, len(packed), piece_bytes)
    )
    assert b"".join(reading) == b"".join(data for _, data in parts)
    assert reading.pulls.size_bytes == stream.pulls.size_bytes == len(packed)
    plain = [
        offset
        for (spliced, data), begin in zip(parts, edges, strict=False)
        if not spliced
        for offset in range(begin, begin + len(data), 7919)
    ]
    for offset in [*edges, *plain]:
        assert reading.pulls.packed_at(offset) == stream.pulls.packed_at(offset), offset


@given(contents, cuts, st.binary(max_size=64), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_is_one_of_two_errors_or_nothing(
    data: bytes, where: list[float], noise: bytes, begin: float
) -> None:
    tar = tars.tar([tars.file("f", data), tars.symlink("l", "f"), tars.file("n" * 200, b"x")])
    packed = bytearray(gzip.compress(tar, 1, mtime=0))
    at = int(begin * len(packed))
    packed[at : at + len(noise)] = noise
    for damaged in (bytes(packed), bytes(packed[:at])):
        try:
            index_of_tar(tar, packed=damaged)
        except (InputError, IntegrityError):
            continue


@given(layers)
@settings(max_examples=40, deadline=None)
def test_the_normal_form_of_a_layer_can_be_read(layer: list[tars.Member]) -> None:
    class Sink:
        data = bytearray()

        def write(self, data: bytes) -> int:
            self.data += data
            return len(data)

    sink = Sink()
    sink.data = bytearray()
    contents = rewrite_layer(io.BytesIO(tars.tar(layer)), sink, epoch_seconds=1)  # type: ignore[arg-type]
    index = index_of_tar(bytes(sink.data), watch=no_facts)
    assert (index.diff_id, index.unpacked_bytes) == (contents.diff_id, contents.unpacked_bytes)
