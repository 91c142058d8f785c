"""Exit codes: one error class each, unique, and documented in docs/exit-codes.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import builders
import engines
import planyard.core
import planyard.edge
import smoke
from planyard.core import errors
from planyard.core.errors import InputError, PlanyardError

DOCUMENT = Path(__file__).parents[2] / "docs" / "exit-codes.md"
ROW = re.compile(r"^\| (\d+) \| (?:`(\w+)`)? ?\|", re.MULTILINE)
WITHOUT_CLASS = {errors.EXIT_DONE, errors.EXIT_BUG, errors.EXIT_FINDINGS}

CLASSES = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, PlanyardError) and each is not PlanyardError
]


def documented() -> list[tuple[int, str]]:
    return [(int(code), name) for code, name in ROW.findall(DOCUMENT.read_text())]


def test_the_codes_are_those_of_the_contract():
    codes = WITHOUT_CLASS | {each.exit_code for each in CLASSES}
    assert codes == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130}


def test_each_code_has_one_class():
    codes = [each.exit_code for each in CLASSES]
    assert len(codes) == len(set(codes))
    assert not set(codes) & WITHOUT_CLASS
    assert all("exit_code" in vars(each) for each in CLASSES), "a class inherits another's code"


def test_an_error_without_a_class_of_its_own_is_a_bug():
    assert PlanyardError.exit_code == errors.EXIT_BUG


def test_every_code_is_documented_once_with_its_class():
    rows = documented()
    assert len(rows) == len(dict(rows))
    assert dict(rows) == {each.exit_code: each.__name__ for each in CLASSES} | dict.fromkeys(
        WITHOUT_CLASS, ""
    )


def test_classes_elsewhere_use_a_documented_code():
    import_all()
    codes = {code for code, name in documented() if name}
    elsewhere = {each for each in subclasses(PlanyardError) if each not in CLASSES}
    assert elsewhere, "nothing was imported"
    assert {each.__name__ for each in elsewhere if each.exit_code not in codes} == set()


def import_all() -> None:
    """Import every module; scripts for containers are in no package, so they are left out."""
    for package in (planyard.core, planyard.edge, builders, engines, smoke):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(".__main__"):
                importlib.import_module(found.name)


def subclasses(kind: type) -> set[type]:
    found = set(kind.__subclasses__())
    return found.union(*(subclasses(each) for each in found))


@pytest.mark.parametrize("kind", [each for each in CLASSES if each is not InputError])
def test_an_error_keeps_what_a_reader_needs(kind):
    error = kind("the message", mend="the command", log_tail=["a", "b"])
    assert (str(error), error.mend, error.log_tail) == ("the message", "the command", ("a", "b"))


def test_an_input_error_keeps_every_problem():
    error = InputError(["one", "two"], mend="mend both")
    assert error.problems == ("one", "two")
    assert str(error) == "one\ntwo"
    assert error.mend == "mend both"
