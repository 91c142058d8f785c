"""Copying images between stores: complete, in order, only what is missing, resumed after a cut."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from engines import index
from engines.evidence.entries import EVIDENCE
from engines.keeping import copying
from engines.keeping.copying import CopyProgress, CopyReport, copy_images
from engines.loads import loads_of_image, put_load
from engines.lookup import lookup, pull
from engines.store.local_store import LocalStore
from engines.store.objects import BLOBS
from engines.store.packs import HEADER_GUESS_BYTES
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import IntegrityError, LookupMissError, StoreError
from tests.far_stores import MIB, Family, FarObjects, store_image
from tests.load_records import a_record
from tests.object_places import MemoryStore

KINDS: dict[str, Callable[[Path], ObjectStore]] = {
    "memory": lambda _: MemoryStore(),
    "local": LocalStore,
    "far": lambda _: ObjectStore(FarObjects()),
}
LAYERS = (b"a shared layer", random.Random(3).randbytes(MIB // 2))
PLAN_BYTES = 3 * MIB // 2


def two_images(store: ObjectStore) -> list[str]:
    """Two images that share layers; their plans are of one family."""
    family = Family(PLAN_BYTES)
    return [
        store_image(
            store,
            {f"p{each}": family.member(each) for each in numbers},
            name=name,
            layers=(*LAYERS, name.encode()),
            log=f"log of {name}".encode(),
        )
        for name, numbers in (("rtx", (0, 1)), ("rtx-debug", (1, 2)))
    ]


def with_evidence(store: ObjectStore, image: str) -> None:
    for number in range(2):
        store.put_entry(EVIDENCE, image, b'{"evidence":%d}' % number)


@pytest.mark.parametrize(
    ("of", "to"),
    [("memory", "local"), ("local", "far"), ("far", "memory"), ("local", "local"), ("far", "far")],
)
def test_everything_is_there_afterwards(tmp_path: Path, of: str, to: str) -> None:
    source, target = KINDS[of](tmp_path / "source"), KINDS[to](tmp_path / "target")
    images = two_images(source)
    with_evidence(source, images[0])
    done = copy_images(source, target)
    assert done.images == tuple(sorted(images))
    assert done.left_out == ()
    for image in images:
        result = lookup(target, image)
        assert result.not_fitting == ()
        assert result == lookup(source, image)
        pull(target, result, tmp_path / image)
        for kind in (index.SNAPSHOTS, EVIDENCE):
            assert list(target.entries(kind, image)) == list(source.entries(kind, image))
        manifest = index.read_manifest(target, image)
        assert all(b"".join(target.open_blob(each)) is not None for each in manifest.digests)
        for snapshot in result.snapshots:
            assert index.image_of_recipe(target, snapshot.image_recipe)
            for plan in snapshot.plans:
                assert index.plans_of_recipe(target, plan.recipe) == (plan,)
            log = target.read_blob(snapshot.smoke[0].log_digest, limit_bytes=100)
            assert log.startswith(b"log of ")


@pytest.mark.parametrize("to", KINDS)
def test_a_second_copy_moves_nothing(tmp_path: Path, to: str) -> None:
    source, target = MemoryStore(), KINDS[to](tmp_path)
    images = two_images(source)
    with_evidence(source, images[0])
    first = copy_images(source, target)
    again = copy_images(source, target)
    assert (again.blobs_moved, again.entries_moved, again.moved_bytes) == (0, 0, 0)
    assert again.blobs_skipped == first.blobs_moved + first.blobs_skipped == 3 + 4 + 2 + 2 + 2
    assert again.entries_skipped == first.entries_moved == 2 + 4 + 2 + 2
    assert again.skipped_bytes >= 3 * PLAN_BYTES


def test_only_what_is_missing_is_read_and_written() -> None:
    """The second image's plans and layers are there but for a few chunks and one layer."""
    source, target = FarObjects(), FarObjects()
    one, other = two_images(ObjectStore(source))
    copy_images(ObjectStore(source), ObjectStore(target), images=[one])
    source.forget()
    target.forget()
    done = copy_images(ObjectStore(source), ObjectStore(target), images=[other])
    packs = [size for name, size in target.written if name.startswith("packs/")]
    assert len(packs) == 1
    assert 0 < packs[0] < MIB
    assert source.bytes_of("packs/") < MIB
    big = BLOBS + digest_of_bytes(LAYERS[1])[7:]
    assert big not in [name for name, _ in target.written]
    assert big not in [each.name for each in source.reads]
    assert done.moved_bytes < MIB
    assert done.skipped_bytes > 2 * PLAN_BYTES - MIB


