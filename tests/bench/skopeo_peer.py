"""Beside the step that stores an image: `skopeo copy docker-daemon: oci:` of the same image.

Both read the image from the engine and write a compressed OCI layout. Planyard also puts the layers
in normal form and looks into every ELF file; its memory is that of the whole build.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from builders.workspace import Workspace
from engines.store.local_store import LocalStore
from planyard.core.digest import short
from planyard.core.units import format_bytes
from planyard.edge.console import Console
from tests.bench.measure import Command, run_once
from tests.bench.tables import Figure


def compare_with_skopeo(
    workspace: Path, report: Mapping[str, Any], steps: Sequence[tuple[str, float]]
) -> Iterator[Figure]:
    """A figure for each image that the engine still holds."""
    stored = {title.removeprefix("store image "): seconds for title, seconds in steps}
    program = shutil.which("skopeo")
    if not program:
        return
    store = LocalStore(workspace / ".planyard" / "store")
    console = Console(quiet=True)
    with Workspace(root=workspace, store=store, console=console, may_install=False) as opened:
        engine = opened.engine()
        for image in report["images"]:
            tag = f"planyard/{image['name']}:{short(image['digest'])}"
            if image["name"] in stored and engine.has_image(tag):
                yield _figure(
                    image,
                    seconds=stored[image["name"]],
                    copied=_copy(program, tag, host=engine.host, folder=workspace / ".peer"),
                )


def _figure(image: Mapping[str, Any], *, seconds: float, copied: tuple[float, int, int]) -> Figure:
    peer_seconds, peer_peak_bytes, peer_bytes = copied
    return Figure(
        what=f"store image {image['name']}",
        measured=f"{seconds:.1f} s, {format_bytes(image['pull_bytes'])} compressed",
        peer=f"skopeo copy: {peer_seconds:.1f} s, {format_bytes(peer_bytes)} compressed, "
        f"at most {format_bytes(peer_peak_bytes)} of memory",
    )


def _copy(program: str, tag: str, *, host: str, folder: Path) -> tuple[float, int, int]:
    """Seconds, the most memory, and the bytes of what was written."""
    args = [program, "--insecure-policy", "copy", "--quiet", "--src-daemon-host", host]
    args += [f"docker-daemon:{tag}", f"oci:{folder}:peer"]
    try:
        run = run_once(Command(args=args, cwd=folder.parent, env=dict(os.environ)))
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return run.wall_seconds, run.peak_bytes, written
