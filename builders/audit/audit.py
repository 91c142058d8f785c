"""What an image weighs, by layer and by owner: sums that are exact, of values alone."""

from __future__ import annotations

from collections.abc import Iterable

from builders.audit.contents import ImageContents
from builders.audit.owners import IMAGE, Ownership
from planyard.core.contents import (
    ImageAudit,
    LayerAudit,
    LayerFile,
    LayerIndex,
    Owner,
    OwnerSize,
)
from planyard.core.findings import Finding


def audit_image(
    contents: ImageContents,
    ownership: Ownership,
    *,
    findings: Iterable[Finding] = (),
    read_layers: Iterable[str] = (),
) -> ImageAudit:
    """The audit of an image: owners add up to layers, and layers to the image, to the byte.

    What is no file is the image's own: manifest, configuration, ends of tars. `read_layers` are
    those that were read for this.
    """
    whole = _Sizes()
    whole.add(IMAGE, pull_bytes=contents.metadata_bytes)
    layers = tuple(
        _audit_layer(number, layer, contents, ownership, whole=whole)
        for number, layer in enumerate(contents.layers)
    )
    return ImageAudit(
        image=contents.image,
        name=contents.name,
        pull_bytes=contents.pull_bytes,
        unpacked_bytes=contents.unpacked_bytes,
        layers=layers,
        owners=whole.heaviest_first(),
        packages=ownership.packages,
        findings=tuple(findings),
        read_layers=tuple(read_layers),
    )


def _audit_layer(
    number: int,
    layer: LayerIndex,
    contents: ImageContents,
    ownership: Ownership,
    *,
    whole: _Sizes,
) -> LayerAudit:
    sizes = _Sizes()
    sizes.add(IMAGE, pull_bytes=layer.rest_bytes)
    wasted = 0
    for file in layer.files:
        sizes.add_file(ownership.owner_of(file.path), file)
        if file.size_bytes and contents.visible.get(file.path) != (number, file):
            wasted += file.size_bytes
    whole.add_all(sizes)
    return LayerAudit(
        digest=layer.digest,
        created_by=contents.created_by[number],
        pull_bytes=layer.pull_bytes,
        unpacked_bytes=layer.unpacked_bytes,
        wasted_bytes=wasted,
        owners=sizes.heaviest_first(),
    )


class _Sizes:
    """Pull bytes, unpacked bytes and files of each owner."""

    def __init__(self) -> None:
        self._of: dict[Owner, list[int]] = {}

    def add(
        self, owner: Owner, *, pull_bytes: int, unpacked_bytes: int = 0, files: int = 0
    ) -> None:
        """Count these as the owner's."""
        sizes = self._of.setdefault(owner, [0, 0, 0])
        sizes[0] += pull_bytes
        sizes[1] += unpacked_bytes
        sizes[2] += files

    def add_file(self, owner: Owner, file: LayerFile) -> None:
        """Count one member; folders weigh something and are no files."""
        counted = file.kind != "folder"
        self.add(owner, pull_bytes=file.pull_bytes, unpacked_bytes=file.size_bytes, files=counted)

    def add_all(self, other: _Sizes) -> None:
        """Count all of the other's."""
        for owner, (pull_bytes, unpacked_bytes, files) in other._of.items():
            self.add(owner, pull_bytes=pull_bytes, unpacked_bytes=unpacked_bytes, files=files)

    def heaviest_first(self) -> tuple[OwnerSize, ...]:
        """The owners by pull size; those that weigh nothing are left out."""
        found = [
            OwnerSize(owner=owner, pull_bytes=pull, unpacked_bytes=unpacked, files=files)
            for owner, (pull, unpacked, files) in self._of.items()
            if pull or unpacked or files
        ]
        return tuple(sorted(found, key=lambda size: (-size.pull_bytes, size.owner)))
