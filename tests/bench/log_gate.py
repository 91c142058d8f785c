"""The log gate on a 2 GiB log, beside ripgrep and Python's `re` with the same rules."""

from __future__ import annotations

import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smoke.rules import load_rules
from tests.bench import machine
from tests.bench.log_lines import write_mixed_log
from tests.bench.measure import BenchError
from tests.bench.tables import Figure, Section

SIZE_BYTES = 2 << 30
RE_BYTES = 256 << 10
MEMORY_TARGET_BYTES = 64 << 20
LATENCY_TARGET_MS = 50.0
LATENCY_LINES = 100
LOG_CHECK = (sys.executable, "-m", "builders", "log-check")
LOSS = b"Failed to create CUDAExecutionProvider.\n"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One whole process: elapsed and CPU time, and the most memory it held."""

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    size_bytes: int

    @property
    def speed(self) -> float:
        """Megabytes of log a second of elapsed time."""
        return self.size_bytes / self.seconds / 1e6

    def __str__(self) -> str:
        cpu = self.size_bytes / self.cpu_seconds / 1e6
        return f"{self.speed:.0f} MB/s ({cpu:.0f} by CPU time, {self.seconds:.1f} s)"


def measure(scratch: Path, *, size_bytes: int = SIZE_BYTES, rounds: int = 3) -> Section:
    """Write the log, then run the checks in turn, `rounds` times each; medians."""
    scratch.mkdir(parents=True, exist_ok=True)
    log, patterns = scratch / "mixed.log", scratch / "patterns.txt"
    write_mixed_log(log, size_bytes=size_bytes)
    patterns.write_text("\n".join(_ripgrep_patterns()) + "\n")
    ripgrep = shutil.which("rg")
    if ripgrep is None:
        raise BenchError("ripgrep is not installed: apt-get install ripgrep")
    search = (ripgrep, "--ignore-case", "--count", "--file", str(patterns))
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        for name, command, stdin in (
            ("file", (*LOG_CHECK, str(log)), None),
            ("rg bytes", (*search, "--no-unicode", str(log)), None),
            ("stdin", LOG_CHECK, log),
            ("rg", (*search, str(log)), None),
        ):
            runs.setdefault(name, []).append(_run(command, stdin=stdin, size=log.stat().st_size))
    best = {
        name: sorted(each, key=lambda run: run.seconds)[rounds // 2] for name, each in runs.items()
    }
    slow = _python_re(log)
    delays = sorted(_delays_ms(scratch / "followed.log"))
    log.unlink()
    return Section(
        key="logs",
        title="Log gate",
        machine=machine.describe(),
        figures=_figures(best, slow=slow, delays=delays),
        notes=_notes(),
    )


def _median(runs: list[Run]) -> Run:
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def _figures(best: dict[str, Run], *, slow: Run, delays: Sequence[float]) -> list[Figure]:
    whole, peer = best["file"], best["rg bytes"]
    times, memory = whole.speed / slow.speed, max(whole.memory_bytes, best["stdin"].memory_bytes)
    late = delays[int(len(delays) * 0.99)]
    return [
        Figure(
            what="planyard log-check FILE, whole process",
            measured=str(whole),
            target="as fast as rg",
            reached=whole.seconds <= peer.seconds,
            peer=f"rg --no-unicode {peer}; rg {best['rg']}",
        ),
        Figure(what="planyard log-check on stdin", measured=str(best["stdin"])),
        Figure(
            what="beside Python's re, line by line",
            measured=f"{times:.0f} x",
            target="30 x",
            reached=times >= 30,
            peer=f"re {slow.speed:.2f} MB/s on {RE_BYTES >> 10} KiB",
        ),
        Figure(
            what="most memory held",
            measured=f"{memory / (1 << 20):.0f} MiB",
            target="64 MiB",
            reached=memory < MEMORY_TARGET_BYTES,
            peer=f"rg {peer.memory_bytes / (1 << 20):.0f} MiB",
        ),
        Figure(
            what=f"--follow: from write to verdict, {LATENCY_LINES} lines",
            measured=f"median {statistics.median(delays):.0f} ms, 99 % {late:.0f} ms",
            target=f"{LATENCY_TARGET_MS:.0f} ms",
            reached=late <= LATENCY_TARGET_MS,
        ),
    ]


def _notes() -> list[str]:
    return [
        "The log is made from templates with a fixed seed; one line in 2,000 is of the corpus.",
        "rg counts lines that match; it reads no colours, JSON, UTF-16 or wrapped messages, and "
        "has no allow list. `--no-unicode` is its fastest way to run these rules.",
    ]


def _ripgrep_patterns() -> list[str]:
    """The rules as they are, with the end of a message as `$`: ripgrep sees single lines."""
    patterns = [pattern for rule in load_rules().rules for pattern in rule.patterns]
    return [
        pattern.replace("\\n\\x1d\\x1e]|\\z", "\\x1d\\x1e]|$").replace('\\"', '"')
        for pattern in patterns
    ]


def _run(command: Sequence[str], *, stdin: Path | None, size: int) -> Run:
    begun = time.perf_counter()
    with (
        (stdin or Path(os.devnull)).open("rb") as source,
        subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE) as process,
    ):
        printed, memory_bytes = _read_to_end(process)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    if not printed or process.returncode not in (0, 4):
        raise BenchError(f"{command[0]} found nothing or ended with {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    return Run(seconds=seconds, cpu_seconds=cpu, memory_bytes=memory_bytes, size_bytes=size)


def _read_to_end(process: subprocess.Popen[bytes]) -> tuple[bytes, int]:
    """All output, and the high-water mark: ru_maxrss would count this process before the exec."""
    assert process.stdout is not None
    status = Path(f"/proc/{process.pid}/status")
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    printed, most = b"", 0
    while True:
        ready = poll.poll(20)
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
        most = max(most, int(found[1]) << 10 if found else 0)
        if ready:
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return printed, most
            printed += piece


def _python_re(log: Path) -> Run:
    rules = load_rules().rules
    together = "|".join(f"(?:{pattern})" for rule in rules for pattern in rule.patterns)
    pattern = re.compile(together.replace(r"\z", r"\Z").encode(), re.IGNORECASE)
    with log.open("rb") as stream:
        lines = stream.read(RE_BYTES).splitlines()
    begun, cpu = time.perf_counter(), time.process_time()
    sum(1 for line in lines if pattern.search(line))
    return Run(
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.process_time() - cpu,
        memory_bytes=0,
        size_bytes=RE_BYTES,
    )


def _delays_ms(log: Path) -> list[float]:
    """From the write of a line to its verdict on the other end of a pipe."""
    log.write_bytes(LOSS)
    command = (*LOG_CHECK, "--follow", str(log))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()  # started, and rules compiled
        delays = []
        with log.open("ab", buffering=0) as writer:
            for number in range(LATENCY_LINES):
                time.sleep(0.003 * (number % 7))  # at different times of the tick
                begun = time.perf_counter()
                writer.write(LOSS)
                process.stdout.readline()
                delays.append((time.perf_counter() - begun) * 1000)
        process.terminate()
    return delays
