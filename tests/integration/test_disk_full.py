"""A build that runs out of disk: the words, the exit code, nothing half done, and going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_disk import resize, small_file_system
from tests.workspaces import Site

pytestmark = [pytest.mark.docker, pytest.mark.network]

ONE_CELL = ("--select", "ort-cpu/ocr-det/640/*")


SIZE_BYTES = 150 << 20
"""Room for what the engine saves, and not for the layers beside it."""


def test_no_room_is_said_and_making_room_is_enough(empty_site: Callable[[str], Site]) -> None:
    site = empty_site("full")
    with small_file_system(site.state, size_bytes=SIZE_BYTES):
        ran = site.planyard("build", *ONE_CELL).expect(8)
        assert "No space left" in ran.stderr or "no space left on the disk" in ran.stderr
        assert "Traceback" not in ran.stderr
        assert "mend:" in ran.stderr
        assert half_done(site.state) == []
        resize(site.state, size_bytes=1 << 30)
        site.planyard("build", *ONE_CELL).expect(0)
        site.planyard("store", "fsck").expect(0)


def half_done(state: Path) -> list[str]:
    """What a build leaves only while it runs: scratch folders, and files not yet whole."""
    left = [*(state / "scratch").glob("*"), *state.rglob(".*.??????*")]
    return [str(path.relative_to(state)) for path in left]
