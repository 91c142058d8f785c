"""Evidence is believed when all of it is genuine; every attack on it is a test with its name.

The cases follow TUF's conformance suite: rollback, freeze, mix and match, endless data, wrong keys;
and what is known of cosign: an attestation that is offered as if it were a verdict.
"""

from __future__ import annotations

import base64
import threading

import msgspec
import pytest

from engines import index
from engines.evidence import entries, rules, seen
from engines.evidence import statements as in_toto
from engines.evidence.entries import EVIDENCE
from engines.evidence.sets import EvidenceVerdict, sign_image, verify_image
from engines.store.local_store import LocalStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError
from planyard.core.findings import failures
from planyard.core.sigstore_bundle import STATEMENT_LIMIT_BYTES
from planyard.edge.cosign_flags import CosignError
from tests.object_places import MemoryStore
from tests.signed_evidence import (
    DAY_SECONDS,
    NOW,
    FakeKey,
    a_plan,
    a_site,
    a_snapshot,
    a_verdict,
    an_image,
    later,
    only_entry,
    replace_entries,
    resigned_set,
    signed_again,
    signed_by,
    statement_in,
)

KEY = FakeKey()
OTHER_KEY = FakeKey(b"theirs")
L4 = "rtx/ocr/640/fp16/l4"
TYPES = {
    "provenance": in_toto.PROVENANCE_TYPE,
    "result": in_toto.TEST_RESULT_TYPE,
    "snapshot": in_toto.SNAPSHOT_TYPE,
}


def sign(store, image, *, key=KEY, now=NOW, verifier=KEY.verify, days=90, trusted=0):
    return sign_image(
        store,
        image.digest,
        signer=key.sign,
        verifier=verifier,
        now=now,
        expires_seconds=days * DAY_SECONDS,
        trusted_version=trusted,
    )


def verify(store, image, *, key=KEY, now=NOW, trusted=0, gpu=None) -> EvidenceVerdict:
    return verify_image(
        store, image.digest, verifier=key.verify, now=now, trusted_version=trusted, gpu=gpu
    )


def rules_of(verdict: EvidenceVerdict) -> list[str]:
    return [f"{each.rule} {each.severity}" for each in verdict.findings]


@pytest.fixture
def site():
    store = MemoryStore()
    return store, a_site(store)


@pytest.fixture
def signed(site):
    """A site with one entry of evidence: the store, its image, the entry's document."""
    store, image = site
    sign(store, image)
    return store, image, only_entry(store, image.digest)


# What is genuine


def test_what_was_signed_verifies(site):
    store, image = site
    made = sign(store, image)
    found = verify(store, image)
    assert (found.findings, found.passed_over) == ((), ())
    assert (made.version, found.version, found.entry) == (1, 1, made.entry)
    assert (found.issued, found.expires) == (NOW, "2027-02-19T18:00:00Z")
    assert [each.digest for each in found.statements] == [each.digest for each in made.statements]
    assert sorted(each.predicate_type for each in found.statements) == sorted(
        [TYPES["provenance"]] * 3 + [TYPES["result"], TYPES["snapshot"]] * 2
    )
    assert {each.says for each in found.statements} == {"", "PASSED"}
    assert len(found.plans) == 2


def test_every_statement_and_the_set_are_verified_by_themselves(signed):
    store, image, document = signed
    key = FakeKey()
    verify(store, image, key=key)
    wanted = [document["set"], *document["statements"]]
    assert key.verified == [base64.b64decode(each["statement"]) for each in wanted]


def test_the_set_is_about_the_image_and_every_plan(signed):
    store, image, document = signed
    outer = in_toto.statement_from_bytes(base64.b64decode(document["set"]["statement"]))
    plans = {
        plan.digest for each in index.snapshots_of_image(store, image.digest) for plan in each.plans
    }
    assert outer.digests == plans | {image.digest}
    assert len(plans) == 2


def test_evidence_in_a_folder_verifies_from_another_program(tmp_path):
    image = a_site(LocalStore(tmp_path / "store"))
    sign(LocalStore(tmp_path / "store"), image)
    assert verify(LocalStore(tmp_path / "store"), image).findings == ()


def test_versions_count_up_and_the_newest_counts(site):
    store, image = site
    assert [sign(store, image, now=f"2026-11-2{day}T00:00:00Z").version for day in (1, 2, 3)] == [
        1,
        2,
        3,
    ]
    assert verify(store, image).version == 3


