"""Who signs and who is believed: keys and identities from options and the environment, for cosign.

A signature is made with a key (a file, `env://NAME`, a KMS reference) or, without one, with the
identity in the OIDC token of a CI job; and is verified against a public key or such an identity.
Options come first, then PLANYARD_SIGN_KEY and PLANYARD_VERIFY_KEY, then what cosign's users have:
COSIGN_PRIVATE_KEY and COSIGN_PUBLIC_KEY, which hold the keys themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engines.evidence.sets import Signer, Verifier
from planyard.core.digest import digest_of_bytes, digest_of_value
from planyard.core.errors import InputError
from planyard.edge.cosign_flags import checked_key


class CosignTool(Protocol):
    """What is used of `planyard.edge.cosign`."""

    def find_cosign(self) -> Any:
        """The program, checked."""
        ...

    def sign_statement(
        self, cosign: Any, statement: bytes, *, key: str | None, environment: Mapping[str, str]
    ) -> bytes:
        """A bundle."""
        ...

    def verify_statement(
        self,
        cosign: Any,
        statement: bytes,
        bundle: bytes,
        *,
        key: str | None,
        identity: str | None,
        issuer: str | None,
        environment: Mapping[str, str],
    ) -> None:
        """Raises IntegrityError unless the bundle holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signatures are believed: those of a public key, or of an identity and its issuer."""

    key: str | None = None
    identity: str | None = None
    issuer: str | None = None


def cosign_tool() -> CosignTool:
    """The cosign of this machine."""
    from planyard.edge import cosign

    return cosign


def signing_key(option: str | None, *, environment: Mapping[str, str]) -> str | None:
    """The key to sign with; None for the identity of the job."""
    return option or _key_in(environment, "PLANYARD_SIGN_KEY", held="COSIGN_PRIVATE_KEY")


def trust_from(
    *,
    key: str | None,
    identity: str | None,
    issuer: str | None,
    environment: Mapping[str, str],
) -> Trust:
    """Whom options and environment say to believe. Raises InputError when they name nobody."""
    if key is None and (identity or issuer):
        if not (identity and issuer):
            raise InputError(
                ["--identity and --issuer belong together: an identity is only its issuer's word"],
                mend="give both, or --key",
            )
        return Trust(identity=identity, issuer=issuer)
    key = key or _key_in(environment, "PLANYARD_VERIFY_KEY", held="COSIGN_PUBLIC_KEY")
    if key is None:
        raise InputError(
            ["whose signature is expected? Neither a public key nor an identity was given"],
            mend="give --key, or --identity and --issuer, or set PLANYARD_VERIFY_KEY",
        )
    return Trust(key=key, identity=identity, issuer=issuer)


def trust_of_signer(
    key: str | None,
    *,
    public_key: str | None,
    identity: str | None,
    issuer: str | None,
    environment: Mapping[str, str],
) -> Trust | None:
    """Whom to believe about earlier evidence when signing; None when nothing says.

    Beside `cosign.key` lies `cosign.pub`; a KMS reference verifies as it signs.
    """
    named = public_key or identity or issuer
    if named or environment.get("PLANYARD_VERIFY_KEY") or environment.get("COSIGN_PUBLIC_KEY"):
        return trust_from(key=public_key, identity=identity, issuer=issuer, environment=environment)
    if key is None or key.startswith("env://"):
        return None
    if "://" in key or key.startswith("pkcs11:"):
        return Trust(key=key)
    beside = Path(key).with_suffix(".pub")
    return Trust(key=str(beside)) if beside.is_file() else None


def signer_of(key: str | None, *, environment: Mapping[str, str]) -> Signer:
    """Signs with `key`, or with the identity of the job. Raises where there is no good cosign."""
    tool = cosign_tool()
    return functools.partial(
        tool.sign_statement, tool.find_cosign(), key=key, environment=environment
    )


def verifier_of(trust: Trust, *, environment: Mapping[str, str]) -> Verifier:
    """Believes only `trust`. Raises where there is no good cosign."""
    tool = cosign_tool()
    return functools.partial(
        tool.verify_statement,
        tool.find_cosign(),
        key=trust.key,
        identity=trust.identity,
        issuer=trust.issuer,
        environment=environment,
    )


def name_of(trust: Trust, *, environment: Mapping[str, str]) -> str:
    """A digest that is equal for the same trusted key or identity, wherever the key lies."""
    if trust.key is None:
        return digest_of_value([trust.identity, trust.issuer])
    key = checked_key(trust.key, environment=environment)
    if not key.is_local:
        return digest_of_value([key.reference])
    if key.scheme:
        held = environment[key.reference.removeprefix(key.scheme)].encode()
    else:
        held = Path(key.reference).read_bytes()
    return digest_of_bytes(held.strip())


def _key_in(environment: Mapping[str, str], name: str, *, held: str) -> str | None:
    return environment.get(name) or (f"env://{held}" if environment.get(held) else None)
