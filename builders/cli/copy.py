"""The verb `store copy`: images and all they name from one store to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.verbs import JsonOption, verb
from planyard.core.errors import StoreError
from planyard.core.units import format_bytes
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.keeping.copying import CopyReport
    from engines.store.store import ObjectStore


@verb
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The store that has the images.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The store that gets them.")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="DIGEST",
            help="Only this image: sha256:…, or 12 or more of its hex digits. Repeatable.",
        ),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="NAME",
            help="Only the image that this channel of SRC names now. Repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Copy images with their plans, snapshots and evidence; only what DST lacks is moved.

    All images of SRC by default. Channels are not moved: `planyard promote` does that. A copy that
    was interrupted goes on where it ended when it is run again.

    Example: planyard store copy .planyard/store s3://bucket/prefix --channel stable
    """
    from engines.keeping.copying import CopyProgress, copy_images
    from engines.store.opening import open_url

    console = Console(quiet=json)
    source_store, target_store = open_url(source), open_url(target)
    chosen = _chosen(source_store, images=image or [], channels=channel or [])
    with console.step(f"copy {source_store.url} to {target_store.url}") as now:

        def report(progress: CopyProgress) -> None:
            moved = f"{format_bytes(progress.moved_bytes)} moved"
            now.update(f"image {progress.number} of {progress.count}, {moved}")

        done = copy_images(source_store, target_store, images=chosen, report=report)
    if json:
        import msgspec

        console.document(msgspec.json.encode(done).decode())
    else:
        _say(done, Console(result=True))
    for left in done.left_out:
        console.warn(f"{left.image}: {left.what} was left out: {left.why}")
    if done.left_out:
        raise StoreError(
            f"{source_store.url} has not all that {len(done.left_out)} of its snapshots name",
            mend="run `planyard store fsck --repair-from URL` on it, or build those images again",
        )
    return 0


def _chosen(
    source: ObjectStore, *, images: list[str], channels: list[str]
) -> tuple[str, ...] | None:
    """The digests that the options name; None when there are no options."""
    if not images and not channels:
        return None
    from engines.channels.history import resolve_channel
    from engines.lookup import resolve_image

    named = [resolve_image(source, each) for each in images]
    return (*named, *(resolve_channel(source, each) for each in channels))


def _say(done: CopyReport, console: Console) -> None:
    rows = [
        ("blobs", str(done.blobs_moved), str(done.blobs_skipped)),
        ("entries", str(done.entries_moved), str(done.entries_skipped)),
        ("bytes", format_bytes(done.moved_bytes), format_bytes(done.skipped_bytes)),
    ]
    console.title(f"{len(done.images)} images from {done.source} to {done.target}")
    console.table(("", "moved", "there already"), rows)
