"""Content identity: equal values digest equally, different ones do not."""

from __future__ import annotations

import math

import pytest

from planyard.core.digest import (
    canonical_json,
    digest_of_bytes,
    digest_of_value,
    is_digest,
    short,
)

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_digest_is_sha256_and_64_hex_digits() -> None:
    assert digest_of_bytes(b"") == EMPTY
    assert digest_of_bytes(memoryview(b"abc")) == digest_of_bytes(b"abc")
    assert is_digest(EMPTY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY[7:],
        EMPTY.upper(),
        EMPTY.replace("e3b0", "E3B0"),
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY + "\n",
        " " + EMPTY,
        "sha512:" + EMPTY[7:],
        EMPTY.replace("e3b0", "g3b0"),
        "sha256:../" + EMPTY[10:],
        EMPTY.replace("3", "\u0663"),
    ],
)
def test_what_is_no_digest(text: str) -> None:
    assert not is_digest(text)


def test_the_order_of_keys_does_not_count_and_that_of_lists_does() -> None:
    assert digest_of_value({"a": 1, "b": [1, 2]}) == digest_of_value({"b": [1, 2], "a": 1})
    assert digest_of_value([1, 2]) != digest_of_value([2, 1])


def test_lists_and_tuples_are_one_thing_and_types_are_not() -> None:
    assert digest_of_value((1, 2)) == digest_of_value([1, 2])
    values = [1, 1.5, "1", True, None, [], {}, [1], {"1": 1}, "", "null", 0, False, -1]
    assert len({digest_of_value(value) for value in values}) == len(values)


def test_the_encoding_is_utf_8_without_blanks() -> None:
    assert canonical_json({"b": "Ü", "a": [1, None]}) == '{"a":[1,null],"b":"Ü"}'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of_value({"x": value})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_is_no_json_has_no_digest(value: object) -> None:
    with pytest.raises(TypeError):
        digest_of_value(value)


def test_the_short_form_is_for_people() -> None:
    assert short(EMPTY) == "e3b0c44298fc"
    assert not is_digest(short(EMPTY))
