"""Outputs of a step, for the jobs after it: one `name=value` a line of the file GITHUB_OUTPUT."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from planyard.core.errors import InputError

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def write_outputs(outputs: Mapping[str, str]) -> None:
    """Add outputs where a GitHub runner reads them; nothing elsewhere.

    Raises InputError for a value of several lines: its second one would be another output.
    """
    for name, value in outputs.items():
        if not _NAME.fullmatch(name) or value.splitlines() not in ([], [value]):
            raise InputError([f"{name}: an output is one line, and not {value[:80]!r}"])
    path = os.environ.get("GITHUB_OUTPUT")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in outputs.items())
