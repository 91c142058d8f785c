"""The verbs of evidence: sign what a store knows about an image, verify what was signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli_look import DigestArgument
from builders.verbs import JsonOption, StoreOption, open_store, verb
from planyard.core.errors import EXIT_FINDINGS
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.evidence import EvidenceVerdict
    from engines.store.protocol import Store

DAY_SECONDS = 86_400

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

    from builders import signing
    from engines import evidence_seen as seen
    from engines.evidence import sign_image
    from planyard.edge.clock import utc_now

    console = Console(quiet=json, result=True)
    environment = dict(os.environ)
    chosen = signing.signing_key(key, environment=environment)
    trust = signing.trust_of_signer(
        chosen, public_key=verify_key, identity=identity, issuer=issuer, environment=environment
    )
    opened, image = _open(store, digest)
    name = signing.name_of(trust, environment=environment) if trust else ""
    memory, place = seen.seen_file(Path.cwd()), _place(opened, image, signer=name)
    made = sign_image(
        opened,
        image,
        signer=signing.signer_of(chosen, environment=environment),
        verifier=signing.verifier_of(trust, environment=environment) if trust else None,
        now=utc_now(),
        expires_seconds=expires_days * DAY_SECONDS,
        trusted_version=seen.seen_version(memory, **place) if trust else 0,
    )
    if trust:
        seen.record_version(memory, made.version, **place)
    if not trust:
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

    from builders import signing
    from engines import evidence_seen as seen
    from engines.evidence import verify_image
    from planyard.core.findings import failures
    from planyard.edge.clock import utc_now

    console = Console(quiet=json, result=True)
    environment = dict(os.environ)
    trust = signing.trust_from(key=key, identity=identity, issuer=issuer, environment=environment)
    opened, image = _open(store, digest)
    name = signing.name_of(trust, environment=environment)
    memory, place = seen.seen_file(Path.cwd()), _place(opened, image, signer=name)
    found = verify_image(
        opened,
        image,
        verifier=signing.verifier_of(trust, environment=environment),
        now=utc_now(),
        trusted_version=seen.seen_version(memory, **place),
        gpu=gpu,
    )
    seen.record_version(memory, found.version, **place)
    if json:
        console.document(msgspec.json.encode(found).decode())
    else:
        _show(found, console)
    return EXIT_FINDINGS if failures(found.findings) else 0


def _open(url: str | None, digest: str) -> tuple[Store, str]:
    """The store, and the whole digest of an image in it."""
    from engines.lookup import lookup

    store = open_store(url, root=Path.cwd())
    return store, lookup(store, digest).image


def _place(store: Store, image: str, *, signer: str) -> dict[str, str]:
    """Under what the version that was seen is remembered."""
    return {"store": store.url, "image": image, "signer": signer}


def _show(found: EvidenceVerdict, console: Console) -> None:
    """Every statement with what was verified; then what is wrong."""
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
    if not found.findings:
        console.good(f"genuine; {len(found.plans)} plans are covered, every cell passed")
