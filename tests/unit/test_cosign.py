"""cosign fails closed. The fakes are programs: each differs in one thing from one that works."""

from __future__ import annotations

import base64
import json
import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planyard.core.errors import InputError, IntegrityError
from planyard.edge import cosign, cosign_flags, files, proc
from planyard.edge.cosign_flags import CosignError

STATEMENT = json.dumps(
    {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "image", "digest": {"sha256": "a" * 64}}],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {"result": "PASSED"},
    }
).encode()
OTHER = STATEMENT.replace(b"PASSED", b"FAILED")

SIGN_FLAGS = ("yes", "statement", "bundle", "key", "signing-config", "trusted-root")
VERIFY_FLAGS = (
    *("bundle", "type", "digest", "digestAlg", "key", "insecure-ignore-tlog"),
    *("certificate-identity", "certificate-oidc-issuer"),
)


def bundle_of(statement: bytes = STATEMENT, **changes: Any) -> bytes:
    """A bundle as cosign 3.1.3 writes it; `changes` replace its members, None takes them out."""
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "aGludA=="}},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "AAAA"}],
        },
    }
    document |= changes
    return json.dumps({name: each for name, each in document.items() if each is not None}).encode()


LEGACY = json.dumps({"base64Signature": "AAAA", "cert": "AAAA", "rekorBundle": {}}).encode()
BY_CERTIFICATE = {"certificate": {"rawBytes": "AAAA"}}


class Fakes:
    """Writes programs that act as cosign does, but for what a test replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "tmp").mkdir()
        self.key = folder / "cosign.key"
        self.key.write_text("a key")

    @property
    def path(self) -> Path:
        return self.folder / "bin" / "cosign"

    def write(
        self,
        *,
        version: str = """echo '{"gitVersion": "v3.1.3"}'""",
        sign: str | None = None,
        verify: str = "echo 'Verified OK' >&2",
        flags: tuple[str, ...] = SIGN_FLAGS + VERIFY_FLAGS,
        path: Path | None = None,
    ) -> Path:
        helped = "\n".join(f"    --{name}='':" for name in flags)
        script = f"""#!/bin/sh
for each in "$@"; do case "$each" in
  --bundle=*) bundle="${{each#--bundle=}}";;
  --statement=*) statement="${{each#--statement=}}";;
  --help) cat <<'END'
Flags:
{helped}
END
    exit 0;;
esac; done
case "$1" in
version)
  {version}
  ;;
attest-blob)
  {self.leaves(bundle_of()) if sign is None else sign}
  ;;
verify-blob-attestation)
  {verify}
  ;;
esac
"""
        path = path or self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
        return path

    def leaves(self, data: bytes) -> str:
        """A shell command that leaves `data` as the bundle."""
        source = self.folder / f"bundle-{len(list(self.folder.iterdir()))}"
        source.write_bytes(data)
        return f'cat {shlex.quote(str(source))} > "$bundle"; echo "Wrote bundle"'

    def found(self) -> cosign.Cosign:
        return cosign.Cosign(program=str(self.path), version=(3, 1, 3))

    def sign(self, *, key: str | None = "", timeout_seconds: float = 30, **given: str) -> bytes:
        return cosign.sign_statement(
            self.found(),
            STATEMENT,
            key=str(self.key) if key == "" else key,
            environment=given,
            timeout_seconds=timeout_seconds,
        )

    def verify(
        self,
        bundle: bytes | None = None,
        *,
        key: str | None = "",
        timeout_seconds: float = 30,
        **named: str,
    ) -> None:
        cosign.verify_statement(
            self.found(),
            STATEMENT,
            bundle_of() if bundle is None else bundle,
            key=str(self.key) if key == "" else key,
            environment={},
            timeout_seconds=timeout_seconds,
            **named,  # type: ignore[arg-type]
        )


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path)
    monkeypatch.setenv("PATH", str(made.path.parent))
    monkeypatch.setattr(proc, "SYSTEM_PATH", os.defpath)
    monkeypatch.setattr(cosign_flags, "SYSTEM_PATH", os.defpath)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(cosign, "GRACE_SECONDS", 0.2)
    return made


def left_over(fakes: Fakes) -> list[str]:
    return [path.name for path in (fakes.folder / "tmp").iterdir()]


# What works: without this, every refusal below would prove nothing.


def test_a_cosign_that_works_is_found_signs_and_verifies(fakes: Fakes) -> None:
    fakes.write()
    assert cosign.find_cosign() == fakes.found()
    fakes.verify(fakes.sign())
    assert left_over(fakes) == []


def test_without_a_key_a_token_signs_and_a_name_is_verified(fakes: Fakes) -> None:
    by_certificate = bundle_of(verificationMaterial=BY_CERTIFICATE)
    fakes.write(sign=fakes.leaves(by_certificate))
    for given in (
        {"SIGSTORE_ID_TOKEN": "x"},
        {"ACTIONS_ID_TOKEN_REQUEST_URL": "x", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "y"},
    ):
        fakes.verify(fakes.sign(key=None, **given), key=None, identity="me", issuer="https://i")


def test_what_is_returned_is_what_was_read(fakes: Fakes) -> None:
    """Spaces and the order of members are cosign's; the bundle kept is ours."""
    fakes.write(sign=fakes.leaves(b" \n " + bundle_of() + b"\n"))
    assert (
        fakes.sign()
        == json.dumps(json.loads(bundle_of()), sort_keys=True, separators=(",", ":")).encode()
    )