def test_the_next_version_is_above_what_was_seen_here(site):
    store, image = site
    assert sign(store, image, trusted=7).version == 8
    assert sign(store, image, trusted=20).version == 21
    assert sign(store, image, trusted=7).version == 22


def test_nothing_to_sign_is_a_miss(site):
    store, _ = site
    with pytest.raises(LookupMissError, match="no snapshot"):
        sign(store, an_image(store, "unknown"))


def test_an_image_without_its_record_cannot_be_signed(site):
    store, _ = site
    image = msgspec.structs.replace(an_image(store, "new"), recipe=digest_of_bytes(b"lost"))
    index.put_snapshot(store, a_snapshot(image, smoke=(a_verdict(L4),)))
    with pytest.raises(LookupMissError, match="no record of the image"):
        sign(store, image)


def test_signing_beside_other_evidence_needs_a_public_key(site):
    store, image = site
    assert sign(store, image, verifier=None).version == 1
    with pytest.raises(InputError, match="which of it is ours"):
        sign(store, image, verifier=None)


def test_nothing_is_stored_that_its_public_key_does_not_accept(site):
    store, image = site
    with pytest.raises(IntegrityError, match="does not hold"):
        sign(store, image, key=OTHER_KEY)
    assert list(store.entries(EVIDENCE, image.digest)) == []


# Attacks. `edit` gets the entry's document and returns what is put in its place.


def without_last(document):
    return document | {"statements": document["statements"][:-1]}


def with_unsigned(document):
    foreign = signed_by({"_type": "x"}, OTHER_KEY)
    return document | {"statements": [*document["statements"], foreign]}


def with_signed_but_unlisted(document):
    """A statement of the same key, from before: genuine, and not of this set."""
    old = signed_again(document["statements"][0], KEY, predicate={"old": True})
    return document | {"statements": [*document["statements"], old]}


def with_one_twice(document):
    return document | {"statements": [*document["statements"], document["statements"][0]]}


def with_a_bit_flipped(document):
    first = document["statements"][0]
    bundle = bytearray(base64.b64decode(first["bundle"]))
    bundle[3] ^= 1
    changed = first | {"bundle": base64.b64encode(bytes(bundle)).decode()}
    return document | {"statements": [changed, *document["statements"][1:]]}


def with_a_bundle_of_another_statement(document):
    first, second, *rest = document["statements"]
    return document | {"statements": [first | {"bundle": second["bundle"]}, second, *rest]}


def with_a_set_that_says_more(document):
    """A higher version and a later end, written over the signed ones."""
    outer = statement_in(document["set"])
    outer["predicate"] |= {"version": 99, "expires": "2099-01-01T00:00:00Z"}
    data = base64.b64encode(canonical_json(outer)).decode()
    return document | {"set": document["set"] | {"statement": data}}


def only_an_sbom(document):
    sbom = signed_again(
        document["statements"][0], KEY, predicateType="https://spdx.dev/Document", predicate={}
    )
    return resigned_set(document | {"statements": [sbom]}, KEY)


def a_statement_offered_as_the_set(document):
    """Any attestation of the right key: what `cosign verify` takes for a signature."""
    result = next(
        each
        for each in document["statements"]
        if statement_in(each)["predicateType"] == TYPES["result"]
    )
    return document | {"set": result}


def without_type(name):
    def edit(document):
        kept = [
            each
            for each in document["statements"]
            if statement_in(each)["predicateType"] != TYPES[name]
        ]
        return resigned_set(document | {"statements": kept}, KEY)

    return edit


def with_changed(name, change, *, add=False):
    """The first statement of a type changed, and all of it signed by the right key."""

    def edit(document):
        kept = list(document["statements"])
        place = next(
            number
            for number, each in enumerate(kept)
            if statement_in(each)["predicateType"] == TYPES[name]
        )
        statement = statement_in(kept[place])
        change(statement)
        kept[place : place if add else place + 1] = [signed_by(statement, KEY)]
        return resigned_set(document | {"statements": kept}, KEY)

    return edit


def about_another(statement):
    statement["subject"][0]["digest"]["sha256"] = "0" * 64


def all_passed(statement):
    statement["predicate"] |= {"result": "PASSED", "passedTests": ["all"], "failedTests": []}


def another_recipe(statement):
    statement["predicate"]["buildDefinition"]["externalParameters"]["recipe"] = "sha256:" + "0" * 64


def no_definition(statement):
    statement["predicate"] = {}


