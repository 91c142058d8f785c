"""The rules of promotion and rollback, without a store."""

from __future__ import annotations

import msgspec
import pytest

from engines.channels import promotion
from engines.channels.promotion import EvidenceState, Waiver
from engines.channels.record import (
    ChannelRecord,
    ChannelState,
    Seen,
    check_head,
    check_link,
    check_newest,
    checked_channel,
    one_line,
    pointer_from_bytes,
    pointer_of,
    record_to_bytes,
    state_from_bytes,
)
from engines.snapshot import BudgetFigures
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, IntegrityError
from planyard.core.findings import Finding
from tests.object_places import MemoryStore
from tests.signed_evidence import a_plan, a_snapshot, a_verdict, an_image

STORE = MemoryStore()
IMAGE = an_image(STORE)
EARLY, LATE = "2026-11-21T15:00:00Z", "2026-11-21T16:00:00Z"
CELL, OTHER = "rtx/ocr/640/fp16/l4", "rtx/ocr/1280/fp16/l4"
A, B, C, D = (digest_of_bytes(letter.encode()) for letter in "ABCD")
ENTRY = digest_of_bytes(b"evidence")
BAD = Finding(gate="logs", rule="logs.cpu", message="fell back to the CPU", where=CELL)


def tried(*verdicts, **fields):
    return a_snapshot(IMAGE, smoke=verdicts, **fields)


def against(*snapshots, **options):
    options.setdefault("lost", {})
    chosen = promotion.chosen_snapshots(snapshots, gpus=options.pop("gpus", ()))
    return promotion.objections(chosen, **options)


def gates(findings):
    return sorted(each.gate for each in findings)


# What speaks against an image


def test_an_image_that_passed_everywhere_may_go():
    assert against(tried(a_verdict(CELL), a_verdict(OTHER, exit="passed", outputs="off"))) == ()


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (a_verdict(CELL, "not run"), ["not-run"]),
        (a_verdict(CELL, "failed", exit="passed", logs="failed"), ["logs"]),
        (a_verdict(CELL, "failed", providers="failed", logs="failed"), ["logs", "providers"]),
        (a_verdict(CELL, "failed"), ["smoke"]),
        (a_verdict(CELL, "failed", exit="passed"), ["smoke"]),
        (a_verdict(CELL, "passed", outputs="failed"), ["outputs"]),
        (a_verdict(CELL, "passed", outputs="not run"), ["outputs"]),
        (msgspec.structs.replace(a_verdict(CELL), findings=(BAD,)), ["logs"]),
        (a_verdict(CELL, warns=True), []),
    ],
    ids=lambda value: "" if isinstance(value, list) else f"{value.verdict}-{value.gates}",
)
def test_every_gate_that_did_not_pass_a_cell_objects(verdict, expected):
    found = against(tried(a_verdict(OTHER), verdict))
    assert gates(found) == expected
    assert {each.where for each in found} <= {CELL}


def test_an_objection_quotes_what_the_gate_saw():
    verdict = msgspec.structs.replace(a_verdict(CELL, "failed", logs="failed"), findings=(BAD,))
    (found,) = against(tried(verdict))
    assert found.evidence == ("fell back to the CPU [logs.cpu]",)


def test_why_nobody_ran_it_is_said():
    verdict = msgspec.structs.replace(a_verdict(CELL, "not run"), reason="no GPU here")
    assert "no GPU here" in against(tried(verdict))[0].message


def test_a_plan_without_a_verdict_was_not_run():
    plan = a_plan(STORE)
    assert gates(against(a_snapshot(IMAGE, plans=(plan,)))) == ["not-run"]
    assert against(a_snapshot(IMAGE, plans=(plan,), smoke=(a_verdict(plan.cell),))) == ()


def test_an_image_of_which_nothing_was_tried_shows_nothing():
    assert gates(against(a_snapshot(IMAGE))) == ["not-run"]


def test_the_newest_word_on_each_cell_counts():
    failed, passed = a_verdict(CELL, "failed"), a_verdict(CELL)
    assert against(tried(failed, created=EARLY), tried(passed, created=LATE)) == ()
    assert gates(against(tried(passed, created=EARLY), tried(failed, created=LATE))) == ["smoke"]


