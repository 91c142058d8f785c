"""How a build gets on with others on its store: the order of things, waiting, taking over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import shared_conversion as conversion_module
from builders.conversion import ConvertedModel
from builders.making_images import make_missing_images
from builders.pipeline import start_build
from builders.shared_conversion import shared_conversion
from builders.sharing import (
    LEASE_VARIABLE,
    Sharing,
    Wanted,
    is_sent,
    lease_seconds,
    run_word,
    send_image,
    send_plan,
)
from engines import index
from engines.conversions import CONVERSIONS, find_conversion, put_conversion
from engines.store.leases import LEASE_SECONDS, Leases
from engines.store.local_store import LocalStore
from engines.store.mirrored import MirroredStore
from engines.store.objects import NoCompareAndSwapError, Pointer
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import (
    ImageBuildError,
    InputError,
    IntegrityError,
    PlanCompileError,
    StoreError,
)
from planyard.edge.clock import Stopwatch
from planyard.edge.console import Console
from tests import kept_store, small_site
from tests.far_stores import FarObjects
from tests.object_places import MemoryStore


class Shown(Console):
    """A console that keeps what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _put(self, text: str, stream: Any) -> None:
        self.lines.append(text)


class Shelf:
    """Results by recipe, as the shared store has them, and what was asked of it in order."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}
        self.events: list[str] = []


@dataclass
class Scene:
    """A place with other runs on it, a clock, and what happens at each pause."""

    store: MemoryStore = field(default_factory=MemoryStore)
    shelf: Shelf = field(default_factory=Shelf)
    console: Shown = field(default_factory=Shown)
    outside: Stopwatch = field(default_factory=Stopwatch)
    now: float = 0.0
    pauses: list[Callable[[], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = self.leases("this run", tell=self.console.warn)
        self.sharing = Sharing(
            self.own,
            console=self.console,
            place=self.store,
            outside=self.outside,
            pause=self._pause,
        )

    def leases(self, by: str, **options: Any) -> Leases:
        return Leases(self.store.objects, by=by, clock=lambda: self.now, **options)

    def _pause(self, seconds: float) -> None:
        assert seconds == 2.0
        self.now += seconds
        if self.pauses:
            self.pauses.pop(0)()

    def find(self, order: str) -> bool:
        self.shelf.events.append(f"look for {order}")
        return recipe(order) in self.shelf.made

    def make(self, batch: Sequence[str]) -> None:
        for order in batch:
            assert recipe(order) in self.own.held
            self.shelf.made[recipe(order)] = "here"
        self.shelf.events.append(f"make {' '.join(batch)}")

    def run(self, *wanted: Wanted[str]) -> None:
        self.sharing.each_once(wanted, find=self.find, make=self.make)

    def another_has(self, name: str) -> Leases:
        run = self.leases(f"run of {name}")
        assert run.take(recipe(name), what=name) is None
        return run

    def another_made(self, run: Leases, name: str) -> None:
        self.shelf.made[recipe(name)] = "there"
        run.release([recipe(name)])


def recipe(name: str) -> str:
    return digest_of_bytes(name.encode())


def want(name: str, group: str = "") -> Wanted[str]:
    return Wanted(recipe=recipe(name), what=name, group=group or name, order=name)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_is_there_costs_no_request(scene: Scene) -> None:
    scene.shelf.made[recipe("a")] = "before"
    scene.run(want("a"))
    assert scene.shelf.events == ["look for a"]
    assert scene.store.objects.pointed == {}


def test_it_is_looked_for_again_behind_the_lease(scene: Scene) -> None:
    scene.run(want("a"))
    assert scene.shelf.events == ["look for a", "look for a", "make a"]
    assert scene.own.held == frozenset()


def test_what_came_between_the_look_and_the_lease_is_not_made(scene: Scene) -> None:
    take = scene.own.take

    def late(*args: Any, **options: Any) -> Any:
        scene.shelf.made[recipe("a")] = "there"
        return take(*args, **options)

    scene.own.take = late  # type: ignore[method-assign]
    scene.run(want("a"))
    assert scene.shelf.made == {recipe("a"): "there"}
    assert scene.own.held == frozenset()


def test_what_another_makes_is_waited_for_and_taken(scene: Scene) -> None:
    other = scene.another_has("a")
    scene.pauses = [lambda: None, other.renew, lambda: scene.another_made(other, "a")]
    scene.run(want("a"))
    assert scene.shelf.made == {recipe("a"): "there"}
    assert scene.now == 6
    [said] = [line for line in scene.console.lines if line.startswith("…")]
    assert said.startswith("… wait for a: run of a has had it since 20")
    until = "  run of a has it for 2 m 00 s more, and longer if it renews its lease"
    assert until in scene.console.lines
    assert scene.outside.seconds > 0


def test_what_another_failed_at_is_tried_here(scene: Scene) -> None:
    other = scene.another_has("a")
    scene.pauses = [lambda: other.release([recipe("a")])]
    scene.run(want("a"))
    assert scene.shelf.made == {recipe("a"): "here"}


def test_a_dead_holder_is_followed(scene: Scene) -> None:
    scene.another_has("a")
    scene.run(want("a"))
    assert scene.shelf.made == {recipe("a"): "here"}
    assert scene.now == LEASE_SECONDS
    assert any("did not renew its lease" in line for line in scene.console.lines)


def test_a_dead_holder_that_had_put_its_result_there_is_not_repeated(scene: Scene) -> None:
    scene.another_has("a")
    scene.pauses = [lambda: scene.shelf.made.update({recipe("a"): "there"})]
    scene.run(want("a"))
    assert scene.shelf.made == {recipe("a"): "there"}


def test_what_is_free_goes_first(scene: Scene) -> None:
    other = scene.another_has("a")

    def look() -> None:
        assert scene.shelf.made == {recipe("b"): "here", recipe("c"): "here"}
        scene.another_made(other, "a")

    scene.pauses = [look]
    scene.run(want("a"), want("b"), want("c"))
    made = [each for each in scene.shelf.events if each.startswith("make")]
    assert made == ["make b", "make c"]
    assert scene.shelf.made[recipe("a")] == "there"


def test_a_group_is_made_together_but_for_what_another_makes(scene: Scene) -> None:
    other = scene.another_has("b")
    scene.pauses = [lambda: scene.another_made(other, "b")]
    scene.run(want("a", "g"), want("b", "g"), want("c", "g"), want("d"))
    made = [each for each in scene.shelf.events if each.startswith("make")]
    assert made == ["make a c", "make d"]


def test_nobody_waits_while_it_has_what_others_want(scene: Scene) -> None:
    other = scene.another_has("b")

    def look() -> None:
        assert scene.own.held == frozenset()
        scene.another_made(other, "b")

    scene.pauses = [look]
    scene.run(want("a", "g"), want("b", "g"))
    assert scene.pauses == []


def test_one_recipe_twice_is_made_once(scene: Scene) -> None:
    a = want("a")
    again = Wanted(recipe=a.recipe, what="again", group="other", order="a")
    same = Wanted(recipe=a.recipe, what="same group", group="a", order="a")
    scene.run(a, again, same)
    assert [each for each in scene.shelf.events if each.startswith("make")] == ["make a"]
    made: list[str] = []

    def make(batch: Sequence[str]) -> None:
        made.extend(batch)

    alone = Sharing(None, console=scene.console)
    alone.each_once([a, again, same], find=lambda order: order in made, make=make)
    assert made == ["a"]


def test_a_failure_lets_go_and_goes_on_upwards(scene: Scene) -> None:
    errors: list[BaseException] = [ImageBuildError("no"), KeyboardInterrupt()]
    for error in errors:

        def stop(_: Sequence[str], error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            scene.sharing.each_once([want("a")], find=scene.find, make=stop)
        assert scene.own.held == frozenset()
        assert scene.leases("b").holder(recipe("a")) is None


def test_what_could_not_be_made_is_not_asked_for_again(scene: Scene) -> None:
    asked: list[str] = []
    scene.sharing.each_once([want("a"), want("b")], find=scene.find, make=asked.extend)
    assert asked == ["a", "b"]


def test_an_interruption_while_leases_are_taken_lets_go_of_them(scene: Scene) -> None:
    take = scene.own.take

    def interrupted(asked: str, *, what: str) -> Any:
        if asked == recipe("b"):
            raise KeyboardInterrupt
        return take(asked, what=what)

    scene.own.take = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        scene.run(want("a", "g"), want("b", "g"))
    assert scene.own.held == frozenset()


def test_a_place_without_compare_and_swap_is_said_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Pointer | None:
        raise NoCompareAndSwapError(f"oci://x: no swap of {name}")

    monkeypatch.setattr(scene.store.objects, "pointer", refuse)
    made: list[str] = []
    for _ in range(2):
        scene.sharing.each_once(
            [want("a", "g"), want("b", "g"), want("c")],
            find=scene.find,
            make=lambda batch: made.append(" ".join(batch)),
        )
    assert made == ["a b", "c"] * 2
    assert len(scene.console.lines) == 1
    assert "may make the same twice" in scene.console.lines[0]
    assert scene.sharing.place is None


def test_a_store_that_does_not_answer_ends_the_build(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> Pointer | None:
        raise StoreError("no answer")

    monkeypatch.setattr(scene.store.objects, "pointer", refuse)
    with pytest.raises(StoreError, match="no answer"):
        scene.run(want("a"))


def test_a_wait_within_a_step_is_shown_there(scene: Scene) -> None:
    other = scene.another_has("a")
    scene.pauses = [lambda: scene.another_made(other, "a")]
    with scene.console.step("compile") as step:
        scene.sharing.each_once([want("a")], find=scene.find, make=scene.make, step=step)
    assert [line for line in scene.console.lines if "wait for a: run of a" in line]
    assert len([line for line in scene.console.lines if line.startswith("…")]) == 1


# What is shared, and under which name


def test_a_workspace_of_its_own_shares_nothing(tmp_path: Path) -> None:
    workspace = small_site.workspace_of(tmp_path, lambda _: None)  # type: ignore[arg-type,return-value]
    assert Sharing.of(workspace, {LEASE_VARIABLE: "nonsense"}).place is None
    workspace.store = LocalStore(tmp_path / "elsewhere")
    assert Sharing.of(workspace, {}).place is workspace.store
    far = MemoryStore()
    workspace.store = MirroredStore(near=LocalStore(tmp_path / ".planyard/store"), far=far)
    assert Sharing.of(workspace, {}).place is far
    with pytest.raises(InputError, match=LEASE_VARIABLE):
        Sharing.of(workspace, {LEASE_VARIABLE: "nonsense"})


def test_who_a_run_says_it_is() -> None:
    given = {"GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": "4711", "GITHUB_JOB": "plans"}
    assert run_word(given) == "run 4711/plans"
    assert run_word({**given, "GITHUB_JOB": ""}) == "run 4711"
    words = {run_word({}), run_word({**given, "GITHUB_ACTIONS": "false"}), run_word({})}
    assert len(words) == 3
    assert all(len(word) == len("run 01234567") for word in words)


def test_how_long_a_lease_lasts() -> None:
    assert lease_seconds({}) == LEASE_SECONDS == lease_seconds({LEASE_VARIABLE: ""})
    assert lease_seconds({LEASE_VARIABLE: "1.5"}) == 1.5
    assert lease_seconds({LEASE_VARIABLE: "3600"}) == 3600
    for text in ("0", "0.5", "-3", "3601", "nan", "inf", "2 m"):
        with pytest.raises(InputError):
            lease_seconds({LEASE_VARIABLE: text})


# What only the near store has


@pytest.fixture
def mirrored(tmp_path: Path) -> MirroredStore:
    return MirroredStore(near=LocalStore(tmp_path / "near"), far=MemoryStore())


def test_a_plan_that_only_the_near_store_has_is_sent(mirrored: MirroredStore) -> None:
    made = kept_store.put_plan(mirrored.near, 1)
    [found] = index.plans_of_recipe(mirrored, made.recipe)
    assert not is_sent(mirrored, index.PLANS, found)
    assert is_sent(mirrored.near, index.PLANS, found)
    send_plan(mirrored, found)
    assert index.plans_of_recipe(mirrored.far, made.recipe) == (found,)
    [found] = index.plans_of_recipe(mirrored, made.recipe)
    assert is_sent(mirrored, index.PLANS, found)
    send_plan(mirrored.near, found)  # nowhere to send it to


def test_what_belongs_to_a_plan_is_sent_with_it(mirrored: MirroredStore) -> None:
    plain = kept_store.put_plan(mirrored.near, 1)
    said, times = b'{"Layers": [{}]}', b"times"
    for data in (said, times):
        mirrored.near.put_blob(digest_of_bytes(data), [data])
    made = msgspec.structs.replace(
        plain, inspector=digest_of_bytes(said), timing_cache=digest_of_bytes(times)
    )
    index.put_plan(mirrored.near, made)
    send_plan(mirrored, made)
    assert index.plans_of_recipe(mirrored.far, made.recipe) == (made,)
    assert all(map(mirrored.far.has_blob, index.blobs_of_plan(made)))


def test_an_image_that_only_the_near_store_has_is_sent_and_not_built(tmp_path: Path) -> None:
    def nothing(_: Any) -> Any:
        raise AssertionError("nothing runs here")

    loaded = small_site.lay_out(tmp_path)
    workspace = small_site.workspace_of(tmp_path, nothing)
    near = workspace.store
    assert isinstance(near, LocalStore)
    images = small_site.put_images(loaded, workspace)
    far = FarObjects()
    workspace.store = MirroredStore(near=near, far=ObjectStore(far))
    work = start_build(loaded, patterns=[], workspace=workspace)
    make_missing_images(work)
    assert work.built == set()
    for image in images.values():
        assert index.image_of_recipe(ObjectStore(far), image.recipe) == image
    names = [name for name, _ in far.written if "/claims/" not in name]
    entries = [at for at, name in enumerate(names) if name.startswith("index/images/")]
    manifest = f"blobs/sha256/{images['cpu'].digest[7:]}"
    assert len(entries) == len(images)
    assert names.index(manifest) < entries[0]
    assert names.index(manifest) == entries[0] - 1  # its layers went before it
    moves = len(far.written)
    again = start_build(loaded, patterns=[], workspace=workspace)
    make_missing_images(again)
    assert len(far.written) == moves
    assert set(again.images) == {"cpu", "gpu", "rtx"}
    assert set(again.compilers) == {"rtx"}
    send_image(near, images["cpu"])  # nowhere to send it to


# Converted models


@dataclass
class Job:
    name: str = "net"
    precision: str = "fp16"
    spec: Any = None
    conversion: Any = None
    builder: str = ""


@dataclass
class Machine:
    """A workspace's cache, and a converter that writes other bytes each time."""

    root: Path
    sharing: Sharing
    refuses: bool = False
    converted: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def kept(self) -> Path:
        return self.cache / "converted" / KEY[7:]

    def update(self, text: str) -> None:
        self.said.append(text)

    def convert(self) -> ConvertedModel:
        def converter(*_: Any, **__: Any) -> ConvertedModel:
            if not (self.kept / "report.json").exists():
                self.converted += 1
                self.kept.mkdir(parents=True, exist_ok=True)
                (self.kept / "model.onnx").write_text(f"{self.root.name} made it")
                (self.kept / "report.json").write_text("{}")
            if self.refuses:
                raise PlanCompileError("too far from fp32")
            return ConvertedModel(path=self.kept / "model.onnx", digest=KEY)

        job: Any = Job()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conversion_module, "digest_of_conversion", lambda *_, **__: KEY)
            patch.setattr(conversion_module, "identity_of_model", lambda _: FAMILY)
            patch.setattr(conversion_module, "converted_model", converter)
            me: Any = self
            return shared_conversion(
                job, workspace=me, scratch=self.root, step=me, sharing=self.sharing
            )