# Finding it


def write_version(version: str) -> Callable[[Fakes], Any]:
    return lambda fakes: fakes.write(version=version)


def says(version: str) -> Callable[[Fakes], Any]:
    return write_version(f"""echo '{{"gitVersion": "{version}"}}'""")


def not_executable(fakes: Fakes) -> None:
    fakes.write().chmod(0o644)


def a_folder_of_that_name(fakes: Fakes) -> None:
    fakes.path.mkdir()


def in_a_relative_folder(fakes: Fakes) -> None:
    fakes.write()
    os.environ["PATH"] = os.path.relpath(fakes.path.parent)


def cached_not_executable(fakes: Fakes) -> None:
    cached = cosign.cached_program(fakes.folder / "cache")
    fakes.write(path=cached).chmod(0o644)


NOT_FOUND = {
    "no-binary": (lambda fakes: None, "neither on the PATH nor in the cache"),
    "not-executable": (not_executable, "neither on the PATH nor in the cache"),
    "a-folder-of-that-name": (a_folder_of_that_name, "neither on the PATH"),
    "relative-path": (in_a_relative_folder, "neither on the PATH"),
    "cached-not-executable": (cached_not_executable, "could not be started"),
    "old-v3": (says("v3.1.2"), r"cosign 3\.1\.2, which can be deceived"),
    "old-v3-first": (says("v3.0.0"), "can be deceived"),
    "old-v2": (says("v2.6.4"), r"cosign 2\.6\.4, which can be deceived"),
    "old-v1": (says("v1.99.0"), "can be deceived"),
    "version-devel": (says("devel"), r"no released version \('devel'\)"),
    "version-dirty": (says("v3.1.3+dirty"), "no released version"),
    "version-candidate": (says("v3.1.3-rc.1"), "no released version"),
    "version-pseudo": (says("v3.1.4-0.20260101000000-abcdefabcdef"), "no released version"),
    "version-empty": (says(""), "no released version"),
    "version-unparsable": (write_version("echo 'I am cosign'"), r"no released version \(none\)"),
    "version-silent": (write_version(":"), r"no released version \(none\)"),
    "version-exits-1": (write_version("echo 'GitVersion: v3.1.3'; exit 1"), "no released version"),
    "version-hangs": (write_version("exec sleep 600"), r"did not end within 0\.2 s"),
    "version-floods": (write_version("exec yes"), "more than 1048576 bytes"),
}


