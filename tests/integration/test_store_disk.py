"""A store on a disk that is full, fails, is read-only, or lives with a clock that lies; and many
writers of one cell at once. A usual run fails a part of the calls of each kind, `--full-sweep` all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from engines import index
from engines.store.local_store import LocalStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import StoreError
from tests import sampling, store_states
from tests.faults import CHANGES_ROOM, FailAt, Layer
from tests.small_disk import small_file_system
from tests.store_states import OPERATIONS, Operation, store_in, visible

EVERY_CALL = CHANGES_ROOM | {"unlink", "chmod", "rmdir"}
SOUND = [each for each in OPERATIONS if not each.damaged]
WRITERS = 64


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    store_states.small_packs(monkeypatch)


def prepared(folder: Path, operation: Operation) -> Path:
    folder.mkdir()
    for earlier in operation.given:
        with Layer(folder):
            earlier(folder)
    return folder


@pytest.mark.parametrize("operation", SOUND, ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("error", "onwards", "names"),
    [(errno.ENOSPC, True, CHANGES_ROOM), (errno.EIO, False, EVERY_CALL)],
    ids=["full from then on", "one error"],
)
def test_a_disk_that_fails_at_any_call_is_a_store_error(
    tmp_path: Path, operation: Operation, error: int, onwards: bool, names: frozenset[str]
) -> None:
    given, folder = prepared(tmp_path / "given", operation), tmp_path / "tried"
    before = visible(store_in(given))
    shutil.copytree(given, folder)
    with Layer(folder) as layer:
        operation.run(folder)
    after = visible(store_in(folder))
    failed = 0
    for call in sampling.tried(layer.calls, one_in=3, kind=store_states.kind_of):
        shutil.rmtree(folder)
        shutil.copytree(given, folder)
        fate = FailAt(call.number, error, onwards=onwards, names=names)
        failed += refused(functools.partial(operation.run, folder), folder, fate)
        assert before & after <= visible(store_in(folder)) <= before | after
        with Layer(folder):
            operation.run(folder)
        assert visible(store_in(folder)) == after
    assert failed or not any(call.name in names for call in layer.calls)
    print(f"{failed} failures: {operation.name}, {os.strerror(error)}")


def refused(run: Callable[[], object], folder: Path, fate: FailAt) -> bool:
    """Whether it ended with an error, which says why and how to mend it."""
    raised = None
    try:
        with Layer(folder, fate):
            run()
    except StoreError as error:
        raised = error
    if raised is None:
        return False
    assert os.strerror(fate.error) in raised.message
    assert raised.mend
    assert raised.exit_code == 8
    return True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    with small_file_system(tmp_path / "disk", size_bytes=2 << 20) as folder:
        yield folder


def test_a_disk_that_is_full_keeps_what_it_has(small_disk: Path) -> None:
    store_states.enter_plan(small_disk)
    before = visible(store_in(small_disk))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_900_000))
    with pytest.raises(StoreError, match="No space left on device") as raised:
        store_states.put_other_plan(small_disk)
    assert raised.value.exit_code == 8
    assert visible(store_in(small_disk)) == before
    assert store_states.temporary_files(store_in(small_disk)) == []
    ballast.unlink()
    store_states.put_other_plan(small_disk)
    assert len(visible(store_in(small_disk)) - before) == 1


READ_ONLY: dict[str, Callable[[Path], object]] = {
    "put a blob": store_states.put_small,
    "put a plan": store_states.put_other_plan,
    "put an entry": store_states.put_entry,
    "move a pointer": functools.partial(store_states.move_pointer, to=b"stable"),
}


@pytest.mark.parametrize("write", READ_ONLY)
def test_a_read_only_file_system_is_read_and_not_written(tmp_path: Path, write: str) -> None:
    store_states.enter_plan(tmp_path)
    before = visible(store_in(tmp_path))
    fate = FailAt(1, errno.EROFS, onwards=True, names=EVERY_CALL)
    with Layer(tmp_path, fate) as layer:
        assert visible(store_in(tmp_path)) == before
        assert layer.calls == []
        with pytest.raises(StoreError, match="Read-only file system") as raised:
            READ_ONLY[write](tmp_path)
    assert raised.value.mend
    assert visible(store_in(tmp_path)) == before


def test_a_folder_without_leave_to_write_is_read_and_not_written() -> None:
    """In a process that is not root: root may write anywhere."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        store_states.enter_plan(folder)
        before = visible(store_in(folder))
        for each in [folder, *folder.rglob("*")]:
            each.chmod(0o555 if each.is_dir() else 0o444)

        def look() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            assert visible(store_in(folder)) == before
            for write in READ_ONLY.values():
                with pytest.raises(StoreError, match="Permission denied") as raised:
                    write(folder)
                assert raised.value.mend

        assert ended_well([start(look)]) == [True]
        for each in [folder, *folder.rglob("*")]:
            each.chmod(0o755)


