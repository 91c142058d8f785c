"""The images that arguments of verbs name, read where they lie; no Docker is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builders.audit.visible import visible
from builders.cli.verbs import DEFAULT_MATRIX, load, open_store
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.audit.contents import ImageContents
    from builders.audit.sources import ImageSource
    from engines.store.store import ObjectStore

PLACES = (
    "sha256:… (12 or more of its hex digits), a channel, an image of the matrix as it was built "
    "last, oci:DIR[:NAME] or docker-archive:FILE."
)


class NamedImages:
    """Images by what people call them; what was read of them is kept in the store."""

    def __init__(self, matrix: Path, store: str | None, *, quiet: bool) -> None:
        # Without a matrix only its images have no names; one that was named has to be there.
        self.matrix = load(matrix).matrix if matrix != DEFAULT_MATRIX or matrix.exists() else None
        self._root = matrix.absolute().parent
        self._console = Console(quiet=quiet)
        self.store = open_store(store, root=self._root)
        self._kept_in = self.store if store or _exists(self.store) else None

    def find(self, asked: str) -> ImageSource:
        """Where the image lies."""
        from builders.audit.references import find_image

        return find_image(asked, store=self.store, root=self._root, matrix=self.matrix)

    def read(self, source: ImageSource) -> tuple[ImageContents, tuple[str, ...]]:
        """What it holds, and the layers that had to be read for that."""
        from builders.audit.sources import contents_of

        with self._console.step(f"read {visible(source.name) or source.image[:19]}") as step:
            return contents_of(source, store=self._kept_in, report=step.update)


def _exists(store: ObjectStore) -> bool:
    """Whether a store is there: to look at something elsewhere makes none."""
    from engines.store.local_store import LocalStore

    return not isinstance(store, LocalStore) or store.root.is_dir()
