"""`planyard sign` and `planyard verify`: exit codes, documents, and which key is meant."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from builders import signing
from builders.cli import sign as cli_sign
from builders.cli.verbs import open_store
from builders.signing import Trust
from engines import index
from engines.evidence.seen import seen_file
from engines.evidence.sets import EvidenceSet, EvidenceVerdict
from planyard.edge.clock import utc_now
from planyard.edge.cosign_flags import CosignError
from tests.signed_evidence import FakeKey, a_site, later

KEYS = {"ours": FakeKey(b"ours"), "theirs": FakeKey(b"theirs")}
UNSET = ("PLANYARD_SIGN_KEY", "PLANYARD_VERIFY_KEY", "COSIGN_PRIVATE_KEY", "COSIGN_PUBLIC_KEY")


class FakeCosign:
    """Keys by the text in their file; without a key, the identity in the token signs."""

    def __init__(self) -> None:
        self.missing = False

    def find_cosign(self) -> str:
        if self.missing:
            raise CosignError("no cosign", mend="planyard setup --with cosign")
        return "cosign"

    def sign_statement(self, cosign, statement, *, key, environment):
        return self._key(key, environment).sign(statement)

    def verify_statement(self, cosign, statement, bundle, *, key, identity, issuer, environment):
        if key is None:
            FakeKey(f"{identity} {issuer}".encode()).verify(statement, bundle)
        else:
            self._key(key, environment).verify(statement, bundle)

    def _key(self, key: str | None, environment: Mapping[str, str]) -> FakeKey:
        if key is None:
            return FakeKey(environment["SIGSTORE_ID_TOKEN"].encode())
        if key.startswith("env://"):
            return KEYS[environment[key.removeprefix("env://")]]
        return KEYS[Path(key).read_text().strip()]


@pytest.fixture
def cosign(monkeypatch) -> FakeCosign:
    fake = FakeCosign()
    monkeypatch.setattr(signing, "cosign_tool", lambda: fake)
    return fake


@pytest.fixture
def run(tmp_path, monkeypatch, cosign) -> Iterator:
    """The two verbs in a folder with keys: `run("sign", …)`."""
    monkeypatch.chdir(tmp_path)
    for name in (*UNSET, "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ours", "theirs"):
        (tmp_path / f"{name}.key").write_text(name)
        (tmp_path / f"{name}.pub").write_text(name)
    app = typer.Typer()
    cli_sign.add_to(app)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: CliRunner().invoke(app, list(args))
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def image(run, tmp_path) -> str:
    """The digest of an image whose cells passed, in the store of this folder."""
    return a_site(open_store(None, root=tmp_path)).digest


@pytest.fixture
def failed(run, tmp_path) -> str:
    """The digest of an image of which one cell failed."""
    return a_site(open_store(None, root=tmp_path), "failed").digest


def test_sign_then_verify(run, image):
    signed = run("sign", image, "--key", "ours.key", "--json")
    assert signed.exit_code == 0, signed.stderr
    made = json.loads(signed.stdout)
    assert (made["schema"], made["image"], made["version"]) == (1, image, 1)
    verified = run("verify", image[:24], "--key", "ours.pub", "--json")
    assert verified.exit_code == 0, verified.stderr
    found = json.loads(verified.stdout)
    assert set(made) == set(EvidenceSet.__struct_fields__)
    assert set(found) == set(EvidenceVerdict.__struct_fields__)
    assert found["entry"] == made["entry"]
    assert found["findings"] == []


def test_people_see_every_statement_and_what_it_says(run, image):
    said = run("sign", image, "--key", "ours.key").stdout
    assert "signed 7 statements" in said
    shown = run("verify", image, "--key", "ours.pub").stdout
    assert shown.count("PASSED") == 2
    assert shown.count("https://slsa.dev/provenance/v1") == 3
    assert "rtx/ocr/640/fp16/l4" in shown
    assert "every cell passed" in shown


def test_a_genuine_failure_ends_with_4(run, failed):
    run("sign", failed, "--key", "ours.key")
    result = run("verify", failed, "--key", "ours.pub")
    assert result.exit_code == 4
    assert "evidence.failed" in result.stderr
    assert "every cell passed" not in result.stdout
    as_json = run("verify", failed, "--key", "ours.pub", "--json")
    assert as_json.exit_code == 4
    assert json.loads(as_json.stdout)["findings"][0]["rule"] == "evidence.failed"
    assert run("verify", failed, "--key", "ours.pub", "--gpu", "rtx4090").exit_code == 0


@pytest.mark.parametrize("json_too", [[], ["--json"]], ids=["people", "json"])
def test_another_key_ends_with_10_and_no_document(run, image, json_too):
    run("sign", image, "--key", "ours.key")
    result = run("verify", image, "--key", "theirs.pub", *json_too)
    assert (result.exit_code, result.stdout) == (10, "")
    assert "signed as wanted" in result.stderr


def test_unsigned_ends_with_10(run, image):
    result = run("verify", image, "--key", "ours.pub")
    assert (result.exit_code, result.stdout) == (10, "")
    assert "planyard sign" in result.stderr


def test_an_unknown_image_is_a_miss(run, image):
    for verb, key in (("sign", "ours.key"), ("verify", "ours.pub")):
        assert run(verb, "sha256:" + "0" * 64, "--key", key).exit_code == 9


@pytest.mark.parametrize("verb", ["sign", "verify"])
def test_without_cosign_nothing_is_signed_or_believed(run, image, cosign, verb):
    run("sign", image, "--key", "ours.key")
    before = _entries(image)
    cosign.missing = True
    key = {"sign": "ours.key", "verify": "ours.pub"}[verb]
    result = run(verb, image, "--key", key)
    assert (result.exit_code, result.stdout) == (10, "")
    assert "planyard setup --with cosign" in result.stderr
    assert _entries(image) == before


def _entries(image: str) -> list[bytes]:
    return list(open_store(None, root=Path.cwd()).entries("evidence", image))


def test_rollback_is_seen_by_the_machine_that_saw_more(run, image, tmp_path):
    run("sign", image, "--key", "ours.key")
    (old,) = _entries(image)
    run("sign", image, "--key", "ours.key")
    (tmp_path / ".planyard" / "store").rename(tmp_path / "newer")
    a_site(open_store(None, root=tmp_path))
    open_store(None, root=tmp_path).put_entry("evidence", image, old)
    result = run("verify", image, "--key", "ours.pub")
    assert result.exit_code == 10
    assert "version 2 was seen here before" in result.stderr
    seen_file(tmp_path).unlink()
    assert run("verify", image, "--key", "ours.pub").exit_code == 0


def test_what_was_verified_is_remembered(run, image, tmp_path):
    run("sign", image, "--key", "ours.key")
    seen_file(tmp_path).unlink()
    run("verify", image, "--key", "ours.pub")
    assert list(json.loads(seen_file(tmp_path).read_text())["versions"].values()) == [1]


def test_evidence_lasts_as_many_days_as_asked(run, image):
    made = json.loads(
        run("sign", image, "--key", "ours.key", "--expires-days", "2", "--json").stdout
    )
    assert made["expires"][:10] > made["issued"][:10]
    assert made["issued"] <= utc_now()
    assert run("sign", image, "--key", "ours.key", "--expires-days", "0").exit_code == 2


def test_an_unsigned_snapshot_is_warned_about(run, image, tmp_path):
    run("sign", image, "--key", "ours.key")
    store = open_store(None, root=tmp_path)
    newest = index.snapshots_of_image(store, image)[0]
    index.put_snapshot(store, later(newest, "2026-11-21T19:00:00Z"))
    result = run("verify", image, "--key", "ours.pub")
    assert result.exit_code == 0
    assert "unsigned-snapshot" in result.stderr


# Which key


def test_keys_come_from_the_environment(run, image, monkeypatch):
    monkeypatch.setenv("COSIGN_PRIVATE_KEY", "ours")
    monkeypatch.setenv("COSIGN_PUBLIC_KEY", "ours")
    assert run("sign", image).exit_code == 0
    assert run("verify", image).exit_code == 0
    monkeypatch.setenv("PLANYARD_VERIFY_KEY", "theirs.pub")
    assert run("verify", image).exit_code == 10
    assert run("verify", image, "--key", "ours.pub").exit_code == 0


def test_a_private_key_alone_signs_once_and_says_so(run, image, monkeypatch):
    monkeypatch.setenv("COSIGN_PRIVATE_KEY", "ours")
    first = run("sign", image)
    assert first.exit_code == 0
    assert "not verified after signing" in first.stderr
    second = run("sign", image)
    assert second.exit_code == 2
    assert "public key" in second.stderr
    assert run("sign", image, "--verify-key", "ours.pub").exit_code == 0


def test_a_public_key_that_does_not_belong_to_the_private_one(run, image):
    result = run("sign", image, "--key", "ours.key", "--verify-key", "theirs.pub")
    assert result.exit_code == 10
    assert _entries(image) == []


def test_a_job_signs_as_itself(run, image, monkeypatch):
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", "me https://issuer")
    who = ("--identity", "me", "--issuer", "https://issuer")
    assert run("sign", image, *who).exit_code == 0
    assert run("verify", image, *who).exit_code == 0
    other = ("--identity", "you", "--issuer", "https://issuer")
    assert run("verify", image, *other).exit_code == 10


@pytest.mark.parametrize(
    "args",
    [[], ["--identity", "me"], ["--issuer", "https://issuer"], ["--key", "no-such.pub"]],
    ids=["nobody", "no-issuer", "no-identity", "no-file"],
)
def test_nobody_in_particular_is_not_believed(run, image, args):
    result = run("verify", image, *args)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("key", "environment", "wanted"),
    [
        ("ours.key", {}, Trust(key="ours.pub")),
        ("other.key", {}, None),
        ("awskms:///alias/x", {}, Trust(key="awskms:///alias/x")),
        ("pkcs11:token=x", {}, Trust(key="pkcs11:token=x")),
        ("env://COSIGN_PRIVATE_KEY", {}, None),
        (None, {}, None),
        ("ours.key", {"PLANYARD_VERIFY_KEY": "a.pub"}, Trust(key="a.pub")),
        (None, {"COSIGN_PUBLIC_KEY": "x"}, Trust(key="env://COSIGN_PUBLIC_KEY")),
    ],
)
def test_whom_a_signer_believes(run, key, environment, wanted):
    found = signing.trust_of_signer(
        key, public_key=None, identity=None, issuer=None, environment=environment
    )
    assert found == wanted


def test_a_name_of_trust_is_that_of_the_key_not_of_its_place(run, tmp_path):
    (tmp_path / "copy.pub").write_text("ours\n")
    environment = {"K": "ours"}
    names = [
        signing.name_of(Trust(key=key), environment=environment)
        for key in ("ours.pub", "copy.pub", "env://K", "theirs.pub", "awskms:///a", "awskms:///b")
    ]
    names += [
        signing.name_of(Trust(identity=who, issuer="i"), environment={}) for who in ("a", "b")
    ]
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 6


def test_a_key_with_an_identity_reaches_cosign_which_refuses_it(run, image):
    """A signature has one of them: dropping one silently would believe more than was asked."""
    trust = signing.trust_from(key="ours.pub", identity="me", issuer=None, environment={})
    assert trust == Trust(key="ours.pub", identity="me")
