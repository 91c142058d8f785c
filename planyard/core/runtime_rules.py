"""What must hold between the fields of `tensorrt:` and the image it stands in.

TensorRT itself says nothing of these until a plan does not load. `matrix_rules` asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator

from planyard.core.located import KeyPath
from planyard.core.matrix import Image
from planyard.core.matrix_runtime import TensorRtBuild

_UNSET = TensorRtBuild()


def tensorrt_broken(image: Image) -> Iterator[tuple[KeyPath, str]]:
    """Every rule that an image's `tensorrt:` breaks: where in the image, and what to write."""
    build = image.tensorrt
    if build == _UNSET:
        return
    if image.backend != "tensorrt":
        message = f"{image.backend} builds no plans with classic TensorRT: remove this key"
        yield ("tensorrt",), message
        return
    if build.runtime == "lean" and not build.version_compatible:
        message = "the lean runtime runs version-compatible plans only"
        yield ("tensorrt", "runtime"), f"{message}: add version_compatible: true, or write full"
    if build.runtime == "lean" and build.refit_identical:
        message = "weights are put back by the full library, and this image has the lean runtime"
        yield ("tensorrt", "refit_identical"), f"{message}: write false, or runtime: full"
