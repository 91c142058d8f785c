"""The command line: what it knows, and where its verbs live (the `cli_*` modules).

Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

from typing import Annotated

import typer

import planyard

app = typer.Typer(
    name="planyard",
    help="Build slim GPU inference images and TensorRT plans from one matrix, and refuse what "
    "would fall back to something slower.",
    epilog="Start with: planyard cells --explain, then planyard build.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"planyard {planyard.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options before a verb."""


def main() -> None:
    """Parse the command line and run its verb."""
    add_verbs()
    app()


def add_verbs() -> None:
    """Add every verb to the application."""
    from builders.cli import (
        audit,
        build,
        channels,
        compare,
        github,
        init,
        load,
        log,
        look,
        report,
        sign,
        snapshot,
        store,
        tend,
    )

    making = (build, audit, compare, load, report, init)
    keeping = (channels, sign, snapshot, store)
    for module in (*making, look, *keeping, log, github, tend):
        module.add_to(app)
