"""Leases under a clock of the test's own: expiry, takeover, loss, and every interleaving of two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from engines.store import leases as module
from engines.store import objects as names
from engines.store.leases import LEASE_SECONDS, LONGEST_SECONDS, Holder, Leases
from engines.store.objects import NoCompareAndSwapError, Pointer
from engines.store.readonly import ReadOnlyObjects
from engines.store.s3 import S3Objects
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, StoreError
from planyard.edge.s3 import RefusedError
from tests.interleaved import Interleaved

RECIPE = digest_of_bytes(b"a recipe")
TABLE = f"leases/{RECIPE[7:9]}"
NEIGHBOUR = f"{RECIPE[:9]}{'0' * 62}"
"""Another recipe of the same table."""


A_ROW = {
    "word": "w",
    "beat": 0,
    "by": "x",
    "what": "x",
    "since": "",
    "seconds": 60.0,
    "renewed": "2099-01-01T00:00:00Z",
}


class Steps(Interleaved):
    """Pointers are operations too; requests may fail, or take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        self.after_move: Callable[[], None] = lambda: None
        self.while_reading: Callable[[], None] = lambda: None

    def pointer(self, name: str) -> Pointer | None:
        if self._lock.locked():
            return super().pointer(name)  # move_pointer's own look
        self._step("pointer", name)
        if self.failing:
            raise StoreError("no answer")
        found = super().pointer(name)
        self.while_reading()
        return found

    def move_pointer(self, name: str, data: bytes, *, expected: str | None) -> bool:
        self._step("move", name)
        moved = super().move_pointer(name, data, expected=expected)
        self.after_move()
        return moved

    def rows(self) -> dict[str, Any]:
        found = self.pointed.get(TABLE)
        return msgspec.json.decode(found)["leases"] if found else {}


