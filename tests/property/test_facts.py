"""Facts hold whatever the pieces are, and no bytes make the watch raise."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from builders.audit.facts import FileFacts
from builders.audit.facts.gpu_targets import gpu_code, target_name
from builders.audit.facts.secret_rules import secret_rules
from builders.audit.facts.watching import watch
from tests.gpu_files import CUBIN, PTX, cubin, entry, fat, library

HEADS = [b"\x7fELF", b"\x7fELF\x02\x01\x01", fat(), b""]
SECRETS = ["".join(rule.example) for rule in secret_rules() if not rule.paths]


def facts(data: bytes, cuts: Sequence[int] = (), *, path: str = "/app/.env") -> FileFacts:
    watched = watch(path, size_bytes=len(data), head=data[:4096])
    if watched is None:
        return FileFacts()
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(borders):
        watched.feed(data[start:end])
    return watched.finish()


names = st.from_regex(r"lib[a-z]{1,12}\.so(\.[0-9]{1,2})?", fullmatch=True)
sms = st.sampled_from([75, 80, 86, 89, 90, 100, 120, 121])
payloads = st.binary(max_size=80)
entries = st.builds(
    entry,
    st.sampled_from([PTX, CUBIN, 8]),
    sms,
    payloads,
    flags=st.sampled_from([0, 0x8000, 1 << 20, 1 << 21]),
    header=st.sampled_from([48, 64, 112]),
)
parts = st.one_of(
    payloads,
    st.lists(entries, max_size=4).map(lambda each: fat(*each)),
    st.builds(cubin, sms, exact=st.booleans(), abi=st.sampled_from([7, 8]), body=payloads),
)
libraries = st.builds(
    library,
    names,
    names,
    soname=names,
    wide=st.booleans(),
    order=st.sampled_from("<>"),
    strings_at=st.sampled_from(["front", "behind", "before"]),
    segments_last=st.booleans(),
)
cuts = st.lists(st.integers(0, 1 << 30), max_size=30)


@settings(max_examples=150)
@given(libraries, st.lists(parts, max_size=6), cuts)
def test_pieces_change_nothing_of_a_library(head, tail, cuts) -> None:
    data = head + b"".join(tail)
    whole = facts(data)
    assert facts(data, cuts) == whole
    assert whole.elf is not None
    assert len(whole.elf.needed) == 2


@settings(max_examples=100)
@given(st.lists(st.one_of(st.text(max_size=300), st.sampled_from(SECRETS)), max_size=8), cuts)
def test_pieces_change_nothing_of_a_text(lines, cuts) -> None:
    data = "\n".join(lines).replace("\0", "").encode("utf-8", "surrogatepass")
    assert facts(data, cuts) == facts(data)


@settings(max_examples=150)
@given(
    st.sampled_from([b"\x7fELF", b"\x7fELF\x02\x01\x01", fat(), b""]), st.binary(max_size=600), cuts
)
@example(b"\x7fELF\x02\x01\x01", b"\xff" * 600, ())
def test_no_bytes_make_it_raise(head, tail, cuts) -> None:
    assert isinstance(facts(head + tail, cuts), FileFacts)


@settings(max_examples=200)
@given(st.integers(16, 200), st.binary(min_size=1, max_size=8), st.integers(0, 2**64 - 1))
def test_no_damage_to_headers_makes_it_raise(at, noise, size) -> None:
    data = bytearray(library("libc.so.6", soname="x") + fat(entry(CUBIN, 86), entry(PTX, 90)))
    data[at : at + len(noise)] = noise
    struct.pack_into("<Q", data, len(data) - 200, size)
    assert isinstance(facts(bytes(data)), FileFacts)


targets = st.builds(
    target_name,
    is_ptx=st.booleans(),
    sm=st.integers(10, 255),
    suffix=st.sampled_from(["", "a", "f"]),
)


@given(st.dictionaries(targets, st.integers(0, 2**40), max_size=20), st.booleans())
def test_the_bytes_of_each_target_can_be_read_back(sizes, sure) -> None:
    code = gpu_code(sizes, sure=sure, fat_binaries=3, cubins=1, unread=2)
    assert code.sizes == sizes
    assert code.code_bytes == sum(sizes.values())