def of_another_plan(document):
    """A provenance that is signed and of a plan no snapshot names."""
    provenance = statement_in(document["statements"][1])
    about_another(provenance)
    kept = [*document["statements"], signed_by(provenance, KEY)]
    return resigned_set(document | {"statements": kept}, KEY)


def without_a_plan(document):
    kept = [
        each for each in document["statements"] if statement_in(each)["subject"][0]["name"] != L4
    ]
    return resigned_set(document | {"statements": kept}, KEY)


def with_an_sbom(digest):
    """A statement of a type that nobody judges here, listed and signed."""

    def edit(document):
        subject = [{"digest": {"sha256": digest}, "name": "x"}]
        sbom = statement_in(document["statements"][0]) | {"subject": subject}
        sbom |= {"predicateType": "https://spdx.dev/Document", "predicate": {}}
        kept = [*document["statements"], signed_by(sbom, KEY)]
        return resigned_set(document | {"statements": kept}, KEY)

    return edit


def a_set_about(digest):
    def change(outer):
        outer["subject"].append({"digest": {"sha256": digest}, "name": "x"})

    return lambda document: resigned_set(document, KEY, change)


def a_set_that_claims(**fields):
    return lambda document: resigned_set(
        document, KEY, lambda outer: outer["predicate"].update(fields)
    )