@pytest.mark.parametrize(("arrange", "message"), NOT_FOUND.values(), ids=NOT_FOUND)
def test_no_cosign_is_found(
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[Fakes], Any],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(proc, "SYSTEM_PATH", "")
    if "did not end" in message:
        monkeypatch.setattr(cosign, "PROBE_SECONDS", 0.2)
    arrange(fakes)
    with pytest.raises(CosignError, match=message) as caught:
        cosign.find_cosign(cache=fakes.folder / "cache")
    assert caught.value.exit_code == 10
    assert caught.value.mend == "planyard setup --with cosign"
    assert left_over(fakes) == []


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("""'{"gitVersion": "v3.1.3"}'""", (3, 1, 3)),
        ("'GitVersion:    2.6.5'", (2, 6, 5)),
        ("'GitVersion:    v3.10.0'", (3, 10, 0)),
        ("'GitVersion:    v4.0.0'", (4, 0, 0)),
    ],
)
def test_a_version_is_read(fakes: Fakes, said: str, version: tuple[int, int, int]) -> None:
    fakes.write(version=f"echo {said}")
    assert cosign.find_cosign().version == version


def test_an_old_one_on_the_path_gives_way_to_the_one_in_the_cache(fakes: Fakes) -> None:
    says("v2.2.0")(fakes)
    cached = fakes.write(path=cosign.cached_program(fakes.folder / "cache"))
    assert cosign.find_cosign(cache=fakes.folder / "cache").program == str(cached)


