"""What a plan file says about itself in its first bytes, read without TensorRT or a GPU.

Two kinds of file are known. All numbers are little-endian.

TensorRT for RTX. Studied on 53 plans of four models compiled with 1.5.0.114, 1.6.1.120 and
1.7.1.116, for SM 7.5 to 12.1, from 0.1 MB to 1.74 GB, with 8 settings of the builder:

    0    "vtrt"
    4    u32  layout, 0 in all
    8    u64  2 in all: the number of sections
    16   u64  size of the whole file: equal to it in all 53
    24   4 bytes  version: 01 07 01 74 is 1.7.1.116
    28   "vtrt"
    32   u64  target SMs, one bit each: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 from bit 0 up; a plan for
              three SMs has their three bits
    48   u64  13020 in 1.5, 13040 in 1.6, 0 in 1.7: not explained, not read
    56   u64  length of the weights, 0 with weight streaming
    64   sections, 24 bytes each: tag ("NGNE" engine, "THGW" weights), u32 0, u64 offset, u64 length
    112  the engine: "ptrt", u32 serialization version (94, 98, 100 in 1.5, 1.6, 1.7), u64 length
    end  99 8b 8d 8b: the complement of "ftrt". Before it, zeros from the end of the weights up to
         a multiple of 8 (22 more plans, of 1.7.1.116: four bytes in 19 of them, none in 3)

TensorRT. `trtexec --getPlanVersionOnly` (NVIDIA/TensorRT, samples/common/sampleEngines.cpp)
wants "ftrt" at 0 and u32 0 at 4, and reads the version from the bytes at 24. No field of a size is
known, so whether such a file is whole cannot be told; nor can its SM.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

HEAD_BYTES = 256
"""How much of a file `read_header` wants to see."""

RTX_MAGIC = b"vtrt"
CLASSIC_MAGIC = b"ftrt"
RTX_TARGETS = (75, 80, 86, 89, 120, 121)
"""SM of each bit of the target mask, from bit 0 up."""
_RTX_HEADER_BYTES = 128
_CLASSIC_HEADER_BYTES = 28
_VERSION_AT = 24
_TAIL_BYTES = 4
_ALIGNMENT_BYTES = 8
_GIT_LFS = b"version https://git-lfs"


class PlanHeader(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's own words about itself; None and empty mean that the header does not say.

    `whole` is False when the file is shorter or longer than the header declares, or its sections
    do not add up; None when the header cannot tell. `problem` says which, for people.
    """

    kind: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    size_bytes: int
    whole: bool | None
    problem: str = ""
    declared_bytes: int | None = None
    weights_bytes: int | None = None
    serialization_version: int | None = None
    sm_targets: tuple[int, ...] = ()


class NotAPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The file is no plan, or too little of one to read; `reason` is for people."""

    reason: str
    size_bytes: int


def read_header(head: bytes, *, size_bytes: int) -> PlanHeader | NotAPlan:
    """Read the header from the first bytes of a file of `size_bytes`.

    `head` is the first `HEAD_BYTES` of the file, or all of it when it is smaller; ValueError when
    it is neither.
    """
    if len(head) < min(size_bytes, HEAD_BYTES) or len(head) > size_bytes:
        wanted = min(size_bytes, HEAD_BYTES)
        raise ValueError(f"the first {wanted} bytes are needed, {len(head)} were given")
    if head.startswith(RTX_MAGIC):
        return _read_rtx(head, size_bytes=size_bytes)
    if head.startswith(CLASSIC_MAGIC):
        return _read_classic(head, size_bytes=size_bytes)
    return NotAPlan(reason=_describe(head, size_bytes=size_bytes), size_bytes=size_bytes)


def _read_rtx(head: bytes, *, size_bytes: int) -> PlanHeader | NotAPlan:
    if size_bytes < _RTX_HEADER_BYTES:
        return _cut_off("TensorRT for RTX", size_bytes=size_bytes)
    (layout,) = struct.unpack_from("<I", head, 4)
    if layout != 0 or head[28:32] != RTX_MAGIC:
        reason = f"a TensorRT for RTX plan of an unknown layout ({layout})"
        return NotAPlan(reason=reason, size_bytes=size_bytes)
    (declared_bytes,) = struct.unpack_from("<Q", head, 16)
    (mask,) = struct.unpack_from("<Q", head, 32)
    problem = _size_problem(size_bytes, declared_bytes) or _section_problem(head, declared_bytes)
    inner = head[112:116] == b"ptrt"
    return PlanHeader(
        kind="tensorrt-rtx",
        version=_version(head),
        size_bytes=size_bytes,
        whole=not problem,
        problem=problem,
        declared_bytes=declared_bytes,
        weights_bytes=_weights_bytes(head),
        serialization_version=struct.unpack_from("<I", head, 116)[0] if inner else None,
        sm_targets=tuple(sm for bit, sm in enumerate(RTX_TARGETS) if mask >> bit & 1),
    )


def _read_classic(head: bytes, *, size_bytes: int) -> PlanHeader | NotAPlan:
    if size_bytes < _CLASSIC_HEADER_BYTES:
        return _cut_off("TensorRT", size_bytes=size_bytes)
    (layout,) = struct.unpack_from("<I", head, 4)
    if layout != 0:
        return NotAPlan(
            reason=f"a TensorRT plan of an unknown layout ({layout})", size_bytes=size_bytes
        )
    return PlanHeader(
        kind="tensorrt",
        version=_version(head),
        size_bytes=size_bytes,
        whole=None,
        problem="the header of a TensorRT plan states no size: whether it is whole is unknown",
    )


def _version(head: bytes) -> str:
    return ".".join(str(part) for part in head[_VERSION_AT : _VERSION_AT + 4])


def _sections(head: bytes) -> tuple[tuple[bytes, int, int], ...]:
    """Tag, offset and length of the two sections; empty when they are not the known two."""
    found = []
    for at in (64, 88):
        offset, length = struct.unpack_from("<QQ", head, at + 8)
        found.append((head[at : at + 4], offset, length))
    return tuple(found) if [tag for tag, *_ in found] == [b"NGNE", b"THGW"] else ()


def _weights_bytes(head: bytes) -> int | None:
    sections = _sections(head)
    return sections[1][2] if sections else None


def _size_problem(size_bytes: int, declared_bytes: int) -> str:
    if size_bytes < declared_bytes:
        missing = declared_bytes - size_bytes
        return f"truncated: {size_bytes} of {declared_bytes} bytes, {missing} are missing"
    if size_bytes > declared_bytes:
        return f"{size_bytes - declared_bytes} bytes follow its end at {declared_bytes}"
    return ""


def _section_problem(head: bytes, declared_bytes: int) -> str:
    """The weights are the last section; zeros up to a multiple of 8, and the tail, follow them."""
    for _, offset, length in _sections(head)[1:]:
        padding = declared_bytes - _TAIL_BYTES - (offset + length)
        if not 0 <= padding < _ALIGNMENT_BYTES:
            return f"damaged: its sections end at {offset + length}, its size is {declared_bytes}"
    return ""


def _cut_off(kind: str, *, size_bytes: int) -> NotAPlan:
    reason = f"truncated: starts like a {kind} plan and ends after {size_bytes} bytes"
    return NotAPlan(reason=reason, size_bytes=size_bytes)


def _describe(head: bytes, *, size_bytes: int) -> str:
    """What the file is instead, where that is likely to be the mistake."""
    if size_bytes == 0:
        return "the file is empty"
    if head.startswith(_GIT_LFS):
        return "a Git LFS pointer: the file itself was not fetched"
    # Ultralytics exports put a u32 length and JSON before the plan; TensorRT does not read that.
    if len(head) > 4 and head[4:5] == b"{":
        (length,) = struct.unpack_from("<I", head)
        if length < size_bytes:
            return f"starts with {length} bytes of JSON, as Ultralytics writes before a plan"
    return f"starts with {head[:8].hex(' ')}, which no plan does"