def start(run: Callable[[], None]) -> int:
    """Run in a process of its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        try:
            run()
            code = 0
        except BaseException:  # noqa: BLE001 - nothing may leave this process
            traceback.print_exc()
            sys.stderr.flush()
    os._exit(code)


def ended_well(children: list[int]) -> list[bool]:
    return [os.waitpid(child, 0)[1] == 0 for child in children]


@pytest.mark.parametrize("now_seconds", [0.0, 1e6, 4e9, 1e11])
def test_no_clock_makes_sweep_take_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_seconds: float
) -> None:
    """The year 1970, or 5138: writers write, and what a living one writes stays."""
    monkeypatch.setattr(time, "time", lambda: now_seconds)
    store = store_in(tmp_path)
    left = tmp_path / "store/blobs/sha256" / f".{'0' * 40}.abcdefgh"

    def pieces() -> Iterator[bytes]:
        yield store_states.SMALL[:5000]
        left.write_bytes(b"of a writer that was killed")
        assert LocalStore(store.root).sweep() == (now_seconds > 2e9)
        yield store_states.SMALL[5000:]

    store.put_blob(digest_of_bytes(store_states.SMALL), pieces())
    store_states.put_entry(tmp_path)
    store_states.enter_plan(tmp_path)
    store_states.move_pointer(tmp_path, to=b"first")
    assert len(visible(store)) == 5
    day_ago = now_seconds - 90_000
    if now_seconds < 2e9 and day_ago >= 0:
        os.utime(left, (day_ago, day_ago))
        assert store.sweep() == 1


def test_64_processes_write_one_cell(tmp_path: Path) -> None:
    """One complete entry, no error, no chunk twice that one writer would not have stored twice."""
    ended = together(tmp_path, [store_states.enter_plan] * WRITERS)
    assert ended == [True] * WRITERS
    store = store_in(tmp_path)
    record = store_states.record_of(store_states.PLAN)
    assert len(list(store.entries(index.PLANS, record.recipe))) == 1
    assert index.plans_of_recipe(store, record.recipe) == (record,)
    assert store.read_blob(record.digest, limit_bytes=1 << 30) == store_states.PLAN
    assert len(visible(store)) == 2
    assert store_states.temporary_files(store) == []


def test_64_processes_write_plans_of_one_family(tmp_path: Path) -> None:
    def plan_of(number: int) -> bytes:
        own = digest_of_bytes(b"%d" % number).encode() * 100
        return store_states.PLAN[: 22_000 + 500 * number] + own

    def enter(number: int, folder: Path) -> None:
        plan, store = plan_of(number), store_in(folder)
        store.put_blob(digest_of_bytes(plan), [plan], family=store_states.FAMILY)
        index.put_plan(store, store_states.record_of(plan, cell=f"cell {number}"))

    writers = [functools.partial(enter, number) for number in range(WRITERS)]
    assert together(tmp_path, writers) == [True] * WRITERS
    store = store_in(tmp_path)
    for number in range(WRITERS):
        record = store_states.record_of(plan_of(number), cell=f"cell {number}")
        assert index.plans_of_recipe(store, record.recipe) == (record,)
        assert store.read_blob(record.digest, limit_bytes=1 << 30) == plan_of(number)
    assert len(visible(store)) == 2 * WRITERS
    assert store_states.temporary_files(store) == []


def together(folder: Path, writers: Sequence[Callable[[Path], object]]) -> list[bool]:
    """Each in a process of its own; they begin at once, when the pipe is closed."""
    gate, opener = os.pipe()

    def run(writer: Callable[[Path], object]) -> None:
        os.close(opener)
        os.read(gate, 1)
        writer(folder)

    children = [start(functools.partial(run, writer)) for writer in writers]
    os.close(opener)
    os.close(gate)
    return ended_well(children)
