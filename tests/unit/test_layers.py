"""Layers in normal form: same files, same bytes; contents stay, moments and machines go."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from builders.layers import LayerContents, rewrite_layer
from builders.parallel_gzip import ParallelGzip
from planyard.core.digest import digest_of_bytes
from tests import tars

EPOCH = 1_700_000_000
REPOSITORY = Path(__file__).parents[2]


class Plain:
    """A sink that keeps the bytes; nothing can be spliced into it."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def splice(self, pieces: Iterable[bytes], *, crc: int, size_bytes: int) -> None:
        raise AssertionError("nothing was said to be deflated")


def rewrite(data: bytes) -> tuple[bytes, LayerContents]:
    sink = Plain()
    contents = rewrite_layer(io.BytesIO(data), sink, epoch_seconds=EPOCH)
    return bytes(sink.data), contents


def normal(*members: tars.Member, **options: Any) -> bytes:
    return rewrite(tars.tar(members, **options))[0]


def test_later_times_become_the_epoch_and_earlier_ones_stay() -> None:
    data = normal(
        tars.file("new", mtime=EPOCH + 5.75),
        tars.file("old", mtime=99),
        tars.file("now", mtime=EPOCH),
    )
    assert [info.mtime for info, _ in tars.read(data)] == [EPOCH, 99, EPOCH]


def test_who_built_it_and_in_which_format_leaves_no_trace() -> None:
    here = tars.file("f", b"x", uname="alice", gname="staff", mtime=EPOCH + 1, uid=1000, gid=1000)
    there = tars.file(
        "f", b"x", mtime=EPOCH + 2.5, uid=1000, gid=1000, pax_headers={"atime": "7", "comment": "x"}
    )
    assert normal(here, kind=tarfile.GNU_FORMAT) == normal(there)
    [(info, _)] = tars.read(normal(here))
    assert (info.uname, info.gname, info.uid, info.gid) == ("", "", 1000, 1000)


@pytest.mark.parametrize("field", [{"mode": 0o600}, {"uid": 1}, {"gid": 1}, {"mtime": 3}])
def test_what_a_runtime_sees_is_kept_apart(field: dict[str, int]) -> None:
    assert normal(tars.file("f", b"x")) != normal(tars.file("f", b"x", **field))


def test_extended_attributes_are_contents() -> None:
    capability = {"SCHILY.xattr.security.capability": "\x01\0\0\x02\0\x04"}
    binary = {"SCHILY.xattr.user.raw": b"\xff\xfe\x80".decode(errors="surrogateescape")}
    for headers in (capability, binary):
        data = normal(tars.file("ping", b"x", pax_headers=headers))
        [(info, _)] = tars.read(data)
        assert headers.items() <= info.pax_headers.items()
        assert rewrite(data)[0] == data


def test_links_devices_and_order_are_kept() -> None:
    members = [
        tars.folder("usr"),
        tars.file("usr/z", b"z", mode=0o4755),
        tars.symlink("usr/a", "z"),
        tars.hard_link("usr/b", "usr/z"),
        tars.entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    ]
    found = tars.read(normal(*members))
    assert [(info.name, info.type, info.linkname, info.mode) for info, _ in found] == [
        (info.name, info.type, info.linkname, info.mode) for info, _ in members
    ]
    assert (found[-1][0].devmajor, found[-1][0].devminor) == (1, 3)


def test_the_diff_id_is_of_the_uncompressed_bytes() -> None:
    data, contents = rewrite(tars.tar([tars.file("f", b"x")]))
    assert contents.diff_id == digest_of_bytes(data)


def test_weight_counts_regular_files_once() -> None:
    members = [tars.file(f"f{size:02}", bytes(size)) for size in range(1, 13)]
    members += [tars.hard_link("again", "f12"), tars.symlink("link", "f12"), tars.folder("d")]
    _, contents = rewrite(tars.tar(members))
    assert contents.unpacked_bytes == sum(range(1, 13))
    largest = [(each.path, each.size_bytes) for each in contents.largest_files]
    assert largest == [(f"f{size:02}", size) for size in range(12, 4, -1)]


def test_an_empty_layer_stays_one() -> None:
    data, contents = rewrite(bytes(1024))
    assert tars.read(data) == []
    assert contents.unpacked_bytes == 0


