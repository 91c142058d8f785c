"""A store whose writers are killed at every system call that changes something on the disk.

Whatever moment a writer ends at: nothing torn can be seen, every entry that can be seen is
complete, and doing it again leads where an undisturbed run leads. Kills are tried at every call; a
power cut, which may leave much more, in a usual run at a part of them, with `--full-sweep` at all.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import faults, sampling, store_states
from tests.faults import Call, Layer
from tests.power_cut import EVERYTHING, LOSSES, Disk
from tests.store_states import OPERATIONS, Operation, Seen, store_in, visible

REPOSITORY = Path(__file__).resolve().parents[2]
AT_LEAST = 1000

TRIED: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    store_states.small_packs(monkeypatch)


def done(folder: Path, operation: Operation) -> Path:
    """A folder with what the operation is given."""
    folder.mkdir()
    for earlier in operation.given:
        with Layer(folder):
            earlier(folder)
    return folder


def copy_of(folder: Path, *, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_a_writer_killed_at_any_call_leaves_a_whole_store(
    tmp_path: Path, operation: Operation
) -> None:
    given = done(tmp_path / "given", operation)
    before = visible(store_in(given), damaged=operation.damaged)
    folder = tmp_path / "tried"
    calls = longest_run(operation, given=given, folder=folder)
    after = visible(store_in(folder))
    TRIED[operation.name] = 0

    for fate in faults.kills(calls):
        copy_of(given, to=folder)
        run = functools.partial(operation.run, folder)
        ended = faults.survives(run, below=folder, fate=fate)
        TRIED[operation.name] += not ended
        between(before, visible(store_in(folder), damaged=operation.damaged), after)
        with Layer(folder):
            operation.run(folder)
        converged(folder, after)
    print(f"{TRIED[operation.name]} crash points: {operation.name}")


def longest_run(operation: Operation, *, given: Path, folder: Path) -> list[Call]:
    """The calls of an undisturbed run. Threads that meet differ by some calls: take the most."""
    longest: list[Call] = []
    for _ in range(3):
        copy_of(given, to=folder)
        with Layer(folder) as layer:
            operation.run(folder)
        longest = max(longest, layer.calls, key=len)
    return longest


def between(before: Seen, seen: Seen, after: Seen) -> None:
    """What is seen was there or shall be; nothing is lost that was there and shall be."""
    assert before & after <= seen <= before | after


def converged(folder: Path, after: Seen) -> None:
    store = store_in(folder)
    assert store_states.chunks_stored_twice(store) == []
    left = store_states.temporary_files(store)
    assert store.sweep(older_than_seconds=-60) == len(left)
    assert store_states.temporary_files(store) == []
    assert visible(store) == after


def test_enough_crash_points_were_tried() -> None:
    if set(TRIED) != {each.name for each in OPERATIONS}:
        pytest.skip("not all operations ran")
    print(f"{sum(TRIED.values())} crash points in all")
    assert sum(TRIED.values()) >= AT_LEAST


POWER_CUTS = [each for each in OPERATIONS if not each.damaged]


@pytest.mark.parametrize("operation", POWER_CUTS, ids=lambda each: each.name)
def test_a_power_cut_at_any_call_leaves_a_whole_store(tmp_path: Path, operation: Operation) -> None:
    given, folder = done(tmp_path / "given", operation), tmp_path / "tried"
    before = visible(store_in(given))
    disk, calls = recorded(operation, given=given, folder=folder)
    after = visible(store_in(folder))
    tried, chosen = 0, cuts_tried(calls)
    for call in [*calls, None]:
        for loss in LOSSES if call is None or call.number in chosen else ():
            disk.write_out(folder, loss)
            between(before, visible(store_in(folder)), after)
            if call is None:
                assert visible(store_in(folder)) == after, "what has ended survives"
            tried += 1
        if call is None or call.number in chosen:
            with Layer(folder):
                operation.run(folder)
            converged(folder, after)
        if call is not None:
            disk.apply([call])
    print(f"{tried} power cuts: {operation.name}")


@pytest.mark.parametrize("operation", POWER_CUTS, ids=lambda each: each.name)
def test_a_power_cut_after_a_kill_and_another_try_leaves_a_whole_store(
    tmp_path: Path, operation: Operation
) -> None:
    """What the killed one left unsynced is on the disk before anything that counts on it."""
    given, folder = done(tmp_path / "given", operation), tmp_path / "tried"
    before = visible(store_in(given))
    disk, calls = recorded(operation, given=given, folder=folder)
    after = visible(store_in(folder))
    chosen = cuts_tried(calls)
    for call in calls:
        if call.number in chosen:
            again = disk.copy()
            again.write_out(folder, None)
            with Layer(folder) as layer:
                operation.run(folder)
            again.apply(layer.done)
            again.write_out(folder, EVERYTHING)
            between(before, visible(store_in(folder)), after)
        disk.apply([call])


def cuts_tried(calls: list[Call]) -> set[int]:
    """The numbers of the calls before which the power is cut."""
    return {call.number for call in sampling.tried(calls, one_in=3, kind=store_states.kind_of)}


def recorded(operation: Operation, *, given: Path, folder: Path) -> tuple[Disk, list[Call]]:
    """The disk before an undisturbed run in `folder`, and the calls that did not fail."""
    copy_of(given, to=folder)
    disk = Disk(folder)
    with Layer(folder) as layer:
        operation.run(folder)
    return disk, layer.done


TRACED = """
import sys
from pathlib import Path
import pytest
from engines.store import chunk_writer
from tests import store_states
from tests.faults import Layer

