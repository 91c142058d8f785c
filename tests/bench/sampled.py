"""Run `planyard` in this process and note where its own time goes: python -m tests.bench.sampled.

A thread looks at the main thread's stack a hundred times a second, which costs next to nothing; a
tracing profiler would make the loops over tar members twice as slow and so blame them. Time inside
`Workspace.outside` (Docker, compilers, downloads, containers) is counted as one part.

Usage: python -m tests.bench.sampled OUT ARGUMENT…; OUT.report is the document of `--json`.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from builders.__main__ import main as planyard_main
from planyard.edge.clock import Stopwatch
from planyard.edge.console import Console, Step

OURS = ("builders.", "engines.", "smoke.", "planyard.")
OUTSIDE = "outside"
_EVERY_SECONDS = 0.01


class Sampler:
    """Seconds by the innermost function of planyard's own that the main thread is in."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.watches: list[Stopwatch] = []
        self._main = threading.main_thread().ident or 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Sample for the length of the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(_EVERY_SECONDS):
            now = time.monotonic()
            self.parts[self._where()] += now - before
            before = now

    def _where(self) -> str:
        # Stopwatch says only what has ended; a running block shows in its depth.
        if any(watch._depth for watch in self.watches):
            return OUTSIDE
        return own_function(sys._current_frames().get(self._main))


def own_function(frame: FrameType | None) -> str:
    """`builders.layers: rewrite_layer`, for the innermost frame of ours."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(OURS):
            return f"{module}: {frame.f_code.co_name}"
        frame = frame.f_back
    return "Python itself"


def main() -> None:
    """Ends as planyard ends."""
    out, sys.argv = Path(sys.argv[1]), ["planyard", *sys.argv[2:]]
    sampler = Sampler()
    steps: list[tuple[str, float]] = []
    _listen(sampler, steps)
    report = out.with_suffix(".report")
    code: int | str | None = 0
    with report.open("w") as document, contextlib.redirect_stdout(document), sampler.running():
        try:
            planyard_main()
        except SystemExit as end:
            code = end.code
    found = {"parts": sampler.parts, "steps": steps, "peak_bytes": _peak_bytes()}
    out.write_text(json.dumps(found))
    sys.exit(code)


def _listen(sampler: Sampler, steps: list[tuple[str, float]]) -> None:
    """Note every stopwatch that is made, and every step that is shown."""
    made, shown = Stopwatch.__init__, Console.step

    def note_watch(watch: Stopwatch) -> None:
        made(watch)
        sampler.watches.append(watch)

    @contextlib.contextmanager
    def note_step(console: Console, title: str) -> Iterator[Step]:
        started = time.monotonic()
        try:
            with shown(console, title) as step:
                yield step
        finally:
            steps.append((title, time.monotonic() - started))
            print(f"  {title}: {steps[-1][1]:.1f} s", file=sys.stderr)

    setattr(Stopwatch, "__init__", note_watch)  # noqa: B010 - a type checker refuses the plain way
    setattr(Console, "step", note_step)  # noqa: B010


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
