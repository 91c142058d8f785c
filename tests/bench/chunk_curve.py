"""What chunk sizes cost and save on a family of plans: `python -m tests.bench.chunk_curve FILE...`.

The curve of docs/adr/0007-chunks-and-packs.md. A line is one setting of FastCDC: seconds to cut a
plan, chunks of the first one, what each plan adds, and all of it with maps and pack headers.
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3
from pyfastcdc import FastCDC

SETTINGS = (
    (4, 16, 64, 2),
    (8, 32, 128, 2),
    (16, 32, 64, 2),
    (16, 64, 256, 2),
    (32, 64, 128, 2),
    (32, 64, 256, 1),
    (32, 64, 256, 3),
    (48, 64, 128, 2),
    (64, 128, 256, 2),
    (64, 256, 1024, 2),
)
"""Least, average and largest chunk in KiB, and the level of normalization."""

MAP_RECORD_BYTES, HEADER_RECORD_BYTES = 44, 36
MIB = 1 << 20


def main(files: Sequence[str]) -> int:
    """Returns the exit code."""
    plans = [_mapped(Path(file)) for file in files]
    print("least/average/largest KiB, level: s a plan, chunks; MiB new in each; MiB in all")
    for setting in SETTINGS:
        print(_line(setting, plans), flush=True)
    return 0


def _line(setting: tuple[int, int, int, int], plans: Sequence[memoryview]) -> str:
    least, average, largest, level = setting
    cutter = FastCDC(
        average << 10, min_size=least << 10, max_size=largest << 10, normalized_chunking=level
    )
    known: set[bytes] = set()
    added, counts, seconds = [], [], 0.0
    for plan in plans:
        started = time.perf_counter()
        cuts = [(chunk.offset, chunk.length) for chunk in cutter.cut_buf(plan)]
        seconds += time.perf_counter() - started
        added.append(sum(_new(plan, cuts, known)))
        counts.append(len(cuts))
    overhead = sum(counts) * MAP_RECORD_BYTES + len(known) * HEADER_RECORD_BYTES
    each = " + ".join(f"{size / MIB:,.1f}" for size in added)
    total = (sum(added) + overhead) / MIB
    return (
        f"{least}/{average}/{largest}, {level}: {seconds / len(plans):.2f} s, {counts[0]:,}; "
        f"{each}; {total:,.1f}"
    )


def _new(plan: memoryview, cuts: Sequence[tuple[int, int]], known: set[bytes]) -> Iterator[int]:
    """Lengths of the chunks that were not known; they are from now on."""
    for offset, length in cuts:
        digest = blake3(plan[offset : offset + length]).digest()
        if digest not in known:
            known.add(digest)
            yield length


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