folder, watched = Path(sys.argv[1]), sys.argv[2] == "watched"
store_states.small_packs(pytest.MonkeyPatch())
chunk_writer._NEAR_WRITERS = 1  # one writer makes the same calls every time
for number, operation in enumerate(store_states.OPERATIONS):
    for each in (*operation.given, operation.run):
        place = folder / str(number)
        if watched:
            with Layer(place, sync=True) as layer:
                each(place)
            for call in layer.calls:
                print(call.name)
        else:
            each(place)
"""
CHANGING = (
    "open,openat,creat,write,pwrite64,writev,pwritev,rename,renameat,renameat2,mkdir,mkdirat,"
    "unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,fsync,fdatasync,sync_file_range,chmod,"
    "fchmod,fchmodat,truncate,ftruncate,fallocate,copy_file_range,sendfile"
)
SAME = {"open": "openat", "creat": "openat", "renameat2": "rename", "fchmod": "chmod"}


def test_the_layer_sees_every_call_that_strace_sees(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed")
    for number in range(len(OPERATIONS)):
        for each in ("traced", "watched"):
            (tmp_path / each / str(number)).mkdir(parents=True)
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    log = tmp_path / "log"
    script = [sys.executable, "-c", TRACED]
    wanted = ",".join(f"?{name}" for name in CHANGING.split(","))
    tracing = [strace, "-f", "-y", "-qq", "-e", f"trace={wanted}", "-s", "0", "-o", str(log)]
    traced = [*tracing, *script, str(tmp_path / "traced"), ""]
    subprocess.run(traced, env=env, cwd=REPOSITORY, check=True, timeout=300)
    watched = [*script, str(tmp_path / "watched"), "watched"]
    said = subprocess.run(watched, env=env, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    seen = Counter(canonical(name) for name in said.stdout.decode().split())
    found = traced_calls(log.read_text(errors="replace"), below=f"{tmp_path}/traced/")
    print(f"{found.total()} calls: {dict(found)}")
    assert seen == found
    assert found.total() > 500


def traced_calls(log: str, *, below: str) -> Counter[str]:
    """How often each call was made on what lies in a numbered folder of `below`."""
    counted: Counter[str] = Counter()
    place = re.compile(re.escape(below) + r"\d")
    for line in log.splitlines():
        name, _, rest = line.partition(" ")[2].lstrip().partition("(")
        if not place.search(rest) or "resumed>" in line:
            continue
        if name in ("open", "openat") and not re.search("O_CREAT|O_TRUNC", rest):
            continue
        counted[canonical(name)] += 1
    return counted


def canonical(name: str) -> str:
    name = SAME.get(name, name)
    return name if name == "openat" else name.removesuffix("at")