def test_the_cache_is_where_the_user_says() -> None:
    assert files.user_cache({"PLANYARD_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert files.user_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/planyard")
    assert files.user_cache({"XDG_CACHE_HOME": "x"}) == Path.home() / ".cache/planyard"
    assert files.user_cache({}) == Path.home() / ".cache/planyard"
    assert cosign.cached_program(Path("/c")) == Path("/c/tools/cosign-v3.1.3/cosign")


# Signing

WRONG_PASSWORD = "echo 'Error: reading key: decrypt: encrypted: decryption failed' >&2; exit 1"
TYPE = "application/vnd.dev.sigstore.bundle+json;version="


def leaving(data: bytes) -> Callable[[Fakes], str]:
    return lambda fakes: fakes.leaves(data)


def doing(script: str) -> Callable[[Fakes], str]:
    return lambda fakes: script


def and_then(script: str) -> Callable[[Fakes], str]:
    """All as it should be, and then `script`."""
    return lambda fakes: f"{fakes.leaves(bundle_of())}; {script}"


NOT_SIGNED = {
    "wrong-password": (doing(WRONG_PASSWORD), "decryption failed"),
    "exits-1": (and_then("exit 1"), "ended with 1, nothing was signed"),
    "exits-127": (and_then("exit 127"), "ended with 127"),
    "hangs": (doing("exec sleep 600"), r"did not end within 0\.3 s"),
    "ignores-sigterm": (
        doing("trap '' TERM; while :; do sleep 600; done"),
        r"did not end within 0\.3 s",
    ),
    "waits-for-input": (
        lambda fakes: f"{fakes.leaves(bundle_of())}; read answer || exit 9",
        "ended with 9",
    ),
    "is-killed": (and_then("kill -9 $$"), "killed by signal 9"),
    "crashes": (and_then("kill -11 $$"), "killed by signal 11"),
    "floods-lines": (and_then("exec yes"), "more than 1048576 bytes of output"),
    "floods-one-line": (and_then("exec cat /dev/zero"), "more than 1048576 bytes of output"),
    "floods-in-the-background": (and_then("yes & wait"), "more than 1048576 bytes of output"),
    "exits-0-and-says-error": (and_then("echo 'error: no signature was made'"), "no signature"),
    "exits-0-and-panics": (and_then("echo 'panic: runtime error' >&2"), "panic: runtime error"),
    "exits-0-without-a-bundle": (doing("echo 'Wrote bundle'"), "left no bundle"),
    "empty-bundle": (leaving(b""), "bundle: it is empty"),
    "not-json": (leaving(b"-----BEGIN SIGNATURE-----"), "not JSON"),
    "truncated": (leaving(bundle_of()[:-1]), "not JSON"),
    "json-of-another-kind": (leaving(b"[]"), "not a JSON object"),
    "legacy-bundle": (leaving(LEGACY), "legacy bundle"),
    "media-type-v0.1": (leaving(bundle_of(mediaType=f"{TYPE}0.1")), "its mediaType is"),
    "media-type-v0.2": (leaving(bundle_of(mediaType=f"{TYPE}0.2")), "its mediaType is"),
    "media-type-v0.3-old-spelling": (leaving(bundle_of(mediaType=f"{TYPE}0.3")), "its mediaType"),
    "media-type-missing": (leaving(bundle_of(mediaType=None)), "its mediaType is None"),
    "bundle-too-large": (leaving(bundle_of() + b" " * (1 << 20)), "at most 1048576 are read"),
    "another-payload": (leaving(bundle_of(OTHER)), "signed something else than the statement"),
    "payload-with-a-byte-more": (leaving(bundle_of(STATEMENT + b"\n")), "signed something else"),
    "a-message-signature": (
        leaving(bundle_of(dsseEnvelope=None, messageSignature={"signature": "AAAA"})),
        "dsseEnvelope is missing",
    ),
    "signed-with-another-key-of-its-own": (
        leaving(bundle_of(verificationMaterial=BY_CERTIFICATE)),
        "something else than the key",
    ),
    "bundle-is-a-link": (
        lambda fakes: f'{fakes.leaves(bundle_of())}; mv "$bundle" b; ln -s "$PWD/b" "$bundle"',
        "left no bundle",
    ),
    "bundle-is-endless": (doing('ln -s /dev/zero "$bundle"'), "left no bundle"),
    "bundle-is-a-pipe": (doing('mkfifo "$bundle"'), "no regular file"),
    "bundle-is-a-folder": (doing('mkdir "$bundle"'), "no regular file"),
}


@pytest.mark.parametrize(("arrange", "message"), NOT_SIGNED.values(), ids=NOT_SIGNED)
def test_nothing_is_signed(fakes: Fakes, arrange: Callable[[Fakes], str], message: str) -> None:
    fakes.write(sign=arrange(fakes))
    seconds = 0.3 if "did not end" in message else 30
    with pytest.raises(IntegrityError, match=message) as caught:
        fakes.sign(timeout_seconds=seconds)
    assert caught.value.exit_code == 10
    assert left_over(fakes) == []


def test_a_wrong_password_is_explained(fakes: Fakes) -> None:
    fakes.write(sign=WRONG_PASSWORD)
    with pytest.raises(IntegrityError) as caught:
        fakes.sign()
    assert "COSIGN_PASSWORD" in caught.value.mend
    assert caught.value.log_tail


def test_a_program_that_went_away_is_an_error(fakes: Fakes) -> None:
    with pytest.raises(CosignError, match="is gone"):
        fakes.sign()


def test_a_program_that_may_no_longer_be_run_is_an_error(fakes: Fakes) -> None:
    fakes.write()
    fakes.sign()
    fakes.path.chmod(0o644)
    with pytest.raises(CosignError, match="could not be started"):
        fakes.sign()


@pytest.mark.parametrize("lost", ["yes", "statement", "bundle", "key"])
def test_a_cosign_without_a_flag_that_signing_needs_is_refused(fakes: Fakes, lost: str) -> None:
    fakes.write(flags=tuple(name for name in SIGN_FLAGS if name != lost))
    with pytest.raises(CosignError, match=f"does not know --{lost}$"):
        fakes.sign()


@pytest.mark.parametrize("lost", ["signing-config", "trusted-root"])
def test_a_cosign_that_cannot_sign_offline_is_refused(fakes: Fakes, lost: str) -> None:
    """Nothing may be uploaded by accident: without a way to say so, nothing is signed."""
    fakes.write(flags=tuple(name for name in SIGN_FLAGS if name != lost))
    with pytest.raises(CosignError, match="does not know --tlog-upload"):
        fakes.sign()


def test_a_cosign_that_does_not_know_the_verb_is_refused(fakes: Fakes) -> None:
    fakes.path.write_text("#!/bin/sh\necho 'unknown command'; exit 1\n")
    fakes.path.chmod(0o755)
    with pytest.raises(CosignError, match="does not know attest-blob"):
        fakes.sign()
    with pytest.raises(CosignError, match="does not know verify-blob-attestation"):
        fakes.verify()


def test_a_program_is_asked_for_its_flags_once(fakes: Fakes) -> None:
    asked = fakes.folder / "asked"
    fakes.write()
    script = fakes.path.read_text()
    fakes.path.write_text(script.replace("--help)", f"--help) echo x >> {asked};"))
    fakes.sign()
    fakes.sign()
    assert asked.read_text() == "x\n"
    fakes.path.write_text(script.replace("--help)", f"--help) echo other >> {asked};"))
    fakes.sign()
    assert asked.read_text() == "x\nother\n"


# Verifying

NOT_VERIFIED = {
    "exits-1-and-says-ok": (doing("echo 'Verified OK'; exit 1"), "ended with 1"),
    "exits-0-and-says-nothing": (doing(":"), "did not say that it verified"),
    "exits-0-and-says-something-else": (doing("echo 'Verified OKAY'"), "did not say"),
    "says-ok-in-passing": (doing("echo 'it is not the case: Verified OK'"), "did not say"),
    "exits-0-and-says-both": (doing("echo 'Verified OK'; echo 'Error: no'"), "Error: no"),
    "refuses": (doing("echo 'Error: invalid signature' >&2; exit 1"), "invalid signature"),
    "network-blocked": (doing("echo 'Error: dial tcp: lookup' >&2; exit 1"), "dial tcp"),
    "hangs": (doing("echo 'Verified OK'; exec sleep 600"), r"did not end within 0\.3 s"),
    "ignores-sigterm": (
        doing("trap '' TERM; echo 'Verified OK'; while :; do sleep 600; done"),
        r"did not end within 0\.3 s",
    ),
    "is-killed": (doing("echo 'Verified OK'; kill -9 $$"), "killed by signal 9"),
    "floods": (doing("echo 'Verified OK'; exec yes"), "more than 1048576 bytes"),
}


@pytest.mark.parametrize(("arrange", "message"), NOT_VERIFIED.values(), ids=NOT_VERIFIED)
def test_nothing_is_verified(fakes: Fakes, arrange: Callable[[Fakes], str], message: str) -> None:
    fakes.write(verify=arrange(fakes))
    seconds = 0.3 if "did not end" in message else 30
    with pytest.raises(IntegrityError, match=message) as caught:
        fakes.verify(timeout_seconds=seconds)
    assert caught.value.exit_code == 10
    assert left_over(fakes) == []


REFUSED_BUNDLES = {
    "empty": (b"", "it is empty"),
    "not-json": (b"{", "not JSON"),
    "legacy": (LEGACY, "legacy bundle"),
    "legacy-fields-beside": (bundle_of(cert="AAAA"), "legacy bundle"),
    "v0.1": (bundle_of(mediaType=f"{TYPE}0.1"), "its mediaType is"),
    "v0.2": (bundle_of(mediaType=f"{TYPE}0.2"), "its mediaType is"),
    "too-large": (bundle_of() + b" " * (1 << 20), "at most 1048576 are read"),
    "another-statement": (bundle_of(OTHER), "signs another statement"),
    "by-a-certificate": (bundle_of(verificationMaterial=BY_CERTIFICATE), "a key is expected"),
}


@pytest.mark.parametrize(("bundle", "message"), REFUSED_BUNDLES.values(), ids=REFUSED_BUNDLES)
def test_a_bundle_is_refused_before_cosign_sees_it(
    fakes: Fakes, bundle: bytes, message: str
) -> None:
    """The fake would say that it verified, whatever it was given."""
    seen = fakes.folder / "seen"
    fakes.write(verify=f"touch {seen}; echo 'Verified OK'")
    with pytest.raises(IntegrityError, match=message):
        fakes.verify(bundle)
    assert not seen.exists()
    fakes.verify()
    assert seen.exists()


def test_cosign_gets_what_was_checked(fakes: Fakes) -> None:
    """Not the bytes that came: another reader of JSON might take them for something else."""
    seen = fakes.folder / "seen"
    fakes.write(verify=f'cat "$bundle" > {seen}; echo "Verified OK"')
    fakes.verify(b"\n" + bundle_of() + b" \n")
    assert json.loads(seen.read_bytes()) == json.loads(bundle_of())
    assert seen.read_bytes()[:1] == b"{"


@pytest.mark.parametrize("lost", [name for name in VERIFY_FLAGS if "certificate" not in name])
def test_a_cosign_without_a_flag_that_verifying_needs_is_refused(fakes: Fakes, lost: str) -> None:
    fakes.write(flags=tuple(name for name in VERIFY_FLAGS if name != lost))
    with pytest.raises(CosignError, match=f"does not know --{lost}$"):
        fakes.verify()


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"identity": "me"},
        {"issuer": "https://i"},
        {"identity": "", "issuer": "https://i"},
        {"identity": "me", "issuer": ""},
        {"identity": "--help", "issuer": "https://i"},
        {"identity": "me\n", "issuer": "https://i"},
    ],
    ids=["neither", "no-issuer", "no-identity", "empty-identity", "empty-issuer", "flag", "line"],
)
def test_without_a_key_both_names_are_needed(fakes: Fakes, named: dict[str, str]) -> None:
    fakes.write()
    with pytest.raises(InputError, match="without a key, say whose signature"):
        fakes.verify(key=None, **named)


