"""Size budgets: what an image weighs against what the matrix allows it."""

from __future__ import annotations

from collections.abc import Sequence

from planyard.core.findings import Finding
from planyard.core.matrix import Budget
from planyard.core.results import ImageRecord, Layer
from planyard.core.units import format_bytes

_NAMED_FILES = 5


def check_budget(image: ImageRecord, budget: Budget) -> tuple[Finding, ...]:
    """One finding for each limit that is passed, naming the layers and files that weigh most."""
    largest = max((layer.pull_bytes for layer in image.layers), default=0)
    figures = (
        ("pull", "pull size", image.pull_bytes, budget.pull),
        ("unpacked", "unpacked size", image.unpacked_bytes, budget.unpacked),
        ("largest_layer", "largest layer", largest, budget.largest_layer),
    )
    return tuple(
        Finding(
            gate="budget",
            rule=f"budget.{key}",
            where=image.name,
            message=f"{words} {format_bytes(size)} is {format_bytes(size - limit)} over its budget "
            f"of {format_bytes(limit)}",
            evidence=tuple(_heaviest(image.layers)),
        )
        for key, words, size, limit in figures
        if limit is not None and size > limit
    )


def _heaviest(layers: Sequence[Layer]) -> list[str]:
    """The layers by weight, then the files by weight."""
    by_weight = sorted(layers, key=lambda layer: -layer.pull_bytes)
    lines = [
        f"layer {format_bytes(layer.pull_bytes)} pull, {format_bytes(layer.unpacked_bytes)} "
        f"unpacked: {layer.created_by[:80] or 'the base'}"
        for layer in by_weight[:3]
    ]
    files = [file for layer in layers for file in layer.largest_files]
    files.sort(key=lambda file: (-file.size_bytes, file.path))
    lines += [f"file {format_bytes(file.size_bytes)}: {file.path}" for file in files[:_NAMED_FILES]]
    return lines
