"""Signed evidence of an image, kept in the store: made, found again, verified.

An entry of the index holds one evidence set and all statements it lists, each with its own
signature. What is believed and why is in evidence_rules.py; here is only what surrounds it. Entries
of others' keys may lie beside ours: the newest set whose signature holds counts, the ones passed
over are named. Nothing unsigned decides anything but the order in which sets are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from engines import index
from engines.evidence import bills, rules
from engines.evidence import statements as in_toto
from engines.evidence.entries import (
    EVIDENCE_SCHEMA,
    TRIES,
    Candidate,
    Entry,
    PassedOver,
    SignedStatement,
    candidates,
    put_entry,
    read_entry,
)
from engines.evidence.rules import Listed, SetClaims
from engines.evidence.statements import Statement
from engines.sbom import SbomRecord, sbom_of_image
from engines.snapshot import Snapshot
from engines.store.protocol import Store
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError
from planyard.core.findings import Finding
from planyard.core.results import ImageRecord
from planyard.edge.cosign_flags import CosignError

Signer = Callable[[bytes], bytes]
"""From a statement's bytes to a signature bundle."""
Verifier = Callable[[bytes, bytes], None]
"""Takes a statement and its bundle; raises IntegrityError when the signature does not hold, and
CosignError when that could not be found out."""


class EvidenceSet(msgspec.Struct, frozen=True, kw_only=True):
    """What was signed: `planyard sign --json`. `entry` is the digest of the index entry."""

    schema: int = EVIDENCE_SCHEMA
    image: str
    entry: str
    version: int
    issued: str
    expires: str
    statements: tuple[Listed, ...]


class StatementVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """A statement whose signature holds: what it is about, and what it says if it judges."""

    digest: str
    predicate_type: str
    subject: str
    says: Literal["", "PASSED", "WARNED", "FAILED"] = ""


class EvidenceVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence that is genuine, and what it says: `planyard verify --json`.

    `plans` are the digests of the plans it is about. It is good when no finding fails.
    """

    schema: int = EVIDENCE_SCHEMA
    image: str
    entry: str
    version: int
    issued: str
    expires: str
    statements: tuple[StatementVerdict, ...]
    plans: tuple[str, ...]
    findings: tuple[Finding, ...]
    passed_over: tuple[PassedOver, ...]


def sign_image(
    store: Store,
    image_digest: str,
    *,
    signer: Signer,
    now: str,
    expires_seconds: int,
    verifier: Verifier | None = None,
    trusted_version: int = 0,
) -> EvidenceSet:
    """Sign what the newest snapshots of an image prove, and put it into the store.

    The version is one more than the highest that `verifier` accepts, or that was seen before
    (`trusted_version`). With a verifier, nothing is stored that it does not accept. Raises
    LookupMissError for an image without snapshots, InputError when there is earlier evidence and
    no verifier to say which of it is ours.
    """
    snapshots = rules.deciding(index.snapshots_of_image(store, image_digest))
    if not snapshots:
        raise LookupMissError(
            f"{store.url} has no snapshot of {image_digest} that names a cell: nothing to sign",
            mend="run `planyard build` first",
        )
    statements = _statements(
        snapshots, _image_record(store, snapshots[0]), sbom=sbom_of_image(store, image_digest)
    )
    claims = SetClaims(
        image=image_digest,
        version=_next_version(store, image_digest, verifier=verifier, trusted=trusted_version),
        issued=now,
        expires=_later(now, expires_seconds),
        statements=tuple(_listed(statement) for statement in statements),
    )
    outer = rules.set_statement(claims, snapshots=snapshots)
    entry = Entry(
        set=_signed(outer, signer=signer, verifier=verifier),
        statements=tuple(_signed(each, signer=signer, verifier=verifier) for each in statements),
    )
    return EvidenceSet(
        image=image_digest,
        entry=put_entry(store, image_digest, entry),
        version=claims.version,
        issued=claims.issued,
        expires=claims.expires,
        statements=claims.statements,
    )


def verify_image(
    store: Store,
    image_digest: str,
    *,
    verifier: Verifier,
    now: str,
    trusted_version: int,
    gpu: str | None = None,
) -> EvidenceVerdict:
    """Verify the newest evidence of an image: signatures, types, subjects, age, results.

    Raises IntegrityError when any of these does not hold; that something did not pass is a finding.
    With `gpu`, only the results on that GPU of the matrix are judged. Remember the version of the
    verdict, and pass it as `trusted_version` the next time.
    """
    found, passed_over = candidates(store, image_digest)
    newest, refused = _newest_genuine(found, verifier=verifier)
    passed_over += refused
    if newest is None:
        raise _nothing_genuine(store, image_digest, passed_over)
    claims = newest.claims
    rules.check_claims(claims, image=image_digest, now=now, trusted_version=trusted_version)
    entry = read_entry(store, image_digest, newest.entry)
    digests = [digest_of_bytes(each.statement) for each in entry.statements]
    rules.check_listing(claims, digests)
    for each in entry.statements:
        verifier(each.statement, each.bundle)
    statements = [in_toto.statement_from_bytes(each.statement) for each in entry.statements]
    contents = rules.read_contents(claims, statements, subjects=newest.subjects)
    current = rules.deciding(index.snapshots_of_image(store, image_digest))
    return EvidenceVerdict(
        image=image_digest,
        entry=newest.entry,
        version=claims.version,
        issued=claims.issued,
        expires=claims.expires,
        statements=tuple(map(_verdict, digests, statements)),
        plans=tuple(sorted(newest.subjects - {image_digest})),
        findings=(
            *rules.findings_of(contents, gpu=gpu),
            *rules.findings_of_unsigned(contents, current, gpu=gpu),
            *bills.unsigned_bill(contents.others, sbom_of_image(store, image_digest)),
        ),
        passed_over=tuple(passed_over),
    )


def _newest_genuine(
    found: Sequence[Candidate], *, verifier: Verifier
) -> tuple[Candidate | None, list[PassedOver]]:
    """The first set whose signature holds, and those before it.

    A verifier that could not do its work ends the search: an older set must not win by that.
    """
    refused = []
    for candidate in found:
        try:
            verifier(candidate.signed.statement, candidate.signed.bundle)
        except CosignError:
            raise
        except IntegrityError as error:
            why = f"version {candidate.version} is not signed as wanted: {error.message}"
            refused.append(PassedOver(entry=candidate.entry, why=why))
        else:
            return candidate, refused
    return None, refused


def _next_version(
    store: Store, image_digest: str, *, verifier: Verifier | None, trusted: int
) -> int:
    """One more than the highest version that is genuine or was seen here."""
    found, _ = candidates(store, image_digest)
    if not found:
        return trusted + 1
    if verifier is None:
        raise InputError(
            [f"{store.url} has evidence of {image_digest}: which of it is ours cannot be told"],
            mend="give the public key as well, so that the next version number is known",
        )
    newest, refused = _newest_genuine(found, verifier=verifier)
    if newest is None and len(refused) == TRIES:
        raise IntegrityError(
            f"{store.url}: {TRIES} entries of evidence of {image_digest} are signed by others",
            mend="remove them from the store: new evidence would not be found behind them",
        )
    return max(trusted, newest.version if newest else 0) + 1


def _nothing_genuine(
    store: Store, image_digest: str, passed_over: Sequence[PassedOver]
) -> IntegrityError:
    if not passed_over:
        return IntegrityError(
            f"{store.url} has no evidence of {image_digest}",
            mend=f"sign it: planyard sign {image_digest}",
        )
    tail = tuple(f"{each.entry}: {each.why}" for each in passed_over[:8])
    return IntegrityError(
        f"{store.url} has no evidence of {image_digest} that is signed as wanted: "
        f"{passed_over[0].why}",
        mend="give the key it was signed with, or sign it again",
        log_tail=tail,
    )


def _statements(
    snapshots: Sequence[Snapshot], image: ImageRecord, *, sbom: SbomRecord | None
) -> tuple[Statement, ...]:
    """Every statement of the snapshots once; the image's provenance is that of the newest."""
    first = [in_toto.image_provenance(snapshots[0], image)]
    if sbom:
        first.append(bills.sbom_statement(sbom, image_name=image.name))
    found = {in_toto.digest_of_statement(each): each for each in first}
    for snapshot in snapshots:
        for statement in in_toto.statements_of(snapshot, image)[1:]:
            found.setdefault(in_toto.digest_of_statement(statement), statement)
    if len(found) > rules.STATEMENTS_LIMIT:
        raise StoreError(f"{len(found)} statements: {rules.STATEMENTS_LIMIT} are the limit")
    return tuple(found.values())


def _signed(statement: Statement, *, signer: Signer, verifier: Verifier | None) -> SignedStatement:
    """Sign a statement; with a verifier, what was signed has to hold at once."""
    data = in_toto.statement_to_bytes(statement)
    bundle = signer(data)
    if verifier:
        verifier(data, bundle)
    return SignedStatement(statement=data, bundle=bundle)


def _listed(statement: Statement) -> Listed:
    digest = in_toto.digest_of_statement(statement)
    return Listed(digest=digest, predicate_type=statement.predicate_type)


def _verdict(digest: str, statement: Statement) -> StatementVerdict:
    judges = statement.predicate_type == in_toto.TEST_RESULT_TYPE
    return StatementVerdict(
        digest=digest,
        predicate_type=statement.predicate_type,
        subject=statement.subject[0].name,
        says=statement.predicate["result"] if judges else "",
    )


def _image_record(store: Store, snapshot: Snapshot) -> ImageRecord:
    """The record of a snapshot's image; several images may have its recipe."""
    for document in store.entries(index.IMAGES, snapshot.image_recipe):
        try:
            image = msgspec.json.decode(document, type=ImageRecord)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise IntegrityError(f"a record of an image cannot be read: {error}") from error
        if (image.digest, image.recipe) == (snapshot.image, snapshot.image_recipe):
            return image
    raise LookupMissError(
        f"{store.url} has no record of the image {snapshot.image}: its provenance is not known",
        mend="run `planyard build` again, or copy the store whole",
    )


def _later(now: str, seconds: int) -> str:
    """`now` and so many seconds, in the same form."""
    moment = datetime.strptime(now, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (moment + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