@dataclass
class Scene:
    """One place, a clock, and runs on it."""

    objects: Steps = field(default_factory=Steps)
    now: float = 1000.0
    told: list[str] = field(default_factory=list)

    def run(self, by: str, seconds: float = LEASE_SECONDS) -> Leases:
        return Leases(
            self.objects, by=by, seconds=seconds, tell=self.told.append, clock=lambda: self.now
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


def takes(run: Leases, recipe: str = RECIPE) -> bool:
    return run.take(recipe, what="image x") is None


def holder_of(run: Leases) -> Holder:
    found = run.holder(RECIPE)
    assert found is not None
    return found


def test_one_has_it_and_the_other_learns_who_and_for_how_long(scene: Scene) -> None:
    a, b = scene.run("run 1/images"), scene.run("run 2")
    assert takes(a)
    found = b.take(RECIPE, what="image x")
    assert found is not None
    assert (found.by, found.left_seconds) == ("run 1/images", LEASE_SECONDS)
    assert found.since.endswith("Z")
    scene.now += 50
    assert holder_of(b).left_seconds == LEASE_SECONDS - 50
    assert (a.held, b.held) == ({RECIPE}, frozenset())
    assert a.holder(RECIPE) is None  # nobody else
    assert list(scene.objects.pointers()) == []


def test_what_is_released_is_free_at_once_and_leaves_an_empty_table(scene: Scene) -> None:
    a, b = scene.run("a"), scene.run("b")
    assert takes(a)
    a.release([RECIPE])
    assert scene.objects.rows() == {}
    assert (a.held, b.holder(RECIPE)) == (frozenset(), None)
    assert takes(b)
    b.release([RECIPE])
    assert list(scene.objects.pointed) == [TABLE]
    assert scene.told == []


def test_two_requests_to_take_and_two_to_let_go(scene: Scene) -> None:
    run = scene.run("a")
    assert takes(run)
    assert len(scene.objects.operations) == 2
    run.release([RECIPE])
    assert len(scene.objects.operations) == 4
    run.release([RECIPE])
    assert len(scene.objects.operations) == 4


def test_a_dead_holder_is_followed_after_its_time(scene: Scene) -> None:
    dead, b = scene.run("run 7/plans"), scene.run("b")
    assert takes(dead)
    assert not takes(b)
    scene.now += LEASE_SECONDS - 0.5
    assert not takes(b)
    scene.now += 0.5
    assert b.holder(RECIPE) is None
    assert takes(b)
    assert scene.objects.rows()[RECIPE]["by"] == "b"
    assert len(scene.told) == 1
    assert "image x: run 7/plans did not renew its lease for 120 s" in scene.told[0]


def test_the_time_counts_from_the_first_look_of_the_one_who_waits(scene: Scene) -> None:
    dead, b = scene.run("dead"), scene.run("b")
    assert takes(dead)
    scene.now += 10 * LEASE_SECONDS  # nobody looked
    assert not takes(b)
    scene.now += LEASE_SECONDS
    assert takes(b)


def test_a_renewed_lease_goes_on(scene: Scene) -> None:
    a, b = scene.run("a"), scene.run("b")
    assert takes(a)
    assert not takes(b)
    for _ in range(5):
        scene.now += LEASE_SECONDS * 0.9
        a.renew()
        assert not takes(b)
    scene.now += LEASE_SECONDS - 0.5
    assert not takes(b)
    scene.now += 0.5
    assert takes(b)


def test_slow_requests_make_nobody_dead(scene: Scene) -> None:
    """From the end of the first look to the beginning of the second: only that is certain."""
    a, b = scene.run("a"), scene.run("b")
    assert takes(a)

    def slow() -> None:
        scene.now += 0.9 * LEASE_SECONDS

    scene.objects.while_reading = slow
    assert not takes(b)
    assert not takes(b)
    assert not takes(b)  # now the second look lies between
    assert takes(b)


def test_a_lease_says_itself_how_long_it_lasts(scene: Scene) -> None:
    short, b = scene.run("short", seconds=5), scene.run("b")
    assert takes(short)
    assert not takes(b)
    scene.now += 5
    assert takes(b)
    endless = scene.run("endless", seconds=1e9)
    assert takes(endless, NEIGHBOUR)
    assert b.take(NEIGHBOUR, what="y").left_seconds == LONGEST_SECONDS  # type: ignore[union-attr]


def test_clocks_need_not_agree(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "utc_now", lambda: "2099-01-01T00:00:00Z")
    ahead = scene.run("ahead")
    assert takes(ahead)
    monkeypatch.undo()
    b = scene.run("b")
    assert not takes(b)
    assert takes(b, NEIGHBOUR)  # which leaves the other row alone
    assert not takes(b)
    scene.now += LEASE_SECONDS
    assert takes(b)


def test_who_lost_a_lease_is_told_and_takes_nothing_back(scene: Scene) -> None:
    paused, b = scene.run("paused"), scene.run("run 2")
    assert takes(paused)
    assert not takes(b)
    scene.now += LEASE_SECONDS
    assert takes(b)
    scene.told.clear()
    paused.renew()
    assert paused.held == frozenset()
    assert len(scene.told) == 1
    assert "image x: this run was held up, and run 2 took its lease over" in scene.told[0]
    paused.renew()
    paused.release([RECIPE])
    assert scene.objects.rows()[RECIPE]["by"] == "run 2"
    assert len(scene.told) == 1


def test_a_holder_that_did_not_notice_its_loss_releases_nothing_of_others(scene: Scene) -> None:
    paused, b = scene.run("paused"), scene.run("b")
    assert takes(paused)
    assert not takes(b)
    scene.now += LEASE_SECONDS
    assert takes(b)
    paused.release([RECIPE])
    assert scene.objects.rows()[RECIPE]["by"] == "b"


def test_a_row_that_was_cleaned_away_comes_back(scene: Scene) -> None:
    a = scene.run("a")
    assert takes(a)
    scene.objects.pointed[TABLE] = b"{}"
    a.renew()
    assert scene.objects.rows()[RECIPE]["by"] == "a"
    assert (a.held, scene.told) == ({RECIPE}, [])


def test_to_take_it_again_changes_nothing(scene: Scene) -> None:
    a = scene.run("a")
    assert takes(a)
    before = scene.objects.pointed[TABLE]
    assert takes(a)
    assert scene.objects.pointed[TABLE] == before


def test_rows_of_runs_that_died_days_ago_go_with_the_next_write(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, recent, b = scene.run("dead"), scene.run("recent"), scene.run("b")
    monkeypatch.setattr(module, "utc_now", lambda: "2020-01-01T00:00:00Z")
    assert takes(dead)
    monkeypatch.undo()
    assert takes(recent, NEIGHBOUR)
    third = f"{RECIPE[:9]}{'1' * 62}"
    assert takes(b, third)
    assert set(scene.objects.rows()) == {NEIGHBOUR, third}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"\xff",
        b"[]",
        canonical_json({"schema": 2, "leases": {RECIPE: A_ROW}}),
        canonical_json({"schema": 1, "leases": {RECIPE: {"word": 1}}}),
        b'{"schema":1,"leases":' + b"[" * 4000,
    ],
)
def test_a_table_that_cannot_be_read_is_empty(scene: Scene, data: bytes) -> None:
    scene.objects.pointed[TABLE] = data
    a = scene.run("a")
    assert a.holder(RECIPE) is None
    assert takes(a)
    assert set(scene.objects.rows()) == {RECIPE}


