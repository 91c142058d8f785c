"""The verb that looks into an image: image audit. It builds nothing and needs no Docker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.build import image_app
from builders.cli.verbs import (
    DEFAULT_MATRIX,
    JsonOption,
    MatrixOption,
    StoreOption,
    load,
    open_store,
    verb,
)
from planyard.core.errors import EXIT_DONE, EXIT_FINDINGS
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.store.store import ObjectStore


def add_to(app: typer.Typer) -> None:  # noqa: ARG001 - image_app is part of it already
    """Add these verbs to the application."""
    image_app.command("audit")(image_audit)


@verb
def image_audit(
    image: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="The image: sha256:… (12 or more of its hex digits), a channel, an image of the "
            "matrix as it was built last, oci:DIR[:NAME] or docker-archive:FILE.",
        ),
    ],
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
    from builders.audit.references import find_image
    from builders.audit.sources import contents_of
    from builders.audit.verdict import asked_of, judge_image
    from planyard.core.cells import expand
    from planyard.core.compat import load_compat
    from planyard.core.findings import failures

    console = Console(quiet=json, result=True)
    # Without a matrix an image is audited for itself; one that was named has to be there.
    loaded = load(matrix).matrix if matrix != DEFAULT_MATRIX or matrix.exists() else None
    root = matrix.absolute().parent
    opened = open_store(store, root=root)
    source = find_image(image, store=opened, root=root, matrix=loaded)
    kept_in = opened if store or _exists(opened) else None
    with Console(quiet=json).step(f"read {source.name or image}") as step:
        contents, read = contents_of(source, store=kept_in, report=step.update)
    spec = loaded.images.get(source.name) if loaded else None
    cells = expand(loaded, load_compat()).cells if loaded and spec else ()
    asked = asked_of(source.name or image, spec, cells=cells)
    audit, _ = judge_image(contents, asked=asked, spec=spec, read_layers=read)
    if json:
        console.document(msgspec.json.encode(audit).decode())
    else:
        show_audit(audit, console)
    return EXIT_FINDINGS if failures(audit.findings) else EXIT_DONE


def _exists(store: ObjectStore) -> bool:
    """Whether a store is there: an audit of something elsewhere makes none."""
    from engines.store.local_store import LocalStore

    return not isinstance(store, LocalStore) or store.root.is_dir()
