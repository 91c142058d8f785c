"""Bundles and statements are read strictly: each thing that does not belong there is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from planyard.core.errors import IntegrityError
from planyard.core.sigstore_bundle import (
    BUNDLE_LIMIT_BYTES,
    BUNDLE_TYPE,
    STATEMENT_LIMIT_BYTES,
    outline_of_statement,
    read_bundle,
)

PAYLOAD = b'{"a": 1}'


def bundle_document() -> dict[str, Any]:
    return {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": "x"},
            "tlogEntries": [{"logIndex": "1"}],
            "timestampVerificationData": {},
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(PAYLOAD).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "AAAA", "keyid": ""}],
        },
    }


def statement_document() -> dict[str, Any]:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "a", "digest": {"sha256": "a" * 64, "sha512": "b" * 128}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {},
    }


def changed(document: dict[str, Any], path: str, value: Any) -> bytes:
    """The document with what lies at `path` replaced, or taken out for `...`."""
    *way, last = path.split("/")
    at: Any = document
    for part in way:
        at = at[int(part) if part.isdigit() else part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(document).encode()


def test_a_bundle_is_read() -> None:
    read = read_bundle(json.dumps(bundle_document(), indent=2).encode())
    assert read.payload == PAYLOAD
    assert read.by_key
    assert json.loads(read.trusted_form) == bundle_document()
    assert read_bundle(read.trusted_form) == read


def test_a_bundle_by_a_certificate_is_read() -> None:
    document = bundle_document()
    document["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}}
    assert not read_bundle(json.dumps(document).encode()).by_key


BAD_BUNDLES: dict[str, tuple[str, Any]] = {
    "old type": ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.2"),
    "no type": ("mediaType", ...),
    "type with a blank": ("mediaType", BUNDLE_TYPE + " "),
    "unknown member": ("more", 1),
    "legacy member": ("base64Signature", "AAAA"),
    "snake case": ("dsse_envelope", {}),
    "no material": ("verificationMaterial", ...),
    "material of another kind": ("verificationMaterial", []),
    "no signer": ("verificationMaterial/publicKey", ...),
    "a key and a certificate": ("verificationMaterial/certificate", {"rawBytes": "AAAA"}),
    "a chain": ("verificationMaterial/x509CertificateChain", {}),
    "a key in the bundle": ("verificationMaterial/publicKey/rawBytes", "AAAA"),
    "no envelope": ("dsseEnvelope", ...),
    "a message signature": ("messageSignature", {}),
    "another payload type": ("dsseEnvelope/payloadType", "text/plain"),
    "payload not base64": ("dsseEnvelope/payload", "AA*A"),
    "payload in the other alphabet": ("dsseEnvelope/payload", "-_-_"),
    "payload cut off": ("dsseEnvelope/payload", "AAA"),
    "payload a number": ("dsseEnvelope/payload", 1),
    "no signature": ("dsseEnvelope/signatures", []),
    "two signatures": ("dsseEnvelope/signatures", [{"sig": "AAAA"}] * 2),
    "signature empty": ("dsseEnvelope/signatures/0/sig", ""),
    "signature with a key": ("dsseEnvelope/signatures/0/cert", "AAAA"),
    "text that is not Unicode": ("verificationMaterial/publicKey/hint", "\ud800"),
}


@pytest.mark.parametrize(("path", "value"), BAD_BUNDLES.values(), ids=BAD_BUNDLES)
def test_a_bundle_is_refused(path: str, value: Any) -> None:
    document = bundle_document()
    at: Any = document
    for part in path.split("/")[:-1]:
        at = at[int(part) if part.isdigit() else part]
    with pytest.raises(IntegrityError):
        read_bundle(changed(document, path, value))


BAD_BYTES = {
    "nothing": (b"", "it is empty"),
    "not text": (b"\xff\xfe", "not JSON"),
    "not an object": (b"[]", "not a JSON object"),
    "more behind it": (json.dumps(bundle_document()).encode() + b"{}", "not JSON"),
    "NaN": (b'{"a": NaN}', "no JSON number"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "large": (b" " * (BUNDLE_LIMIT_BYTES + 1), "are read"),
    "a key twice": (
        json.dumps(bundle_document())
        .replace('"payload":', '"payload": "AAAA", "payload":')
        .encode(),
        "stands twice",
    ),
}


@pytest.mark.parametrize(("data", "message"), BAD_BYTES.values(), ids=BAD_BYTES)
def test_bytes_that_are_no_bundle_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        read_bundle(data)


def test_a_statement_is_outlined() -> None:
    outline = outline_of_statement(json.dumps(statement_document()).encode())
    assert outline.predicate_type == "https://slsa.dev/provenance/v1"
    assert outline.subjects == ("a" * 64,)


BAD_STATEMENTS: dict[str, tuple[str, Any]] = {
    "old type": ("_type", "https://in-toto.io/Statement/v0.1"),
    "no type": ("_type", ...),
    "unknown member": ("more", 1),
    "no predicate": ("predicate", ...),
    "predicate type no address": ("predicateType", "slsaprovenance"),
    "predicate type a flag": ("predicateType", "--key=x"),
    "predicate type with a line": ("predicateType", "https://slsa.dev/\nx"),
    "predicate type a number": ("predicateType", 1),
    "no subject": ("subject", []),
    "subjects of another kind": ("subject", {}),
    "subject of another kind": ("subject", ["a"]),
    "subject without a digest": ("subject", [{"name": "a"}]),
    "subject with another digest": ("subject", [{"digest": {"sha1": "a" * 40}}]),
    "digest in capitals": ("subject", [{"digest": {"sha256": "A" * 64}}]),
    "digest too short": ("subject", [{"digest": {"sha256": "a" * 63}}]),
}


@pytest.mark.parametrize(("path", "value"), BAD_STATEMENTS.values(), ids=BAD_STATEMENTS)
def test_a_statement_is_refused(path: str, value: Any) -> None:
    with pytest.raises(IntegrityError):
        outline_of_statement(changed(statement_document(), path, value))


def test_a_large_statement_is_refused() -> None:
    document = json.dumps(statement_document()).encode()
    outline_of_statement(document + b" " * (STATEMENT_LIMIT_BYTES - len(document)))
    with pytest.raises(IntegrityError, match="are read"):
        outline_of_statement(document + b" " * (STATEMENT_LIMIT_BYTES - len(document) + 1))
