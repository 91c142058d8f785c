"""A small store's contents for fault tests: plans of one family, and all that a reader can see."""

from __future__ import annotations

import functools
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyfastcdc import FastCDC

from engines import index
from engines.channels.history import PROMOTIONS, history, read_head
from engines.channels.moves import promote, rollback
from engines.keeping.gc import collect
from engines.keeping.marking import Policy
from engines.store import chunking, claims, packs, sources
from engines.store import objects as names
from engines.store.local_store import LocalStore
from planyard.core.digest import digest_of_bytes, digest_of_value
from planyard.core.results import PlanRecord
from tests import kept_store
from tests.channel_sites import ANN, CHANNEL
from tests.faults import Call

FAMILY = digest_of_bytes(b"a model")
POINTER = "raw"
"""A pointer that is no channel: only its bytes count."""
KEY = digest_of_bytes(b"a key")
SMALL_PACK_BYTES = 3000
SMALL = b"a log: " + bytes(range(256)) * 40
"""A blob that is kept whole."""

_RANDOM = random.Random(20261121)
PLAN = _RANDOM.randbytes(80_000)
"""A blob that is cut into chunks; OTHER_PLAN shares about half of them."""
OTHER_PLAN = PLAN[:30_000] + _RANDOM.randbytes(50_000)

