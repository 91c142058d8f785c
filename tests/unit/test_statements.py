"""Statements say what the store holds: no more, always in the same bytes, in their own words."""

from __future__ import annotations

import json

import msgspec
import pytest

from engines.evidence import statements as in_toto
from engines.snapshot import Commit
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError
from planyard.core.sigstore_bundle import STATEMENT_LIMIT_BYTES, outline_of_statement
from tests.object_places import MemoryStore
from tests.signed_evidence import MATRIX, a_plan, a_snapshot, a_verdict, an_image

STORE = MemoryStore()
IMAGE = an_image(STORE)
PLANS = (a_plan(STORE, gpu="l4", data=b"one"), a_plan(STORE, gpu="l40", data=b"two"))
PASSED = a_verdict(PLANS[0].cell, exit="passed", logs="passed", outputs="off")
SNAPSHOT = a_snapshot(IMAGE, plans=PLANS, smoke=(PASSED,))


def document(statement: in_toto.Statement) -> dict:
    return json.loads(in_toto.statement_to_bytes(statement))


def result_of(*verdicts) -> dict:
    return in_toto.smoke_statement(a_snapshot(IMAGE, smoke=verdicts)).predicate


def test_a_snapshot_has_a_statement_for_everything_it_proves():
    found = in_toto.statements_of(SNAPSHOT, IMAGE)
    assert [each.predicate_type for each in found] == [
        "https://slsa.dev/provenance/v1",
        "https://slsa.dev/provenance/v1",
        "https://slsa.dev/provenance/v1",
        "https://in-toto.io/attestation/test-result/v0.1",
        "urn:planyard:snapshot:1",
    ]
    assert {document(each)["_type"] for each in found} == {"https://in-toto.io/Statement/v1"}


def test_subjects_are_the_image_and_the_plans():
    image, first, second, result, snapshot = in_toto.statements_of(SNAPSHOT, IMAGE)
    plans = [plan.digest for plan in PLANS]
    assert image.digests == {IMAGE.digest}
    assert [first.digests, second.digests] == [{plans[0]}, {plans[1]}]
    assert first.subject[0].name == PLANS[0].cell
    assert result.digests == snapshot.digests == {IMAGE.digest, *plans}
    assert document(image)["subject"] == [{"digest": {"sha256": IMAGE.digest[7:]}, "name": "rtx"}]


def test_a_record_of_another_image_is_refused():
    with pytest.raises(IntegrityError, match="the record of"):
        in_toto.statements_of(SNAPSHOT, an_image(STORE, "other"))


def test_the_provenance_of_an_image():
    predicate = in_toto.image_provenance(SNAPSHOT, IMAGE).predicate
    built = predicate["buildDefinition"]
    assert built["buildType"] == "urn:planyard:build:image:1"
    assert built["externalParameters"] == {"image": "rtx", "recipe": IMAGE.recipe}
    assert built["resolvedDependencies"] == [
        {"name": "matrix", "digest": {"gitCommit": "a" * 40}},
        {"name": "libc6", "digest": {"sha256": "5" * 64}, "annotations": {"version": "2.36-9"}},
    ]
    assert predicate["runDetails"] == {"builder": {"id": "urn:planyard:builder:1"}}


def test_a_dirty_commit_is_called_dirty_and_none_is_not_made_up():
    dirty = a_snapshot(IMAGE, commit=Commit(id="b" * 40, dirty=True))
    first = in_toto.image_provenance(dirty, IMAGE).predicate["buildDefinition"]
    assert first["resolvedDependencies"][0]["annotations"] == {"dirty": True}
    none = in_toto.image_provenance(a_snapshot(IMAGE, commit=None), IMAGE)
    assert b"gitCommit" not in in_toto.statement_to_bytes(none)


def test_the_provenance_of_a_plan_has_its_whole_recipe():
    built = in_toto.plan_provenance(PLANS[0]).predicate["buildDefinition"]
    assert built["buildType"] == "urn:planyard:build:plan:1"
    assert built["externalParameters"]["inputs"] == PLANS[0].inputs
    assert built["externalParameters"]["recipe"] == PLANS[0].recipe
    assert {each["name"]: each["digest"] for each in built["resolvedDependencies"]} == {
        "builder_image": {"sha256": digest_of_bytes(b"builder")[7:]},
        "model": {"sha256": digest_of_bytes(b"model")[7:]},
        "plugins.libx.so": {"sha256": digest_of_bytes(b"plugin")[7:]},
    }