KEY, FAMILY = digest_of_bytes(b"what it is made from"), digest_of_bytes(b"the model")


def machine(scene: Scene, root: Path, **options: Any) -> Machine:
    return Machine(root=root, sharing=scene.sharing, **options)


def test_a_model_is_converted_by_one_and_fetched_by_the_others(
    scene: Scene, tmp_path: Path
) -> None:
    a, b = machine(scene, tmp_path / "a"), machine(scene, tmp_path / "b")
    a.convert()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene.own, "take", None)  # nothing is left to take a lease for
        found = b.convert()
    assert (a.converted, b.converted) == (1, 0)
    assert found.path.read_text() == "a made it"
    assert b.said == ["fetch the converted model"]
    assert sorted(path.name for path in b.kept.parent.iterdir()) == [KEY[7:]]
    assert found.path.stat().st_mode & 0o777 == 0o644
    assert b.kept.stat().st_mode & 0o777 == 0o777  # the image's user writes there
    writes = len(scene.store.objects.held)
    b.convert()
    assert len(scene.store.objects.held) == writes


def test_what_the_cache_had_before_is_shared(scene: Scene, tmp_path: Path) -> None:
    alone = Machine(root=tmp_path / "a", sharing=Sharing(None, console=scene.console))
    alone.convert()
    assert scene.store.objects.held == {}
    machine(scene, tmp_path / "a").convert()
    b = machine(scene, tmp_path / "b")
    assert b.convert().path.read_text() == "a made it"
    assert b.converted == 0


