"""What an image is asked to be: what its cells and the matrix say of it."""

from __future__ import annotations

from dataclasses import dataclass

from planyard.core.matrix import Accepted


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The side of the matrix that the rules hold an image against.

    `sms` are those of the image's cells: empty when no cell has a GPU, None when no matrix is
    known, and then nothing is said of GPU code. `lazy_libraries` and `accept` are the image's
    fields of the matrix.
    """

    image: str
    sms: frozenset[int] | None = frozenset()
    lazy_libraries: tuple[str, ...] = ()
    accept: tuple[Accepted, ...] = ()
