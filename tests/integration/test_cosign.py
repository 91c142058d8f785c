"""The real cosign: what is signed is verified, and nothing else is.

Nothing here uses the network. The first test proves that; the last ones block it.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planyard.core.errors import IntegrityError
from planyard.core.sigstore_bundle import BUNDLE_TYPE, read_bundle
from planyard.edge import proc
from planyard.edge.cosign import Cosign, sign_statement, verify_statement
from tests.cosign_fixture import KeyPair

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
NOWHERE = "http://127.0.0.1:1"
BLOCKED = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": ""}
NO_BODY = "eyJhbGciOiJub25lIn0.e30."
"""An OIDC token that says nothing."""


def statement_of(subject: str = "a", *, result: str = "PASSED") -> bytes:
    """A statement with characters and spaces that a rewriting signer would change."""
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": "image", "digest": {"sha256": subject * 64}},
            {"name": "plan/ä/640", "digest": {"sha256": "f" * 64}},
        ],
        "predicateType": TEST_RESULT,
        "predicate": {"result": result, "ratio": 1.10, "html": "<&>"},
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


STATEMENT = statement_of()


@pytest.fixture(scope="module")
def bundle(cosign_program: Cosign, cosign_keys: KeyPair) -> bytes:
    return sign(cosign_program, cosign_keys)


def sign(cosign: Cosign, keys: KeyPair, statement: bytes = STATEMENT) -> bytes:
    return sign_statement(cosign, statement, key=str(keys.private), environment=keys.environment)


def verify(cosign: Cosign, keys: KeyPair, bundle: bytes, statement: bytes = STATEMENT) -> None:
    verify_statement(cosign, statement, bundle, key=str(keys.public), environment={})


def changed(bundle: bytes, change: Callable[[Any], None]) -> bytes:
    document = json.loads(bundle)
    change(document)
    return json.dumps(document).encode()


def test_signing_and_verifying_reach_no_network(
    cosign_program: Cosign, cosign_keys: KeyPair, tmp_path: Path
) -> None:
    """Both, in a network namespace with nothing in it but a loopback that is down."""
    if proc.run_unchecked(["unshare", "--net", "true"], timeout_seconds=30).exit_code:
        pytest.skip("this user may not make a network namespace")
    wrapper = tmp_path / "cosign"
    wrapper.write_text(f'#!/bin/sh\nexec unshare --net {cosign_program.program} "$@"\n')
    wrapper.chmod(0o755)
    alone = Cosign(program=str(wrapper), version=cosign_program.version)
    verify(alone, cosign_keys, sign(alone, cosign_keys))


def test_the_bundle_holds_the_very_bytes_of_the_statement(bundle: bytes) -> None:
    read = read_bundle(bundle)
    assert read.payload == STATEMENT
    assert read.by_key
    assert json.loads(bundle)["mediaType"] == BUNDLE_TYPE
    assert "tlogEntries" not in json.loads(bundle)["verificationMaterial"]


def test_what_is_signed_is_verified(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes
) -> None:
    verify(cosign_program, cosign_keys, bundle)


@pytest.mark.parametrize("subject", ["a", "f"])
def test_other_tools_can_verify_by_any_subject(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes, tmp_path: Path, subject: str
) -> None:
    """cosign as a person would call it, with nothing of ours."""
    (tmp_path / "bundle").write_bytes(bundle)
    command = [cosign_program.program, "verify-blob-attestation", "--bundle", "bundle"]
    command += ["--type", TEST_RESULT, "--digest", subject * 64, "--digestAlg", "sha256"]
    command += ["--key", str(cosign_keys.public), "--insecure-ignore-tlog"]
    assert "Verified OK" in proc.run(command, timeout_seconds=60, cwd=tmp_path).output
    command[command.index(TEST_RESULT)] = "https://slsa.dev/provenance/v1"
    assert proc.run_unchecked(command, timeout_seconds=60, cwd=tmp_path).exit_code != 0


def test_keys_may_come_in_variables(cosign_program: Cosign, cosign_keys: KeyPair) -> None:
    given = {"PRIVATE": cosign_keys.private.read_text(), **cosign_keys.environment}
    bundle = sign_statement(cosign_program, STATEMENT, key="env://PRIVATE", environment=given)
    public = {"PUBLIC": cosign_keys.public.read_text()}
    verify_statement(cosign_program, STATEMENT, bundle, key="env://PUBLIC", environment=public)


def test_a_key_may_have_no_password(
    cosign_program: Cosign, make_key_pair: Callable[..., KeyPair], tmp_path: Path
) -> None:
    keys = make_key_pair(tmp_path, password="")
    bundle = sign_statement(cosign_program, STATEMENT, key=str(keys.private), environment={})
    verify(cosign_program, keys, bundle)


# What is refused


@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_wrong_password_signs_nothing(
    cosign_program: Cosign, cosign_keys: KeyPair, password: str
) -> None:
    with pytest.raises(IntegrityError, match="nothing was signed") as caught:
        sign_statement(
            cosign_program,
            STATEMENT,
            key=str(cosign_keys.private),
            environment={"COSIGN_PASSWORD": password},
        )
    assert "COSIGN_PASSWORD" in caught.value.mend


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----"])
def test_a_file_that_is_no_key_signs_and_verifies_nothing(
    cosign_program: Cosign, bundle: bytes, tmp_path: Path, text: str
) -> None:
    key = tmp_path / "key"
    key.write_text(text)
    with pytest.raises(IntegrityError, match="nothing was signed"):
        sign_statement(cosign_program, STATEMENT, key=str(key), environment={})
    with pytest.raises(IntegrityError, match="nothing was verified"):
        verify_statement(cosign_program, STATEMENT, bundle, key=str(key), environment={})


def test_another_key_does_not_verify(
    cosign_program: Cosign,
    bundle: bytes,
    make_key_pair: Callable[..., KeyPair],
    tmp_path: Path,
) -> None:
    with pytest.raises(IntegrityError, match="nothing was verified"):
        verify(cosign_program, make_key_pair(tmp_path), bundle)


@pytest.mark.parametrize("at", [0, 40, -3])
def test_a_statement_changed_by_a_byte_does_not_verify(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes, at: int
) -> None:
    """Refused by us, before cosign is asked; changed in the bundle too, by cosign: see below."""
    flipped = bytearray(STATEMENT)
    flipped[at] ^= 0x01 if at else 0x2A
    with pytest.raises(IntegrityError):
        verify(cosign_program, cosign_keys, bundle, bytes(flipped))


def test_a_statement_changed_in_the_bundle_too_does_not_verify(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes
) -> None:
    failed = statement_of(result="FAILED")

    def change(document: Any) -> None:
        document["dsseEnvelope"]["payload"] = base64.b64encode(failed).decode()

    with pytest.raises(IntegrityError, match="nothing was verified"):
        verify(cosign_program, cosign_keys, changed(bundle, change), failed)


def test_a_signature_for_another_statement_does_not_verify(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes
) -> None:
    """A signature of the same key over a statement for another digest."""
    other = json.loads(sign(cosign_program, cosign_keys, statement_of("b")))

    def change(document: Any) -> None:
        document["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"]

    with pytest.raises(IntegrityError, match="nothing was verified"):
        verify(cosign_program, cosign_keys, changed(bundle, change))
    with pytest.raises(IntegrityError, match="another statement"):
        verify(cosign_program, cosign_keys, json.dumps(other).encode())


def test_a_signature_with_a_flipped_bit_does_not_verify(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes
) -> None:
    def change(document: Any) -> None:
        signature = document["dsseEnvelope"]["signatures"][0]
        raw = bytearray(base64.b64decode(signature["sig"]))
        raw[-1] ^= 1
        signature["sig"] = base64.b64encode(raw).decode()

    with pytest.raises(IntegrityError, match="nothing was verified"):
        verify(cosign_program, cosign_keys, changed(bundle, change))


def test_a_private_key_is_no_public_one(
    cosign_program: Cosign, cosign_keys: KeyPair, bundle: bytes
) -> None:
    with pytest.raises(IntegrityError, match="nothing was verified"):
        verify_statement(
            cosign_program,
            STATEMENT,
            bundle,
            key=str(cosign_keys.private),
            environment=cosign_keys.environment,
        )


def test_a_legacy_bundle_that_cosign_itself_would_write_is_refused(
    cosign_program: Cosign, cosign_keys: KeyPair, tmp_path: Path
) -> None:
    """cosign still takes both formats; we take one."""
    (tmp_path / "statement").write_bytes(STATEMENT)
    command = [cosign_program.program, "attest-blob", "--yes", "--statement=statement"]
    command += ["--bundle=legacy", "--new-bundle-format=false", "--use-signing-config=false"]
    command += ["--tlog-upload=false", f"--key={cosign_keys.private}"]
    env = {**cosign_keys.environment, "HOME": str(tmp_path)}
    proc.run(command, timeout_seconds=60, cwd=tmp_path, env=env)
    legacy = (tmp_path / "legacy").read_bytes()
    assert b"base64Signature" in legacy
    with pytest.raises(IntegrityError, match="legacy"):
        verify(cosign_program, cosign_keys, legacy)


def test_without_a_network_keyless_signing_signs_nothing(cosign_program: Cosign) -> None:
    given = {"SIGSTORE_ID_TOKEN": NO_BODY, **BLOCKED}
    with pytest.raises(IntegrityError, match=r"nothing was signed|did not end"):
        sign_statement(cosign_program, STATEMENT, key=None, environment=given, timeout_seconds=20)


def test_without_a_network_keyless_verifying_verifies_nothing(
    cosign_program: Cosign, bundle: bytes, tmp_path: Path
) -> None:
    certificate = tmp_path / "c.pem"
    openssl = shutil.which("openssl")
    assert openssl
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    new += ["-subj", "/CN=me", "-keyout", str(tmp_path / "k.pem"), "-out", str(certificate)]
    subprocess.run([openssl, *new], check=True, capture_output=True)
    lines = certificate.read_text().splitlines()

    def change(document: Any) -> None:
        raw = "".join(lines[1:-1])
        document["verificationMaterial"] = {"certificate": {"rawBytes": raw}}

    with pytest.raises(IntegrityError, match=r"nothing was verified|did not end"):
        verify_statement(
            cosign_program,
            STATEMENT,
            changed(bundle, change),
            key=None,
            identity="me",
            issuer="https://issuer.invalid",
            environment=BLOCKED,
            timeout_seconds=20,
        )


def test_a_time_limit_too_short_for_cosign_signs_nothing(
    cosign_program: Cosign, cosign_keys: KeyPair, tmp_path: Path
) -> None:
    sign(cosign_program, cosign_keys)
    with pytest.raises(IntegrityError, match="did not end within"):
        sign_statement(
            cosign_program,
            STATEMENT,
            key=str(cosign_keys.private),
            environment=cosign_keys.environment,
            timeout_seconds=0.001,
        )
