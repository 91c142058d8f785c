"""The verbs about what images hold: image diff, image sbom. They read, and build nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.build import image_app
from builders.cli.named_images import PLACES, NamedImages
from builders.cli.verbs import DEFAULT_MATRIX, JsonOption, MatrixOption, StoreOption, verb
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.units import format_bytes
from planyard.edge import files
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.audit.contents import ImageContents
    from engines.sbom import SbomFormat
    from engines.store.store import ObjectStore
    from planyard.core.results import Package

_ARCHIVE = "docker-archive:"
_FORMATS: dict[str, SbomFormat] = {"spdx": "spdx", "cyclonedx": "cyclonedx"}

BeforeArgument = Annotated[str, typer.Argument(metavar="A", help=f"Before: {PLACES}")]
AfterArgument = Annotated[str, typer.Argument(metavar="B", help=f"After: {PLACES}")]
ImageArgument = Annotated[str, typer.Argument(metavar="REF", help=f"The image: {PLACES}")]


def add_to(app: typer.Typer) -> None:  # noqa: ARG001 - image_app is part of it already
    """Add these verbs to the application."""
    image_app.command("diff")(image_diff)
    image_app.command("sbom")(image_sbom)


@verb
def image_diff(
    before: BeforeArgument,
    after: AfterArgument,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A comment for a pull request, on stdout.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Name every file that differs.")] = False,
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """What changed from A to B: sizes and whose they are, packages, files, configuration.

    Examples: planyard image diff stable sha256:0123456789ab, or planyard image diff stable
    docker-archive:new.tar --markdown
    """
    import msgspec

    from builders.audit.diff import FILES, diff_images
    from builders.audit.diff_text import diff_markdown, show_diff
    from builders.audit.owners import find_owners

    if json and markdown:
        raise InputError(["--json and --markdown: there is one document on stdout, choose one"])
    console = Console(quiet=json or markdown, result=True)
    images = NamedImages(matrix, store, quiet=json or markdown)
    found = [images.find(asked) for asked in (before, after)]
    old, new = (images.read(source)[0] for source in found)
    sides = (old, find_owners(old), new, find_owners(new))
    diff = diff_images(*sides, files=None if every else FILES)
    if json:
        console.document(msgspec.json.encode(diff).decode())
    elif markdown:
        console.document(diff_markdown(diff))
    else:
        show_diff(diff, console)
    return 0


@verb
def image_sbom(
    image: ImageArgument,
    wanted: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="spdx (2.3) or cyclonedx (1.6).")
    ] = "spdx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to this file.")
    ] = None,
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,  # noqa: ARG001 - it is JSON either way
) -> int:
    """The bill of materials of an image: what a build attached, else made from its files now.

    Examples: planyard image sbom stable > app.spdx.json, or planyard image sbom oci:layout
    --format cyclonedx --output app.cdx.json
    """
    if wanted not in _FORMATS:
        raise InputError([f"--format {wanted[:40]}: write {' or '.join(_FORMATS)}"])
    console = Console()
    data, how = _bill(image, NamedImages(matrix, store, quiet=False), wanted=_FORMATS[wanted])
    if output is None:
        console.document(data.decode())
        console.detail(how)
        return 0
    try:
        files.write_bytes(output, data)
    except OSError as error:
        raise InputError([f"--output {output}: cannot be written: {error.strerror}"]) from error
    console.good(f"wrote {output}: {wanted}, {format_bytes(len(data))}, {digest_of_bytes(data)}")
    console.detail(how)
    return 0


def _bill(asked: str, images: NamedImages, *, wanted: SbomFormat) -> tuple[bytes, str]:
    """The document, and how it came about."""
    from builders.audit.owners import find_owners
    from builders.sbom.attach import sbom_of
    from engines.sbom import read_sbom, sbom_of_image

    source, store = images.find(asked), images.store
    record = None if _is_elsewhere(asked) else sbom_of_image(store, source.image)
    if record:
        return read_sbom(store, record, wanted), f"kept with the image in {store.url}"
    contents, _ = images.read(source)
    made = sbom_of(
        contents,
        find_owners(contents),
        wanted,
        base=() if _is_elsewhere(asked) else _base_of(contents, store),
        has_manifest=not asked.startswith(_ARCHIVE),
    )
    return made, "made now, from what is in the image: no build attached one"


def _base_of(contents: ImageContents, store: ObjectStore) -> tuple[Package, ...]:
    """The packages of the base of an image that a build here made and kept no bill of."""
    from builders.image import RECIPE_LABEL
    from engines.index import image_of_recipe
    from planyard.core.digest import is_digest

    labels = contents.settings.get("Labels")
    recipe = labels.get(RECIPE_LABEL) if isinstance(labels, dict) else None
    found = (
        image_of_recipe(store, recipe) if isinstance(recipe, str) and is_digest(recipe) else None
    )
    return found.base if found and found.digest == contents.image else ()


def _is_elsewhere(asked: str) -> bool:
    return asked.startswith(("oci:", _ARCHIVE))