def test_how_long_a_compilation_took_changes_no_statement():
    slower = msgspec.structs.replace(PLANS[0], compile_seconds=99.0)
    assert in_toto.plan_provenance(slower) == in_toto.plan_provenance(PLANS[0])


@pytest.mark.parametrize(
    ("verdicts", "result"),
    [
        pytest.param([("passed", False)], "PASSED", id="passed"),
        pytest.param([("passed", True)], "WARNED", id="warned"),
        pytest.param([("passed", True), ("failed", False)], "FAILED", id="failed"),
        pytest.param([("passed", False), ("not run", False)], "FAILED", id="one-not-run"),
        pytest.param([("not run", False)], "FAILED", id="not-run"),
        pytest.param([], "FAILED", id="nothing-tried"),
    ],
)
def test_only_what_was_run_and_passed_is_passed(verdicts, result):
    made = [a_verdict(f"c{i}", said, warns=warns) for i, (said, warns) in enumerate(verdicts)]
    assert result_of(*made)["result"] == result


def test_each_cell_and_each_gate_that_judged_is_a_test():
    found = result_of(
        a_verdict("a", exit="passed", outputs="off"),
        a_verdict("b", warns=True, logs="passed", exit="passed"),
        a_verdict("c", "failed", exit="passed", logs="failed"),
        a_verdict("d", "not run"),
    )
    assert found["passedTests"] == ["a", "a/exit", "b/exit", "c/exit"]
    assert found["warnedTests"] == ["b", "b/logs"]
    assert found["failedTests"] == ["c", "c/logs", "d"]


def test_a_test_result_names_what_was_tested_and_against_what():
    found = in_toto.smoke_statement(SNAPSHOT).predicate["configuration"]
    assert found == [
        {"name": "snapshot", "digest": {"sha256": in_toto.snapshot_digest(SNAPSHOT)[7:]}},
        {"name": "matrix", "digest": {"sha256": MATRIX[7:]}},
    ]


def test_the_snapshot_is_whole_and_has_the_digest_of_the_store():
    from engines import index

    statement = in_toto.snapshot_statement(SNAPSHOT)
    assert document(statement)["predicate"] == msgspec.to_builtins(SNAPSHOT, str_keys=True) | {
        "plans": [msgspec.to_builtins(plan) for plan in PLANS],
        "smoke": json.loads(msgspec.json.encode(SNAPSHOT.smoke)),
        "gates_off": [],
        "audit": [],
    }
    assert index.put_snapshot(STORE, SNAPSHOT) == in_toto.snapshot_digest(SNAPSHOT)


def test_a_statement_is_read_as_it_was_written():
    for statement in in_toto.statements_of(SNAPSHOT, IMAGE):
        data = in_toto.statement_to_bytes(statement)
        assert in_toto.statement_to_bytes(in_toto.statement_from_bytes(data)) == data
        assert data == canonical_json(json.loads(data))


def test_the_reader_before_cosign_takes_every_statement():
    for statement in in_toto.statements_of(SNAPSHOT, IMAGE):
        outline = outline_of_statement(in_toto.statement_to_bytes(statement))
        assert outline.predicate_type == statement.predicate_type


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"_type":"https://in-toto.io/Statement/v0.1","predicate":{},"predicateType":"t","subject":[]}',
        b'{"_type":"https://in-toto.io/Statement/v1","predicate":{"a":1,"a":2},"predicateType":"t","subject":[]}',
        b' {"_type":"https://in-toto.io/Statement/v1","predicate":{},"predicateType":"t","subject":[]}',
        b'{"_type":"https://in-toto.io/Statement/v1","predicate":{"a":'
        + b"[" * 5_000
        + b"]" * 5_000
        + b'},"predicateType":"t","subject":[]}',
    ],
    ids=["empty", "object", "list", "bytes", "deep", "old", "twice", "blank", "deep-predicate"],
)
def test_what_is_no_statement_in_its_one_encoding_is_refused(data):
    with pytest.raises(IntegrityError):
        in_toto.statement_from_bytes(data)


def test_a_statement_that_is_too_large_is_refused_unread():
    with pytest.raises(IntegrityError, match="at most"):
        in_toto.statement_from_bytes(b" " * (STATEMENT_LIMIT_BYTES + 1))