ATTACKS = {
    "a statement removed": (without_last, "lacks 1 statements"),
    "an unsigned statement added": (with_unsigned, "does not list"),
    "a signed statement added that is not of the set": (with_signed_but_unlisted, "does not list"),
    "a statement twice": (with_one_twice, "a statement twice"),
    "a signature changed": (with_a_bit_flipped, "signature does not hold"),
    "a bundle of another statement": (
        with_a_bundle_of_another_statement,
        "signature does not hold",
    ),
    "the version and expiry written over": (
        with_a_set_that_says_more,
        "version 99 is not signed as wanted",
    ),
    "only an SBOM": (only_an_sbom, "no urn:planyard:snapshot:1"),
    "an attestation offered as the set": (a_statement_offered_as_the_set, "not an evidence set"),
    "no test result": (without_type("result"), "has no https://in-toto.io/attestation/test-result"),
    "no provenance": (without_type("provenance"), "has no https://slsa.dev/provenance"),
    "a snapshot of another image": (
        with_changed("snapshot", about_another),
        "about another subject",
    ),
    "a result about another image": (with_changed("result", about_another), "fits none"),
    "a result that its snapshot does not bear out": (
        with_changed("result", all_passed),
        "fits none",
    ),
    "a second result": (with_changed("result", all_passed, add=True), "fits none"),
    "a second provenance of the image": (
        with_changed("provenance", another_recipe, add=True),
        "too many",
    ),
    "an image's provenance about another": (
        with_changed("provenance", about_another),
        "another subject",
    ),
    "an image's provenance of another recipe": (
        with_changed("provenance", another_recipe),
        "another build or recipe",
    ),
    "a provenance without a build": (with_changed("provenance", no_definition), "another build"),
    "a provenance of a plan nobody names": (of_another_plan, "too many"),
    "no provenance of one plan": (without_a_plan, f"its plan of {L4}, has no https://slsa.dev"),
    "an SBOM about another image": (
        with_an_sbom("0" * 64),
        "https://spdx.dev/Document about another subject",
    ),
    "a set about one digest more": (a_set_about("0" * 64), "about other subjects"),
    "another schema of the entry": (lambda document: document | {"schema": 2}, "schema 2"),
    "another schema of the set": (a_set_that_claims(schema=2), "schema 2"),
    "a set without an end": (a_set_that_claims(expires=""), "not an evidence set"),
    "version 0": (a_set_that_claims(version=0), "not an evidence set"),
    "a version no JSON reader keeps": (a_set_that_claims(version=2**53), "not an evidence set"),
    "an empty set": (a_set_that_claims(statements=[]), "not an evidence set"),
    "a set for another image": (
        a_set_that_claims(image="sha256:" + "0" * 64),
        "not about it",
    ),
    "no JSON": (lambda _: b"\xff\xfe", "not an entry of evidence"),
    "nothing": (lambda _: b"{}", "not an entry of evidence"),
    "deep nesting": (
        lambda _: b'{"schema":1,"set":' + b"[" * 200_000,
        "not an entry of evidence",
    ),
    "endless data: an entry": (
        lambda _: b" " * (entries.ENTRY_LIMIT_BYTES + 1),
        "is the limit",
    ),
    "endless data: a statement": (
        lambda document: document | {"set": signed_by(b" " * (STATEMENT_LIMIT_BYTES + 1), KEY)},
        "not an entry of evidence",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS, ids=[name.replace(" ", "-") for name in ATTACKS])
def test_refused(signed, attack):
    store, image, document = signed
    edit, said = ATTACKS[attack]
    replace_entries(store, image.digest, edit(document))
    with pytest.raises(IntegrityError) as raised:
        verify(store, image)
    assert said in raised.value.message
    assert raised.value.exit_code == 10


def test_the_attacks_do_not_work_by_a_mistake_of_the_tests(signed):
    """What they build on, put back unchanged or signed anew, verifies."""
    store, image, document = signed
    with_one = with_an_sbom(image.digest[7:])(document)
    for same in (document, resigned_set(document, KEY), with_one):
        replace_entries(store, image.digest, same)
        assert verify(store, image).findings == ()


def test_the_rules_alone_ask_for_the_image(signed):
    _, _, document = signed
    claims = rules.claims_of(
        in_toto.statement_from_bytes(base64.b64decode(document["set"]["statement"]))
    )
    rules.check_claims(claims, image=claims.image, now=NOW, trusted_version=1)
    with pytest.raises(IntegrityError, match="is evidence of"):
        rules.check_claims(claims, image=digest_of_bytes(b"x"), now=NOW, trusted_version=1)


def test_no_evidence_is_refused_with_the_command_that_makes_some(site):
    store, image = site
    with pytest.raises(IntegrityError) as raised:
        verify(store, image)
    assert f"planyard sign {image.digest}" in raised.value.mend


def test_another_key_is_refused(signed):
    store, image, _ = signed
    with pytest.raises(IntegrityError, match="signed as wanted"):
        verify(store, image, key=OTHER_KEY)


def test_rollback_an_older_set_put_back(site):
    store, image = site
    sign(store, image)
    old = only_entry(store, image.digest)
    sign(store, image, now="2026-11-22T00:00:00Z")
    seen_before = verify(store, image).version
    replace_entries(store, image.digest, old)
    assert verify(store, image, trusted=1).version == 1
    with pytest.raises(IntegrityError, match="version 2 was seen here before"):
        verify(store, image, trusted=seen_before)


@pytest.mark.parametrize(
    ("now", "good"),
    [
        ("2027-02-19T17:59:59Z", True),
        ("2027-02-19T18:00:00Z", False),
        ("2030-01-01T00:00:00Z", False),
    ],
)
def test_freeze_expired_evidence_is_refused(signed, now, good):
    store, image, _ = signed
    if good:
        assert verify(store, image, now=now).findings == ()
        return
    with pytest.raises(IntegrityError, match="expired") as raised:
        verify(store, image, now=now)
    assert "sign again" in raised.value.mend


def test_mix_and_match_evidence_of_another_image(signed):
    store, _, document = signed
    other = a_site(store, name="other")
    replace_entries(store, other.digest, document)
    with pytest.raises(IntegrityError, match="evidence of another image"):
        verify(store, other)


def test_mix_and_match_statements_of_an_older_set(site):
    store, image = site
    sign(store, image)
    old = only_entry(store, image.digest)
    newest = index.snapshots_of_image(store, image.digest)[0]
    index.put_snapshot(store, later(newest, "2026-11-21T17:00:00Z"))
    replace_entries(store, image.digest)
    sign(store, image)
    new = only_entry(store, image.digest)
    replace_entries(store, image.digest, new | {"statements": old["statements"]})
    with pytest.raises(IntegrityError, match="lacks 2 statements"):
        verify(store, image)


def test_endless_data_too_many_entries(signed):
    store, image, document = signed
    junk = [canonical_json({"n": n}) for n in range(entries.ENTRIES_LIMIT)]
    replace_entries(store, image.digest, *junk[1:], document)
    assert verify(store, image).version == 1
    replace_entries(store, image.digest, *junk, document)
    with pytest.raises(IntegrityError, match="more than 1000 entries"):
        verify(store, image)


def test_endless_data_too_many_statements(signed):
    store, image, document = signed
    many = [signed_by({"n": n}, KEY) for n in range(rules.STATEMENTS_LIMIT + 1)]
    outer = statement_in(document["set"])
    outer["predicate"]["statements"] = [
        {"digest": digest_of_bytes(base64.b64decode(each["statement"])), "predicateType": "t"}
        for each in many
    ]
    replace_entries(
        store, image.digest, {"schema": 1, "set": signed_by(outer, KEY), "statements": many}
    )
    with pytest.raises(IntegrityError, match="not an evidence set"):
        verify(store, image)


def test_only_so_many_sets_are_tried(signed):
    store, image, document = signed
    foreign = [
        resigned_set(document, OTHER_KEY, lambda outer, n=n: outer["predicate"].update(version=n))
        for n in range(2, entries.TRIES + 2)
    ]
    replace_entries(store, image.digest, document, *foreign[1:])
    assert verify(store, image).version == 1
    replace_entries(store, image.digest, document, *foreign)
    key = FakeKey()
    with pytest.raises(IntegrityError, match="signed as wanted"):
        verify(store, image, key=key)
    with pytest.raises(IntegrityError, match="64 entries"):
        sign(store, image)


# What others put beside it


def test_a_set_of_another_key_is_passed_over_and_named(signed):
    store, image, document = signed
    foreign = resigned_set(document, OTHER_KEY, lambda outer: outer["predicate"].update(version=50))
    replace_entries(store, image.digest, document, foreign)
    found = verify(store, image)
    assert found.version == 1
    assert [each.entry for each in found.passed_over] == [digest_of_bytes(canonical_json(foreign))]
    assert "version 50" in found.passed_over[0].why


def test_a_claim_that_is_not_ours_does_not_push_the_version(signed):
    """A version near the end of numbers would leave none for us."""
    store, image, document = signed
    foreign = resigned_set(
        document, OTHER_KEY, lambda outer: outer["predicate"].update(version=rules.VERSION_LIMIT)
    )
    replace_entries(store, image.digest, document, foreign)
    assert sign(store, image).version == 2


def test_a_verifier_that_fails_does_not_let_an_older_set_win(signed):
    store, image, _ = signed
    sign(store, image, now="2026-11-22T00:00:00Z")
    calls = []

    def verifier(statement: bytes, bundle: bytes) -> None:
        calls.append(statement)
        if len(calls) == 1:
            raise CosignError("cosign ran out of time")

    with pytest.raises(CosignError):
        verify_image(store, image.digest, verifier=verifier, now=NOW, trusted_version=0)
    assert len(calls) == 1


def test_signing_with_a_new_key_starts_beside_the_old(signed):
    store, image, _ = signed
    new = FakeKey(b"new")
    assert sign(store, image, key=new, verifier=new.verify).version == 1
    assert verify(store, image, key=new).version == 1
    assert verify(store, image).version == 1


# What it says


@pytest.mark.parametrize(
    ("verdict", "rule"),
    [("failed", "evidence.failed fail"), ("not run", "evidence.not-run fail")],
)
def test_a_genuine_result_that_is_not_passed_is_a_finding(verdict, rule):
    store = MemoryStore()
    image = a_site(store, verdict)
    sign(store, image)
    found = verify(store, image)
    assert rules_of(found) == [rule]
    assert found.findings[0].where == L4
    assert sorted(each.says for each in found.statements if each.says) == ["FAILED", "PASSED"]
    assert verify(store, image, gpu="rtx4090").findings == ()
    assert rules_of(verify(store, image, gpu="l4")) == [rule]


def test_a_failed_gate_is_named():
    store = MemoryStore()
    image = a_site(store, "failed")
    sign(store, image)
    assert verify(store, image).findings[0].evidence == (L4, f"{L4}/logs")


def test_a_warning_is_shown_and_does_not_fail():
    store = MemoryStore()
    image = an_image(store)
    smoke = (a_verdict(L4, warns=True, logs="passed"),)
    index.put_snapshot(store, a_snapshot(image, smoke=smoke))
    sign(store, image)
    found = verify(store, image)
    assert rules_of(found) == ["evidence.warned warn"]
    assert failures(found.findings) == ()


def test_a_gpu_nobody_tried_is_a_finding(signed):
    store, image, _ = signed
    assert rules_of(verify(store, image, gpu="h100")) == ["evidence.no-gpu fail"]


def test_a_plan_without_a_run_is_not_run():
    store = MemoryStore()
    image = an_image(store)
    index.put_snapshot(store, a_snapshot(image, plans=(a_plan(store),)))
    sign(store, image)
    assert rules_of(verify(store, image)) == ["evidence.not-run fail"]


def test_a_snapshot_without_cells_shows_nothing():
    store = MemoryStore()
    image = an_image(store)
    snapshot = a_snapshot(image)
    contents = rules.Contents(snapshots=(snapshot,), results={})
    assert [each.rule for each in rules.findings_of(contents)] == ["evidence.no-tests"]
    index.put_snapshot(store, snapshot)
    with pytest.raises(LookupMissError, match="names a cell"):
        sign(store, image)


def snapshots_over_time(store, *said: tuple[str, str]):
    """Snapshots of one cell: when, and what it came to."""
    image = an_image(store)
    for created, verdict in said:
        smoke = (a_verdict(L4, verdict, exit=verdict),)
        index.put_snapshot(store, a_snapshot(image, smoke=smoke, created=created))
    sign(store, image)
    return verify(store, image)


FIRST, SECOND = "2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        pytest.param([(FIRST, "failed"), (SECOND, "passed")], [], id="mended"),
        pytest.param(
            [(FIRST, "passed"), (SECOND, "failed")], ["evidence.failed fail"], id="broken"
        ),
        pytest.param(
            [(FIRST, "failed"), (FIRST, "passed")], ["evidence.failed fail"], id="same-second"
        ),
    ],
)
def test_the_newest_word_on_a_cell_counts(said, wanted):
    assert rules_of(snapshots_over_time(MemoryStore(), *said)) == wanted


