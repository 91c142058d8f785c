"""The verbs about capability: snapshot show, snapshot diff, labels. They only read a store."""

from __future__ import annotations

import json as json_library
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.look import DigestArgument
from builders.cli.verbs import JsonOption, StoreOption, open_store, verb
from planyard.core.errors import EXIT_FINDINGS, InputError
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.snapshot import Snapshot
    from engines.store.store import ObjectStore

snapshot_app = typer.Typer(help="Read and compare capability snapshots.", no_args_is_help=True)

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_FILE_LIMIT_BYTES = 64 << 20
_SAVED = "save one with planyard snapshot show IMAGE --json > FILE"

GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="Only this GPU of the matrix.")
]
_SIDE = "an image or snapshot by its digest, a channel, or a JSON file."
BeforeArgument = Annotated[str, typer.Argument(metavar="A", help=f"Before: {_SIDE}")]
AfterArgument = Annotated[str, typer.Argument(metavar="B", help=f"After: {_SIDE}")]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    snapshot_app.command("show")(snapshot_show)
    snapshot_app.command("diff")(snapshot_diff)
    app.add_typer(snapshot_app, name="snapshot")
    app.command("labels")(labels)


@verb
def snapshot_show(
    digest: DigestArgument,
    gpu: GpuOption = None,
    store: StoreOption = None,
    json: JsonOption = False,  # noqa: ARG001 - it is JSON either way
) -> int:
    """The snapshots of an image, whole, as JSON: what it proved, and on what.

    Example: planyard snapshot show stable > stable.json
    """
    from builders.image_names import image_named
    from engines.lookup import lookup as look
    from engines.snapshot import to_json

    opened = open_store(store, root=Path.cwd())
    result = look(opened, image_named(opened, digest, root=Path.cwd()))
    chosen = _of_gpu(result.snapshots, gpu, asked=digest)
    snapshots = [json_library.loads(to_json(snapshot)) for snapshot in chosen]
    document = {"schema": 1, "snapshots": snapshots}
    Console().document(json_library.dumps(document, indent=2, ensure_ascii=False))
    return 0


@verb
def snapshot_diff(
    before: BeforeArgument,
    after: AfterArgument,
    gpu: GpuOption = None,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="End with 4 when something breaks or is proved no more."),
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """What follows from B in the place of A: plans to rebuild or validate, proofs that are lost.

    Examples: planyard snapshot diff stable canary, or planyard snapshot diff old.json sha256:0123…
    """
    import msgspec

    from builders.cli.snapshot_text import show_diff
    from engines.snapshot_diff import diff_snapshots

    sides = [_of_gpu(_side(asked, store), gpu, asked=asked) for asked in (before, after)]
    diff = diff_snapshots(*sides)
    if json:
        Console().document(msgspec.json.encode(diff).decode())
    else:
        show_diff(diff, Console(result=True))
    return EXIT_FINDINGS if exit_code and diff.severity == "breaks" else 0


@verb
def labels(
    digest: DigestArgument,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Least memory of a GPU, like '8 GB'; by default the peak of the smoke runs.",
        ),
    ] = None,
    old_names: Annotated[
        bool,
        typer.Option("--old-names", help="Labels of GPU feature discovery before 0.15."),
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """The node affinity, as YAML, that lets Kubernetes choose only nodes an image fits.

    Examples: planyard labels stable > affinity.yaml, or planyard labels sha256:0123456789ab --json
    """
    import msgspec

    from builders.cli.snapshot_text import labels_to_yaml, show_fits
    from builders.image_names import image_named
    from engines.lookup import lookup as look
    from engines.node_labels import node_labels

    memory_bytes = _size(memory) if memory is not None else None
    opened = open_store(store, root=Path.cwd())
    result = look(opened, image_named(opened, digest, root=Path.cwd()))
    found = node_labels(result.snapshots, memory_bytes=memory_bytes, old_names=old_names)
    console = Console(quiet=json)
    show_fits(found, console)
    if found.needs_gpu and found.affinity.node_affinity is None:
        console.error(f"{found.image_name} {found.image} fits no GPU of the matrix: no labels")
        return EXIT_FINDINGS
    text = msgspec.json.encode(found).decode() if json else labels_to_yaml(found)
    console.document(text)
    return 0


def _size(text: str) -> int:
    from planyard.core.units import ByteSize

    try:
        return int(ByteSize.parse(text))
    except ValueError as error:
        raise InputError([f"--memory: {error}"]) from error


# What a user means by A and B


def _side(asked: str, store: str | None) -> Sequence[Snapshot]:
    """The snapshots that an argument names: in a file, or in the store."""
    if asked.endswith(".json") or (not asked.startswith("sha256:") and "/" in asked):
        return snapshots_of_file(Path(asked))
    return snapshots_named(open_store(store, root=Path.cwd()), asked, root=Path.cwd())


def _of_gpu(snapshots: Sequence[Snapshot], gpu: str | None, *, asked: str) -> Sequence[Snapshot]:
    chosen = [each for each in snapshots if gpu in (None, each.gpu)]
    if not chosen:
        known = ", ".join(sorted({each.gpu for each in snapshots})) or "no GPU"
        raise InputError([f"--gpu {gpu}: {asked} has snapshots for {known}"])
    return chosen


def snapshots_of_file(path: Path) -> tuple[Snapshot, ...]:
    """The snapshots in a file: of `snapshot show`, of `lookup --json` or `--pull`, or one alone.

    Raises InputError that names the file.
    """
    from engines.snapshot import from_json
    from planyard.core.digest import canonical_json

    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT_BYTES)
        document = json_library.loads(data)
        found = document.get("snapshots", [document])
        if not found:
            raise InputError(["there is no snapshot in it"])
        return tuple(from_json(canonical_json(each)) for each in found)
    except OSError as error:
        raise InputError([f"{path}: cannot be read: {error.strerror}"], mend=_SAVED) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError([f"{path}: no JSON of snapshots: {error}"], mend=_SAVED) from error
    except InputError as error:
        raise InputError([f"{path}: {error.message}"], mend=error.mend or _SAVED) from error


def snapshots_named(store: ObjectStore, asked: str, *, root: Path) -> tuple[Snapshot, ...]:
    """The snapshots of an image or channel, or the one with a digest that begins so.

    Raises InputError for the start of several, LookupMissError for what the store does not have.
    """
    from builders.image_names import image_named
    from engines.index import SNAPSHOTS, snapshots_of_image
    from engines.lookup_miss import explain_miss
    from engines.snapshot import to_json
    from planyard.core.digest import digest_of_bytes

    if match := _DIGEST.fullmatch(asked):
        listed = [
            each.name.split("/")[-2:] for each in store.objects.listing(f"index/{SNAPSHOTS}/")
        ]
        images = {image for image, _ in listed if image.startswith(match[1])}
        entries = {entry: image for image, entry in listed if entry.startswith(match[1])}
        if len(images) + len(entries) > 1:
            several = ", ".join(f"sha256:{each}" for each in sorted({*images, *entries}))
            raise InputError([f"{asked} is the start of several: {several}"])
        for image in images:
            return snapshots_of_image(store, f"sha256:{image}")
        for entry, image in entries.items():
            found = snapshots_of_image(store, f"sha256:{image}")
            return tuple(each for each in found if digest_of_bytes(to_json(each)).endswith(entry))
        raise explain_miss(store, match[1])
    found = snapshots_of_image(store, image_named(store, asked, root=root))
    if not found:
        raise InputError([f"{asked}: its image has no snapshot in {store.url}"])
    return found