def test_a_row_in_a_table_is_believed(scene: Scene) -> None:
    scene.objects.pointed[TABLE] = canonical_json({"schema": 1, "leases": {RECIPE: A_ROW}})
    assert not takes(scene.run("a"))


def test_what_others_wrote_cannot_move_the_cursor(scene: Scene) -> None:
    assert takes(scene.run("\x1b[31mred\r\n" + "x" * 200))
    shown = holder_of(scene.run("b")).by
    assert shown.isprintable()
    assert len(shown) <= 80
    row = scene.objects.rows()[RECIPE]
    row["by"] = row["since"] = "\x1b[2J"
    scene.objects.pointed[TABLE] = canonical_json({"schema": 1, "leases": {RECIPE: row}})
    found = holder_of(scene.run("c"))
    assert (found.by + found.since).isprintable()


def test_a_renewal_that_failed_is_tried_again(scene: Scene) -> None:
    a, b = scene.run("a"), scene.run("b")
    assert takes(a)
    assert takes(a, NEIGHBOUR)
    assert not takes(b)
    scene.objects.failing = True
    a.renew()
    scene.objects.failing = False
    assert a.held == {RECIPE, NEIGHBOUR}
    scene.now += LEASE_SECONDS - 1
    a.renew()
    scene.now += 2
    assert not takes(b)
    assert {row["beat"] for row in scene.objects.rows().values()} == {1}


def test_a_release_that_failed_ends_by_itself(scene: Scene) -> None:
    a, b = scene.run("a"), scene.run("b")
    assert takes(a)
    scene.objects.failing = True
    a.release([RECIPE])
    scene.objects.failing = False
    assert a.held == frozenset()
    assert not takes(b)
    scene.now += LEASE_SECONDS
    assert takes(b)


def test_who_is_interrupted_right_after_the_write_can_let_go(scene: Scene) -> None:
    a = scene.run("a")

    def interrupt() -> None:
        scene.objects.after_move = lambda: None
        raise KeyboardInterrupt

    scene.objects.after_move = interrupt
    with pytest.raises(KeyboardInterrupt):
        takes(a)
    assert set(scene.objects.rows()) == {RECIPE}
    a.release([RECIPE])
    assert scene.objects.rows() == {}


