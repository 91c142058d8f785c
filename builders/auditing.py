"""The audit of a build's images and their bills of materials, from the indexes made with them.

An image of an earlier build may have layers that nobody has looked into: those are read here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from builders.audit.sources import contents_of, image_in_store
from builders.audit.verdict import asked_of, judge_image
from engines.sbom import sbom_of_image

if TYPE_CHECKING:
    from builders.audit.contents import ImageContents
    from builders.audit.owners import Ownership
    from builders.image import ImageOrder
    from builders.pipeline import Build
    from planyard.core.results import ImageRecord


def audit_images(work: Build) -> None:
    """Audit every image of the build, by what the whole matrix asks of it; attach its bill."""
    for name, image in work.images.items():
        with work.timing(name):
            contents = _contents(image, work)
            spec = work.matrix.images[name]
            asked = asked_of(name, spec, cells=work.all_cells)
            audit, ownership = judge_image(contents, asked=asked, spec=spec)
            work.findings[name] = audit.findings
            if sbom_of_image(work.workspace.store, image.digest) is None:
                _attach_bill(work.orders[name], image, contents, ownership, work)


def _contents(image: ImageRecord, work: Build) -> ImageContents:
    store, console = work.workspace.store, work.workspace.console
    source = image_in_store(store, image.digest, name=image.name)
    contents, _ = contents_of(source, store=store, report=console.detail)
    return contents


def _attach_bill(
    order: ImageOrder,
    image: ImageRecord,
    contents: ImageContents,
    ownership: Ownership,
    work: Build,
) -> None:
    from builders.sbom.attach import attach_sbom

    base = work.matrix.bases[order.spec.base] if order.spec.base else None
    with work.workspace.console.step(f"write the bill of materials of {image.name}"):
        attach_sbom(
            work.workspace.store,
            contents,
            ownership,
            image,
            wheels=order.recipe.wheels,
            release=base.debian.release if base and base.debian else "",
        )