def test_a_bundle_by_a_key_does_not_pass_for_a_name(fakes: Fakes) -> None:
    fakes.write()
    with pytest.raises(IntegrityError, match="a certificate is expected"):
        fakes.verify(key=None, identity="me", issuer="https://i")


def test_a_key_and_a_name_are_too_much(fakes: Fakes) -> None:
    fakes.write()
    with pytest.raises(InputError, match="one of them"):
        fakes.verify(identity="me", issuer="https://i")


# Keys


def key_folder(fakes: Fakes) -> str:
    return str(fakes.folder)


def key_pipe(fakes: Fakes) -> str:
    os.mkfifo(fakes.folder / "pipe")
    return str(fakes.folder / "pipe")


def key_too_large(fakes: Fakes) -> str:
    os.truncate(fakes.key, 1 << 20)
    return str(fakes.key)


REFUSED_KEYS: dict[str, tuple[str | Callable[[Fakes], str], str]] = {
    "missing": ("no/such/cosign.key", "does not exist"),
    "a-folder": (key_folder, "not a regular file"),
    "a-pipe": (key_pipe, "not a regular file"),
    "a-device": ("/dev/zero", "not a regular file"),
    "too-large": (key_too_large, "larger than"),
    "a-flag": ("--output-file=x", "is no key"),
    "a-dash": ("-", "is no key"),
    "a-line-more": ("cosign.key\n--yes", "is no key"),
    "nul": ("cosign\0.key", "is no key"),
    "http": ("http://localhost/cosign.key", "scheme that is not allowed"),
    "https": ("https://localhost/cosign.key", "scheme that is not allowed"),
    "file-url": ("file:///etc/passwd", "scheme that is not allowed"),
    "unknown-scheme": ("mykms://key", "scheme that is not allowed"),
    "upper-case-scheme": ("AWSKMS://key", "scheme that is not allowed"),
    "gitlab": ("gitlab://project", "scheme that is not allowed"),
    "variable-unset": ("env://NOT_SET", "no variable that is set"),
    "variable-empty": ("env://EMPTY", "no variable that is set"),
    "variable-of-no-name": ("env://", "no variable that is set"),
    "variable-with-a-path": ("env://A/../B", "no variable that is set"),
    "kms-with-a-space": ("awskms:///alias/a b", "no KMS reference"),
}