def test_only_the_images_that_are_asked_for_are_copied() -> None:
    source, target = MemoryStore(), MemoryStore()
    one, other = two_images(source)
    done = copy_images(source, target, images=[one, one])
    assert done.images == (one,)
    assert list(target.keys(index.SNAPSHOTS)) == [one]
    assert not target.has_blob(other)
    with pytest.raises(LookupMissError, match="no snapshot of"):
        copy_images(source, target, images=[digest_of_bytes(b"nobody's")])


def named_by(source: ObjectStore, name: str) -> set[str]:
    """The objects of a source that must be in the target before an object is visible there."""
    kind = name.split("/")[1]
    if not name.startswith("index/"):
        return set()
    image = "sha256:" + name.split("/")[2]
    if kind == "evidence":
        return {"index/snapshots/" + name.split("/")[2] + "/"}
    blobs = [image] if kind == "snapshots" else []
    document = json.loads(b"".join(source.objects.read(name)))
    blobs += [document["digest"]] if kind in ("plans", "images") else []
    if kind == "snapshots":
        blobs += [plan["digest"] for plan in document["plans"]]
        blobs += [each["log_digest"] for each in document["smoke"]]
    if kind in ("snapshots", "images"):
        manifest = index.read_manifest(source, document.get("digest", image))
        blobs += manifest.digests
    return set(blobs)


def lasting(written: list[tuple[str, int]]) -> dict[str, int]:
    """What was written, without the claims that hold a collection off."""
    return {name: size for name, size in written if not name.startswith("index/claims/")}


def test_an_object_is_written_after_all_it_names() -> None:
    source, target = MemoryStore(), FarObjects()
    for image in two_images(source):
        with_evidence(source, image)
    copy_images(source, ObjectStore(target))
    checked, seen = 0, MemoryStore()
    for name in lasting(target.written):
        for wanted in named_by(source, name):
            found = seen.has_blob(wanted) if wanted.startswith("sha256:") else True
            if not wanted.startswith("sha256:"):
                found = any(each.startswith(wanted) for each in seen.objects.held)
            assert found, f"{name} came before {wanted}"
            checked += 1
        seen.objects.held[name] = target.inner.held[name]
    assert checked > 30


def test_a_cut_copy_goes_on_where_it_ended() -> None:
    """Cut after every number of writes: no object is sent twice, and every chunk once in all."""
    source, whole = MemoryStore(), FarObjects()
    two_images(source)
    copy_images(source, ObjectStore(whole))
    everything = len(lasting(whole.written))
    assert everything > 20
    for cut in range(len(whole.written)):
        target = FarObjects()
        target.writes_left = cut
        with pytest.raises(StoreError, match="cut"):
            copy_images(source, ObjectStore(target))
        first = lasting(target.written)
        target.writes_left = None
        target.written.clear()
        copy_images(source, ObjectStore(target))
        second = lasting(target.written)
        assert not first.keys() & second.keys()
        assert len(first) + len(second) == everything
        packs = sum(size for name, size in (first | second).items() if "packs/" in name)
        assert packs == sum(size for name, size in whole.written if "packs/" in name)
        held = lasting([(name, 0) for name in target.inner.held])
        assert {**first, **second}.keys() == held.keys()


def test_chunks_of_a_cut_plan_are_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.store import packs

    monkeypatch.setattr(packs, "PACK_BYTES", 256 << 10)
    source = MemoryStore()
    store_image(source, {"p": Family(3 * MIB).base})
    total = 0
    target = FarObjects()
    for cut in (4, 3, None):
        target.writes_left = cut
        try:
            copy_images(source, ObjectStore(target))
        except StoreError:
            assert cut is not None
        total += sum(size for name, size in target.written if "packs/" in name)
        target.written.clear()
    packs_held = [data for name, data in target.inner.held.items() if "packs/" in name]
    assert len(packs_held) > 5
    assert total == sum(map(len, packs_held)) < 3 * MIB + len(packs_held) * HEADER_GUESS_BYTES


def test_a_far_store_is_asked_once_for_the_blobs_of_many_images(monkeypatch) -> None:
    monkeypatch.setattr(copying, "LISTED_FROM", 5)
    source, target = MemoryStore(), FarObjects()
    layers = [b"layer %d" % number for number in range(40)]
    for name in ("a", "b"):
        store_image(source, {}, name=name, layers=layers)
    copy_images(source, ObjectStore(target))
    target.forget()
    done = copy_images(source, ObjectStore(target))
    assert done.blobs_skipped == 40 + 2 * 2
    assert target.asked.count(BLOBS) == 1
    assert sum(each.startswith(BLOBS) and each != BLOBS for each in target.asked) == 5


def test_a_near_store_is_not_listed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(copying, "LISTED_FROM", 0)
    source, target = MemoryStore(), LocalStore(tmp_path)
    store_image(source, {})
    monkeypatch.setattr(target.objects, "listing", refuse_blobs(target.objects.listing))
    copy_images(source, target)


