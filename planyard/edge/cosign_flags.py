"""What cosign is called with: keys that are allowed, the few variables it sees, flags it knows.

cosign takes URLs for files, every flag also from COSIGN_… variables, and a plugin for each scheme
it does not know. So a key is checked against a list, the environment is chosen by name, and values
stand behind `=` in their flag. Flags differ between 2.6, 3.x and what comes next, and deprecated
ones are hidden: only what `cosign VERB --help` names is used.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from planyard.core.errors import InputError, IntegrityError
from planyard.core.sigstore_bundle import Outline
from planyard.edge.proc import SYSTEM_PATH

SETUP_COMMAND = "planyard setup --with cosign"
KEY_LIMIT_BYTES = 64 << 10
NO_SERVICES = (
    b'{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json",'
    b'"rekorTlogConfig":{"selector":"ANY"},"tsaConfig":{"selector":"ANY"}}'
)
"""A signing config that names no service: nothing is uploaded."""
NO_ROOTS = b'{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}'
"""A trusted root that trusts nobody: with a key none is needed, and none is fetched."""

_NETWORK = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_KMS_VARIABLES = {
    "awskms://": ("AWS_",),
    "azurekms://": ("AZURE_",),
    "gcpkms://": ("GOOGLE_", "CLOUDSDK_"),
    "hashivault://": ("VAULT_", "TRANSIT_SECRET_ENGINE_PATH"),
    "k8s://": ("KUBECONFIG", "KUBERNETES_"),
    "pkcs11:": ("COSIGN_PKCS11_",),
}
_ENV = "env://"
_GITHUB = ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
_TOKEN = "SIGSTORE_ID_TOKEN"  # noqa: S105 - the name of a variable
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KMS_REFERENCE = re.compile(r"[!-~]{1,2000}")
_FLAG_IN_HELP = re.compile(r"^\s+(?:-\w, )?--([A-Za-z][A-Za-z0-9-]*)", re.MULTILINE)


class CosignError(IntegrityError):
    """cosign could not be used, so nothing was signed and nothing was verified."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that may be passed on: a file's absolute path, `env://NAME`, or a KMS reference."""

    reference: str
    scheme: str = ""
    """`env://`, or that of a KMS; empty for a file."""

    @property
    def is_local(self) -> bool:
        """Whether cosign needs neither the network nor anybody's home for it."""
        return self.scheme in {"", _ENV}


def checked_key(text: str, *, environment: Mapping[str, str]) -> Key:
    """The key named by `text`; raises InputError for anything that is not on the list."""
    if not text or text.startswith("-") or not text.isprintable():
        raise _bad_key(text, "is no key")
    if text.startswith(_ENV):
        name = text.removeprefix(_ENV)
        if not _VARIABLE.fullmatch(name) or not environment.get(name):
            raise _bad_key(text, "names no variable that is set")
        return Key(reference=text, scheme=_ENV)
    for scheme in _KMS_VARIABLES:
        if text.startswith(scheme):
            if not _KMS_REFERENCE.fullmatch(text):
                raise _bad_key(text, "holds characters that no KMS reference has")
            return Key(reference=text, scheme=scheme)
    if "://" in text:
        raise _bad_key(text, "has a scheme that is not allowed")
    return Key(reference=_key_file(text))


def _key_file(text: str) -> str:
    path = Path(text).absolute()
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise _bad_key(text, "does not exist, or cannot be reached") from error
    if not stat.S_ISREG(found.st_mode):
        raise _bad_key(text, "is not a regular file")
    if found.st_size > KEY_LIMIT_BYTES:
        raise _bad_key(text, f"is larger than {KEY_LIMIT_BYTES} bytes")
    return str(path)


def _bad_key(text: str, reason: str) -> InputError:
    allowed = ", ".join((_ENV, *_KMS_VARIABLES))
    mend = f"give a key's file, or a reference that begins with one of {allowed}"
    return InputError([f"key {text[:80]!r} {reason}"], mend=mend)


def require_token(environment: Mapping[str, str]) -> None:
    """Refuse to sign without a key where nobody vouches for who signs."""
    if environment.get(_TOKEN) or all(environment.get(name) for name in _GITHUB):
        return
    raise InputError(
        [f"no key was given, and there is no OIDC token ({_TOKEN}, or {_GITHUB[0]} and …_TOKEN)"],
        mend="give a key, or on GitHub give the job `permissions: id-token: write`",
    )


