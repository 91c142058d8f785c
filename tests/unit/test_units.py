"""Sizes as people write them, and times as they read them."""

from __future__ import annotations

import re

import pytest

from planyard.core.units import SIZE_PATTERN, ByteSize, format_bytes, format_seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0 B", 0),
        ("1 kB", 1000),
        ("140 MB", 140_000_000),
        ("140MB", 140_000_000),
        ("2.2 GB", 2_200_000_000),
        ("1 KiB", 1024),
        ("256 MiB", 268_435_456),
        ("1.5 GiB", 1_610_612_736),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size_bytes: int) -> None:
    parsed = ByteSize.parse(text)
    assert parsed == size_bytes
    assert isinstance(parsed, int)
    assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "140", "MB", "140 mb", "140 Mb", "140 TB", "-1 MB", "+1 MB", "1e3 MB", "1,5 MB"),
        *(".5 MB", "5. MB", "1  MB", " 1 MB", "1 MB ", "1 MB\n", "0x10 B", "1_000 B", "nan B"),
        "\u0661 MB",
    ],
)
def test_what_is_no_size_is_refused_by_the_reader_and_the_schema(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write a number and a unit \(B, kB"):
        ByteSize.parse(text)
    # A JSON Schema's `$` is the end of the text, Python's also stands before a last newline.
    assert not re.search(SIZE_PATTERN.replace("$", r"\Z"), text)


def test_a_size_of_endless_digits_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="write a number and a unit"):
        ByteSize.parse("9" * 10_000_000 + " GB")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (133_400_000, "133.4 MB"),
        (2 * 10**9, "2.0 GB"),
    ],
)
def test_sizes_are_told_in_the_units_of_registries(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (12.3, "12 s"), (60, "1 m 00 s"), (185, "3 m 05 s")],
)
def test_times_are_told_as_exactly_as_they_matter(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