def test_a_table_that_others_always_move_first_ends_with_what_to_do(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(scene.objects, "move_pointer", lambda *_, **__: False)
    a = scene.run("a")
    with pytest.raises(StoreError) as raised:
        takes(a)
    assert raised.value.mend
    assert a.held == frozenset()


def test_a_store_that_is_only_read_refuses(scene: Scene) -> None:
    run = Leases(ReadOnlyObjects(scene.objects), by="a")
    with pytest.raises(StoreError, match="read-only"):
        takes(run)
    assert run.held == frozenset()


def test_names_of_tables() -> None:
    assert names.pointer_path("leases/0f") == "leases/0f"
    assert names.pointer_path("stable") == "channels/stable"
    for name in ("leases/0g", "leases/0", "leases/000", "leases/../0", "leases/0f\n", "x/0f"):
        with pytest.raises(InputError):
            names.pointer_path(name)
    with pytest.raises(InputError):
        names.checked_pointer_name("leases/0f")  # a channel cannot be called that
    with pytest.raises(InputError):
        Leases(Steps(), by="a").take("sha256:../x", what="")
    assert issubclass(NoCompareAndSwapError, StoreError)


# Two at once


def one_takes_over(scene: Scene) -> tuple[Leases, Leases]:
    """A dead holder, and two who have watched it for long enough."""
    dead, b, c = scene.run("dead"), scene.run("b"), scene.run("c")
    assert takes(dead)
    assert not takes(b)
    assert not takes(c)
    scene.now += LEASE_SECONDS
    return b, c


def test_of_two_who_take_over_one_wins_whatever_the_order() -> None:
    for moment in range(2):
        scene = Scene()
        b, c = one_takes_over(scene)
        scene.objects.at(moment, lambda c=c: takes(c))  # type: ignore[misc]
        assert not takes(b)
        assert (b.held, c.held) == (frozenset(), {RECIPE})
        assert scene.objects.rows()[RECIPE]["by"] == "c"


def test_a_holder_that_renews_at_the_last_moment_keeps_it(scene: Scene) -> None:
    late, b = scene.run("late"), scene.run("b")
    assert takes(late)
    assert not takes(b)
    scene.now += LEASE_SECONDS
    scene.objects.before(lambda _, operation, __: operation == "move", late.renew)
    assert not takes(b)
    assert (late.held, b.held) == ({RECIPE}, frozenset())


def lifetime(run: Leases) -> None:
    """All that a run does with a lease."""
    if takes(run):
        run.renew()
        run.release([RECIPE])


@pytest.mark.parametrize("recipe", [RECIPE, NEIGHBOUR])
def test_another_at_any_moment_of_a_lifetime(recipe: str) -> None:
    """Never do both have it, nothing is left, and neighbours in a table keep their rows."""
    alone = Scene()
    lifetime(alone.run("a"))
    moments = len(alone.objects.operations)
    assert moments == 6
    outcomes = set()
    for moment in range(moments):
        for whole in (False, True):
            scene = Scene()
            a, b = scene.run("a"), scene.run("b")

            def act(b: Leases = b, a: Leases = a, whole: bool = whole) -> None:
                won = takes(b, recipe)
                outcomes.add(won)
                assert not won or recipe != RECIPE or not a.held or not scene_has(a)
                if whole:
                    b.release([recipe])

            def scene_has(run: Leases, scene: Scene = scene) -> bool:
                row = scene.objects.rows().get(RECIPE)
                return row is not None and row["by"] == run.by

            scene.objects.at(moment, act)
            lifetime(a)
            b_has = b.held == {recipe}
            assert set(scene.objects.rows()) == ({recipe} if b_has else set()), (moment, whole)
            assert a.held == frozenset()
    assert outcomes == ({True, False} if recipe == RECIPE else {True})


def test_many_threads_on_one_table_lose_no_row() -> None:
    scene = Scene()
    recipes = [f"{RECIPE[:9]}{number:062x}" for number in range(8)]
    runs = [scene.run(f"run {number}") for number in range(8)]
    won: list[str] = []

    def work(number: int) -> None:
        for turn in range(8):
            recipe = recipes[(number + turn) % 4]
            if takes(runs[number], recipe):
                won.append(recipe)
                assert scene.objects.rows()[recipe]["by"] == f"run {number}"
                runs[number].renew()
                runs[number].release([recipe])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert scene.objects.rows() == {}
    assert set(won) == set(recipes[:4])


# The thread


def renewing() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "leases"}


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_thread_renews_while_there_is_a_lease() -> None:
    before, objects = renewing(), Steps()
    run = Leases(objects, by="a", seconds=0.12)
    assert takes(run)
    one = renewing() - before
    assert len(one) == 1
    assert takes(run, NEIGHBOUR)
    assert renewing() - before == one
    until(lambda: all(row["beat"] >= 2 for row in objects.rows().values()))
    run.release([RECIPE])
    beat = objects.rows()[NEIGHBOUR]["beat"]
    until(lambda: objects.rows()[NEIGHBOUR]["beat"] > beat + 1)
    run.release([NEIGHBOUR])
    until(lambda: not renewing() - before)
    assert takes(run)
    until(lambda: objects.rows()[RECIPE]["beat"] >= 2)
    run.release([RECIPE])
    until(lambda: not renewing() - before)


# S3


class Stub:
    """A bucket that answers every write in one way."""

    name, endpoint = "bucket", "http://127.0.0.1:1"

    def __init__(self, answer: Exception | None = None) -> None:
        self.answer, self.written = answer, list[str]()

    def put(self, key: str, data: bytes, **_: Any) -> None:
        self.written.append(key)
        if self.answer:
            raise self.answer


def refusal(status: int) -> RefusedError:
    return RefusedError("no", mend="", status=status, code="NotImplemented", retried=False)


def test_a_table_on_s3_is_moved_by_one_request_without_a_probe() -> None:
    bucket: Any = Stub()
    place = S3Objects(bucket, prefix="p")
    assert place.move_pointer("leases/0f", b"x", expected=None)
    assert bucket.written == ["p/leases/0f"]


def test_a_server_that_knows_no_conditions_says_so() -> None:
    bucket: Any = Stub(refusal(501))
    with pytest.raises(NoCompareAndSwapError):
        S3Objects(bucket).move_pointer("leases/0f", b"x", expected=None)
    assert len(bucket.written) == 1
