"""Mounts that a build left behind: named, and taken away so that the scratch folder can go."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path


def release_mounts(folder: Path) -> Iterator[str]:
    """Unmount what is mounted below `folder`; yields a note for each, since none should be."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = Path(line.split()[1].encode().decode("unicode_escape"))
        if target.is_relative_to(folder):
            subprocess.run(["umount", str(target)], check=False)
            yield f"A build left a mount behind: {target.relative_to(folder)}."
