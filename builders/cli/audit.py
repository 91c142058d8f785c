"""The verb that looks into an image: image audit. It builds nothing and needs no Docker."""

from __future__ import annotations

from typing import Annotated

import typer

from builders.cli.build import image_app
from builders.cli.named_images import PLACES, NamedImages
from builders.cli.verbs import DEFAULT_MATRIX, JsonOption, MatrixOption, StoreOption, verb
from planyard.core.errors import EXIT_DONE, EXIT_FINDINGS
from planyard.edge.console import Console


def add_to(app: typer.Typer) -> None:  # noqa: ARG001 - image_app is part of it already
    """Add these verbs to the application."""
    image_app.command("audit")(image_audit)


@verb
def image_audit(
    image: Annotated[str, typer.Argument(metavar="REF", help=f"The image: {PLACES}")],
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """What an image weighs, by layer and by owner, and what is wrong with what it holds.

    Where the matrix has an image of that name, its budget, cells and accepted findings count.
    Ends with 4 for findings that fail.

    Examples: planyard image audit rtx, or planyard image audit docker-archive:saved.tar --json
    """
    import msgspec

    from builders.audit.audit_text import show_audit
    from builders.audit.verdict import asked_of, judge_image
    from planyard.core.cells import expand
    from planyard.core.compat import load_compat
    from planyard.core.findings import failures

    console = Console(quiet=json, result=True)
    images = NamedImages(matrix, store, quiet=json)
    loaded, source = images.matrix, images.find(image)
    contents, read = images.read(source)
    spec = loaded.images.get(source.name) if loaded else None
    cells = expand(loaded, load_compat()).cells if loaded and spec else ()
    asked = asked_of(source.name or image, spec, cells=cells)
    audit, _ = judge_image(contents, asked=asked, spec=spec, read_layers=read)
    if json:
        console.document(msgspec.json.encode(audit).decode())
    else:
        show_audit(audit, console)
    return EXIT_FINDINGS if failures(audit.findings) else EXIT_DONE
