"""What YAML 1.1 and 1.2 loaders make of an unquoted scalar that was meant as text.

A version written `8.10` becomes 8.1, `12:30:45` becomes 45045, `on` becomes true. The patterns are
the ones of yaml.org/type (1.1) and of the core schema of YAML 1.2, chapter 10.3. The single
letters y and n are left as text: YAML 1.1 lists them as booleans, but PyYAML, libyaml's users and
go-yaml never read them so, and they are common names of dimensions.
"""

from __future__ import annotations

import re

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "yes", "on"})
_BOOLEANS = frozenset(
    form
    for word in ("true", "false", "yes", "no", "on", "off")
    for form in (word, word.capitalize(), word.upper())
)
_FIRST = frozenset("0123456789+-.~tTfFyYnNoO")
"""What any of these scalars may begin with; everything else is text at one glance."""

_BINARY = re.compile(r"[-+]?0b[01_]+")
_HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-fA-F_]+")
_OCTAL_11 = re.compile(r"[-+]?0[0-7_]+")
_OCTAL_12 = re.compile(r"0o[0-7]+")
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:.*)?")
_LONGEST_SHOWN = 40


def reads_as(text: str) -> str | None:
    """What an unquoted `text` turns into (`8.1`, `true`, `a date`); None when it stays text."""
    if text[:1] not in _FIRST and text:
        return None
    if text in _NULLS:
        return "null"
    if text in _BOOLEANS:
        return "true" if text.lower() in _TRUE else "false"
    if _DATE.fullmatch(text):
        return "a date"
    value = _number(text)
    return f"the number {text}" if value == text else value


def _number(text: str) -> str | None:
    """The value of a scalar that YAML reads as a number, as digits."""
    if _SPECIAL_FLOAT.fullmatch(text):
        return "a number"
    whole = _whole_number(text)
    if whole is not None:
        return whole
    if not (_SEXAGESIMAL.fullmatch(text) or _FLOAT.fullmatch(text)):
        return None
    if len(text) > _LONGEST_SHOWN:
        return "a number"
    digits = text.replace("_", "")
    return f"{_base_60(digits):.15g}" if ":" in digits else f"{float(digits):.15g}"


def _whole_number(text: str) -> str | None:
    """The value of a scalar that YAML reads as an integer not in base 60, as digits."""
    for pattern, base in ((_BINARY, 2), (_HEXADECIMAL, 16), (_OCTAL_12, 8), (_OCTAL_11, 8)):
        if pattern.fullmatch(text):
            return _in_base(text, base)
    return _in_base(text, 10) if _DECIMAL.fullmatch(text) else None


def _in_base(text: str, base: int) -> str:
    if len(text) > _LONGEST_SHOWN:
        return "a number"
    digits = text.replace("_", "")
    try:
        return str(int(digits, base))
    except ValueError:  # `0x_` and the like: the 1.1 pattern lets them through, no value is defined
        return "a number"


def _base_60(digits: str) -> float:
    sign = -1.0 if digits.startswith("-") else 1.0
    value = 0.0
    for part in digits.lstrip("+-").split(":"):
        value = value * 60 + float(part)
    return sign * value
