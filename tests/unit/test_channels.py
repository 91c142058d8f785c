"""Channels of a store: what a move reads and writes, what it refuses, how it survives damage."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from engines import index
from engines.channels import history as channel_history
from engines.channels.history import PROMOTIONS, history, read_head, resolve_channel
from engines.channels.moves import Mover, promote, rollback
from engines.channels.promotion import EvidenceState, Waiver
from engines.channels.record import Seen, key_of_channel
from engines.channels.seen import record_state, seen_file, seen_state
from engines.store import objects as names
from engines.store.store import ObjectStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError
from planyard.core.findings import Finding
from tests.channel_sites import ANN, CHANNEL, Watched, backwards, images, moved, small_image
from tests.object_places import MemoryStore
from tests.signed_evidence import a_site, a_snapshot, a_verdict, an_image

BOB = Mover(by="bob@ci", now="2026-11-22T09:00:00Z", because="latency doubled")
NOT_RUN = Waiver(gate="not-run", because="no L4 until May")
BAD = Finding(gate="evidence", rule="evidence.failed", message="signed as failed")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def at(store, channel=CHANNEL):
    return read_head(store, channel).state


def versions(store):
    return [state.version for state in history(store, at(store))]


def record_name(state):
    return names.entry_name(PROMOTIONS, key_of_channel(state.channel), state.entry)


def point_at(store, document):
    """Move the pointer past all rules, as who can write into the store can."""
    found = store.objects.pointer(CHANNEL)
    data = document if isinstance(document, bytes) else canonical_json(document)
    assert store.objects.move_pointer(CHANNEL, data, expected=found.token if found else None)


def pointer(store):
    return json.loads(store.objects.pointer(CHANNEL).data)


# Promote


def test_the_first_promotion(store):
    (image,) = images(store, 1)
    move = promote(store, CHANNEL, image, mover=ANN)
    assert (move.moved, move.before, move.objections) == (True, None, ())
    assert move.now == at(store)
    state = at(store)
    assert (state.version, state.image, state.image_name) == (1, image, "rtx0")
    assert (state.by, state.moved_at, state.previous) == (ANN.by, ANN.now, "")
    assert len(state.snapshots) == 2
    assert resolve_channel(store, CHANNEL) == image
    assert pointer(store) == {
        "schema": 1,
        "channel": CHANNEL,
        "record": state.entry,
        "image": image,
        "version": 1,
    }


def test_a_second_promotion_names_the_first(store):
    first, second = images(store, 2)
    moves = moved(store, first, second)
    assert moves[1].before == moves[0].now
    state = at(store)
    assert (state.version, state.from_image, state.previous) == (2, first, moves[0].now.entry)
    assert versions(store) == [2, 1]


def test_what_is_there_already_is_nothing_to_do(store):
    (image,) = images(store, 1)
    moved(store, image)
    before = dict(store.objects.held), store.objects.pointer(CHANNEL)
    move = promote(store, CHANNEL, image, mover=BOB)
    assert (move.moved, move.objections, move.now) == (False, (), at(store))
    assert (dict(store.objects.held), store.objects.pointer(CHANNEL)) == before


@pytest.mark.parametrize("verdict", ["failed", "not run"])
def test_an_image_that_did_not_pass_does_not_move_a_channel(store, verdict):
    image = a_site(store, verdict).digest
    held = dict(store.objects.held)
    move = promote(store, CHANNEL, image, mover=ANN)
    assert not move.moved
    assert move.now is None
    assert [each.where for each in move.objections] == ["rtx/ocr/640/fp16/l4"]
    assert read_head(store, CHANNEL) is None
    assert store.objects.held == held


def test_a_waiver_is_recorded_with_who_and_why(store):
    image = a_site(store, "not run").digest
    move = promote(store, CHANNEL, image, mover=BOB, waivers=[NOT_RUN])
    assert move.moved
    (waived,) = at(store).waived
    assert (waived.gate, waived.because) == ("not-run", "no L4 until May")
    assert waived.where == ("rtx/ocr/640/fp16/l4 promote.not-run",)
    assert at(store).by == BOB.by


def test_a_waiver_of_nothing_moves_nothing(store):
    (image,) = images(store, 1)
    with pytest.raises(InputError, match="nothing objects"):
        promote(store, CHANNEL, image, mover=ANN, waivers=[NOT_RUN])
    assert read_head(store, CHANNEL) is None


def test_one_gpu_may_be_promoted_alone(store):
    image = a_site(store, "not run").digest
    move = promote(store, CHANNEL, image, mover=ANN, gpus=["rtx4090"])
    assert move.moved
    assert at(store).gpus == ("rtx4090",)
    assert len(at(store).snapshots) == 1


def test_gates_that_are_off_are_recorded(store):
    image = an_image(store)
    cell = a_verdict("rtx/ocr/640/fp16/l4", logs="off")
    index.put_snapshot(store, a_snapshot(image, smoke=(cell,), gates_off=("logs", "outputs")))
    assert promote(store, CHANNEL, image.digest, mover=ANN).now.gates_off == ("logs", "outputs")


def test_an_unknown_image_is_a_miss(store):
    images(store, 1)
    with pytest.raises(LookupMissError, match="has no image"):
        promote(store, CHANNEL, digest_of_bytes(b"unknown"), mover=ANN)


def test_an_image_without_snapshots_is_a_miss(store):
    with pytest.raises(LookupMissError):
        promote(store, CHANNEL, an_image(store).digest, mover=ANN)


@pytest.mark.parametrize("name", ["Stable", "a/b", "0123456789ab"])
def test_what_is_no_name_is_refused(store, name):
    (image,) = images(store, 1)
    with pytest.raises(InputError):
        promote(store, name, image, mover=ANN)


def parts_of(store, image):
    """Everything that has to be stored of a small image, by what it is called."""
    manifest = index.read_manifest(store, image.digest)
    return {
        "the manifest": names.blob_name(image.digest),
        "the configuration": names.blob_name(manifest.config.digest),
        "the layer": names.blob_name(manifest.layers[0].digest),
        "the plan of rtx/ocr/640/fp16/l4,": next(
            each for each in store.objects.held if each.startswith(names.PACKS)
        ),
    }


@pytest.mark.parametrize("part", range(4))
def test_what_is_lost_objects_and_cannot_be_waived(store, part):
    image, _ = small_image(store, "rtx", plan=random.Random(4).randbytes(2 << 20))
    what, name = list(parts_of(store, image).items())[part]
    store.objects.remove(name)
    move = promote(store, CHANNEL, image.digest, mover=ANN)
    (finding,) = move.objections
    assert (finding.gate, move.moved) == ("incomplete", False)
    assert [line.startswith(f"{what} sha256:") for line in finding.evidence] == [True]
    waiver = Waiver(gate="incomplete", because="x")
    with pytest.raises(InputError, match="cannot be served"):
        promote(store, CHANNEL, image.digest, mover=ANN, waivers=[waiver])


def test_a_lost_record_of_the_image_objects(store):
    image, _ = small_image(store, "rtx", plan=b"plan")
    for name in [each for each in store.objects.held if each.startswith("index/images/")]:
        store.objects.remove(name)
    move = promote(store, CHANNEL, image.digest, mover=ANN)
    assert move.objections[0].evidence == (f"the record of the image {image.digest}",)


def test_what_the_record_says_of_the_contents_objects(store):
    finding = Finding(gate="closure", rule="closure.missing", message="libx.so is missing")
    record = msgspec.structs.replace(an_image(store), findings=(finding,))
    for name in [each for each in store.objects.held if each.startswith("index/images/")]:
        store.objects.remove(name)
    index.put_image(store, record)
    smoke = (a_verdict("rtx/ocr/640/fp16/l4"),)
    index.put_snapshot(store, a_snapshot(record, smoke=smoke))
    assert promote(store, CHANNEL, record.digest, mover=ANN).objections == (finding,)


def test_what_the_audit_found_objects_until_a_newer_snapshot_has_it_not(store):
    secret = Finding(gate="image", rule="image.secret", message="a key in /app/key.pem")
    docs = Finding(gate="image", rule="image.docs", message="22 kB", severity="warn")
    record = an_image(store)
    smoke = (a_verdict("rtx/ocr/640/fp16/l4"),)
    bad = a_snapshot(record, smoke=smoke, audit=(secret, docs), created="2026-11-20T00:00:00Z")
    index.put_snapshot(store, bad)
    move = promote(store, CHANNEL, record.digest, mover=ANN)
    assert (move.moved, secret in move.objections) == (False, True)
    good = msgspec.structs.replace(bad, audit=(docs,), created="2026-11-21T00:00:00Z")
    index.put_snapshot(store, good)
    assert promote(store, CHANNEL, record.digest, mover=ANN).moved


def test_evidence_is_asked_for_and_recorded(store):
    first, second = images(store, 2)
    entry = digest_of_bytes(b"entry")
    asked = []

    def evidence(image):
        asked.append(image)
        return EvidenceState(entry=entry) if image == first else EvidenceState()

    assert promote(store, CHANNEL, first, mover=ANN, evidence=evidence).moved
    assert at(store).evidence == entry
    move = promote(store, CHANNEL, second, mover=ANN, evidence=evidence)
    assert [each.gate for each in move.objections] == ["signature"]
    assert asked == [first, second]
    assert at(store).image == first


def test_evidence_that_cannot_be_verified_is_raised(store):
    (image,) = images(store, 1)

    def evidence(_):
        raise StoreError("no cosign")

    with pytest.raises(StoreError, match="no cosign"):
        promote(store, CHANNEL, image, mover=ANN, evidence=evidence)
    assert read_head(store, CHANNEL) is None


# What a move costs


def test_a_move_reads_no_plan_no_layer_and_writes_one_record(store):
    made = [small_image(store, name, plan=random.Random(name).randbytes(2 << 20)) for name in "abc"]
    assert any(each.startswith(names.PACKS) for each in store.objects.held)
    watched = Watched(store.objects)
    opened = ObjectStore(watched)
    moved(opened, *(image.digest for image, _ in made))
    back = backwards(opened)
    assert back.now.image == made[1][0].digest
    small = {names.blob_name(image.digest) for image, _ in made}
    allowed = (names.INDEX, names.MAPS)
    assert [
        each for each in watched.read_names if each not in small and not each.startswith(allowed)
    ] == []
    records = [each for each in watched.written if not each.startswith("index/claims/")]
    assert len(records) == 4
    assert all(each.startswith(f"index/{PROMOTIONS}/") for each in records)


# Rollback


def test_a_rollback_goes_one_promotion_back_and_is_a_new_version(store):
    a, b, c = images(store, 3)
    moved(store, a, b, c)
    move = backwards(store, mover=BOB)
    assert (move.moved, move.skipped) == (True, ())
    state = at(store)
    assert (state.version, state.image, state.from_image, state.restores) == (4, b, c, 2)
    assert (state.action, state.by, state.because) == ("rollback", BOB.by, "latency doubled")
    assert versions(store) == [4, 3, 2, 1]


def test_two_rollbacks_go_back_twice_and_a_third_finds_nothing(store):
    a, b, c = images(store, 3)
    moved(store, a, b, c)
    assert [backwards(store).now.image for _ in range(2)] == [b, a]
    with pytest.raises(LookupMissError, match="nothing was promoted before"):
        backwards(store)
    assert versions(store) == [5, 4, 3, 2, 1]


def test_after_a_rollback_and_a_promotion_what_was_left_stays_left(store):
    a, b, c, d = images(store, 4)
    moved(store, a, b, c)
    backwards(store)
    moved(store, d)
    assert backwards(store).now.image == b


def test_a_rollback_to_a_given_image_forth_and_back(store):
    a, b, c = images(store, 3)
    moved(store, a, b, c)
    assert backwards(store, to=a).now.restores == 1
    assert backwards(store, to=c[7:19]).now.restores == 3
    assert at(store).image == c
    assert backwards(store).now.image == b


def test_a_rollback_to_where_it_is_is_nothing_to_do(store):
    a, b = images(store, 2)
    moved(store, a, b)
    move = backwards(store, to=b)
    assert (move.moved, move.now) == (False, at(store))
    assert versions(store) == [2, 1]


def test_a_rollback_to_what_was_never_there_is_refused(store):
    a, b, c = images(store, 3)
    moved(store, a, b)
    with pytest.raises(InputError, match="was never promoted") as raised:
        backwards(store, to=c)
    assert a in raised.value.message
    assert at(store).image == b


def test_a_channel_that_is_not_there(store):
    moved(store, *images(store, 1))
    with pytest.raises(LookupMissError, match="no channel canary; its channels are stable"):
        rollback(store, "canary", mover=ANN)


def break_image(store, digest):
    manifest = index.read_manifest(store, digest)
    store.objects.remove(names.blob_name(manifest.config.digest))


@pytest.mark.parametrize("how", ["config", "manifest", "damaged manifest", "snapshots", "garbage"])
def test_what_does_not_verify_is_passed_over_and_said(store, how):
    a, b, c = images(store, 3)
    moved(store, a, b, c)
    snapshots = [
        each for each in store.objects.held if each.startswith(f"index/snapshots/{b[7:]}/")
    ]
    if how == "config":
        break_image(store, b)
    elif how == "manifest":
        store.objects.remove(names.blob_name(b))
    elif how == "damaged manifest":
        store.objects.held[names.blob_name(b)] = b"{}"
    for name in snapshots:
        if how == "snapshots":
            store.objects.remove(name)
        elif how == "garbage":
            store.objects.held[name] = b"{}"
    move = backwards(store)
    assert move.now.image == a
    assert at(store).restores == 1
    (skipped,) = move.skipped
    assert (skipped.version, skipped.image) == (2, b)
    assert skipped.findings[0].gate == "incomplete"
    there = backwards(store, to=b)
    assert (there.moved, [each.gate for each in there.objections]) == (False, ["incomplete"])
    assert at(store).image == a


def test_where_nothing_verifies_nothing_moves(store):
    a, b = images(store, 2)
    moved(store, a, b)
    break_image(store, a)
    with pytest.raises(LookupMissError, match="none of its earlier promotions verifies") as raised:
        backwards(store)
    assert a in raised.value.log_tail[0]
    assert at(store).image == b


def test_a_rollback_asks_for_evidence_again(store):
    a, b, c = images(store, 3)
    moved(store, a, b, c)

    def evidence(image):
        return EvidenceState(entry=image, findings=(BAD,) if image == b else ())

    move = backwards(store, evidence=evidence)
    assert (move.now.image, move.now.evidence) == (a, a)
    assert [each.findings for each in move.skipped] == [(BAD,)]


def test_what_was_waived_stays_waived_on_the_way_back(store):
    a, b = images(store, 2)

    def evidence(image):
        return EvidenceState(entry=image, findings=(BAD,) if image == a else ())

    waiver = Waiver(gate="evidence", because="known")
    promote(store, CHANNEL, a, mover=ANN, evidence=evidence, waivers=[waiver])
    moved(store, b)
    move = backwards(store, evidence=evidence)
    assert move.now.image == a
    assert [each.because for each in move.now.waived] == ["known"]


def test_a_cell_that_failed_since_does_not_keep_from_going_back(store):
    """It ran in production before; what it said then was judged then."""
    a, b = images(store, 2)
    moved(store, a, b)
    newest = index.snapshots_of_image(store, a)[0]
    failed = tuple(msgspec.structs.replace(each, verdict="failed") for each in newest.smoke)
    later = msgspec.structs.replace(newest, created="2026-12-01T00:00:00Z", smoke=failed)
    index.put_snapshot(store, later)
    assert backwards(store).now.image == a
    assert not promote(store, "canary", a, mover=ANN).moved


def test_promoting_again_what_was_rolled_back_is_warned_about(store):
    a, b = images(store, 2)
    moved(store, a, b)
    backwards(store, mover=BOB)
    (again,) = moved(store, b)
    assert [each.rule for each in again.warnings] == ["promote.rolled-back"]
    assert "bob@ci: latency doubled" in again.warnings[0].message


# Races


@pytest.mark.parametrize("when", ["before_write", "before_move"])
def test_who_loses_a_race_is_told_and_changes_nothing(store, when):
    a, b, c = images(store, 3)
    moved(store, a)
    watched = Watched(store.objects)
    setattr(watched, when, lambda: promote(store, CHANNEL, b, mover=BOB))
    with pytest.raises(StoreError, match=f"now at version 2, {b}, moved by bob@ci") as raised:
        promote(ObjectStore(watched), CHANNEL, c, mover=ANN)
    assert raised.value.exit_code == 8
    assert "planyard channels stable" in raised.value.mend
    assert [state.image for state in history(store, at(store))] == [b, a]
    assert len(list(store.entries(PROMOTIONS, key_of_channel(CHANNEL)))) == 3


def test_a_rollback_may_lose_as_well(store):
    a, b, c = images(store, 3)
    moved(store, a, b)
    watched = Watched(store.objects)
    watched.before_move = lambda: promote(store, CHANNEL, c, mover=BOB)
    with pytest.raises(StoreError, match="moved meanwhile"):
        backwards(ObjectStore(watched))
    assert at(store).image == c


def test_two_equal_promotions_are_two_records_and_one_wins(store):
    (a,) = images(store, 1)
    watched = Watched(store.objects)
    watched.before_move = lambda: promote(store, CHANNEL, a, mover=ANN)
    with pytest.raises(StoreError, match="moved meanwhile"):
        promote(ObjectStore(watched), CHANNEL, a, mover=ANN)
    assert versions(store) == [1]


def test_a_move_whose_answer_was_lost_is_a_move(store):
    """As on S3: the request is sent again, and finds what it did itself."""
    (a,) = images(store, 1)

    class Forgetful(Watched):
        def move_pointer(self, name, data, *, expected):
            super().move_pointer(name, data, expected=expected)
            return False

    assert promote(ObjectStore(Forgetful(store.objects)), CHANNEL, a, mover=ANN).moved
    assert versions(store) == [1]


def test_a_move_that_breaks_off_before_the_pointer_is_not_seen(store):
    a, b = images(store, 2)
    moved(store, a)
    watched = Watched(store.objects)

    def broken():
        raise KeyboardInterrupt

    watched.before_move = broken
    with pytest.raises(KeyboardInterrupt):
        promote(ObjectStore(watched), CHANNEL, b, mover=ANN)
    assert versions(store) == [1]
    moved(store, b)
    assert versions(store) == [2, 1]


def test_the_record_is_there_before_the_pointer_names_it(store):
    (a,) = images(store, 1)
    watched = Watched(store.objects)
    seen = []
    watched.before_move = lambda: seen.extend(store.entries(PROMOTIONS, key_of_channel(CHANNEL)))
    promote(ObjectStore(watched), CHANNEL, a, mover=ANN)
    assert [json.loads(each)["image"] for each in seen] == [a]


# Damage and replay


@pytest.mark.parametrize(
    "fields",
    [{"version": 3}, {"image": digest_of_bytes(b"x")}, {"channel": "canary"}, {"schema": 2}, {}],
    ids=str,
)
def test_a_pointer_that_its_record_does_not_bear_out(store, fields):
    moved(store, *images(store, 2))
    point_at(store, pointer(store) | fields if fields else b"not json")
    for call in (lambda: read_head(store, CHANNEL), lambda: backwards(store)):
        with pytest.raises(IntegrityError):
            call()


def test_a_pointer_copied_to_another_channel_is_refused(store):
    moved(store, *images(store, 1))
    data = store.objects.pointer(CHANNEL).data
    store.objects.move_pointer("canary", data, expected=None)
    with pytest.raises(IntegrityError, match="one of stable"):
        resolve_channel(store, "canary")
    forged = pointer(store) | {"channel": "canary"}
    store.objects.pointed["canary"] = canonical_json(forged)
    with pytest.raises(IntegrityError, match="lacks the record"):
        resolve_channel(store, "canary")


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", ["flip", "cut", "grow", "gone", "other"])
def test_damage_anywhere_in_the_history_is_found(store, which, how):
    moved(store, *images(store, 3))
    states = list(history(store, at(store)))
    name = record_name(states[which])
    data = store.objects.held[name]
    if how == "gone":
        store.objects.remove(name)
    else:
        store.objects.held[name] = {
            "flip": bytes([data[0] ^ 1]) + data[1:],
            "cut": data[:-1],
            "grow": data + b" " * (2 << 20),
            "other": store.objects.held[record_name(states[which - 1])],
        }[how]
    with pytest.raises(IntegrityError) as raised:
        list(history(store, read_head(store, CHANNEL).state))
    assert states[which].entry in raised.value.message


def test_a_chain_that_does_not_count_down_is_refused(store):
    """What a circle would have to do; its versions would not count down."""
    moved(store, *images(store, 3))
    third, _, first = history(store, at(store))
    fields = msgspec.to_builtins(third)
    del fields["entry"]
    for previous in (first.entry, third.entry):
        forged = canonical_json(fields | {"previous": previous})
        entry = store.put_entry(PROMOTIONS, key_of_channel(CHANNEL), forged)
        point_at(store, pointer(store) | {"record": entry})
        with pytest.raises(IntegrityError, match="history of channel stable is broken"):
            list(history(store, read_head(store, CHANNEL).state))


def test_a_history_is_followed_no_further_than_its_limit(store, monkeypatch):
    a, b = images(store, 2)
    moved(store, a, b, a, b)
    monkeypatch.setattr(channel_history, "HISTORY_LIMIT", 3)
    assert versions(store) == [4, 3, 2]


def seen_now(store):
    return Seen(version=at(store).version, entry=at(store).entry)


def test_an_old_pointer_put_back_is_a_replay(store):
    a, b, c = images(store, 3)
    moved(store, a)
    old = store.objects.pointer(CHANNEL).data
    moved(store, b)
    seen = seen_now(store)
    point_at(store, old)
    for call in (
        lambda: resolve_channel(store, CHANNEL, seen=seen),
        lambda: promote(store, CHANNEL, c, mover=ANN, seen=seen),
        lambda: backwards(store, seen=seen),
    ):
        with pytest.raises(IntegrityError, match="shows version 1, this machine has seen version"):
            call()
    assert resolve_channel(store, CHANNEL) == a


def test_a_channel_that_is_gone_is_a_replay(store):
    (a,) = images(store, 1)
    moved(store, a)
    seen = seen_now(store)
    del store.objects.pointed[CHANNEL]
    with pytest.raises(IntegrityError, match="shows no state"):
        promote(store, CHANNEL, a, mover=ANN, seen=seen)


def test_a_newer_version_of_another_history_is_a_replay(store):
    """Put back to version 1, then moved on: the version is higher, the past another."""
    a, b, c = images(store, 3)
    moved(store, a)
    old = store.objects.pointer(CHANNEL).data
    moved(store, b)
    seen = seen_now(store)
    point_at(store, old)
    moved(store, c, a)
    assert at(store).version == 3
    with pytest.raises(IntegrityError, match="another version 2"):
        resolve_channel(store, CHANNEL, seen=seen)


def test_what_goes_on_from_what_was_seen_is_believed(store):
    a, b, c = images(store, 3)
    moved(store, a)
    seen = seen_now(store)
    moved(store, b, c)
    assert resolve_channel(store, CHANNEL, seen=seen) == c
    assert promote(store, CHANNEL, a, mover=ANN, seen=seen).moved


# What a machine remembers


def test_the_newest_state_seen_is_remembered_by_store_and_channel(store, tmp_path):
    a, b = images(store, 2)
    first, second = (move.now for move in moved(store, a, b))
    path = seen_file(tmp_path)
    assert seen_state(path, store="s", channel=CHANNEL) is None
    record_state(path, second, store="s")
    record_state(path, first, store="s")
    assert seen_state(path, store="s", channel=CHANNEL) == seen_now(store)
    assert seen_state(path, store="t", channel=CHANNEL) is None
    assert seen_state(path, store="s", channel="canary") is None
    record_state(path, first, store="t")
    assert seen_state(path, store="s", channel=CHANNEL).version == 2
    assert seen_state(path, store="t", channel=CHANNEL).version == 1


@pytest.mark.parametrize("data", [b"", b"{}x", b'{"schema":2}', b'{"schema":1,"channels":[]}'])
def test_a_damaged_memory_is_no_empty_one(tmp_path, data):
    path = seen_file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        seen_state(path, store="s", channel=CHANNEL)


def test_all_channels_are_listed(store):
    a, b = images(store, 2)
    promote(store, "stable", a, mover=ANN)
    promote(store, "canary", b, mover=ANN)
    listed = channel_history.all_channels(store)
    assert [(each.channel, each.image) for each in listed] == [("canary", b), ("stable", a)]