Seen = frozenset[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Something done to the store in a folder, which `given` was done to before."""

    name: str
    run: Callable[[Path], object]
    given: tuple[Callable[[Path], object], ...] = ()
    damaged: bool = False
    """Whether the store is damaged before: only afterwards is it whole."""


def store_in(folder: Path) -> LocalStore:
    """The store of a test's folder."""
    return LocalStore(folder / "store")


def put_small(folder: Path) -> None:
    """A blob that is kept whole."""
    store_in(folder).put_blob(digest_of_bytes(SMALL), [SMALL[:5000], SMALL[5000:]])


def put_plan(folder: Path) -> None:
    """A blob that is cut."""
    store_in(folder).put_blob(digest_of_bytes(PLAN), [PLAN], family=FAMILY)


def put_other_plan(folder: Path) -> None:
    """A blob that shares chunks with the other."""
    store_in(folder).put_blob(digest_of_bytes(OTHER_PLAN), [OTHER_PLAN], family=FAMILY)


def put_entry(folder: Path) -> None:
    """An entry that names the small blob."""
    store_in(folder).put_entry("logs", KEY, digest_of_bytes(SMALL).encode())


def record_of(data: bytes, *, cell: str = "unet") -> PlanRecord:
    """The record of a plan."""
    inputs: dict[str, object] = {"cell": cell}
    return PlanRecord(
        cell=cell,
        recipe=digest_of_value(inputs),
        digest=digest_of_bytes(data),
        size_bytes=len(data),
        backend="tensorrt-rtx",
        version="1.2",
        sm=89,
        model="unet",
        profile="512",
        precision="fp16",
        compile_seconds=1.5,
        inputs=inputs,
    )


def enter_plan(folder: Path) -> None:
    """A plan and its record, as a build stores them."""
    put_plan(folder)
    index.put_plan(store_in(folder), record_of(PLAN))


def lay_source(data: bytes) -> Callable[[Path], object]:
    """A file `source` beside the store."""
    return lambda folder: (folder / "source").write_bytes(data)


def take_small(folder: Path) -> None:
    """Move a file into the store; one that is gone was taken before."""
    if (folder / "source").exists():
        store_in(folder).put_blob(digest_of_bytes(SMALL), folder / "source", take=True)


def take_plan(folder: Path) -> None:
    """The same for a file that is cut."""
    if (folder / "source").exists():
        digest = digest_of_bytes(PLAN)
        store_in(folder).put_blob(digest, folder / "source", take=True, family=FAMILY)


def move_pointer(folder: Path, *, to: bytes) -> None:
    """Move a pointer from whatever it holds."""
    objects = store_in(folder).objects
    now = objects.pointer(POINTER)
    assert objects.move_pointer(POINTER, to, expected=now.token if now else None)


def put_releases(folder: Path) -> None:
    """What three builds left a month ago; the channel is at the second."""
    store = store_in(folder)
    releases = [kept_store.put_release(store, number) for number in range(3)]
    assert promote(store, CHANNEL, releases[1].image.digest, mover=ANN).moved
    kept_store.age(store.objects, 30 * kept_store.DAY_SECONDS)


def collect_garbage(folder: Path) -> None:
    """Only the newest build and what the channel needs stay."""
    collect(store_in(folder), Policy(snapshots=1, channel_records=1))


def promote_newest(folder: Path) -> None:
    """Move the channel to the third build's image."""
    store = store_in(folder)
    keys = store.keys(index.SNAPSHOTS)
    snapshots = [each for key in keys for each in index.snapshots_of_image(store, key)]
    newest = max(snapshots, key=lambda snapshot: snapshot.created)
    move = promote(store, CHANNEL, newest.image, mover=ANN)
    assert not move.objections
    assert move.now


def roll_back(folder: Path) -> None:
    """Move it back, unless that was done."""
    store = store_in(folder)
    head = read_head(store, CHANNEL)
    assert head
    if head.state.action == "promote":
        assert rollback(store, CHANNEL, mover=ANN).moved


def damage_small(folder: Path) -> None:
    """Other bytes in the place of the small blob."""
    _damage(store_in(folder).root / names.blob_name(digest_of_bytes(SMALL)))


def damage_packs(folder: Path) -> None:
    """Every second pack loses its end."""
    for path in sorted((store_in(folder).root / "packs").glob("*/*"))[::2]:
        _damage(path)


def kind_of(call: Call) -> tuple[str, str]:
    """What is done, and below which of the store's folders: `rename` in `packs`."""
    _, _, below = call.path.partition("/store/")
    return call.name, below.partition("/")[0]


def _damage(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 9)


BUILD = (enter_plan, put_small, put_entry)
OPERATIONS = (
    Operation(name="put a blob", run=put_small),
    Operation(name="put it again", run=put_small, given=(put_small,)),
    Operation(
        name="put it where it is damaged",
        run=put_small,
        given=(put_small, damage_small),
        damaged=True,
    ),
    Operation(name="put an entry", run=put_entry, given=(put_small,)),
    Operation(
        name="take a file",
        run=take_small,
        given=(lay_source(SMALL),),
    ),
    Operation(name="enter a plan", run=enter_plan),
    Operation(name="put a second plan of the family", run=put_other_plan, given=BUILD),
    Operation(
        name="take a plan",
        run=take_plan,
        given=(lay_source(PLAN),),
    ),
    Operation(
        name="put a plan where packs are damaged",
        run=put_plan,
        given=(*BUILD, damage_packs),
        damaged=True,
    ),
    Operation(
        name="make a pointer",
        run=functools.partial(move_pointer, to=b"first"),
        given=BUILD,
    ),
    Operation(
        name="move a pointer",
        run=functools.partial(move_pointer, to=b"second"),
        given=(*BUILD, functools.partial(move_pointer, to=b"first")),
    ),
    Operation(name="promote", run=promote_newest, given=(put_releases,)),
    Operation(name="roll back", run=roll_back, given=(put_releases, promote_newest)),
    Operation(name="collect garbage", run=collect_garbage, given=(put_releases,)),
)


OF_THE_MOMENT = (claims.CLAIMS, claims.SWEEPS, PROMOTIONS)
"""Kinds of entries that no reader looks for: what is under way, and records named by chance."""


def visible(store: LocalStore, *, damaged: bool = False) -> Seen:
    """All that a reader can see, each read and verified; entries name what is there.

    Nothing may be torn; with `damaged` what is torn is not seen.
    """
    seen: set[tuple[str, ...]] = set()
    for area in names.AREAS:
        for each in store.objects.listing(area):
            intact = store._is_intact(each.name)
            assert intact or damaged, f"{each.name} is torn"
            part = each.name.split("/")
            if area == names.BLOBS and intact:
                seen.add(("blob", "sha256:" + part[-1]))
            elif area == names.MAPS and intact and _is_readable(store, part[1], damaged=damaged):
                seen.add(("blob", "sha256:" + part[1]))
            elif area == names.INDEX and part[1] not in OF_THE_MOMENT:
                seen.add(("entry", *part[1:]))
    if not damaged:
        _check_entries(store, seen)
    for name in store.objects.pointers():
        seen.add(("pointer", name, *_states_of(store, name)))
    return frozenset(seen)


def _states_of(store: LocalStore, name: str) -> tuple[str, ...]:
    """What a pointer holds; of a channel its history, whose records have names by chance."""
    if name == POINTER:
        pointer = store.objects.pointer(name)
        assert pointer
        return (pointer.data.decode(),)
    head = read_head(store, name)
    assert head
    return tuple(f"{each.version} {each.image}" for each in history(store, head.state))


def _is_readable(store: LocalStore, hexadecimal: str, *, damaged: bool) -> bool:
    data = bytearray()
    try:
        for piece in store.open_blob("sha256:" + hexadecimal):
            data += piece
    except Exception:
        if damaged:
            return False
        raise
    assert digest_of_bytes(bytes(data)) == "sha256:" + hexadecimal
    return True


def _check_entries(store: LocalStore, seen: set[tuple[str, ...]]) -> None:
    for recipe in store.keys(index.PLANS):
        records = list(store.entries(index.PLANS, recipe))
        assert len(index.plans_of_recipe(store, recipe)) == len(records), "an entry names nothing"
    kept_store.everything_visible_is_whole(store)
    for key in store.keys("logs"):
        for entry in store.entries("logs", key):
            assert ("blob", entry.decode()) in seen, "an entry names nothing"


def chunks_stored_twice(store: LocalStore) -> list[bytes]:
    """Digests of chunks that lie in several packs."""
    seen: Counter[bytes] = Counter()
    for each in store.objects.listing(names.PACKS):
        data = b"".join(store.objects.read(each.name))
        seen.update(chunk.digest for chunk in packs.chunks_of_header(data, where=each.name))
    return [digest for digest, count in seen.items() if count > 1]


def temporary_files(store: LocalStore) -> list[Path]:
    """What writers left behind."""
    return [path for path in store.root.rglob(".*") if path.name != ".lock"]


def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, packs and windows so small that PLAN has many of each."""
    cutter = FastCDC(2048, min_size=1024, max_size=8192, normalized_chunking=1)
    monkeypatch.setattr(chunking, "_FASTCDC", cutter)
    monkeypatch.setattr(chunking, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(packs, "PACK_BYTES", SMALL_PACK_BYTES)
    monkeypatch.setattr(sources, "SMALL_BYTES", 20_000)
    monkeypatch.setattr(kept_store, "plan_bytes", _release_plan)


def _release_plan(number: int) -> bytes:
    return PLAN[:20_000] + random.Random(number).randbytes(8_000)
