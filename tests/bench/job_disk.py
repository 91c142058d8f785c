"""Peak disk use of each job of the workflow, on a file system of its own, with every cache empty.

    python -m tests.bench.job_disk [JOB …]

A hosted runner guarantees 14 GB. Each job starts as there: an empty workspace, no wheels, no
bases, an engine without images. Needs root and a loop device: only a file system that nobody else
writes to can say what one job took. Prints a Markdown table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.workspaces import Site, lay_out

SIZE_BYTES = 14 * 10**9
"""What GitHub promises for its own runners."""
INTERVAL_SECONDS = 0.1
JOBS: Mapping[str, tuple[str, ...]] = {
    "images: rtx, with its compiler": ("image", "build", "--select", "rtx/*"),
    "images: ort-cpu": ("image", "build", "--select", "ort-cpu/*"),
    "images: ort-gpu": ("image", "build", "--select", "ort-gpu/*"),
    "plans: rtx, 9 plans": ("plan", "build", "--select", "rtx/*"),
    "smoke: ort-cpu": ("build", "--select", "ort-cpu/*"),
}


@dataclass(kw_only=True)
class Peak:
    """The most that was in use on a file system while the block ran, in bytes above its start."""

    folder: Path
    bytes: int = 0

    def __enter__(self) -> Peak:
        self._stop = threading.Event()
        self._before = self._used()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.bytes = max(self.bytes, self._used() - self._before)


def measure(args: tuple[str, ...], *, room: Path) -> tuple[int, float]:
    """Peak bytes and seconds of one planyard command in an empty workspace on its own disk."""
    disk, mount = room / "disk", room / "m"  # short: sockets lie below it
    with disk.open("wb") as file:
        file.truncate(SIZE_BYTES)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, mount], check=True)
    try:
        (mount / "t").mkdir()
        with Peak(folder=mount) as peak:
            site: Site = lay_out(mount / "site", environment={})
            here = {"PLANYARD_CACHE": str(mount / "cache"), "TMPDIR": str(mount / "t")}
            here["PLANYARD_SMALL_DISK"] = "1"  # as the workflow says
            ran = site.planyard(*args, env=here, timeout_seconds=3600).expect(0)
        return peak.bytes, ran.seconds
    finally:
        subprocess.run(["umount", mount], check=True)
        mount.rmdir()
        disk.unlink()


def main(names: list[str]) -> None:
    """Measure the named jobs, or all of them."""
    print("| job | peak | time |\n|---|---|---|")
    for job in names or JOBS:
        room = Path(tempfile.mkdtemp(prefix="disk-"))
        try:
            used, seconds = measure(JOBS[job], room=room)
        finally:
            shutil.rmtree(room, ignore_errors=True)
        print(f"| {job} | {used / 1e9:.1f} GB | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