def test_a_newer_snapshot_of_other_cells_hides_nothing():
    """As after `planyard build --select`: it is the newest of its GPU, and names one cell."""
    old = tried(a_verdict(CELL, "failed"), a_verdict(OTHER, "not run"), created=EARLY)
    assert gates(against(tried(a_verdict(OTHER), created=LATE), old)) == ["smoke"]


def test_of_equally_new_words_the_worse_counts():
    assert gates(against(tried(a_verdict(CELL, "failed")), tried(a_verdict(CELL)))) == ["smoke"]


def test_only_the_gpus_asked_for_are_judged():
    bad = tried(a_verdict(CELL, "not run"))
    good = tried(a_verdict("rtx/ocr/640/fp16/rtx4090"), gpu="rtx4090")
    assert gates(against(bad, good)) == ["not-run"]
    assert against(bad, good, gpus=("rtx4090",)) == ()
    assert gates(against(bad, good, gpus=("l4", "rtx4090"))) == ["not-run"]
    with pytest.raises(InputError, match="--gpu a100: this image has snapshots for l4, rtx4090"):
        against(bad, good, gpus=("rtx4090", "a100"))


@pytest.mark.parametrize("name", ["pull", "unpacked", "largest_layer"])
def test_a_budget_objects_when_it_is_exceeded(name):
    fields = {"pull_bytes": 10, "unpacked_bytes": 10, "largest_layer_bytes": 10}
    for limit, expected in ((9, ["budget"]), (10, []), (None, [])):
        budget = BudgetFigures(**fields, **{f"{name}_limit_bytes": limit})
        assert gates(against(tried(a_verdict(CELL), budget=budget))) == expected


def test_an_older_budget_of_the_same_gpu_does_not_count():
    over = BudgetFigures(pull_bytes=10, unpacked_bytes=1, largest_layer_bytes=1, pull_limit_bytes=9)
    old, new = tried(a_verdict(CELL), created=EARLY, budget=over), a_verdict(OTHER)
    assert against(old, tried(new, created=LATE)) == ()
    assert gates(against(old, tried(new, created=LATE, gpu="rtx4090"))) == ["budget"]


def test_what_is_wrong_with_the_contents_objects():
    finding = Finding(gate="closure", rule="closure.missing", message="libx.so is missing")
    assert gates(against(tried(a_verdict(CELL)), contents=(finding,))) == ["closure"]


def test_what_is_not_stored_is_named():
    (found,) = against(tried(a_verdict(CELL)), lost={A: "the layer", B: "the manifest"})
    assert found.gate == "incomplete"
    assert found.evidence == (f"the layer {A}", f"the manifest {B}")


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (None, ["signature"]),
        (EvidenceState(), ["signature"]),
        (EvidenceState(entry=ENTRY), []),
        (
            EvidenceState(findings=(Finding(gate="signature", rule="x", message="m"),)),
            ["signature"],
        ),
    ],
)
def test_evidence_has_to_be_there_where_it_is_asked_for(evidence, expected):
    snapshot = tried(a_verdict(CELL))
    assert gates(against(snapshot, evidence=evidence, require_signed=True)) == expected
    assert against(snapshot, evidence=evidence) == ()


@pytest.mark.parametrize(
    ("rule", "gate"),
    [
        ("evidence.failed", "evidence"),
        ("evidence.not-run", "evidence"),
        ("evidence.no-tests", "evidence"),
        ("evidence.unsigned-plan", "signature"),
        ("evidence.no-gpu", "signature"),
        ("evidence.something-new", "signature"),
    ],
)
def test_signed_results_are_waived_apart_from_signatures(rule, gate):
    signed = EvidenceState(
        entry=ENTRY, findings=(Finding(gate="evidence", rule=rule, message="m"),)
    )
    found = against(tried(a_verdict(CELL)), evidence=signed, require_signed=True)
    assert gates(found) == [gate]


def test_plans_that_newer_ones_replace_need_not_be_there():
    old, new = a_plan(STORE, data=b"old"), a_plan(STORE, data=b"new")
    snapshots = (
        a_snapshot(IMAGE, plans=(old,), created=EARLY),
        a_snapshot(IMAGE, plans=(new,), created=LATE),
    )
    assert promotion.plans_to_serve(snapshots) == {new.digest: new.cell}


# Waiving


TWO = (BAD, Finding(gate="not-run", rule="promote.not-run", message="m", where=OTHER))