def environment_for(
    key: Key | None, *, given: Mapping[str, str], scratch: Path, sign: bool
) -> dict[str, str]:
    """The whole environment of one call; without a key it is keyless.

    The password is always set: without it cosign would ask for one.
    """
    chosen = {
        "PATH": given.get("PATH", SYSTEM_PATH),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "COSIGN_PASSWORD": given.get("COSIGN_PASSWORD", "") if sign else "",
    }
    if key and key.scheme == _ENV:
        name = key.reference.removeprefix(_ENV)
        return {**chosen, name: given[name]}
    if key and key.is_local:
        return chosen
    chosen |= {name: given[name] for name in ("HOME", *_NETWORK) if name in given}
    if key:
        prefixes = _KMS_VARIABLES[key.scheme]
        return chosen | {name: value for name, value in given.items() if name.startswith(prefixes)}
    tokens = (_TOKEN, *_GITHUB) if sign else ()
    return chosen | {name: given[name] for name in tokens if name in given}


def flags_in_help(text: str) -> frozenset[str]:
    """The flags a help text names, without their dashes."""
    return frozenset(_FLAG_IN_HELP.findall(text))


def sign_arguments(
    known: frozenset[str], *, key: Key | None, scratch: Path, statement: Path, bundle: Path
) -> list[str]:
    """`cosign attest-blob …` for the flags this cosign knows; with a key nothing is uploaded.

    Writes the files the flags point at into `scratch`.
    """
    arguments = _known({"yes": "true", "statement": str(statement), "bundle": str(bundle)}, known)
    arguments += _known({"new-bundle-format": "true"}, known, needed=False)
    if key is None:
        return ["attest-blob", *arguments]
    arguments += _known({"key": key.reference}, known)
    if {"signing-config", "trusted-root"} <= known:
        config = scratch / "signing-config.json"
        config.write_bytes(NO_SERVICES)
        offline = {"signing-config": str(config), "trusted-root": _no_roots(scratch)}
        return ["attest-blob", *arguments, *_known(offline, known)]
    arguments += _known({"use-signing-config": "false"}, known, needed=False)
    return ["attest-blob", *arguments, *_known({"tlog-upload": "false"}, known)]


def verify_arguments(
    known: frozenset[str],
    *,
    key: Key | None,
    identity: str | None,
    issuer: str | None,
    scratch: Path,
    bundle: Path,
    outline: Outline,
) -> list[str]:
    """`cosign verify-blob-attestation …`; with a key the transparency log is not asked.

    Writes the file a flag points at into `scratch`.
    """
    wanted = {
        "bundle": str(bundle),
        "type": outline.predicate_type,
        "digest": outline.subjects[0],
        "digestAlg": "sha256",
    }
    if key:
        wanted |= {"key": key.reference, "insecure-ignore-tlog": "true"}
    else:
        wanted["certificate-identity"] = checked_name(identity, what="identity")
        wanted["certificate-oidc-issuer"] = checked_name(issuer, what="issuer")
    arguments = _known({"new-bundle-format": "true"}, known, needed=False)
    if key:
        # 2.6 asks for one even with a key, and would fetch it.
        arguments += _known({"trusted-root": _no_roots(scratch)}, known, needed=False)
    return ["verify-blob-attestation", *arguments, *_known(wanted, known)]


def _no_roots(scratch: Path) -> str:
    path = scratch / "trusted-root.json"
    path.write_bytes(NO_ROOTS)
    return str(path)


def checked_name(text: str | None, *, what: str) -> str:
    """Whose certificate is accepted without a key: named exactly, never by a pattern."""
    if not text or text.startswith("-") or not text.isprintable():
        raise InputError(
            [f"{what} {text!r}: to verify without a key, say whose signature is expected"],
            mend="give a key, or the identity in the certificate and the issuer of its token",
        )
    return text


def _known(wanted: Mapping[str, str], known: Iterable[str], *, needed: bool = True) -> list[str]:
    missing = sorted(wanted.keys() - set(known))
    if missing and needed:
        names = ", ".join(f"--{name}" for name in missing)
        raise CosignError(f"this cosign does not know {names}", mend=SETUP_COMMAND)
    return [f"--{name}={value}" for name, value in wanted.items() if name not in missing]
