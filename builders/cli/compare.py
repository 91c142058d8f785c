"""The verbs about what images hold: image diff, image sbom. They read, and build nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.audit.visible import visible
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
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.units import format_bytes
from planyard.edge import files
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.audit.contents import ImageContents
    from builders.audit.owners import Ownership
    from builders.audit.sources import ImageSource
    from engines.sbom import SbomFormat
    from engines.store.store import ObjectStore
    from planyard.core.results import Package

_PLACES = (
    "sha256:… (12 or more of its hex digits), a channel, an image of the matrix as it was built "
    "last, oci:DIR[:NAME] or docker-archive:FILE."
)
_ARCHIVE = "docker-archive:"
_FORMATS: dict[str, SbomFormat] = {"spdx": "spdx", "cyclonedx": "cyclonedx"}

BeforeArgument = Annotated[str, typer.Argument(metavar="A", help=f"Before: {_PLACES}")]
AfterArgument = Annotated[str, typer.Argument(metavar="B", help=f"After: {_PLACES}")]
ImageArgument = Annotated[str, typer.Argument(metavar="REF", help=f"The image: {_PLACES}")]


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

    if json and markdown:
        raise InputError(["--json and --markdown: there is one document on stdout, choose one"])
    console = Console(quiet=json or markdown, result=True)
    images = _Images(matrix, store, quiet=json or markdown)
    found = [images.find(asked) for asked in (before, after)]
    sides = [images.read(source) for source in found]
    diff = diff_images(*sides[0], *sides[1], files=None if every else FILES)
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
    data, how = _bill(image, _Images(matrix, store, quiet=False), wanted=_FORMATS[wanted])
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


def _bill(asked: str, images: _Images, *, wanted: SbomFormat) -> tuple[bytes, str]:
    """The document, and how it came about."""
    from builders.sbom.attach import sbom_of
    from engines.sbom import read_sbom, sbom_of_image

    source, store = images.find(asked), images.store
    record = None if _is_elsewhere(asked) else sbom_of_image(store, source.image)
    if record:
        return read_sbom(store, record, wanted), f"kept with the image in {store.url}"
    contents, owners = images.read(source)
    made = sbom_of(
        contents,
        owners,
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


class _Images:
    """The images that arguments name, read where they lie; what was read is kept in the store."""

    def __init__(self, matrix: Path, store: str | None, *, quiet: bool) -> None:
        # Without a matrix only its images have no names; one that was named has to be there.
        self._matrix = load(matrix).matrix if matrix != DEFAULT_MATRIX or matrix.exists() else None
        self._root = matrix.absolute().parent
        self._console = Console(quiet=quiet)
        self.store = open_store(store, root=self._root)
        self._kept_in = self.store if store or _exists(self.store) else None

    def find(self, asked: str) -> ImageSource:
        """Where the image lies."""
        from builders.audit.references import find_image

        return find_image(asked, store=self.store, root=self._root, matrix=self._matrix)

    def read(self, source: ImageSource) -> tuple[ImageContents, Ownership]:
        """What it holds, and whose that is."""
        from builders.audit.owners import find_owners
        from builders.audit.sources import contents_of

        with self._console.step(f"read {visible(source.name) or source.image[:19]}") as step:
            contents, _ = contents_of(source, store=self._kept_in, report=step.update)
        return contents, find_owners(contents)


def _exists(store: ObjectStore) -> bool:
    """Whether a store is there: to look at something elsewhere makes none."""
    from engines.store.local_store import LocalStore

    return not isinstance(store, LocalStore) or store.root.is_dir()


def _is_elsewhere(asked: str) -> bool:
    return asked.startswith(("oci:", _ARCHIVE))
