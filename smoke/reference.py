"""A fixed load on the host's cores, timed: how fast this machine is at the moment.

It is taken right before and right after a container runs, beside it and not in it: what slows the
host is in both times and cancels, a CPU quota of the container is in one and does not.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPETITIONS = 40
LIMIT_SECONDS = 4.0
LEAST_REPETITIONS = 5
VERSION = 1
"""Of the load. Times of one version cannot be compared with those of another."""
_BLOCK = bytes(256 << 10)
_BLOCKS = 32
"""5 ms on an idle core: as long as a request, so that both meet the scheduler equally often."""
_CPUINFO = Path("/proc/cpuinfo")


def measure_reference(
    *, repetitions: int = REPETITIONS, limit_seconds: float = LIMIT_SECONDS
) -> tuple[float, ...]:
    """Times in ms of the load on all cores this process may use at once, in order.

    One repetition ends when its slowest core has: so does a request on several threads. Fewer
    than asked, at least five, where they would take longer than `limit_seconds`.
    """
    cores = len(os.sched_getaffinity(0))
    deadline = time.monotonic() + limit_seconds
    times_ms: list[float] = []
    with ThreadPoolExecutor(cores, thread_name_prefix="reference") as pool:
        _time_ms(pool, cores)  # starts the threads
        while len(times_ms) < repetitions:
            if len(times_ms) >= LEAST_REPETITIONS and time.monotonic() > deadline:
                break
            times_ms.append(_time_ms(pool, cores))
    return tuple(times_ms)


def _time_ms(pool: ThreadPoolExecutor, cores: int) -> float:
    started = time.perf_counter()
    for each in [pool.submit(_hash_blocks) for _ in range(cores)]:
        each.result()
    return round((time.perf_counter() - started) * 1000, 3)


def _hash_blocks() -> None:
    for _ in range(_BLOCKS):
        hashlib.sha256(_BLOCK)  # gives up Python's lock: one thread a core


def host_name_of_speed(cpuinfo: Path = _CPUINFO) -> str:
    """Names what the times depend on: processor, cores, the load and the library that does it.

    Times under one name can be compared; those of another machine, or another OpenSSL, cannot.
    """
    import ssl

    library = ".".join(map(str, ssl.OPENSSL_VERSION_INFO[:2]))
    cores = len(os.sched_getaffinity(0))
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = _processor(text.splitlines())
    return f"{name}, {cores} cores, sha256/{VERSION} by OpenSSL {library}"


def _processor(lines: Sequence[str]) -> str:
    """A processor's name and numbers: hypervisors give many models one name."""
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.machine()
    numbers = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
    known = [found[each] for each in numbers if each in found]
    return f"{name} ({'/'.join(known)})" if known else name
