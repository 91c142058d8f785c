"""Planyard's own matrix and images, as text to cut from: a start has what we test every day.

An installed planyard carries them beside this file (pyproject.toml copies them there), a checkout
has them at its top. Blocks are cut by their indentation and blank lines; a test holds that form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_INSTALLED = _HERE / "ours"
_TEMPLATES = _HERE / "templates"
_STAGE = re.compile(r"^FROM\s+\S+\s+AS\s+(\S+)$", re.MULTILINE)


def our_file(name: str) -> bytes:
    """A file of planyard's repository: `images/admit.py`."""
    root = _INSTALLED if _INSTALLED.is_dir() else _HERE.parents[1]
    return (root / name).read_bytes()


def template(name: str) -> str:
    """A text that is written as it stands, but for the words in @signs@."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def section(name: str) -> str:
    """A top-level block of `matrix.yaml`, with its key: `pins`."""
    text = our_file("matrix.yaml").decode()
    found = re.search(rf"^{name}:\n(?:(?:[ ].*)?\n)+?(?=^\S|\Z)", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"matrix.yaml has no block {name}")
    return found[0].rstrip() + "\n"


def image_entry(name: str) -> str:
    """An entry below `images:` of `matrix.yaml`, with its key."""
    found = re.search(rf"^  {name}:\n(?:    .*\n)+", section("images"), re.MULTILINE)
    if found is None:
        raise LookupError(f"matrix.yaml has no image {name}")
    return found[0]


def stages(names: Sequence[str]) -> dict[str, str]:
    """The instructions of these stages of `images/Dockerfile`, without comments."""
    found = {}
    for block in our_file("images/Dockerfile").decode().split("\n\n"):
        text = "\n".join(line for line in block.splitlines() if not line.startswith("#"))
        if (match := _STAGE.search(text)) and match[1] in names:
            found[match[1]] = text + "\n"
    return {name: found[name] for name in names}
