"""The GPUs that a piece of code is for, by NVIDIA's names: `sm_90a` is machine code, `compute_75`
PTX. Which code runs where:

- machine code runs on its own SM and on later minors of the same major (8.0 on 8.6 and 8.9);
  with `a` only on its own SM; with `f` within its major. Tegra's SMs stand alone.
- PTX runs on its own SM and all later ones, compiled by the driver; with `a` only on its own, with
  `f` within its major.

Sources: CUDA C++ Programming Guide, "Binary Compatibility" and "Feature Set Compiler Targets".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from planyard.core.contents import GpuCode

TEGRA_SMS = frozenset({53, 62, 72, 87, 101})
_TARGET = re.compile(r"(?:sm|compute)_([0-9]{2,3})([af]?)")


def target_name(*, is_ptx: bool, sm: int, suffix: str = "") -> str:
    """`sm_90a`, `compute_120f`."""
    return f"{'compute' if is_ptx else 'sm'}_{sm}{suffix}"


def number_of(target: str) -> int:
    """90 for `sm_90a`."""
    found = _TARGET.fullmatch(target)
    return int(found[1]) if found else 0


def runs_on(target: str, sm: int) -> bool:
    """Whether code for a target runs on a GPU of this SM, PTX by way of the driver's compiler."""
    own, suffix = number_of(target), target[-1:]
    if suffix == "a" or sm == own:
        return sm == own
    if target.startswith("compute_"):
        return own < sm and (suffix != "f" or own // 10 == sm // 10)
    return own // 10 == sm // 10 and own < sm and not {own, sm} & TEGRA_SMS


def gpu_code(
    sizes: Mapping[str, int], *, sure: bool, fat_binaries: int, cubins: int, unread: int
) -> GpuCode:
    """The value of what was counted."""
    places = f"{fat_binaries} fat binaries, {cubins} cubins outside them, {unread} not understood"
    machine = {number_of(name) for name in sizes if name.startswith("sm_")}
    ptx = {number_of(name) for name in sizes if name.startswith("compute_")}
    return GpuCode(
        machine=tuple(sorted(machine)),
        ptx=tuple(sorted(ptx)),
        code_bytes=sum(sizes.values()),
        sizes={name: sizes[name] for name in sorted(sizes, key=_order)},
        sure=sure,
        how=f"read from the headers of {places}",
    )


def _order(name: str) -> tuple[bool, int, str]:
    return name.startswith("compute"), number_of(name), name
