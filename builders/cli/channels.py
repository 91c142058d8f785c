"""The verbs of rollout: promote, rollback, channels."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.channel_text import show_channels, show_history, show_move
from builders.cli.sign import IdentityOption, IssuerOption
from builders.cli.verbs import (
    DEFAULT_MATRIX,
    JsonOption,
    MatrixOption,
    StoreOption,
    open_store,
    verb,
)
from planyard.core.errors import EXIT_FINDINGS, InputError
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.channels.images import Evidence
    from engines.channels.moves import Move, Mover
    from engines.channels.promotion import Waiver
    from engines.store.store import ObjectStore

ChannelArgument = Annotated[
    str, typer.Argument(metavar="CHANNEL", help="Its name, like stable or canary.")
]
ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE_DIGEST", help="sha256:…, 12 or more of its hex digits, or another channel."
    ),
]
GpusOption = Annotated[
    list[str] | None,
    typer.Option("--gpu", help="Judge only this GPU of the matrix. Repeatable."),
]
WaiveOption = Annotated[
    list[str] | None,
    typer.Option("--waive", metavar="GATE", help="Let this gate object in vain. Repeatable."),
]
ReasonsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--because", help="Why; recorded. One for all of --waive, or one for each in order."
    ),
]
SignedOption = Annotated[
    bool,
    typer.Option(
        "--require-signed",
        help="Only with signed evidence that verifies, whatever the matrix says; --key implies it.",
    ),
]
VerifyKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="The public key of the evidence: file, env://NAME or KMS reference; "
        "PLANYARD_VERIFY_KEY, else COSIGN_PUBLIC_KEY.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("channels")(channels)


@verb
def promote(
    channel: ChannelArgument,
    image: ImageArgument,
    gpu: GpusOption = None,
    waive: WaiveOption = None,
    because: ReasonsOption = None,
    require_signed: SignedOption = False,
    key: VerifyKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Move a channel to an image whose every cell was run and passed, and that is stored whole.

    Ends with 4, and moves nothing, when something speaks against it; with 8 when somebody else
    moved the channel meanwhile.

    Examples: planyard promote stable sha256:0123456789ab, or planyard promote canary
    0123456789ab --waive not-run --because "no L4 in CI until May"
    """
    from builders.image_names import image_named, remember
    from engines.channels import moves
    from engines.channels.seen import seen_file, seen_state

    console, root = Console(quiet=json, result=True), matrix.absolute().parent
    waivers = waivers_of(waive or [], because or [])
    opened = open_store(store, root=root)
    signers = {"key": key, "identity": identity, "issuer": issuer}
    evidence = _evidence(opened, matrix, signers=signers, required=require_signed, gpus=gpu)
    if evidence is None and not matrix.exists():
        console.warn(f"no {matrix} here: nothing says whether the evidence has to be signed")
    move = moves.promote(
        opened,
        channel,
        image_named(opened, image, root=root),
        mover=_mover("; ".join(dict.fromkeys(because or []))),
        waivers=waivers,
        gpus=gpu or (),
        evidence=evidence,
        seen=seen_state(seen_file(root), store=opened.url, channel=channel),
    )
    if move.now:
        remember(move.now, store=opened, root=root)
    return _end(move, console, as_json=json)