def test_a_waiver_takes_the_objections_of_its_gate_and_no_other():
    left, waived = promotion.waive(TWO, [Waiver(gate="logs", because=" a known\nline ")])
    assert left == TWO[1:]
    (said,) = waived
    assert (said.gate, said.because, said.where) == ("logs", "a known line", (f"{CELL} logs.cpu",))


@pytest.mark.parametrize(
    ("waivers", "said"),
    [
        ([("log", "x")], "there are objections of logs, not-run"),
        ([("budget", "x")], "does not object"),
        ([("logs", "")], "say --because"),
        ([("logs", " \n\t")], "say --because"),
        ([("logs", "x"), ("logs", "y")], "--waive logs twice"),
        ([("incomplete", "x")], "cannot be served"),
    ],
)
def test_a_waiver_that_is_no_good_is_refused(waivers, said):
    incomplete = promotion.incomplete({A: "the layer"})
    with pytest.raises(InputError, match=said):
        promotion.waive(
            (*TWO, *incomplete)[: 2 + (waivers[0][0] == "incomplete")],
            [Waiver(gate=gate, because=because) for gate, because in waivers],
        )


def test_where_nothing_objects_nothing_can_be_waived():
    warned = msgspec.structs.replace(BAD, severity="warn")
    with pytest.raises(InputError, match="nothing objects"):
        promotion.waive((warned,), [Waiver(gate="logs", because="x")])
    assert promotion.waive((warned,), []) == ((), ())


# Going back


def chain(*moves: str | tuple[int, str]) -> list[ChannelState]:
    """Newest first: a letter's digest promotes, `(version, digest)` is a rollback to it."""
    states: list[ChannelState] = []
    for number, move in enumerate(moves, start=1):
        restores, image = move if isinstance(move, tuple) else (0, move)
        before = states[0] if states else None
        record = ChannelRecord(
            channel="stable",
            version=number,
            action="rollback" if restores else "promote",
            image=image,
            from_image=before.image if before else "",
            previous=before.entry if before else "",
            moved_at=EARLY,
            by="ann@desk",
            restores=restores,
            id=f"{number:032x}",
        )
        document = record_to_bytes(record)
        entry = digest_of_bytes(document)
        states.insert(0, state_from_bytes(document, channel="stable", entry=entry))
    return states


@pytest.mark.parametrize(
    ("moves", "line"),
    [
        ([A], [1]),
        ([A, B, C], [3, 2, 1]),
        ([A, B, C, (2, B)], [2, 1]),
        ([A, B, C, (2, B), (1, A)], [1]),
        ([A, B, C, (2, B), D], [5, 2, 1]),
        ([A, B, C, (2, B), (3, C)], [3, 2, 1]),
        ([A, B, C, (1, A), D, (1, A)], [1]),
        ([A, B, A, (2, B), C], [5, 2, 1]),
        ([A, B, (1, A), C, (1, A), D], [6, 1]),
    ],
)
def test_the_line_leads_past_what_was_rolled_back(moves, line):
    assert [each.version for each in promotion.line_of_promotions(chain(*moves))] == line


def test_the_line_is_read_only_as_far_as_is_asked_for():
    seen = []

    def reading():
        for state in chain(A, B, C, D):
            seen.append(state.version)
            yield state

    line = promotion.line_of_promotions(reading())
    next(line)
    next(line)
    assert seen == [4, 3]


def test_a_rollback_that_restores_something_else_is_damage():
    with pytest.raises(IntegrityError, match="version 3 says it restores version 2"):
        list(promotion.line_of_promotions(chain(A, B, (2, C))))
    with pytest.raises(IntegrityError, match="which is a rollback"):
        list(promotion.line_of_promotions(chain(A, B, (1, A), (3, A))))


def test_a_promotion_is_found_by_its_digest_or_the_start_of_it():
    states = chain(A, B, A, (2, B))
    assert promotion.promotion_of(states, A, channel="stable").version == 3
    assert promotion.promotion_of(states, B[7:19], channel="stable").version == 2


@pytest.mark.parametrize("asked", ["stable", "", A[:18], A.upper(), A + "0"])
def test_what_is_no_digest_is_not_gone_back_to(asked):
    with pytest.raises(InputError, match="is not an image digest"):
        promotion.promotion_of(chain(A), asked, channel="stable")


