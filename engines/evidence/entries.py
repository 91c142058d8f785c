"""The index entries that hold evidence: written, listed by what they claim, read whole.

Whoever can write into a store can add entries here, so that nothing read is believed, sizes and
counts are limited before anything is decoded, and at most `TRIES` sets are held at once.
"""

from __future__ import annotations

import heapq
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from engines.evidence import rules
from engines.evidence import statements as in_toto
from engines.evidence.rules import SetClaims
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, StoreError
from planyard.core.sigstore_bundle import BUNDLE_LIMIT_BYTES, STATEMENT_LIMIT_BYTES

EVIDENCE = "evidence"
EVIDENCE_SCHEMA = 1
ENTRY_LIMIT_BYTES = 16 << 20
ENTRIES_LIMIT = 1_000
TRIES = 64
"""How many sets are tried, newest first, before it is said that none verifies."""


_Kind = TypeVar("_Kind")


class SignedStatement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement's exact bytes and the bundle that signs them; both base64 in JSON."""

    statement: Annotated[bytes, Meta(max_length=STATEMENT_LIMIT_BYTES)]
    bundle: Annotated[bytes, Meta(max_length=BUNDLE_LIMIT_BYTES)]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry of the index is: `set` lists the digests of `statements`."""

    schema: Annotated[int, Meta(ge=1, le=EVIDENCE_SCHEMA)] = EVIDENCE_SCHEMA
    set: SignedStatement
    statements: tuple[SignedStatement, ...]


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an entry that is read before anything of it is believed."""

    schema: int
    set: SignedStatement | None = None


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that does not count, and why."""

    entry: str
    why: str


class Candidate(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A set before its signature was verified, in the order in which sets are tried."""

    version: int
    issued: str
    entry: str
    claims: SetClaims
    subjects: frozenset[str]
    signed: SignedStatement


def put_entry(store: Store, image_digest: str, entry: Entry) -> str:
    """Add the entry to the index and return its digest. Raises StoreError for one too large."""
    document = canonical_json(msgspec.to_builtins(entry))
    if len(document) > ENTRY_LIMIT_BYTES:
        raise StoreError(f"evidence of {len(document)} bytes: {ENTRY_LIMIT_BYTES} is the limit")
    return store.put_entry(EVIDENCE, image_digest, document)


def candidates(store: Store, image_digest: str) -> tuple[list[Candidate], list[PassedOver]]:
    """The sets that claim the highest versions, highest first, and the entries that are none.

    Holds at most TRIES sets, whatever lies in the store. Raises IntegrityError for too many.
    """
    kept: list[Candidate] = []
    unreadable: list[PassedOver] = []
    for number, document in enumerate(store.entries(EVIDENCE, image_digest)):
        if number == ENTRIES_LIMIT:
            raise IntegrityError(
                f"{store.url} has more than {ENTRIES_LIMIT} entries of evidence of {image_digest}",
                mend="find out who wrote them; no more are read",
            )
        try:
            candidate = _candidate(document, image=image_digest)
        except IntegrityError as error:
            unreadable.append(PassedOver(entry=digest_of_bytes(document), why=error.message))
        else:
            heapq.heappush(kept, candidate)
            if len(kept) > TRIES:
                heapq.heappop(kept)
    return sorted(kept, reverse=True), unreadable


def _candidate(document: bytes, *, image: str) -> Candidate:
    """What an entry claims; its statements are not read yet."""
    head = _decode(document, kind=_Head)
    if head.schema != EVIDENCE_SCHEMA or head.set is None:
        raise IntegrityError(
            f"evidence of schema {head.schema}; this planyard reads {EVIDENCE_SCHEMA}"
        )
    statement = in_toto.statement_from_bytes(head.set.statement)
    claims = rules.claims_of(statement)
    if claims.image != image:
        raise IntegrityError(f"it is evidence of another image, {claims.image}")
    return Candidate(
        version=claims.version,
        issued=claims.issued,
        entry=digest_of_bytes(document),
        claims=claims,
        subjects=statement.digests,
        signed=head.set,
    )


def read_entry(store: Store, image_digest: str, digest: str) -> Entry:
    """An entry by its digest; read again, because sets are tried without their statements."""
    for document in store.entries(EVIDENCE, image_digest):
        if digest_of_bytes(document) == digest:
            return _decode(document, kind=Entry)
    raise IntegrityError(f"{store.url} lost the entry of evidence {digest} while it was read")


def _decode(document: bytes, *, kind: type[_Kind]) -> _Kind:
    """Read an entry, or the part of it that `kind` names."""
    if len(document) > ENTRY_LIMIT_BYTES:
        raise IntegrityError(f"{len(document)} bytes: {ENTRY_LIMIT_BYTES} is the limit")
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"it is not an entry of evidence: {error}") from error
