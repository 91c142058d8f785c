"""The statement that names an image's bill of materials, and whether the store's is the signed one.

The documents lie in the store; the statement says their digests, so that it stays small however
long they are: in-toto's predicate for documents that are not part of the statement. Pure.
https://github.com/in-toto/attestation/blob/main/spec/predicates/reference.md
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from engines.evidence.statements import BUILDER_ID, Descriptor, Statement, Subject
from engines.sbom import MEDIA_TYPES, SbomDocument, SbomFormat, SbomRecord
from planyard.core.findings import Finding

REFERENCE_TYPE = "https://in-toto.io/attestation/reference/v0.1"


def sbom_statement(record: SbomRecord, *, image_name: str) -> Statement:
    """That these documents are the bill of this image."""
    return Statement(
        subject=(Subject(digest={"sha256": record.image[7:]}, name=image_name),),
        predicate_type=REFERENCE_TYPE,
        predicate={
            "attester": {"id": BUILDER_ID},
            "references": [
                _reference(name, document) for name, document in sorted(record.documents.items())
            ],
        },
    )


def unsigned_bill(others: Iterable[Statement], record: SbomRecord | None) -> tuple[Finding, ...]:
    """A warning when the store would hand out a bill that none of these statements names."""
    signed = {digest for statement in others for digest in _named_by(statement)}
    if record is None:
        return ()
    added = tuple(
        f"{name}: {document.digest}"
        for name, document in sorted(record.documents.items())
        if document.digest not in signed
    )
    if not added:
        return ()
    return (
        Finding(
            gate="evidence",
            rule="evidence.unsigned-sbom",
            message="the bill of materials in the store is not signed",
            severity="warn",
            evidence=added,
        ),
    )


def _reference(name: SbomFormat, document: SbomDocument) -> Descriptor:
    return {
        "name": name,
        "digest": {"sha256": document.digest[7:]},
        "downloadLocation": _by_its_hash(document.digest),
        "mediaType": MEDIA_TYPES[name],
    }


def _by_its_hash(digest: str) -> str:
    """`ni:///sha-256;…`: the address of whatever has this hash, wherever it lies (RFC 6920)."""
    text = base64.urlsafe_b64encode(bytes.fromhex(digest[7:])).decode().rstrip("=")
    return f"ni:///sha-256;{text}"


def _named_by(statement: Statement) -> Iterable[str]:
    """The digests that a statement refers to; nothing for other types and forms."""
    references = statement.predicate.get("references")
    if statement.predicate_type != REFERENCE_TYPE or not isinstance(references, list):
        return
    for each in references:
        digest = each.get("digest") if isinstance(each, dict) else None
        if isinstance(digest, dict):
            yield f"sha256:{digest.get('sha256')}"