@pytest.mark.parametrize(("key", "message"), REFUSED_KEYS.values(), ids=REFUSED_KEYS)
def test_a_key_is_refused(fakes: Fakes, key: str | Callable[[Fakes], str], message: str) -> None:
    fakes.write()
    text = key if isinstance(key, str) else key(fakes)
    for act in (lambda: fakes.sign(key=text, EMPTY=""), lambda: fakes.verify(key=text)):
        with pytest.raises(InputError, match=message) as caught:
            act()
        assert caught.value.exit_code == 2
        assert "awskms://" in caught.value.mend


@pytest.mark.parametrize(
    "given",
    [{}, {"SIGSTORE_ID_TOKEN": ""}, {"ACTIONS_ID_TOKEN_REQUEST_URL": "x"}],
    ids=["nothing", "empty-token", "half-of-github"],
)
def test_without_key_or_token_nothing_is_signed(fakes: Fakes, given: dict[str, str]) -> None:
    fakes.write()
    with pytest.raises(InputError, match="no OIDC token") as caught:
        fakes.sign(key=None, **given)
    assert "id-token: write" in caught.value.mend


def test_a_key_given_as_an_empty_text_is_not_keyless(fakes: Fakes) -> None:
    """An unset variable in a script must not change who signs."""
    with pytest.raises(InputError, match="is no key"):
        cosign_flags.checked_key("", environment={"SIGSTORE_ID_TOKEN": "x"})


