"""The verb init: a starting matrix, image and workflow for a model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from builders.cli.verbs import JsonOption, verb
from planyard.edge.console import Console


def add_to(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("init")(init)


@verb
def init(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL.onnx", help="An ONNX file; an example when left out."),
    ] = None,
    image_backend: Annotated[
        list[str] | None,
        typer.Option(
            "--image-backend",
            metavar="cpu|gpu|rtx",
            help="ONNX Runtime on the CPU (always there, as the reference), on CUDA, or TensorRT "
            "for RTX. Repeatable; by default cpu alone.",
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--dir", help="Where to write; the model lies in or below it.")
    ] = Path(),
    action: Annotated[
        str | None,
        typer.Option(
            "--action",
            metavar="OWNER/NAME@COMMIT",
            help="Planyard's own action, for the workflow; a placeholder when left out.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep files that are there as NAME.bak.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Write a matrix, an image and a workflow for a model, which build as they are.

    Writes all of them or, where one is there already, none. The model is not copied.

    Examples: planyard init models/net.onnx, or planyard init net.onnx --image-backend rtx
    """
    import msgspec

    from builders.starting.start import choices_of, start

    console = Console(quiet=json, result=True)
    choices = choices_of(image_backend or ["cpu"])
    done = start(model, root=folder, choices=choices, action=action, force=force)
    if json:
        console.document(msgspec.json.encode(done).decode())
        return 0
    for name in done.kept:
        console.say(f"kept {name}")
    for name in done.written:
        console.good(f"wrote {folder / name}")
    if done.look_at:
        console.say()
        console.title("look at")
        for line in done.look_at:
            console.say(f"  {line}")
    console.say()
    console.say(f"next:  {done.next}")
    return 0
