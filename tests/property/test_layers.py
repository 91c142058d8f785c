"""Layers: whatever the members, the normal form keeps what a runtime sees and nothing else."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from builders.layers import rewrite_layer
from tests import tars

EPOCH = 1_700_000_000
KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
KINDS += [tarfile.CHRTYPE, tarfile.BLKTYPE]

# Any text a path may hold but NUL and lone surrogates, which UTF-8 has no bytes for.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=150)
names = st.one_of(
    st.text("ab./", min_size=1, max_size=12),
    text.filter(bool),
    st.sampled_from(["..", "../x", "/etc/passwd", "a/../../b", "n" * 101, "d/" * 80 + "x"]),
).filter(lambda name: bool(name.rstrip("/")))
attributes = st.dictionaries(
    st.sampled_from(["SCHILY.xattr.user.a", "SCHILY.xattr.security.capability"]),
    st.binary(max_size=20).map(lambda raw: raw.decode(errors="surrogateescape")),
    max_size=2,
)


@st.composite
def members(draw: st.DrawFn) -> tars.Member:
    """One member of a layer, of any kind."""
    kind = draw(st.sampled_from(KINDS))
    info = tarfile.TarInfo(draw(names))
    data = draw(st.binary(max_size=1500)) if kind == tarfile.REGTYPE else b""
    info.type, info.size = kind, len(data)
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 1 << 31))
    info.gid = draw(st.integers(0, 1 << 31))
    info.mtime = draw(st.integers(-(1 << 33), 1 << 34))
    info.uname, info.gname = draw(st.text("ab", max_size=4)), draw(st.text("ab", max_size=4))
    info.pax_headers = draw(attributes)
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(names)
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = draw(st.integers(0, 255)), draw(st.integers(0, 255))
    return info, data


class Plain:
    """A sink that keeps the bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def splice(self, pieces: Iterable[bytes], *, crc: int, size_bytes: int) -> None:
        raise AssertionError("nothing was said to be deflated")


def rewrite(data: bytes) -> bytes:
    sink = Plain()
    rewrite_layer(io.BytesIO(data), sink, epoch_seconds=EPOCH)
    return bytes(sink.data)


def seen(info: tarfile.TarInfo, data: bytes) -> tuple[object, ...]:
    """What a runtime sees of a member, its time aside."""
    device = (info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else None
    kept = {key: value for key, value in info.pax_headers.items() if "xattr" in key}
    owner = (info.uid, info.gid, info.mode)
    return (info.name.rstrip("/"), info.type, info.linkname, owner, device, kept, data)


layers = st.lists(members(), max_size=6)


@given(layers)
@settings(max_examples=150, deadline=None)
def test_the_normal_form_keeps_what_counts(layer: list[tars.Member]) -> None:
    given_members = tars.read(tars.tar(layer))
    normal = rewrite(tars.tar(layer))
    found = tars.read(normal)
    assert [seen(*member) for member in found] == [seen(*member) for member in given_members]
    for (before, _), (after, _) in zip(given_members, found, strict=True):
        assert after.mtime == min(int(before.mtime), EPOCH)
        assert (after.uname, after.gname) == ("", "")
    assert rewrite(normal) == normal


@given(layers, st.lists(st.integers(0, 1 << 33), min_size=6, max_size=6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_when_and_how_it_was_written_does_not_count(
    layer: list[tars.Member], later: list[int], fractions: bool
) -> None:
    """Every time from the epoch on gives the same bytes."""
    times = []
    for (info, _), more in zip(layer, later, strict=False):
        info.mtime = EPOCH
        times.append(EPOCH + more + (0.5 if fractions else 0))
    one = rewrite(tars.tar(layer))
    for (info, _), time in zip(layer, times, strict=True):
        info.mtime = time
        info.uname = info.gname = "other"
    assert rewrite(tars.tar(layer)) == one


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_what_is_no_tar_is_refused_or_empty(data: bytes) -> None:
    try:
        normal = rewrite(data)
    except tarfile.TarError:
        return
    assert tars.read(normal) == []