def test_a_key_file_is_passed_on_by_its_absolute_path(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fakes.folder)
    (fakes.folder / "link.key").symlink_to(fakes.key)
    for name in ("cosign.key", "link.key"):
        key = cosign_flags.checked_key(name, environment={})
        assert key.reference == str(fakes.folder / name)
        assert key.is_local


# What cosign is called with

HOSTILE = {
    "COSIGN_PASSWORD": "secret",
    "COSIGN_KEY": "other.key",
    "COSIGN_TLOG_UPLOAD": "true",
    "SIGSTORE_ROOT_FILE": "roots",
    "SIGSTORE_ID_TOKEN": "token",
    "ACTIONS_ID_TOKEN_REQUEST_URL": "url",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "token",
    "LD_PRELOAD": "",
    "PATH": os.defpath,
    "HOME": "/someone",
    "HTTPS_PROXY": "http://proxy",
    "AWS_REGION": "r",
    "VAULT_TOKEN": "v",
    "VAULT_ADDR": "a",
    "GOOGLE_APPLICATION_CREDENTIALS": "g",
    "AZURE_TENANT_ID": "t",
    "SIGNING_KEY": "a key",
}
BASE = {"PATH", "HOME", "TMPDIR", "COSIGN_PASSWORD"}
TOKENS = {"SIGSTORE_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"}
SEEN = {
    "file": ("", BASE),
    "variable": ("env://SIGNING_KEY", BASE | {"SIGNING_KEY"}),
    "aws": ("awskms:///alias/a", BASE | {"HTTPS_PROXY", "AWS_REGION"}),
    "vault": ("hashivault://key", BASE | {"HTTPS_PROXY", "VAULT_TOKEN", "VAULT_ADDR"}),
    "gcp": ("gcpkms://p", BASE | {"HTTPS_PROXY", "GOOGLE_APPLICATION_CREDENTIALS"}),
    "azure": ("azurekms://v/k", BASE | {"HTTPS_PROXY", "AZURE_TENANT_ID"}),
    "keyless": (None, BASE | {"HTTPS_PROXY"} | TOKENS),
}


@pytest.mark.parametrize(("key", "names"), SEEN.values(), ids=SEEN)
def test_cosign_sees_few_variables(fakes: Fakes, key: str | None, names: set[str]) -> None:
    seen = fakes.folder / "seen"
    material = BY_CERTIFICATE if key is None else {"publicKey": {}}
    leave = fakes.leaves(bundle_of(verificationMaterial=material))
    fakes.write(sign=f"env > {seen}; {leave}")
    fakes.sign(key=key, **HOSTILE)
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert found.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == names
    assert found["COSIGN_PASSWORD"] == "secret"
    is_local = key in ("", "env://SIGNING_KEY")
    assert found["HOME"] == (found["TMPDIR"] if is_local else "/someone")


