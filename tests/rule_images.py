"""GPU code as a library's facts have it, for tests of the rules."""

from __future__ import annotations

from collections.abc import Mapping

from builders.audit.facts.gpu_targets import gpu_code
from planyard.core.contents import GpuCode


def code(sizes: Mapping[str, int], *, sure: bool = True) -> GpuCode:
    """GPU code of these bytes for each target."""
    return gpu_code(sizes, sure=sure, fat_binaries=1, cubins=0, unread=not sure)
