"""The verbs that make something: build, image build, plan build, smoke."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.verbs import (
    DEFAULT_MATRIX,
    JsonOption,
    MatrixOption,
    NoSetupOption,
    SelectOption,
    StoreOption,
    load,
    open_workspace,
    verb,
)
from planyard.edge.console import Console

if TYPE_CHECKING:
    from planyard.core.report import BuildReport

image_app = typer.Typer(help="Build images.", no_args_is_help=True)
plan_app = typer.Typer(help="Compile plans, and read what a plan file says.", no_args_is_help=True)

RequireSmoke = Annotated[
    bool, typer.Option("--require-smoke", help="Exit 7 when a cell could not be run here.")
]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command("build")(build)
    app.command("smoke")(smoke)
    image_app.command("build")(image_build)
    plan_app.command("build")(plan_build)
    app.add_typer(image_app, name="image")
    app.add_typer(plan_app, name="plan")


@verb
def build(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
    require_smoke: RequireSmoke = False,
    refresh_bases: Annotated[
        bool, typer.Option("--refresh-bases", help="Resolve Debian packages anew.")
    ] = False,
    sign: Annotated[
        bool, typer.Option("--sign", help="Sign the evidence of every image, as `sign` does.")
    ] = False,
) -> int:
    """The whole line: images, plans, smoke runs, snapshots. Nothing changed, nothing done.

    Examples: planyard build --select 'ort-cpu/*', or planyard build --store s3://bucket/plans
    """
    from builders.closing import close_build, sign_images
    from builders.pipeline import build as build_all
    from builders.pipeline import check_selection

    console = Console(quiet=json)
    matrix = matrix.absolute()
    loaded = load(matrix)
    check_selection(loaded, select or [])
    opened = open_workspace(matrix, store=store, console=console, may_install=not no_setup)
    with opened as workspace:
        if refresh_bases:
            workspace.bases.forget()
        report = build_all(loaded, patterns=select or [], workspace=workspace)
        code = close_build(
            report,
            loaded=loaded,
            workspace=workspace,
            matrix=matrix,
            options=sys.argv[2:],
            json=json,
            require_smoke=require_smoke,
        )
        if sign and code == 0:
            sign_images(report, workspace=workspace)
        return code


@verb
def image_build(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
) -> int:
    """Build the images of the selected cells and hold them against their budgets."""
    return _until("images", matrix, select, store=store, json=json, no_setup=no_setup)


@verb
def plan_build(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
) -> int:
    """Compile the plans of the selected cells."""
    return _until("plans", matrix, select, store=store, json=json, no_setup=no_setup)


@verb
def smoke(
    cell: Annotated[
        list[str] | None, typer.Option("--cell", metavar="ID", help="A cell to run. Repeatable.")
    ] = None,
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
    require_smoke: RequireSmoke = False,
) -> int:
    """Run cells in their images and let the gates judge them."""
    patterns = [*(cell or ()), *(select or ())]
    return _until(
        "smoke",
        matrix,
        patterns,
        store=store,
        json=json,
        no_setup=no_setup,
        require_smoke=require_smoke,
    )


def _until(
    last: str,
    matrix: Path,
    patterns: list[str] | None,
    *,
    store: str | None,
    json: bool,
    no_setup: bool,
    require_smoke: bool = False,
) -> int:
    """The line up to one of its steps."""
    from builders.closing import show_report
    from builders.pipeline import build as build_all
    from builders.pipeline import check_selection
    from planyard.core.report import exit_code

    console = Console(quiet=json)
    loaded = load(matrix)
    check_selection(loaded, patterns or [])
    opened = open_workspace(matrix, store=store, console=console, may_install=not no_setup)
    with opened as workspace:
        report: BuildReport = build_all(
            loaded, patterns=patterns or [], workspace=workspace, until=last
        )
    show_report(report, loaded=loaded, console=console, json=json, require_smoke=require_smoke)
    return exit_code(report, require_smoke=require_smoke)
