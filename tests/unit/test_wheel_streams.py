"""Layers whose large files came from wheels: spliced, not compressed, and still themselves."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from builders.layers import rewrite_layer
from builders.parallel_gzip import ParallelGzip
from builders.wheel_streams import WheelStreams

EPOCH = 1_735_689_600
LIBRARY = random.Random(7).randbytes(200_000) * 3  # 600 kB, compressible


def make_wheel(
    path: Path, files: dict[str, bytes], *, record: dict[str, bytes] | None = None
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        lines = []
        for name, data in files.items():
            archive.writestr(name, data)
            hashed = hashlib.sha256((record or files)[name]).digest()
            text = base64.urlsafe_b64encode(hashed).decode().rstrip("=")
            lines.append(f"{name},sha256={text},{len(data)}\n")
        archive.writestr("a-1.dist-info/RECORD", "".join(lines))
    return path


def make_layer(files: dict[str, bytes]) -> io.BytesIO:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    layer.seek(0)
    return layer


def rewrite(layer: io.BytesIO, streams: WheelStreams | None) -> tuple[bytes, str]:
    layer.seek(0)
    packed = io.BytesIO()
    sink = ParallelGzip(packed)
    contents = rewrite_layer(layer, sink, epoch_seconds=EPOCH, deflated=streams)
    sink.close()
    assert sink.size_bytes == len(packed.getvalue())
    assert sink.digest == "sha256:" + hashlib.sha256(packed.getvalue()).hexdigest()
    return packed.getvalue(), contents.diff_id


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "a-1-py3-none-any.whl", {"lib/a.so": LIBRARY, "a.py": b"x = 1\n"})


def test_the_layer_unpacks_to_the_same_bytes_with_and_without_splicing(wheel: Path) -> None:
    layer = make_layer({"before": b"b" * 700, "usr/lib/a.so": LIBRARY, "after": b"a" * 5})
    plain, diff_id = rewrite(layer, None)
    spliced, spliced_diff_id = rewrite(layer, WheelStreams([wheel]))
    assert gzip.decompress(spliced) == gzip.decompress(plain)
    assert spliced_diff_id == diff_id
    assert diff_id == "sha256:" + hashlib.sha256(gzip.decompress(spliced)).hexdigest()


def test_the_stream_of_the_wheel_stands_in_the_layer_unchanged(wheel: Path) -> None:
    layer = make_layer({"usr/lib/a.so": LIBRARY})
    spliced, _ = rewrite(layer, WheelStreams([wheel]))
    found = WheelStreams([wheel]).find(io.BytesIO(LIBRARY), len(LIBRARY))
    assert found is not None
    assert b"".join(found.pieces()) in spliced


def test_content_that_differs_in_one_byte_is_compressed(wheel: Path) -> None:
    other = bytearray(LIBRARY)
    other[1000] ^= 1
    layer = make_layer({"usr/lib/a.so": bytes(other)})
    streams = WheelStreams([wheel])
    assert streams.find(io.BytesIO(bytes(other)), len(other)) is None
    packed, _ = rewrite(layer, streams)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        body = tar.extractfile("usr/lib/a.so")
        assert body is not None
        assert body.read() == bytes(other)


def test_a_record_that_lies_is_not_believed(tmp_path: Path) -> None:
    """RECORD names the digest of other content of the same size: neither is spliced."""
    other = LIBRARY[::-1]
    lied = {"lib/a.so": other}
    wheel = make_wheel(tmp_path / "a-1-py3-none-any.whl", {"lib/a.so": LIBRARY}, record=lied)
    assert WheelStreams([wheel]).find(io.BytesIO(LIBRARY), len(LIBRARY)) is None
    assert WheelStreams([wheel]).find(io.BytesIO(other), len(other)) is None


def test_small_and_stored_members_are_left_to_the_compressor(tmp_path: Path) -> None:
    path = tmp_path / "a-1-py3-none-any.whl"
    make_wheel(path, {"small.py": b"x = 1\n" * 100})
    stored = tmp_path / "b-1-py3-none-any.whl"
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("lib/b.so", LIBRARY)
    streams = WheelStreams([path, stored])
    assert streams.find(io.BytesIO(b"x = 1\n" * 100), 600) is None
    assert streams.find(io.BytesIO(LIBRARY), len(LIBRARY)) is None


def test_several_spliced_files_follow_each_other(tmp_path: Path) -> None:
    second = LIBRARY[::-1]
    wheel = make_wheel(tmp_path / "a-1-py3-none-any.whl", {"a.so": LIBRARY, "b.so": second})
    layer = make_layer({"a.so": LIBRARY, "b.so": second, "c": b"", "d.so": LIBRARY})
    packed, diff_id = rewrite(layer, WheelStreams([wheel]))
    assert diff_id == rewrite(layer, None)[1]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        bodies = [tar.extractfile(name) for name in ("a.so", "b.so", "c", "d.so")]
        assert [body.read() for body in bodies if body] == [LIBRARY, second, b"", LIBRARY]