def test_an_image_that_was_never_promoted_is_answered_with_those_that_were():
    with pytest.raises(InputError) as raised:
        promotion.promotion_of(chain(A, B), C, channel="stable")
    assert f"version 2 {B}; version 1 {A}" in raised.value.message


# Records and pointers


def test_a_record_is_read_as_it_was_written():
    (state,) = chain(A)
    assert (state.version, state.image, state.from_image) == (1, A, "")
    assert msgspec.json.decode(msgspec.json.encode(state))["from"] == ""
    assert pointer_from_bytes(pointer_of(state), channel="stable").record == state.entry


def changed(**fields) -> bytes:
    """The second record of a channel, with other fields."""
    second = msgspec.to_builtins(chain(A, B)[0])
    del second["entry"]
    return canonical_json(second | fields)


def test_the_record_that_is_changed_below_is_good():
    document = changed()
    assert state_from_bytes(document, channel="stable", entry=digest_of_bytes(document)).image == B


@pytest.mark.parametrize(
    "fields",
    [
        {"channel": "canary"},
        {"version": 1},
        {"version": 0},
        {"version": "2"},
        {"version": 2**53},
        {"previous": ""},
        {"image": "latest"},
        {"action": "rollback"},
        {"restores": 1},
        {"action": "rollback", "restores": 2},
        {"schema": 2},
        {"by": "ann\x1b[2J"},
        {"because": "two\nlines"},
        {"moved_at": "yesterday"},
        {"id": ""},
        {"waived": [{"gate": "logs", "because": "\u2028"}]},
    ],
    ids=str,
)
def test_a_record_that_is_none_is_damage(fields):
    document = changed(**fields)
    with pytest.raises(IntegrityError):
        state_from_bytes(document, channel="stable", entry=digest_of_bytes(document))


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000, changed() + b" "])
def test_other_bytes_are_no_record(data):
    with pytest.raises(IntegrityError):
        state_from_bytes(data, channel="stable", entry=digest_of_bytes(changed()))
    with pytest.raises(IntegrityError):
        pointer_from_bytes(data, channel="stable")


def test_a_pointer_says_what_its_record_says():
    state = chain(A, B)[0]
    good = pointer_from_bytes(pointer_of(state), channel="stable")
    check_head(good, state)
    for fields in ({"image": A}, {"version": 3}):
        with pytest.raises(IntegrityError, match="its record says"):
            check_head(msgspec.structs.replace(good, **fields), state)
    with pytest.raises(IntegrityError, match="one of stable"):
        pointer_from_bytes(pointer_of(state), channel="canary")


def test_a_link_leads_one_version_back_to_the_image_that_was_left():
    third, second, first = chain(A, B, C)
    check_link(third, second)
    for newer, older in ((third, first), (second, second), (first, second)):
        with pytest.raises(IntegrityError, match="history of channel stable is broken"):
            check_link(newer, older)
    other = chain(D, D)[1]
    with pytest.raises(IntegrityError, match="broken"):
        check_link(second, other)


def test_an_older_state_than_was_seen_is_a_replay():
    third, second, first = chain(A, B, C)
    seen = Seen(version=2, entry=second.entry)
    for head in (third, second):
        check_newest(head, channel="stable", seen=seen)
    check_newest(None, channel="stable", seen=None)
    for head, said in ((first, "version 1"), (None, "no state"), (chain(A, D)[0], "another")):
        with pytest.raises(IntegrityError, match=f"shows {said}.*seen version 2"):
            check_newest(head, channel="stable", seen=seen)


def test_a_record_that_could_not_be_read_again_is_not_written():
    record = msgspec.structs.replace(chain(A)[0], by="ann\nbob")
    with pytest.raises(InputError):
        record_to_bytes(record)


@pytest.mark.parametrize(
    "name", ["", "Stable", "a/b", "../x", ".x", "a" * 64, "0123456789ab", "deadbeefdeadbeef"]
)
def test_what_is_no_name_of_a_channel(name):
    with pytest.raises(InputError):
        checked_channel(name)


@pytest.mark.parametrize("name", ["stable", "canary-2", "deadbeef", "0123456789a", "v1.2"])
def test_names_of_channels(name):
    assert checked_channel(name) == name


def test_what_people_write_becomes_one_line():
    assert one_line(" two\r\nlines\x1b[31m\u202e\u2028 ") == "two lines [31m"
    assert len(one_line("x" * 5000)) == 1000
