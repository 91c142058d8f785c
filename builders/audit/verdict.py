"""The whole audit of an image that was read: owners, rules, budget, sums. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from builders.audit.audit import audit_image
from builders.audit.budget import check_budget
from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership, find_owners
from builders.audit.rules import check_contents
from builders.audit.rules.asked import Asked
from planyard.core.cells import Cell
from planyard.core.contents import ImageAudit, LayerIndex
from planyard.core.findings import Finding
from planyard.core.matrix import Image
from planyard.core.results import FileSize, ImageRecord, Layer

_LARGEST_FILES = 8


def asked_of(name: str, spec: Image | None, *, cells: Iterable[Cell]) -> Asked:
    """What the matrix asks of an image; nothing of one that is not in it."""
    if spec is None:
        return Asked(image=name, sms=None)
    sms = {cell.sm for cell in cells if cell.image == name and cell.sm is not None}
    return Asked(
        image=name, sms=frozenset(sms), lazy_libraries=spec.lazy_libraries, accept=spec.accept
    )


def judge_image(
    contents: ImageContents,
    *,
    asked: Asked,
    spec: Image | None,
    read_layers: Iterable[str] = (),
) -> tuple[ImageAudit, Ownership]:
    """The audit with all its findings, the budget's among them; and the owners it rests on."""
    ownership = find_owners(contents)
    findings: tuple[Finding, ...] = check_contents(contents, ownership, asked=asked)
    if spec is not None:
        findings = (*check_budget(record_of(contents), spec.budget), *findings)
    audit = audit_image(contents, ownership, findings=findings, read_layers=read_layers)
    return audit, ownership


def record_of(contents: ImageContents) -> ImageRecord:
    """An image as its budget sees it; it has no recipe here."""
    return ImageRecord(
        name=contents.name,
        digest=contents.image,
        recipe="",
        pull_bytes=contents.pull_bytes,
        unpacked_bytes=contents.unpacked_bytes,
        layers=tuple(
            Layer(
                digest=layer.digest,
                diff_id=layer.diff_id,
                pull_bytes=layer.pull_bytes,
                unpacked_bytes=layer.unpacked_bytes,
                created_by=created_by,
                largest_files=_largest(layer),
            )
            for layer, created_by in zip(contents.layers, contents.created_by, strict=True)
        ),
    )


def _largest(layer: LayerIndex) -> tuple[FileSize, ...]:
    found = heapq.nlargest(
        _LARGEST_FILES, layer.files, key=lambda file: (file.size_bytes, file.path)
    )
    return tuple(
        FileSize(path=file.path.removeprefix("/"), size_bytes=file.size_bytes) for file in found
    )
