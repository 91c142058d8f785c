"""What evidence must hold to be believed: every rule, no I/O. Clock and memory are passed in.

An *evidence set* is a signed statement that lists the digests of all statements about one image,
with a version and an expiry. In the order in which evidence.py asks (as TUF's clients do):

1. the set is of the image asked for, at least as new as what was seen before, and not expired;
2. the statements beside it are those it lists: none added, none missing, none twice;
3. there is one provenance of the image, one of each plan, and of each snapshot itself and its test
   result, each about the right subjects and agreeing with each other;
4. what the newest test of each cell says. Only this is a finding, the rest is an IntegrityError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engines.evidence import statements as in_toto
from engines.evidence.statements import Statement
from engines.snapshot import Snapshot, UtcTime, from_json
from planyard.core.digest import canonical_json, short
from planyard.core.errors import InputError, IntegrityError
from planyard.core.findings import Finding
from planyard.core.matrix_fields import Digest

SET_TYPE = "urn:planyard:evidence-set:1"
SET_SCHEMA = 1
STATEMENTS_LIMIT = 1_000
VERSION_LIMIT = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly."""


class Listed(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A statement that belongs to a set."""

    digest: Digest
    predicate_type: str


class SetClaims(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The predicate of an evidence set: all statements about `image` as of `issued`."""

    schema: Annotated[int, Meta(ge=SET_SCHEMA, le=SET_SCHEMA)] = SET_SCHEMA
    image: Digest
    version: Annotated[int, Meta(ge=1, le=VERSION_LIMIT)]
    issued: UtcTime
    expires: UtcTime
    statements: Annotated[tuple[Listed, ...], Meta(min_length=1, max_length=STATEMENTS_LIMIT)]


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """The statements of a set that hold together; `others` are of types nobody judges here."""

    snapshots: tuple[Snapshot, ...]
    results: dict[str, dict[str, Any]]
    """The test-result predicate of each snapshot by the snapshot's digest."""
    others: tuple[Statement, ...] = ()


def deciding(snapshots: Iterable[Snapshot]) -> tuple[Snapshot, ...]:
    """The snapshots that are the newest word on at least one cell, in the order given.

    Of two from the same second both count.
    """
    kept = tuple(snapshots)
    newest = _newest(kept)
    return tuple(
        each for each in kept if any(newest[cell] == each.created for cell in _cells(each))
    )


def set_statement(claims: SetClaims, *, snapshots: Sequence[Snapshot]) -> Statement:
    """The evidence set as a statement; its subjects are the image and every plan."""
    return Statement(
        subject=in_toto.all_subjects(snapshots),
        predicate_type=SET_TYPE,
        predicate=msgspec.to_builtins(claims),
    )


def claims_of(statement: Statement) -> SetClaims:
    """What an evidence set says; raises IntegrityError for any other statement."""
    if statement.predicate_type != SET_TYPE:
        raise IntegrityError(f"a {statement.predicate_type[:80]!r} is not an evidence set")
    found = statement.predicate.get("schema")
    if found != SET_SCHEMA:
        raise IntegrityError(
            f"an evidence set of schema {str(found)[:20]}; this planyard reads {SET_SCHEMA}",
            mend="verify it with the planyard version that signed it, or a newer one",
        )
    try:
        claims = msgspec.convert(statement.predicate, SetClaims)
    except msgspec.ValidationError as error:
        raise IntegrityError(f"not an evidence set: {error}") from error
    if claims.image not in statement.digests:
        raise IntegrityError(f"an evidence set of {claims.image} that is not about it")
    return claims


def check_claims(claims: SetClaims, *, image: str, now: str, trusted_version: int) -> None:
    """Rule 1. `now` is RFC 3339 in UTC; `trusted_version` the highest seen so far, or 0."""
    of = f"the evidence of {image}"
    if claims.image != image:
        raise IntegrityError(f"{of} is evidence of {claims.image}")
    if claims.version < trusted_version:
        raise IntegrityError(
            f"{of} is version {claims.version}; version {trusted_version} was seen here before",
            mend="the store serves an old state: find out who put it back, or sign again",
        )
    if claims.expires <= now:
        raise IntegrityError(
            f"{of} expired at {claims.expires} (version {claims.version})",
            mend=f"sign again: planyard sign {image}",
        )


def check_listing(claims: SetClaims, found: Sequence[str]) -> None:
    """Rule 2. `found` are the digests of the statements that lie beside the set."""
    of = f"the evidence of {claims.image}"
    mend = "somebody changed the entry: fetch it from another store, or sign again"
    listed = [each.digest for each in claims.statements]
    twice = [digest for digest, count in Counter([*found]).items() if count > 1]
    if twice or len(set(listed)) != len(listed):
        raise IntegrityError(f"{of} has a statement twice: {', '.join(twice or listed)}", mend=mend)
    if missing := sorted(set(listed) - set(found)):
        raise IntegrityError(f"{of} lacks {len(missing)} statements: {missing[0]} …", mend=mend)
    if added := sorted(set(found) - set(listed)):
        raise IntegrityError(
            f"{of} has {len(added)} statements its set does not list: {added[0]} …", mend=mend
        )


def read_contents(
    claims: SetClaims, statements: Sequence[Statement], *, subjects: frozenset[str]
) -> Contents:
    """Rule 3. `subjects` are the digests that the set itself is about."""
    of = f"the evidence of {claims.image}"
    by_type: dict[str, list[Statement]] = {}
    for statement in statements:
        by_type.setdefault(statement.predicate_type, []).append(statement)
    snapshots = _snapshots(by_type.pop(in_toto.SNAPSHOT_TYPE, []), of=of, image=claims.image)
    results = _results(by_type.pop(in_toto.TEST_RESULT_TYPE, []), of=of, snapshots=snapshots)
    _check_provenance(by_type.pop(in_toto.PROVENANCE_TYPE, []), of=of, snapshots=snapshots)
    plans = {plan.digest for snapshot in snapshots.values() for plan in snapshot.plans}
    if subjects != plans | {claims.image}:
        raise IntegrityError(f"{of} is a set about other subjects than its snapshots")
    others = tuple(each for group in by_type.values() for each in group)
    for each in others:
        if claims.image not in each.digests:
            raise IntegrityError(f"{of} has a {each.predicate_type} about another subject")
    return Contents(snapshots=tuple(snapshots.values()), results=results, others=others)


def findings_of(contents: Contents, *, gpu: str | None = None) -> tuple[Finding, ...]:
    """Rule 4: of each cell (of one GPU of the matrix) that did not pass when it was last tried."""
    chosen = [each for each in contents.snapshots if gpu in (None, each.gpu)]
    if not chosen:
        known = ", ".join(sorted({each.gpu for each in contents.snapshots}))
        return (_finding("no-gpu", f"there is no evidence for the GPU {gpu}, only for {known}"),)
    newest = _newest(chosen)
    if not newest:
        return (_finding("no-tests", "no cell was tried: nothing is shown", where=str(gpu or "")),)
    found = []
    for each in chosen:
        result = contents.results[in_toto.snapshot_digest(each)]
        verdicts = {verdict.cell: verdict.verdict for verdict in each.smoke}
        for cell in _cells(each):
            if newest[cell] == each.created:
                found += _findings_of_cell(cell, verdicts.get(cell, "not run"), result=result)
    return tuple(sorted(found, key=lambda finding: (finding.where, finding.rule)))


def findings_of_unsigned(
    contents: Contents, current: Iterable[Snapshot], *, gpu: str | None = None
) -> tuple[Finding, ...]:
    """Of snapshots that now decide in the store and are not in the evidence.

    A plan that nobody signed fails: a lookup would hand it out. Newer tests alone are a warning.
    """
    signed = {in_toto.snapshot_digest(each) for each in contents.snapshots}
    plans = {plan.digest for each in contents.snapshots for plan in each.plans}
    found = []
    for each in current:
        if gpu not in (None, each.gpu) or in_toto.snapshot_digest(each) in signed:
            continue
        added = tuple(plan.cell for plan in each.plans if plan.digest not in plans)
        message = f"the snapshot of {each.created} is not signed" + (
            " and names plans that are not" if added else ""
        )
        rule = "unsigned-plan" if added else "unsigned-snapshot"
        finding = _finding(rule, message, where=each.gpu, evidence=added)
        found.append(finding if added else msgspec.structs.replace(finding, severity="warn"))
    return tuple(found)


def _findings_of_cell(cell: str, verdict: str, *, result: dict[str, Any]) -> list[Finding]:
    def of_cell(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name == cell or name.startswith(f"{cell}/"))

    if verdict == "not run":
        return [_finding("not-run", "nobody ran it: it counts as failed", where=cell)]
    if failed := of_cell(result.get("failedTests", ())):
        message = "its smoke run failed; the signature only says who found that"
        return [_finding("failed", message, where=cell, evidence=failed)]
    if warned := of_cell(result.get("warnedTests", ())):
        finding = _finding("warned", "it passed with warnings", where=cell, evidence=warned)
        return [msgspec.structs.replace(finding, severity="warn")]
    return []


def _snapshots(found: Sequence[Statement], *, of: str, image: str) -> dict[str, Snapshot]:
    """The snapshots by digest; at least one, each of the image and about its own plans."""
    snapshots: dict[str, Snapshot] = {}
    for statement in found:
        try:
            snapshot = from_json(canonical_json(statement.predicate))
        except InputError as error:
            raise IntegrityError(f"{of}: {error.message}", mend=error.mend) from error
        if snapshot.image != image or statement.subject != in_toto.subjects_of(snapshot):
            raise IntegrityError(f"{of} has a snapshot about another subject")
        snapshots[in_toto.snapshot_digest(snapshot)] = snapshot
    if not snapshots:
        raise _lacking(of, in_toto.SNAPSHOT_TYPE)
    return snapshots


def _results(
    found: Sequence[Statement], *, of: str, snapshots: dict[str, Snapshot]
) -> dict[str, dict[str, Any]]:
    """One test result for each snapshot, which says of its cells what the snapshot says."""
    expected = {
        in_toto.digest_of_statement(in_toto.smoke_statement(snapshot)): digest
        for digest, snapshot in snapshots.items()
    }
    results: dict[str, dict[str, Any]] = {}
    for statement in found:
        snapshot = expected.get(in_toto.digest_of_statement(statement))
        if snapshot is None:
            raise IntegrityError(f"{of} has a test result that fits none of its snapshots")
        results[snapshot] = statement.predicate
    if missing := sorted(set(snapshots) - set(results)):
        raise _lacking(f"{of}, its snapshot {short(missing[0])},", in_toto.TEST_RESULT_TYPE)
    return results


def _check_provenance(
    found: Sequence[Statement], *, of: str, snapshots: dict[str, Snapshot]
) -> None:
    """One provenance of the image, and that of every plan by its recipe; no other."""
    wanted = {
        in_toto.digest_of_statement(in_toto.plan_provenance(plan)): plan.cell
        for snapshot in snapshots.values()
        for plan in snapshot.plans
    }
    by_digest = {in_toto.digest_of_statement(statement): statement for statement in found}
    if lost := [cell for digest, cell in wanted.items() if digest not in by_digest]:
        raise _lacking(f"{of}, its plan of {lost[0]},", in_toto.PROVENANCE_TYPE)
    rest = [statement for digest, statement in by_digest.items() if digest not in wanted]
    image = next(iter(snapshots.values()))
    subject = in_toto.subjects_of(image)[:1]
    if not rest:
        raise _lacking(of, in_toto.PROVENANCE_TYPE)
    if len(rest) > 1 or rest[0].subject != subject:
        raise IntegrityError(f"{of} has a provenance too many, or about another subject")
    built = rest[0].predicate.get("buildDefinition")
    made = built if isinstance(built, dict) else {}
    recipe = made.get("externalParameters")
    if made.get("buildType") != in_toto.IMAGE_BUILD_TYPE or not (
        isinstance(recipe, dict) and recipe.get("recipe") == image.image_recipe
    ):
        raise IntegrityError(f"{of} has a provenance of another build or recipe")


def _cells(snapshot: Snapshot) -> set[str]:
    return {each.cell for each in snapshot.smoke} | {each.cell for each in snapshot.plans}


def _newest(snapshots: Iterable[Snapshot]) -> dict[str, str]:
    """When each cell was last spoken of."""
    newest: dict[str, str] = {}
    for snapshot in snapshots:
        for cell in _cells(snapshot):
            newest[cell] = max(newest.get(cell, ""), snapshot.created)
    return newest


def _lacking(of: str, predicate_type: str) -> IntegrityError:
    return IntegrityError(f"{of} has no {predicate_type}", mend="sign again: planyard sign")


def _finding(
    rule: str, message: str, *, where: str = "", evidence: tuple[str, ...] = ()
) -> Finding:
    name = f"evidence.{rule}"
    return Finding(gate="evidence", rule=name, message=message, where=where, evidence=evidence)
