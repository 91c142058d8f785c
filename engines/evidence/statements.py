"""In-toto statements about an image, its plans and its smoke runs. Pure.

A statement says only what the store holds: a time nobody wrote down is left out. Equal input gives
equal bytes, so that a statement has a digest. docs/evidence.md names every type used here.
https://github.com/in-toto/attestation/blob/v1.1.2/spec/v1/statement.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from engines.snapshot import Snapshot
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value, is_digest
from planyard.core.errors import IntegrityError
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict
from planyard.core.sigstore_bundle import STATEMENT_LIMIT_BYTES

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
SNAPSHOT_TYPE = "urn:planyard:snapshot:1"

IMAGE_BUILD_TYPE = "urn:planyard:build:image:1"
PLAN_BUILD_TYPE = "urn:planyard:build:plan:1"
BUILDER_ID = "urn:planyard:builder:1"
"""Planyard on a machine it cannot vouch for: who signed says which."""

Result = Literal["PASSED", "WARNED", "FAILED"]
Descriptor = dict[str, Any]
"""An in-toto resource descriptor, with a digest."""


class Subject(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a statement is about: `digest` is `{"sha256": hex}`."""

    digest: dict[str, str]
    name: str = ""


class Statement(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An in-toto statement, version 1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(
        default="https://in-toto.io/Statement/v1", name="_type"
    )
    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: dict[str, Any]

    @property
    def digests(self) -> frozenset[str]:
        """The sha256 digests of the subjects, as `sha256:…`."""
        return frozenset(f"sha256:{each.digest.get('sha256', '')}" for each in self.subject)


def statement_to_bytes(statement: Statement) -> bytes:
    """The statement's one encoding: what is signed."""
    return canonical_json(msgspec.to_builtins(statement))


def statement_from_bytes(data: bytes) -> Statement:
    """Read a statement. Raises IntegrityError for anything but the one encoding of one.

    Another encoding (a key twice, say) could mean other things to other readers.
    """
    if len(data) > STATEMENT_LIMIT_BYTES:
        raise IntegrityError(f"a statement of {len(data)} bytes: {STATEMENT_LIMIT_BYTES} at most")
    try:
        statement = msgspec.json.decode(data, type=Statement)
        same = canonical_json(msgspec.json.decode(data)) == data
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"not an in-toto statement: {error}") from error
    if not same:
        raise IntegrityError("a statement that is not canonical JSON: others may read it otherwise")
    return statement


def statements_of(snapshot: Snapshot, image: ImageRecord) -> tuple[Statement, ...]:
    """Everything a snapshot proves: its image, each of its plans, its smoke runs, itself.

    Raises IntegrityError when `image` is not the snapshot's.
    """
    if (snapshot.image, snapshot.image_recipe) != (image.digest, image.recipe):
        raise IntegrityError(f"the snapshot is of {snapshot.image}, the record of {image.digest}")
    return (
        image_provenance(snapshot, image),
        *(plan_provenance(plan) for plan in snapshot.plans),
        smoke_statement(snapshot),
        snapshot_statement(snapshot),
    )


def image_provenance(snapshot: Snapshot, image: ImageRecord) -> Statement:
    """SLSA provenance of an image: its recipe, the packages of its base, the commit if known."""
    return _provenance(
        (_subject(image.digest, name=image.name),),
        build_type=IMAGE_BUILD_TYPE,
        parameters={"image": image.name, "recipe": image.recipe},
        dependencies=[
            *_commit(snapshot),
            *(
                _described(package.sha256, name=package.name, version=package.version)
                for package in image.base
            ),
        ],
    )


def plan_provenance(plan: PlanRecord) -> Statement:
    """SLSA provenance of a plan: all of its recipe, and what the recipe names by digest."""
    return _provenance(
        (_subject(plan.digest, name=plan.cell),),
        build_type=PLAN_BUILD_TYPE,
        parameters={"cell": plan.cell, "recipe": plan.recipe, "inputs": plan.inputs},
        dependencies=[
            _described(digest, name=name) for name, digest in sorted(_digests_in(plan.inputs))
        ],
    )


