"""Sigstore bundles and in-toto statements, read strictly: what is not expected is refused.

One format is accepted: bundle v0.3 around a DSSE envelope with one signature. Older ones carry keys
and certificates that some verifiers put before the key they were given (GHSA-fx35-mq7g-6g98).
`trusted_form` writes a bundle anew from what was read, so that a verifier with another idea of
JSON (repeated keys, other spellings of a name) sees what was checked here and nothing else.
Format: https://docs.sigstore.dev/about/bundle/ and https://github.com/in-toto/attestation.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planyard.core.digest import canonical_json
from planyard.core.errors import IntegrityError

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
BUNDLE_LIMIT_BYTES = 1 << 20
STATEMENT_LIMIT_BYTES = 512 << 10

_LEGACY = {"base64Signature", "cert", "rekorBundle", "SignedEntryTimestamp", "Payload"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPE_URI = re.compile(r"(?:https://|urn:)[A-Za-z0-9._~/:%#?=&+-]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle as it was read: the payload that was signed, and whether by a key without a name."""

    payload: bytes
    by_key: bool
    trusted_form: bytes


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What of a statement a verifier is asked for; `subjects` are sha256 as 64 hex digits."""

    predicate_type: str
    subjects: tuple[str, ...]


def read_bundle(data: bytes) -> Bundle:
    """Read a bundle; raises IntegrityError unless it is exactly what this program writes."""
    document = _object(_json(data, what="bundle", limit_bytes=BUNDLE_LIMIT_BYTES), "bundle")
    if legacy := sorted(_LEGACY & document.keys()):
        raise IntegrityError(f"bundle: a legacy bundle ({', '.join(legacy)}), which is not trusted")
    if (media_type := document.get("mediaType")) != BUNDLE_TYPE:
        raise IntegrityError(f"bundle: its mediaType is {_shown(media_type)}, not {BUNDLE_TYPE}")
    _fields(document, "bundle", needed={"mediaType", "verificationMaterial", "dsseEnvelope"})
    by_key = _read_material(_object(document["verificationMaterial"], "verificationMaterial"))
    envelope = _object(document["dsseEnvelope"], "dsseEnvelope")
    payload = _read_envelope(envelope)
    envelope["payload"] = base64.b64encode(payload).decode()
    try:
        trusted_form = canonical_json(document)
    except ValueError as error:
        raise IntegrityError("bundle: it holds text that is not Unicode") from error
    return Bundle(payload=payload, by_key=by_key, trusted_form=trusted_form)


def outline_of_statement(statement: bytes) -> Outline:
    """The predicate type and subjects of an in-toto statement v1; raises IntegrityError."""
    what = "statement"
    document = _object(_json(statement, what=what, limit_bytes=STATEMENT_LIMIT_BYTES), what)
    _fields(document, what, needed={"_type", "subject", "predicateType", "predicate"})
    if document["_type"] != STATEMENT_TYPE:
        raise IntegrityError(f"statement: _type is {_shown(document['_type'])}")
    predicate_type = document["predicateType"]
    if not isinstance(predicate_type, str) or not _TYPE_URI.fullmatch(predicate_type):
        raise IntegrityError(
            f"statement: predicateType is {_shown(predicate_type)}, not https://… or urn:…"
        )
    subjects = document["subject"]
    if not isinstance(subjects, list) or not subjects:
        raise IntegrityError("statement: it has no subject")
    return Outline(
        predicate_type=predicate_type, subjects=tuple(_subject_digest(each) for each in subjects)
    )


def _subject_digest(subject: object) -> str:
    digests = _object(_object(subject, "subject").get("digest"), "digest of a subject")
    found = digests.get("sha256")
    if not isinstance(found, str) or not _SHA256.fullmatch(found):
        raise IntegrityError(f"statement: a subject has no sha256 digest, but {_shown(digests)}")
    return found


def _read_material(material: Mapping[str, Any]) -> bool:
    """Whether a key signed; a certificate otherwise."""
    where = "verificationMaterial"
    by_key = "publicKey" in material
    signer = "publicKey" if by_key else "certificate"
    _fields(material, where, needed={signer}, may={"tlogEntries", "timestampVerificationData"})
    if by_key:
        _fields(_object(material[signer], signer), signer, needed=set(), may={"hint"})
    else:
        _fields(_object(material[signer], signer), signer, needed={"rawBytes"})
    return by_key


def _read_envelope(envelope: Mapping[str, Any]) -> bytes:
    _fields(envelope, "dsseEnvelope", needed={"payload", "payloadType", "signatures"})
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise IntegrityError(f"bundle: payloadType is {_shown(envelope['payloadType'])}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise IntegrityError("bundle: it must hold one signature")
    signature = _object(signatures[0], "signature")
    _fields(signature, "signature", needed={"sig"}, may={"keyid"})
    if not _base64(signature["sig"], "sig"):
        raise IntegrityError("bundle: its signature is empty")
    return _base64(envelope["payload"], "payload")


def _base64(text: object, what: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise IntegrityError(f"bundle: {what} is not base64")


def _json(data: bytes, *, what: str, limit_bytes: int) -> object:
    if not data:
        raise IntegrityError(f"{what}: it is empty")
    if len(data) > limit_bytes:
        raise IntegrityError(f"{what}: {len(data)} bytes, and at most {limit_bytes} are read")
    try:
        return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise IntegrityError(f"{what}: not JSON ({reason})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IntegrityError(f"{what}: {_shown(value)} is not a JSON object")
    return value


def _fields(
    found: Mapping[str, Any],
    what: str,
    *,
    needed: set[str],
    may: frozenset[str] | set[str] = frozenset(),
) -> None:
    if missing := sorted(needed - found.keys()):
        raise IntegrityError(f"{what}: {', '.join(missing)} is missing")
    if unknown := sorted(found.keys() - needed - may):
        raise IntegrityError(f"{what}: {', '.join(unknown)[:120]!r} does not belong there")


def _shown(value: object) -> str:
    """A value for a message, kept short: it comes from a stranger."""
    return repr(value)[:80]