def test_the_password_is_always_set_and_verifying_never_sees_it(fakes: Fakes) -> None:
    seen = fakes.folder / "seen"
    fakes.write(
        sign=f"env > {seen}; {fakes.leaves(bundle_of())}",
        verify=f"env > {seen}; echo 'Verified OK'",
    )
    fakes.sign()
    assert "COSIGN_PASSWORD=\n" in seen.read_text()
    cosign.verify_statement(
        fakes.found(), STATEMENT, bundle_of(), key=str(fakes.key), environment=HOSTILE
    )
    assert "COSIGN_PASSWORD=\n" in seen.read_text()


def test_the_folder_cosign_works_in_is_private(fakes: Fakes) -> None:
    seen = fakes.folder / "seen"
    fakes.write(sign=f"stat -c %a . > {seen}; pwd >> {seen}; {fakes.leaves(bundle_of())}")
    fakes.sign()
    mode, folder = seen.read_text().split()
    assert mode == "700"
    assert not Path(folder).exists()


def tell_arguments(fakes: Fakes, **flags: Any) -> None:
    seen = fakes.folder / "seen"
    leave = fakes.leaves(bundle_of())
    told = f'printf "%s\\n" "$@" > {seen}'
    fakes.write(sign=f"{told}; {leave}", verify=f"{told}; echo 'Verified OK'", **flags)


def read_arguments(fakes: Fakes) -> tuple[str, dict[str, str]]:
    verb, *rest = (fakes.folder / "seen").read_text().splitlines()
    return verb, dict(each.removeprefix("--").split("=", 1) for each in rest)


V2_FLAGS = ("new-bundle-format", "tlog-upload", "use-signing-config")


@pytest.mark.parametrize(
    ("flags", "offline"),
    [
        (SIGN_FLAGS, {"signing-config", "trusted-root"}),
        ((*SIGN_FLAGS, *V2_FLAGS), {"signing-config", "trusted-root", "new-bundle-format"}),
        ((*SIGN_FLAGS[:4], "tlog-upload"), {"tlog-upload"}),
        ((*SIGN_FLAGS[:4], *V2_FLAGS), set(V2_FLAGS)),
    ],
    ids=["3.1", "2.6", "without-signing-config", "2.4"],
)
def test_signing_with_a_key_stays_offline(
    fakes: Fakes, flags: tuple[str, ...], offline: set[str]
) -> None:
    tell_arguments(fakes, flags=flags)
    fakes.sign()
    verb, given = read_arguments(fakes)
    assert verb == "attest-blob"
    assert given.keys() == {"yes", "statement", "bundle", "key"} | offline
    assert given["key"] == str(fakes.key)
    assert given.get("tlog-upload", "false") == given.get("use-signing-config", "false") == "false"
    assert all(Path(given[name]).is_absolute() for name in ("statement", "bundle", "key"))


def test_verifying_names_the_type_and_the_subject(fakes: Fakes) -> None:
    tell_arguments(fakes)
    fakes.verify()
    verb, given = read_arguments(fakes)
    assert verb == "verify-blob-attestation"
    assert given.pop("bundle").endswith("/bundle.json")
    assert given.pop("trusted-root").endswith("/trusted-root.json")
    assert given == {
        "type": "https://in-toto.io/attestation/test-result/v0.1",
        "digest": "a" * 64,
        "digestAlg": "sha256",
        "key": str(fakes.key),
        "insecure-ignore-tlog": "true",
    }


def test_verifying_without_a_key_asks_the_log(fakes: Fakes) -> None:
    tell_arguments(fakes)
    bundle = bundle_of(verificationMaterial=BY_CERTIFICATE)
    fakes.verify(bundle, key=None, identity="me@example", issuer="https://issuer")
    _, given = read_arguments(fakes)
    assert given["certificate-identity"] == "me@example"
    assert given["certificate-oidc-issuer"] == "https://issuer"
    assert not given.keys() & {"key", "insecure-ignore-tlog", "trusted-root"}


def test_the_failure_modes_are_many() -> None:
    """The count the project promises, printed with -s."""
    modes = [NOT_FOUND, NOT_SIGNED, NOT_VERIFIED, REFUSED_BUNDLES, REFUSED_KEYS]
    count = sum(map(len, modes))
    print(f"{count} failure modes of cosign end with an error")
    assert count >= 25
