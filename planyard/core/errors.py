"""One class for each way the work could not be done, each with its exit code.

A finding means the product is bad (`findings.py`); an error means the work could not be done.
Codes are part of the contract of the command line: see docs/exit-codes.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_FINDINGS = 4


class PlanyardError(Exception):
    """The work could not be done; `mend` says what the reader can do about it."""

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, message: str, *, mend: str = "", log_tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.log_tail = tuple(log_tail)


class InputError(PlanyardError):
    """What was given is wrong; holds every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[str], *, mend: str = "") -> None:
        super().__init__("\n".join(problems), mend=mend)
        self.problems = tuple(problems)


class NothingSelectedError(PlanyardError):
    """The selection matches no cell."""

    exit_code = 3


class ImageBuildError(PlanyardError):
    """An image, or the base or wheels it needs, could not be built."""

    exit_code = 5


class PlanCompileError(PlanyardError):
    """The compiler refused a model; the tail of its own log comes along."""

    exit_code = 6


class SmokeNotRunError(PlanyardError):
    """A smoke run that had to happen could not."""

    exit_code = 7


class StoreError(PlanyardError):
    """The store, a registry or a download source could not be reached, or refused."""

    exit_code = 8


class LookupMissError(PlanyardError):
    """The store has nothing under that digest."""

    exit_code = 9


class IntegrityError(PlanyardError):
    """Bytes are not the bytes their digest names, or a signature does not hold."""

    exit_code = 10


class CancelledError(PlanyardError):
    """Ctrl-C: what was half done has been removed."""

    exit_code = 130