def test_a_newer_snapshot_of_other_cells_hides_no_failure():
    store = MemoryStore()
    image = an_image(store)
    for created, cell, verdict in ((FIRST, "a", "failed"), (SECOND, "b", "passed")):
        smoke = (a_verdict(cell, verdict, exit=verdict),)
        index.put_snapshot(store, a_snapshot(image, smoke=smoke, created=created))
    sign(store, image)
    found = verify(store, image)
    assert [each.where for each in found.findings] == ["a"]


def test_snapshots_that_decide_nothing_any_more_are_not_signed():
    found = snapshots_over_time(MemoryStore(), (FIRST, "passed"), (SECOND, "passed"))
    assert len([each for each in found.statements if each.says]) == 1


def test_a_snapshot_after_signing_is_a_warning(signed):
    store, image, _ = signed
    newest = index.snapshots_of_image(store, image.digest)[0]
    index.put_snapshot(store, later(newest, "2026-11-21T17:00:00Z"))
    assert rules_of(verify(store, image)) == ["evidence.unsigned-snapshot warn"]


def test_a_plan_that_appeared_after_signing_is_a_finding(signed):
    """A lookup would hand it out, and a plan is code."""
    store, image, _ = signed
    newest = index.snapshots_of_image(store, image.digest)[0]
    plan = a_plan(store, data=b"of a stranger")
    index.put_snapshot(store, later(newest, "2026-11-21T17:00:00Z", gpu="l4", plans=(plan,)))
    found = verify(store, image)
    assert rules_of(found) == ["evidence.unsigned-plan fail"]
    assert found.findings[0].evidence == (plan.cell,)
    assert rules_of(verify(store, image, gpu="rtx4090")) == []


