"""The index and the lookup: a hit implies the bytes, a miss says what is near."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import msgspec
import pytest

from engines import index
from engines.lookup import (
    lookup,
    lookup_json_schema,
    lookup_to_json,
    nearest_recipes,
    plan_file_names,
    pull,
)
from engines.lookup_miss import nearest_keys
from engines.snapshot import BudgetFigures, DeviceReport, Snapshot, from_json, to_json
from engines.store.local_store import LocalStore
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError
from planyard.core.results import ImageRecord, Layer, PlanRecord, SmokeVerdict
from tests.object_places import MemoryStore

NOWHERE = digest_of_bytes(b"in no store")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def put(store: Store, data: bytes) -> str:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    return digest


def a_plan(
    profile: str = "640", *, sm: int = 89, data: bytes = b"", **inputs: object
) -> PlanRecord:
    """A record of a plan with the bytes `data`; it is not in any store."""
    whole = {"profile": profile, "sm": sm, "flags": {"level": 3}} | inputs
    return PlanRecord(
        cell=f"rtx/ocr-det/{profile}/fp16/sm{sm}",
        recipe=digest_of_value(whole),
        digest=digest_of_bytes(data or bytes_of_plan(profile, sm)),
        size_bytes=len(data or bytes_of_plan(profile, sm)),
        backend="tensorrt-rtx",
        version="1.7.1.116",
        sm=sm,
        model="ocr-det",
        profile=profile,
        precision="fp16",
        compile_seconds=0.5,
        inputs=whole,
    )


def bytes_of_plan(profile: str, sm: int) -> bytes:
    return f"plan {profile} {sm}".encode()


def a_stored_plan(store: Store, profile: str = "640", *, sm: int = 89) -> PlanRecord:
    put(store, bytes_of_plan(profile, sm))
    plan = a_plan(profile, sm=sm)
    index.put_plan(store, plan)
    return plan


def an_image(store: Store, name: str = "rtx") -> ImageRecord:
    """An image of one layer, stored whole, not entered."""
    config, layer = put(store, f"config {name}".encode()), put(store, f"layer {name}".encode())
    named = {"config": {"digest": config, "size": 1}, "layers": [{"digest": layer, "size": 1}]}
    return ImageRecord(
        name=name,
        digest=put(store, canonical_json(named)),
        recipe=digest_of_bytes(name.encode()),
        pull_bytes=1,
        unpacked_bytes=1,
        layers=(
            Layer(
                digest=layer,
                diff_id=digest_of_bytes(f"unpacked {name}".encode()),
                pull_bytes=1,
                unpacked_bytes=1,
                created_by="COPY",
            ),
        ),
    )


def a_snapshot(image: ImageRecord, *plans: PlanRecord, sm: int = 89, **fields: object) -> Snapshot:
    whole = {
        "image": image.digest,
        "image_name": image.name,
        "image_recipe": image.recipe,
        "gpu": f"sm{sm}",
        "sm": sm,
        "pins": {},
        "versions_found": {},
        "device": DeviceReport(),
        "workspace_bytes": 0,
        "plans": plans,
        "smoke": (),
        "gates_off": (),
        "budget": BudgetFigures(pull_bytes=1, unpacked_bytes=1, largest_layer_bytes=1),
        "commit": None,
        "matrix_digest": digest_of_bytes(b"matrix"),
        "created": "2026-11-21T15:00:00Z",
        "planyard_version": "0.1.0",
    }
    return Snapshot(**(whole | fields))


@pytest.fixture
def filled(store: Store) -> tuple[Store, ImageRecord]:
    """An image with two GPUs and two profiles each: four plans in two snapshots."""
    image = an_image(store)
    index.put_image(store, image)
    for sm in (89, 120):
        plans = [a_stored_plan(store, profile, sm=sm) for profile in ("640", "960")]
        index.put_snapshot(store, a_snapshot(image, *plans, sm=sm))
    return store, image


# the index


def test_a_plan_is_found_by_its_recipe(store: Store) -> None:
    plan = a_stored_plan(store)
    a_stored_plan(store, "960")
    assert index.plans_of_recipe(store, plan.recipe) == (plan,)
    assert index.plans_of_recipe(store, NOWHERE) == ()


def test_a_recipe_may_have_several_plans(store: Store) -> None:
    plans = [a_plan(data=data) for data in (b"one build", b"another build")]
    for plan, data in zip(plans, (b"one build", b"another build"), strict=True):
        put(store, data)
        index.put_plan(store, plan)
    found = index.plans_of_recipe(store, plans[0].recipe)
    assert found == tuple(sorted(plans, key=lambda plan: plan.digest))


def test_a_plan_is_entered_only_after_its_bytes(store: Store) -> None:
    with pytest.raises(StoreError, match=a_plan().digest):
        index.put_plan(store, a_plan())
    assert index.plans_of_recipe(store, a_plan().recipe) == ()
    assert list(store.keys(index.PLANS)) == []


def test_a_plan_under_another_recipe_is_refused(store: Store) -> None:
    plan = msgspec.structs.replace(a_stored_plan(store), recipe=NOWHERE)
    with pytest.raises(IntegrityError):
        index.put_plan(store, plan)


def test_a_plan_whose_bytes_are_gone_is_no_hit(local: LocalStore) -> None:
    plan = a_stored_plan(local)
    (local.root / "blobs/sha256" / plan.digest[7:]).unlink()
    assert index.plans_of_recipe(local, plan.recipe) == ()


def test_a_valid_entry_moved_under_another_key_is_damage(local: LocalStore) -> None:
    plan, other = a_stored_plan(local), a_stored_plan(local, "960")
    folder = local.root / "index" / index.PLANS
    (entry,) = (folder / plan.recipe[7:]).iterdir()
    entry.rename(folder / other.recipe[7:] / entry.name)
    with pytest.raises(IntegrityError):
        index.plans_of_recipe(local, other.recipe)


@pytest.mark.parametrize("kind", [index.PLANS, index.IMAGES])
def test_an_entry_that_cannot_be_read_is_damage(store: Store, kind: str) -> None:
    find: Callable[[Store, str], object] = {
        index.PLANS: index.plans_of_recipe,
        index.IMAGES: index.image_of_recipe,
    }[kind]
    for document in (b"{}", b"not json", b"[" * 100_000, b'{"cell":"\xff"}'):
        key = digest_of_bytes(document)
        store.put_entry(kind, key, document)
        with pytest.raises(IntegrityError):
            find(store, key)


def test_an_image_is_found_by_its_recipe(store: Store) -> None:
    image = an_image(store)
    assert index.image_of_recipe(store, image.recipe) is None
    index.put_image(store, image)
    assert index.image_of_recipe(store, image.recipe) == image


@pytest.mark.parametrize("lost", [b"config rtx", b"layer rtx"])
def test_an_image_that_is_not_whole_is_no_hit_and_is_not_entered(
    local: LocalStore, lost: bytes
) -> None:
    image = an_image(local)
    index.put_image(local, image)
    (local.root / "blobs/sha256" / digest_of_bytes(lost)[7:]).unlink()
    assert index.image_of_recipe(local, image.recipe) is None
    with pytest.raises(StoreError, match=digest_of_bytes(lost)):
        index.put_image(local, msgspec.structs.replace(image, recipe=NOWHERE))


def test_a_snapshot_is_entered_only_after_all_it_names(store: Store) -> None:
    image, plan = an_image(store), a_stored_plan(store)
    log = SmokeVerdict(cell=plan.cell, verdict="passed", log_digest=NOWHERE)
    incomplete = [
        a_snapshot(image, a_plan("1280")),
        a_snapshot(msgspec.structs.replace(image, digest=NOWHERE), plan),
        a_snapshot(image, plan, smoke=(log,)),
    ]
    for snapshot in incomplete:
        with pytest.raises(StoreError):
            index.put_snapshot(store, snapshot)
        assert index.snapshots_of_image(store, snapshot.image) == ()


def test_a_snapshot_has_the_digest_of_its_document(store: Store) -> None:
    snapshot = a_snapshot(an_image(store), a_stored_plan(store))
    assert index.put_snapshot(store, snapshot) == digest_of_bytes(to_json(snapshot))
    assert index.snapshots_of_image(store, snapshot.image) == (snapshot,)


def test_snapshots_come_newest_first_and_then_by_gpu(store: Store) -> None:
    image = an_image(store)
    made = [
        a_snapshot(image, sm=sm, created=created)
        for created in ("2026-11-22T00:00:00Z", "2026-11-21T00:00:00Z")
        for sm in (120, 89)
    ]
    for snapshot in made[::-1]:
        index.put_snapshot(store, snapshot)
    assert index.snapshots_of_image(store, image.digest) == tuple(made)


# lookup


def test_a_lookup_gives_snapshots_and_plans(filled: tuple[Store, ImageRecord]) -> None:
    store, image = filled
    result = lookup(store, image.digest)
    assert [snapshot.sm for snapshot in result.snapshots] == [120, 89]
    assert [plan.cell for plan in result.plans] == [
        f"rtx/ocr-det/{profile}/fp16/sm{sm}" for profile in ("640", "960") for sm in (120, 89)
    ]
    assert result.not_fitting == ()


def test_the_json_of_a_lookup_is_what_its_schema_says(filled: tuple[Store, ImageRecord]) -> None:
    store, image = filled
    document = json.loads(lookup_to_json(lookup(store, image.digest, sm=89)))
    validator = jsonschema.Draft202012Validator(lookup_json_schema())
    validator.validate(document)
    assert document["schema"] == 1
    assert document["image"] == image.digest
    assert set(document) == {"schema", "image", "snapshots", "plans", "not_fitting"}
    assert set(document["plans"][0]) == {
        *("recipe", "digest", "cell", "size_bytes", "sm", "backend", "version"),
        *("model", "profile", "precision", "inspector"),
    }
    assert set(document["not_fitting"][0]) == {"cell", "digest", "why"}
    assert list(validator.iter_errors(document | {"plans": [{"recipe": 1}]}))


def test_a_lookup_for_an_sm_says_why_the_others_do_not_fit(
    filled: tuple[Store, ImageRecord],
) -> None:
    store, image = filled
    result = lookup(store, image.digest, sm=89)
    assert {plan.sm for plan in result.plans} == {89}
    assert len(result.plans) == len(result.not_fitting) == 2
    for left_out in result.not_fitting:
        assert left_out.cell.endswith("sm120")
        assert "SM 12.0" in left_out.why
        assert "8.9" in left_out.why


def test_a_plan_whose_bytes_are_gone_is_not_answered(local: LocalStore) -> None:
    image, plan = an_image(local), a_stored_plan(local)
    index.put_snapshot(local, a_snapshot(image, plan))
    (local.root / "blobs/sha256" / plan.digest[7:]).unlink()
    result = lookup(local, image.digest)
    assert result.plans == ()
    assert "not in file://" in result.not_fitting[0].why


def test_the_newest_snapshot_that_names_a_cell_decides(store: Store) -> None:
    image, old, other = an_image(store), a_stored_plan(store), a_stored_plan(store, "960")
    put(store, b"rebuilt")
    rebuilt = a_plan(data=b"rebuilt")
    index.put_snapshot(store, a_snapshot(image, old, other, created="2026-11-21T00:00:00Z"))
    index.put_snapshot(store, a_snapshot(image, rebuilt, created="2026-11-22T00:00:00Z"))
    found = [plan.digest for plan in lookup(store, image.digest).plans]
    assert found == [rebuilt.digest, other.digest]


@pytest.mark.parametrize("cut", [slice(19), slice(7, 19), slice(40), slice(7, None)])
def test_the_start_of_a_digest_is_enough(filled: tuple[Store, ImageRecord], cut: slice) -> None:
    store, image = filled
    assert lookup(store, image.digest[cut]).image == image.digest


@pytest.mark.parametrize(
    "asked",
    ["", "rtx", "rtx:latest", "sha256:", "sha256:abcdef12345", "a" * 65, "../" * 8, "G" * 64],
)
def test_what_is_no_digest_is_refused(filled: tuple[Store, ImageRecord], asked: str) -> None:
    with pytest.raises(InputError, match="not an image digest"):
        lookup(filled[0], asked)


def test_the_start_of_several_digests_is_refused(store: Store) -> None:
    keys = ["sha256:" + "a" * 60 + end for end in ("0000", "1111")]
    for key in keys:
        store.put_entry(index.SNAPSHOTS, key, b"{}")
    with pytest.raises(InputError) as raised:
        lookup(store, "a" * 20)
    assert all(key in raised.value.message for key in keys)


# misses


def test_a_miss_names_the_nearest(filled: tuple[Store, ImageRecord]) -> None:
    store, image = filled
    digits = image.digest[7:]
    other = "0" if digits[30] != "0" else "1"
    for slip in (
        "sha256:" + digits[:30] + other + digits[31:],
        "sha256:" + digits[:10] + "0" * 54,
        "sha256:" + "0" * 54 + digits[-10:],
        digits[:5] + other + digits[6:20],
    ):
        with pytest.raises(LookupMissError, match=image.digest) as raised:
            lookup(store, slip)
        assert raised.value.exit_code == 9


def test_a_miss_far_from_everything_says_so(filled: tuple[Store, ImageRecord]) -> None:
    with pytest.raises(LookupMissError, match="none of its 1 images is near"):
        lookup(filled[0], NOWHERE)


def test_a_miss_in_an_empty_store(store: Store) -> None:
    with pytest.raises(LookupMissError, match=NOWHERE):
        lookup(store, NOWHERE)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"config rtx", "the Docker image id"),
        (b"layer rtx", "a layer"),
        (b"unpacked rtx", "an unpacked layer"),
        (b"rtx", "the recipe"),
        (bytes_of_plan("640", 89), "a plan"),
    ],
)
@pytest.mark.parametrize("length", [64, 12])
def test_a_miss_says_what_the_digest_is_instead(
    filled: tuple[Store, ImageRecord], data: bytes, what: str, length: int
) -> None:
    store, image = filled
    with pytest.raises(LookupMissError) as raised:
        lookup(store, digest_of_bytes(data)[7:][:length])
    assert f"is {what}" in raised.value.message
    assert image.digest in raised.value.message
    assert raised.value.mend == f"planyard lookup {image.digest}"


def test_a_miss_names_every_image_a_plan_belongs_to(store: Store) -> None:
    plan, images = a_stored_plan(store), [an_image(store, name) for name in ("rtx", "rtx-debug")]
    for image in images:
        index.put_snapshot(store, a_snapshot(image, plan))
    with pytest.raises(LookupMissError) as raised:
        lookup(store, plan.digest)
    assert all(image.digest in raised.value.message for image in images)


def test_what_no_snapshot_names_is_explained(store: Store) -> None:
    image, plan = an_image(store), a_stored_plan(store)
    index.put_image(store, image)
    with pytest.raises(LookupMissError, match="is the image rtx, but no snapshot names it"):
        lookup(store, image.digest)
    with pytest.raises(LookupMissError, match=f"a plan of the cell {plan.cell}, but no snapshot"):
        lookup(store, plan.digest)


def test_the_nearest_keys_come_in_order() -> None:
    asked = "0123456789abcdef" * 4
    one_slip, two_slips = "f" + asked[1:], "ff" + asked[2:]
    start = asked[:12] + "9" * 52
    keys = ["sha256:" + digits for digits in ("9" * 64, start, two_slips, one_slip)]
    assert nearest_keys(asked, keys) == (keys[3], keys[2], keys[1])


def test_the_nearest_recipes_and_the_fields_that_differ(store: Store) -> None:
    near, far = a_stored_plan(store), a_stored_plan(store, "960", sm=120)
    asked = near.inputs | {"flags": {"level": 5}, "driver": "580"}
    first, second = nearest_recipes(store, asked)
    assert (first.recipe, first.cell) == (near.recipe, near.cell)
    told = [(one.field, one.asked, one.stored) for one in first.differs]
    assert told == [("driver", '"580"', "absent"), ("flags.level", "5", "3")]
    assert second.recipe == far.recipe
    assert {one.field for one in second.differs} == {"driver", "flags.level", "profile", "sm"}
    assert nearest_recipes(store, near.inputs)[0].differs == ()
    assert len(nearest_recipes(store, asked, limit=1)) == 1


# pull


def test_a_pull_writes_verified_files(filled: tuple[Store, ImageRecord], tmp_path: Path) -> None:
    store, image = filled
    result = lookup(store, image.digest, sm=89)
    paths = pull(store, result, tmp_path / "new" / "out")
    assert [path.name for path in paths] == [
        "ocr-det-640-fp16-sm89.plan",
        "ocr-det-960-fp16-sm89.plan",
        "snapshot.json",
    ]
    assert sorted((tmp_path / "new" / "out").iterdir()) == sorted(paths)
    assert paths[0].read_bytes() == bytes_of_plan("640", 89)
    document = json.loads(paths[2].read_bytes())
    assert document["image"] == image.digest
    assert from_json(canonical_json(document["snapshots"][0])) == result.snapshots[0]


def test_a_second_pull_rewrites_only_what_differs(
    filled: tuple[Store, ImageRecord], tmp_path: Path
) -> None:
    store, image = filled
    result = lookup(store, image.digest, sm=89)
    paths = pull(store, result, tmp_path / "out")
    first = {path: path.stat().st_ino for path in paths}
    assert pull(store, result, tmp_path / "out") == paths
    assert {path: path.stat().st_ino for path in paths} == first
    paths[0].write_bytes(b"tampered with")
    pull(store, result, tmp_path / "out")
    assert paths[0].read_bytes() == bytes_of_plan("640", 89)
    assert paths[1].stat().st_ino == first[paths[1]]
    paths[2].write_bytes(b"{}")
    pull(store, result, tmp_path / "out")
    assert json.loads(paths[2].read_bytes())["image"] == image.digest


def test_a_pull_replaces_links_and_not_what_they_point_at(
    filled: tuple[Store, ImageRecord], tmp_path: Path
) -> None:
    store, image = filled
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(bytes_of_plan("640", 89))
    out.mkdir()
    for name in ("ocr-det-640-fp16-sm89.plan", "snapshot.json"):
        (out / name).symlink_to(victim)
    paths = pull(store, lookup(store, image.digest, sm=89), out)
    assert not any(path.is_symlink() for path in paths)
    paths[2].rename(tmp_path / "the right summary")
    paths[2].symlink_to(tmp_path / "the right summary")
    pull(store, lookup(store, image.digest, sm=89), out)
    assert not paths[2].is_symlink()
    assert victim.read_bytes() == bytes_of_plan("640", 89)


def test_a_pull_of_a_damaged_plan_writes_no_part_of_it_and_no_summary(
    local: LocalStore, tmp_path: Path
) -> None:
    image = an_image(local)
    plans = [a_stored_plan(local, profile) for profile in ("640", "960")]
    index.put_snapshot(local, a_snapshot(image, *plans))
    result = lookup(local, image.digest)
    pull(local, result, tmp_path / "out")
    (tmp_path / "out/ocr-det-960-fp16-sm89.plan").unlink()
    blob = local.root / "blobs/sha256" / plans[1].digest[7:]
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        pull(local, result, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ocr-det-640-fp16-sm89.plan"]


def test_a_folder_that_cannot_be_written_is_a_store_error(
    filled: tuple[Store, ImageRecord], tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(StoreError):
        pull(filled[0], lookup(filled[0], filled[1].digest), tmp_path / "out")


def test_plans_of_one_name_are_told_apart(filled: tuple[Store, ImageRecord]) -> None:
    store, image = filled
    one, other, *_ = lookup(store, image.digest).plans
    replace = msgspec.structs.replace
    same = [replace(one, cell="rtx/a-b/c/d/e"), replace(other, cell="rtx/a/b-c/d/e")]
    names = plan_file_names(same)
    assert names == tuple(f"a-b-c-d-e-{plan.digest[7:19]}.plan" for plan in same)
    assert plan_file_names([replace(one, cell="rtx/../../etc/passwd")]) == ("etc-passwd.plan",)
    assert plan_file_names([replace(one, cell="rtx")]) == (f"{one.digest[7:19]}.plan",)


def test_two_plans_for_one_file_are_refused(
    filled: tuple[Store, ImageRecord], tmp_path: Path
) -> None:
    store, image = filled
    result = lookup(store, image.digest)
    replace = msgspec.structs.replace
    one, other, third, _ = result.plans
    taken = f"rtx/a-{one.digest[7:19]}"
    plans = (replace(one, cell="rtx/a"), replace(other, cell="rtx/a"), replace(third, cell=taken))
    with pytest.raises(IntegrityError, match="two plans for one file"):
        pull(store, replace(result, plans=plans), tmp_path / "out")
    assert not (tmp_path / "out").exists()