def smoke_statement(snapshot: Snapshot) -> Statement:
    """The test result of a snapshot's smoke runs: each cell is a test, so is each of its gates.

    PASSED only when every cell was run and passed without a warning. A cell nobody ran is a failed
    test, and a snapshot without cells has failed: nothing was shown.
    """
    names: dict[Result, list[str]] = {"PASSED": [], "WARNED": [], "FAILED": []}
    for verdict in snapshot.smoke:
        for name, result in _tests_of(verdict):
            names[result].append(name)
    return Statement(
        subject=subjects_of(snapshot),
        predicate_type=TEST_RESULT_TYPE,
        predicate={
            "result": _worst(names),
            "configuration": [
                _described(snapshot_digest(snapshot), name="snapshot"),
                _described(snapshot.matrix_digest, name="matrix"),
            ],
            "passedTests": sorted(names["PASSED"]),
            "warnedTests": sorted(names["WARNED"]),
            "failedTests": sorted(names["FAILED"]),
        },
    )


def snapshot_statement(snapshot: Snapshot) -> Statement:
    """The snapshot itself as a predicate."""
    return Statement(
        subject=subjects_of(snapshot),
        predicate_type=SNAPSHOT_TYPE,
        predicate=msgspec.to_builtins(snapshot),
    )


def snapshot_digest(snapshot: Snapshot) -> str:
    """The digest a snapshot has in a store."""
    return digest_of_value(msgspec.to_builtins(snapshot))


def subjects_of(snapshot: Snapshot) -> tuple[Subject, ...]:
    """The image and every plan of a snapshot."""
    return all_subjects([snapshot])


def all_subjects(snapshots: Sequence[Snapshot]) -> tuple[Subject, ...]:
    """The image of the snapshots and every plan they name, each once, plans by cell."""
    first = snapshots[0]
    plans = {(plan.cell, plan.digest) for snapshot in snapshots for plan in snapshot.plans}
    return (
        _subject(first.image, name=first.image_name),
        *(_subject(digest, name=cell) for cell, digest in sorted(plans)),
    )


def digest_of_statement(statement: Statement) -> str:
    """The digest of the statement's one encoding."""
    return digest_of_bytes(statement_to_bytes(statement))


def _provenance(
    subject: tuple[Subject, ...],
    *,
    build_type: str,
    parameters: Mapping[str, object],
    dependencies: Sequence[Descriptor],
) -> Statement:
    """https://slsa.dev/spec/v1.1/provenance; when a build ran is not known and not said."""
    return Statement(
        subject=subject,
        predicate_type=PROVENANCE_TYPE,
        predicate={
            "buildDefinition": {
                "buildType": build_type,
                "externalParameters": dict(parameters),
                "resolvedDependencies": list(dependencies),
            },
            "runDetails": {"builder": {"id": BUILDER_ID}},
        },
    )


def _tests_of(verdict: SmokeVerdict) -> Iterator[tuple[str, Result]]:
    """A cell and its gates, as tests; gates that are off judged nothing and are none."""
    warned = {each.gate for each in verdict.findings if each.severity == "warn"}
    yield verdict.cell, _result(verdict.verdict, warned=bool(warned))
    for gate, said in verdict.gates.items():
        if said != "off":
            yield f"{verdict.cell}/{gate}", _result(said, warned=gate in warned)


def _result(verdict: str, *, warned: bool) -> Result:
    if verdict != "passed":
        return "FAILED"
    return "WARNED" if warned else "PASSED"


def _worst(names: Mapping[Result, Sequence[str]]) -> Result:
    if names["FAILED"] or not (names["PASSED"] or names["WARNED"]):
        return "FAILED"
    return "WARNED" if names["WARNED"] else "PASSED"


def _commit(snapshot: Snapshot) -> Iterator[Descriptor]:
    """The commit the matrix was read at; of a dirty one it is said that files differed."""
    if snapshot.commit:
        # `gitCommit` is the digest set's word for both of Git's object formats.
        found = {"name": "matrix", "digest": {"gitCommit": snapshot.commit.id}}
        yield found | ({"annotations": {"dirty": True}} if snapshot.commit.dirty else {})


def _digests_in(inputs: Mapping[str, object], *, of: str = "") -> Iterable[tuple[str, str]]:
    """Every digest in a recipe by its dotted name: `model`, `plugins.libx.so`."""
    for name, value in inputs.items():
        if isinstance(value, str) and is_digest(value):
            yield of + name, value
        elif isinstance(value, Mapping):
            yield from _digests_in(value, of=f"{of}{name}.")


def _subject(digest: str, *, name: str) -> Subject:
    return Subject(digest=_digest_set(digest), name=name)


def _described(digest: str, *, name: str, version: str = "") -> Descriptor:
    found: Descriptor = {"name": name, "digest": _digest_set(digest)}
    return found | ({"annotations": {"version": version}} if version else {})


def _digest_set(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
