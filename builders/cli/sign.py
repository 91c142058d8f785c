"""The verbs of evidence: sign what a store knows about an image, verify what was signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.look import DigestArgument
from builders.cli.verbs import JsonOption, StoreOption, open_store, verb
from planyard.core.errors import EXIT_FINDINGS
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.evidence.sets import EvidenceVerdict
    from engines.store.protocol import Store

SignKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="File, env://NAME or KMS reference; PLANYARD_SIGN_KEY, else COSIGN_PRIVATE_KEY. "
        "Without one, the OIDC token of the CI job signs.",
    ),
]
PublicKeyOption = Annotated[
    str | None,
    typer.Option("--verify-key", metavar="KEY", help="The public key; found beside a key's file."),
]
VerifyKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="The public key: file, env://NAME or KMS reference; PLANYARD_VERIFY_KEY, else "
        "COSIGN_PUBLIC_KEY.",
    ),
]
IdentityOption = Annotated[
    str | None,
    typer.Option("--identity", help="Without a key: who signed, as the certificate names them."),
]
IssuerOption = Annotated[
    str | None, typer.Option("--issuer", help="Who vouches for --identity: the token's issuer.")
]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command("sign")(sign)
    app.command("verify")(verify)


@verb
def sign(
    digest: DigestArgument,
    key: SignKeyOption = None,
    verify_key: PublicKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    expires_days: Annotated[
        int, typer.Option("--expires-days", min=1, max=3650, help="Days it is believed.")
    ] = 90,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Sign what the store knows about an image, as in-toto statements, with cosign.

    Examples: planyard sign sha256:0123456789ab --key cosign.key --expires-days 30
    """
    import msgspec

    from builders.witness import sign_stored_image

    console = Console(quiet=json, result=True)
    opened, image = _open(store, digest)
    made, verified = sign_stored_image(
        opened,
        image,
        root=Path.cwd(),
        key=key,
        verify_key=verify_key,
        identity=identity,
        issuer=issuer,
        expires_days=expires_days,
    )
    if not verified:
        console.warn("not verified after signing: no public key was given (--verify-key)")
    if json:
        console.document(msgspec.json.encode(made).decode())
    else:
        console.good(f"signed {len(made.statements)} statements about {image}")
        console.detail(f"version {made.version}, until {made.expires}; entry {made.entry}")
    return 0


@verb
def verify(
    digest: DigestArgument,
    key: VerifyKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Judge only this GPU of the matrix.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Verify the signed evidence of an image: who signed, what it says, how old it is.

    Ends with 10 when it is not genuine, or expired, or older than what was seen here before; with
    4 when it is genuine and says that something did not pass.

    Examples: planyard verify sha256:0123456789ab --key cosign.pub --gpu l4
    """
    import msgspec

    from builders.signing import trust_from
    from builders.witness import verify_stored_image
    from planyard.core.findings import failures

    console = Console(quiet=json, result=True)
    trust = trust_from(key=key, identity=identity, issuer=issuer, environment=dict(os.environ))
    opened, image = _open(store, digest)
    found = verify_stored_image(opened, image, root=Path.cwd(), trust=trust, gpu=gpu)
    if json:
        console.document(msgspec.json.encode(found).decode())
    else:
        _show(found, console)
    return EXIT_FINDINGS if failures(found.findings) else 0


def _open(url: str | None, digest: str) -> tuple[Store, str]:
    """The store, and the whole digest of an image in it."""
    from builders.image_names import image_named
    from engines.lookup import lookup

    store = open_store(url, root=Path.cwd())
    return store, lookup(store, image_named(store, digest, root=Path.cwd())).image


def _show(found: EvidenceVerdict, console: Console) -> None:
    """Every statement with what was verified; then what is wrong."""
    from planyard.core.findings import failures

    console.title(f"evidence of {found.image}, version {found.version}, until {found.expires}")
    rows = [
        (each.predicate_type, each.subject, "signature, type, subject", each.says or "-")
        for each in found.statements
    ]
    console.table(("statement", "subject", "verified", "says"), rows)
    for each in found.passed_over:
        console.warn(f"passed over {each.entry}: {each.why}")
    for finding in found.findings:
        line = f"{finding.where}: {finding.message} [{finding.rule}]".removeprefix(": ")
        (console.error if finding.severity == "fail" else console.warn)(line)
    if not failures(tuple(found.findings)):
        warned = f", {len(found.findings)} warnings" if found.findings else ""
        plans = len(found.plans)
        console.good(f"genuine; {plans} plans are covered, every cell passed{warned}")