AUDITED_SCRIPT = """
import io, sys
from builders.audit.facts.watching import watch
from builders.audit.layer_index import LayerReader
from builders.audit.pull_map import PullMap
from builders.layers import rewrite_layer
class Sink:
    def write(self, data): return sys.stdout.buffer.write(data)
layer = io.BytesIO(sys.stdin.buffer.read())
loads_its_rules = watch("/f", size_bytes=1, head=b"x")
loads_its_rules.feed(b"x")
loads_its_rules.finish()
refused = ("open", "os.mkdir", "os.symlink", "os.link", "os.rename", "os.chmod", "os.chown")
def audit(event, arguments):
    if event in refused: raise SystemExit(f"{event} {arguments}")
sys.addaudithook(audit)
reader = LayerReader(watch=watch)
rewrite_layer(layer, Sink(), epoch_seconds=0, reader=reader)
reader.finish(digest="", diff_id="", pulls=PullMap())
"""


def test_nothing_is_ever_extracted(tmp_path: Path) -> None:
    """A tar full of escapes is rewritten and looked through; the disk is not touched at all."""
    hostile = tars.hostile()
    ended = subprocess.run(
        [sys.executable, "-c", AUDITED_SCRIPT],
        input=tars.tar(hostile),
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []
    found = tars.read(ended.stdout)
    assert [info.name for info, _ in found] == [info.name for info, _ in hostile]
    assert [info.linkname for info, _ in found] == [info.linkname for info, _ in hostile]


def old_gnu_sparse() -> bytes:
    """`hole` of 1 KiB, the second half of which is data, as GNU tar wrote sparse files."""
    info = tarfile.TarInfo("hole")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000001000\0", b"00000001000\0"
    header[483:495] = b"00000002000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"s" * 512 + bytes(1024)


def test_a_sparse_file_becomes_a_plain_one() -> None:
    data, contents = rewrite(old_gnu_sparse())
    [(info, content)] = tars.read(data)
    assert info.type == tarfile.REGTYPE
    assert content == bytes(512) + b"s" * 512
    assert contents.unpacked_bytes == 1024


@pytest.mark.parametrize("mtime", ["nan", "inf", "-inf"])
def test_a_time_that_is_none_is_refused(mtime: str) -> None:
    data = tars.tar([tars.file("f", b"x", pax_headers={"mtime": mtime})])
    with pytest.raises(tarfile.ReadError, match="no time"):
        rewrite(data)


def test_a_damaged_header_is_not_the_end_of_the_layer() -> None:
    """tarfile alone would stop there without a word, and the image would lack the rest."""
    data = bytearray(tars.tar([tars.file("a", b"x" * 512), tars.file("b", b"y" * 512)]))
    data[1024] ^= 0xFF
    with pytest.raises(tarfile.ReadError, match="byte 1024"):
        rewrite(bytes(data))


def test_a_layer_that_breaks_off_is_refused() -> None:
    data = tars.tar([tars.file("a", b"x" * 5000)])
    with pytest.raises(tarfile.TarError):
        rewrite(data[:3000])


LOCALE_SCRIPT = """
import io, sys
from builders.layers import rewrite_layer
class Sink:
    def write(self, data): return sys.stdout.buffer.write(data)
rewrite_layer(io.BytesIO(sys.stdin.buffer.read()), Sink(), epoch_seconds=0)
"""


def test_the_locale_does_not_count() -> None:
    """tarfile decodes names as the locale says, unless it is told otherwise."""
    data = tars.tar([tars.file("Übung/模型.onnx", b"x")], kind=tarfile.GNU_FORMAT)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", LOCALE_SCRIPT],
            input=data,
            capture_output=True,
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONUTF8": utf8},
        ).stdout
        for utf8 in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
    assert [info.name for info, _ in tars.read(outputs[0])] == ["Übung/模型.onnx"]


@dataclass(frozen=True)
class Stream:
    """A deflate stream that lies somewhere."""

    content: bytes

    @property
    def crc(self) -> int:
        return zlib.crc32(self.content)

    def pieces(self) -> list[bytes]:
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        return [packer.compress(self.content), packer.flush()]


class Known:
    """Finds streams by content, as the wheels' own do."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = contents

    def find(self, body: IO[bytes], size_bytes: int) -> Stream | None:
        content = body.read()
        body.seek(0)
        return Stream(content) if content in self.contents else None


def test_spliced_content_changes_the_compressed_bytes_alone() -> None:
    library = random.Random(3).randbytes(1_200_001)
    members = [tars.file("a", b"1"), tars.file("lib.so", library), tars.file("b", library[:9])]
    data = tars.tar(members)
    packed = []
    for known in (None, Known(library), Known(b"1", library, library[:9])):
        sink = io.BytesIO()
        stream = ParallelGzip(sink)
        contents = rewrite_layer(io.BytesIO(data), stream, epoch_seconds=EPOCH, deflated=known)
        stream.close()
        packed.append(sink.getvalue())
        assert contents.diff_id == digest_of_bytes(gzip.decompress(packed[-1]))
        assert contents.unpacked_bytes == len(library) + 10
    assert len({gzip.decompress(each) for each in packed}) == 1
    assert len(set(packed)) == 3
