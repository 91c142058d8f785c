"""Headers of real plans, their first 256 bytes in tests/data/plans, and files that are none."""

import struct
from pathlib import Path

import pytest

from engines.header import HEAD_BYTES, NotAPlan, PlanHeader, read_header

PLANS = Path(__file__).parents[1] / "data" / "plans"
OCR_86_BYTES = 14_981_732
SERIALIZATION_VERSIONS = {"1.5.0.114": 94, "1.6.1.120": 98, "1.7.1.116": 100}


def head_of(name: str) -> bytes:
    return (PLANS / f"{name}.head").read_bytes()


def read(head: bytes, size_bytes: int) -> PlanHeader:
    header = read_header(head, size_bytes=size_bytes)
    assert isinstance(header, PlanHeader)
    return header


@pytest.mark.parametrize(
    ("name", "size_bytes", "targets", "weights_bytes"),
    [
        ("rtx-1.7.1.116-sm75", 75_272_068, (75,), 69_518_208),
        ("rtx-1.7.1.116-sm80", 14_984_748, (80,), 9_819_040),
        ("rtx-1.7.1.116-sm86", OCR_86_BYTES, (86,), 9_819_040),
        ("rtx-1.7.1.116-sm89", 14_984_740, (89,), 9_819_040),
        ("rtx-1.7.1.116-sm120", 14_991_356, (120,), 9_819_040),
        ("rtx-1.7.1.116-sm121", 14_988_356, (121,), 9_819_040),
        ("rtx-1.7.1.116-sm86-89-120", 14_983_556, (86, 89, 120), 9_819_040),
        ("rtx-1.7.1.116-sm86-streaming", OCR_86_BYTES, (86,), 9_819_040),
        ("rtx-1.7.1.116-sm89-unet", 1_740_659_380, (89,), 1_718_673_024),
        ("rtx-1.6.1.120-sm86", 15_108_948, (86,), 9_819_040),
        ("rtx-1.5.0.114-sm120", 15_056_324, (120,), 9_819_040),
    ],
)
def test_a_real_plan_says_its_version_targets_and_size(
    name: str, size_bytes: int, targets: tuple[int, ...], weights_bytes: int
) -> None:
    version = name.split("-")[1]
    assert read(head_of(name), size_bytes) == PlanHeader(
        kind="tensorrt-rtx",
        version=version,
        size_bytes=size_bytes,
        whole=True,
        declared_bytes=size_bytes,
        weights_bytes=weights_bytes,
        serialization_version=SERIALIZATION_VERSIONS[version],
        sm_targets=targets,
    )


def test_one_missing_byte_is_told() -> None:
    header = read(head_of("rtx-1.7.1.116-sm86"), OCR_86_BYTES - 1)
    assert header.whole is False
    assert header.problem == "truncated: 14981731 of 14981732 bytes, 1 are missing"
    assert header.version == "1.7.1.116"


def test_a_byte_too_many_is_told() -> None:
    header = read(head_of("rtx-1.7.1.116-sm86"), OCR_86_BYTES + 1)
    assert header.whole is False
    assert header.problem == "1 bytes follow its end at 14981732"


def test_sections_that_do_not_add_up_are_told() -> None:
    head = bytearray(head_of("rtx-1.7.1.116-sm86"))
    struct.pack_into("<Q", head, 104, 17)  # the length of the weights
    header = read(bytes(head), OCR_86_BYTES)
    assert header.whole is False
    assert "damaged" in header.problem


def test_weights_are_padded_to_eight_bytes_and_no_further() -> None:
    """An odd number of fp32 values, or any of int8: measured on 19 plans of 1.7.1.116."""
    head = bytearray(head_of("rtx-1.7.1.116-sm86"))
    (length,) = struct.unpack_from("<Q", head, 104)
    for shorter, whole in ((0, True), (4, True), (7, True), (8, False), (-1, False)):
        struct.pack_into("<Q", head, 104, length - shorter)
        assert read(bytes(head), OCR_86_BYTES).whole is whole, shorter


def test_a_plan_cut_off_anywhere_in_its_head_is_never_whole() -> None:
    whole = head_of("rtx-1.7.1.116-sm86")
    for length in range(4, HEAD_BYTES):
        header = read_header(whole[:length], size_bytes=length)
        if isinstance(header, PlanHeader):
            assert header.whole is False
            assert "truncated" in header.problem
        else:
            assert "truncated" in header.reason


def test_a_classic_plan_says_its_version_and_no_more() -> None:
    head = b"ftrt" + bytes(20) + bytes([10, 15, 1, 29]) + bytes(228)
    header = read(head, 5_000_000)
    assert (header.kind, header.version) == ("tensorrt", "10.15.1.29")
    assert header.whole is None
    assert header.sm_targets == ()


@pytest.mark.parametrize("magic", [b"ftrt", b"vtrt"])
def test_an_unknown_layout_is_not_guessed_at(magic: bytes) -> None:
    head = magic + struct.pack("<I", 7) + bytes(20) + magic + bytes(224)
    header = read_header(head, size_bytes=len(head))
    assert isinstance(header, NotAPlan)
    assert "unknown layout (7)" in header.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x08", "starts with 08"),
        (b"\x08\x0a:\x12\x07pytorch", "starts with 08 0a"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (struct.pack("<I", 9) + b'{"a": 12}' + b"ftrt" + bytes(9), "9 bytes of JSON"),
        (b"vtrt", "truncated"),
        (b"ftrt" + bytes(10), "truncated"),
        (bytes(300), "starts with 00"),
    ],
)
def test_what_is_no_plan_is_described(data: bytes, reason: str) -> None:
    found = read_header(data[:HEAD_BYTES], size_bytes=len(data))
    assert isinstance(found, NotAPlan)
    assert reason in found.reason


def test_too_little_of_a_file_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="256 bytes are needed, 28"):
        read_header(head_of("rtx-1.7.1.116-sm86")[:28], size_bytes=OCR_86_BYTES)