def test_what_one_refuses_another_may_allow(scene: Scene, tmp_path: Path) -> None:
    strict, b = machine(scene, tmp_path / "a", refuses=True), machine(scene, tmp_path / "b")
    with pytest.raises(PlanCompileError):
        strict.convert()
    assert scene.own.held == frozenset()
    b.convert()
    assert b.converted == 0


def test_without_a_shared_store_it_is_converted_here(scene: Scene, tmp_path: Path) -> None:
    alone = Machine(root=tmp_path / "a", sharing=Sharing(None, console=scene.console))
    alone.convert()
    alone.convert()
    assert alone.converted == 1
    assert scene.store.objects.held == {}


def test_a_converted_model_that_is_not_whole_is_none(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / "model.onnx").write_bytes(b"bytes")
    put_conversion(store, KEY, tmp_path, family=FAMILY)
    found = find_conversion(store, KEY)
    assert found is not None
    assert found.files == {"model.onnx": digest_of_bytes(b"bytes")}
    store.objects.remove(f"blobs/sha256/{found.files['model.onnx'][7:]}")
    assert find_conversion(store, KEY) is None


@pytest.mark.parametrize(
    "document",
    [
        {"conversion": KEY, "files": {"../x": KEY}},
        {"conversion": KEY, "files": {".x": KEY}},
        {"conversion": KEY, "files": {"a/b": KEY}},
        {"conversion": KEY, "files": {"x": "sha256:no"}},
        {"conversion": FAMILY, "files": {"x": KEY}},
        {"conversion": KEY},
    ],
)
def test_an_entry_that_is_no_converted_model_is_refused(document: dict[str, Any]) -> None:
    store = MemoryStore()
    store.put_entry(CONVERSIONS, KEY, canonical_json(document))
    with pytest.raises(IntegrityError):
        find_conversion(store, KEY)