# What this machine has seen


def test_what_was_seen_is_kept_by_store_image_and_signer(tmp_path):
    path = seen.seen_file(tmp_path)
    place = {"store": "s", "image": "i", "signer": "k"}
    assert seen.seen_version(path, **place) == 0
    seen.record_version(path, 3, **place)
    seen.record_version(path, 2, **place)
    assert seen.seen_version(path, **place) == 3
    for other in ({"store": "x"}, {"image": "x"}, {"signer": "x"}):
        assert seen.seen_version(path, **(place | other)) == 0


def test_what_many_see_at_once_is_all_kept(tmp_path):
    path = seen.seen_file(tmp_path)
    numbers = range(1, 17)

    def record(number: int) -> None:
        seen.record_version(path, number, store="s", image="same", signer="k")
        seen.record_version(path, number, store="s", image=str(number), signer="k")

    threads = [threading.Thread(target=record, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.seen_version(path, store="s", image="same", signer="k") == 16
    for number in numbers:
        assert seen.seen_version(path, store="s", image=str(number), signer="k") == number


@pytest.mark.parametrize("data", [b"", b"{}x", b'{"schema":2}', b'{"schema":1,"versions":{"a":0}}'])
def test_a_damaged_memory_is_not_taken_for_an_empty_one(tmp_path, data):
    path = seen.seen_file(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        seen.seen_version(path, store="s", image="i", signer="k")


def test_a_memory_that_cannot_be_written_is_a_store_error(tmp_path):
    (tmp_path / ".planyard").write_text("a file in the way")
    with pytest.raises(StoreError):
        seen.record_version(seen.seen_file(tmp_path), 1, store="s", image="i", signer="k")
