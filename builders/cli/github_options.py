"""Options that the verbs of the workflow share, and values of several lines in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from planyard.core.cells import Cell
    from planyard.core.reader import LoadedMatrix

HandedOption = Annotated[
    Path,
    typer.Option("--handed", metavar="DIR", help="Where jobs lay what they hand each other."),
]
ChannelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--channel",
        metavar="CHANNEL=IMAGE",
        help="A channel to move when all is good, and to which image of the matrix; the image may "
        "be left out where there is one. Repeatable.",
    ),
]
DEFAULT_HANDED = Path(".planyard/handed")


def lines_of(values: list[str] | None) -> list[str]:
    """Values of an option that may hold several, one a line, as inputs of a workflow do."""
    lines = [line.strip() for value in values or () for line in value.splitlines()]
    return [line for line in lines if line]


def cells_of(
    loaded: LoadedMatrix, patterns: list[str] | None
) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """The selected cells, and all of them."""
    from planyard.core.cells import expand, select
    from planyard.core.compat import load_compat

    everything = expand(loaded.matrix, load_compat()).cells
    return select(everything, lines_of(patterns)), everything