@verb
def rollback(
    channel: ChannelArgument,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="IMAGE_DIGEST", help="An image of the channel's history."),
    ] = None,
    because: Annotated[str, typer.Option("--because", help="Why; recorded.")] = "",
    require_signed: SignedOption = False,
    key: VerifyKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Move a channel back to the image it had before, if that is still whole.

    A second rollback goes one promotion further back. What does not verify is passed over, and
    said. Ends with 9 when nothing is left to go back to.

    Examples: planyard rollback stable --because "latency doubled", or planyard rollback stable
    --to sha256:0123456789ab
    """
    from builders.image_names import remember
    from engines.channels import moves
    from engines.channels.seen import seen_file, seen_state

    console, root = Console(quiet=json, result=True), matrix.absolute().parent
    opened = open_store(store, root=root)
    signers = {"key": key, "identity": identity, "issuer": issuer}
    evidence = _evidence(opened, matrix, signers=signers, required=require_signed)
    move = moves.rollback(
        opened,
        channel,
        mover=_mover(because),
        to=to,
        evidence=evidence,
        seen=seen_state(seen_file(root), store=opened.url, channel=channel),
    )
    if move.now:
        remember(move.now, store=opened, root=root)
    return _end(move, console, as_json=json)


@verb
def channels(
    channel: Annotated[
        str | None, typer.Argument(metavar="[CHANNEL]", help="Show the history of this one.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=4096, help="States of a history to show.")
    ] = 50,
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """The channels of a store and where they are; of one channel, its history, newest first.

    Examples: planyard channels, or planyard channels stable --limit 10 --json
    """
    import itertools

    import msgspec

    from builders.image_names import trusted_head
    from engines.channels import history as channel_history

    console, root = Console(quiet=json, result=True), matrix.absolute().parent
    opened = open_store(store, root=root)
    document: channel_history.Channels | channel_history.ChannelHistory
    if channel is None:
        heads = [trusted_head(opened, name, root=root) for name in opened.objects.pointers()]
        states = tuple(head.state for head in heads if head)
        document = channel_history.Channels(channels=states)
    else:
        head = trusted_head(opened, channel, root=root)
        head = head or channel_history.existing_head(opened, channel)
        states = tuple(itertools.islice(channel_history.history(opened, head.state), limit))
        older = head.state.version - len(states)
        document = channel_history.ChannelHistory(channel=channel, history=states, older=older)
    if json:
        console.document(msgspec.json.encode(document).decode())
    elif channel is None:
        show_channels(states, console, url=opened.url)
    else:
        show_history(states, console, older=older)
    return 0


def waivers_of(gates: Sequence[str], reasons: Sequence[str]) -> list[Waiver]:
    """Each gate with its reason: one reason for all, or as many as gates."""
    from engines.channels.promotion import Waiver

    if gates and len(reasons) not in (1, len(gates)):
        said = "say --because once, or once for each" if reasons else "say --because, why"
        raise InputError([f"--waive {', '.join(gates)}: {said}; it is recorded"])
    if not gates and len(reasons) > 1:
        raise InputError(["--because more than once, and nothing to waive"])
    each = reasons if len(reasons) == len(gates) else [*reasons] * len(gates)
    return [Waiver(gate=gate, because=why) for gate, why in zip(gates, each, strict=True)]


def who(environment: Mapping[str, str]) -> str:
    """Who moves: the actor and run of a GitHub job, else user@host."""
    if environment.get("GITHUB_ACTIONS") == "true" and (actor := environment.get("GITHUB_ACTOR")):
        place = environment.get("GITHUB_REPOSITORY", "")
        run = environment.get("GITHUB_RUN_ID", "")
        return f"{actor} (GitHub Actions, {place} run {run})"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.geteuid()}"
    return f"{user}@{platform.node() or 'unknown'}"


def _mover(because: str) -> Mover:
    from engines.channels.moves import Mover
    from planyard.edge.clock import utc_now

    return Mover(by=who(os.environ), now=utc_now(), because=because)


def _evidence(
    store: ObjectStore,
    matrix: Path,
    *,
    signers: Mapping[str, str | None],
    required: bool,
    gpus: Sequence[str] | None = None,
) -> Evidence | None:
    """What verifies the signed evidence of an image; None where none is asked for."""
    from builders.signed_state import evidence_verifier, promotion_of, trust_wanted
    from builders.signing import Trust

    environment, root = dict(os.environ), matrix.absolute().parent
    trust = trust_wanted(
        promotion_of(matrix, optional=matrix == DEFAULT_MATRIX),
        Trust(**signers),
        required=required,
        root=root,
        environment=environment,
    )
    if trust is None:
        return None
    return evidence_verifier(store, trust, root=root, environment=environment, gpus=gpus or ())


def _end(move: Move, console: Console, *, as_json: bool) -> int:
    """Show what a move came to; 4 when something spoke against it."""
    if as_json:
        import msgspec

        console.document(msgspec.json.encode(move).decode())
    else:
        show_move(move, console)
    return EXIT_FINDINGS if move.objections else 0