def refuse_blobs(listing):
    def refusing(prefix):
        assert prefix != BLOBS
        return listing(prefix)

    return refusing


def test_a_snapshot_that_is_not_whole_is_left_out() -> None:
    source, target = MemoryStore(), MemoryStore()
    one, other = two_images(source)
    lost = json.loads(next(source.entries(index.SNAPSHOTS, one)))["smoke"][0]["log_digest"]
    source.objects.remove(BLOBS + lost[7:])
    done = copy_images(source, target)
    (left,) = done.left_out
    assert left.image == one
    assert lost in left.why
    assert list(target.keys(index.SNAPSHOTS)) == [other]


@pytest.mark.parametrize("where", ["blobs/", "packs/", "maps/", "index/snapshots/"])
def test_damage_in_the_source_is_never_copied(where: str) -> None:
    source, target = MemoryStore(), MemoryStore()
    store_image(source, {"p": Family(2 * MIB).base}, layers=[bytes(1000)])
    name = max((n for n in source.objects.held if n.startswith(where)), key=source.objects.size)
    data = source.objects.held[name]
    source.objects.held[name] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(IntegrityError):
        copy_images(source, target)
    assert list(target.keys(index.SNAPSHOTS)) == []


def test_an_entry_under_another_key_is_refused() -> None:
    source = MemoryStore()
    image = store_image(source, {})
    other = digest_of_bytes(b"another image")
    source.put_entry(index.SNAPSHOTS, other, next(source.entries(index.SNAPSHOTS, image)))
    with pytest.raises(IntegrityError, match="lies under"):
        copy_images(source, MemoryStore(), images=[other])


def test_progress_is_told() -> None:
    source, told = MemoryStore(), list[CopyProgress]()
    images = two_images(source)
    done = copy_images(source, MemoryStore(), report=told.append)
    assert [each.image for each in told] == sorted(each.image for each in told)
    assert {each.number for each in told} == {1, 2}
    assert told[-1].moved_bytes == done.moved_bytes
    assert [each.moved_bytes for each in told] == sorted(each.moved_bytes for each in told)
    assert len(told) >= len(images) + done.blobs_moved + done.blobs_skipped


# The verb


def run(*args: str) -> tuple[int, str, str]:
    import typer

    from builders.cli.copy import copy

    app = typer.Typer()
    app.command("copy")(copy)
    ended = CliRunner().invoke(app, list(args))
    return ended.exit_code, ended.stdout, ended.stderr


def test_the_verb_copies_and_says_so(tmp_path: Path) -> None:
    source = LocalStore(tmp_path / "source")
    one, other = two_images(source)
    code, out, _ = run(str(source.root), str(tmp_path / "target"), "--image", one[7:20])
    assert code == 0
    assert "1 images" in out
    target = LocalStore(tmp_path / "target")
    assert list(target.keys(index.SNAPSHOTS)) == [one]
    code, out, _ = run(str(source.root), f"file://{target.root}", "--json")
    assert code == 0
    document = msgspec.json.decode(out.encode(), type=CopyReport)
    assert document.images == tuple(sorted((one, other)))
    assert document.blobs_moved > 0 < document.blobs_skipped
    assert document.target == f"file://{target.root}"


def test_the_verb_refuses_a_read_only_target_and_an_unknown_image(tmp_path: Path) -> None:
    source = LocalStore(tmp_path / "source")
    two_images(source)
    code, _, err = run(str(source.root), f"file://{tmp_path}/target?read-only=yes")
    assert code == 8
    assert "read-only" in err
    assert run(str(source.root), str(tmp_path / "target"), "--image", "0" * 64)[0] == 9
    assert run(str(source.root), str(tmp_path / "target"), "--image", "rtx")[0] == 2
    assert run(str(source.root), str(tmp_path / "target"), "--channel", "nobody")[0] == 9
    assert not (tmp_path / "target").exists()


def test_the_verb_ends_with_8_when_something_was_left_out(tmp_path: Path) -> None:
    source = LocalStore(tmp_path / "source")
    one, other = two_images(source)
    (source.root / BLOBS / digest_of_bytes(b"log of rtx")[7:]).unlink()
    code, _, err = run(str(source.root), str(tmp_path / "target"))
    assert code == 8
    assert f"{one}: the snapshot for sm89" in err
    assert list(LocalStore(tmp_path / "target").keys(index.SNAPSHOTS)) == [other]


def test_load_records_are_copied_with_their_image() -> None:
    source, target = MemoryStore(), MemoryStore()
    (first, second) = two_images(source)
    put_load(source, a_record(image=first))
    copy_images(source, target, images=[first])
    assert loads_of_image(target, first) == loads_of_image(source, first) != ()
    assert loads_of_image(target, second) == ()
