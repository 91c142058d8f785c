"""The verbs of the workflow: its jobs, the work of each, and whether all of it came to an end.

They are what .github/workflows/build.yml runs; each works by hand just as well.
"""

from __future__ import annotations

from typing import Annotated

import typer

from builders.cli.github_judge import judge
from builders.cli.github_options import (
    DEFAULT_HANDED,
    ChannelsOption,
    HandedOption,
    cells_of,
    lines_of,
)
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

github_app = typer.Typer(help="The jobs of the GitHub workflow.", no_args_is_help=True)
node_app = typer.Typer(help="Look at this node.", no_args_is_help=True)

RunnerOption = Annotated[
    list[str] | None,
    typer.Option("--runner", metavar="LABEL", help="Labels of jobs without a GPU. Repeatable."),
]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    for command in (jobs, images, plans, smoke, judge):
        github_app.command(command.__name__)(command)
    node_app.command("check")(node_check)
    app.add_typer(github_app, name="github")
    app.add_typer(node_app, name="node")


@verb
def jobs(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    channel: ChannelsOption = None,
    runner: RunnerOption = None,
    json: JsonOption = False,
) -> int:
    """The jobs of every stage; on GitHub, their matrices are outputs of the step that runs this.

    A matrix has at most 256 jobs; more are packed, those on the same runner labels together.

    Examples: planyard github jobs, or planyard github jobs --select 'rtx/*' --channel stable=rtx
    """
    import msgspec

    from builders.github.jobs import jobs_of, to_outputs
    from builders.github.judging import channels_from
    from builders.github.outputs import write_outputs
    from planyard.core.cells import HOSTED_RUNNER

    console, loaded = Console(quiet=json, result=True), load(matrix)
    cells, all_cells = cells_of(loaded, select)
    channels_from(lines_of(channel), images=list(dict.fromkeys(cell.image for cell in cells)))
    hosted = tuple(lines_of(runner)) or HOSTED_RUNNER
    found = jobs_of(cells, all_cells=all_cells, matrix=loaded.matrix, hosted=hosted)
    write_outputs(to_outputs(found))
    if json:
        console.document(msgspec.json.encode(found).decode())
    stages = {"images": found.images, "plans": found.plans, "smoke": found.smoke}
    rows = [(stage, job.name, ", ".join(job.runs_on)) for stage in stages for job in stages[stage]]
    console.table(("stage", "job", "runs on"), rows)
    return 0


@verb
def images(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    handed: HandedOption = DEFAULT_HANDED,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
) -> int:
    """Build the images of the selected cells, and hand over their digests.

    Example: planyard github images --select 'rtx/*' --store s3://bucket/plans
    """
    from builders.closing import show_report
    from builders.github import handover, legs
    from planyard.core.report import exit_code

    console, loaded = Console(quiet=json), load(matrix)
    with open_workspace(matrix, store=store, console=console, may_install=not no_setup) as opened:
        report, made = legs.build_images(loaded, patterns=lines_of(select), workspace=opened)
    for each in made:
        handover.write(handed, each)
        console.detail(f"handed over {each.name} {each.image.digest}")
    show_report(report, loaded=loaded, console=console, json=json, require_smoke=False)
    return exit_code(report)


@verb
def plans(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    handed: HandedOption = DEFAULT_HANDED,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
) -> int:
    """Compile the plans of the selected cells, with compilers that were handed over.

    Ends with 7 when a plan has to wait for a GPU that is not here.
    """
    from builders.closing import show_report
    from builders.github import handover, legs
    from planyard.core.report import exit_code

    console, loaded = Console(quiet=json), load(matrix)
    images = handover.images_handed(handover.read_all(handed))
    with open_workspace(matrix, store=store, console=console, may_install=not no_setup) as opened:
        report = legs.build_plans(
            loaded, patterns=lines_of(select), workspace=opened, images=images
        )
    show_report(report, loaded=loaded, console=console, json=json, require_smoke=True)
    return exit_code(report, require_smoke=True)


@verb
def smoke(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    handed: HandedOption = DEFAULT_HANDED,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
) -> int:
    """Run the selected cells in images that were handed over, and write their snapshots.

    Builds and compiles nothing. Ends with 7 where this node is not the one the cells ask for, or
    a cell could not be run.
    """
    from builders.closing import send_images, show_report
    from builders.github import handover, legs
    from builders.github.node import check_node
    from engines.store.mirrored import MirroredStore
    from planyard.core.report import exit_code
    from planyard.edge.gpu import local_gpus

    console, loaded = Console(quiet=json), load(matrix)
    cells, _ = cells_of(loaded, select)
    check_node(cells, matrix=loaded.matrix, gpus=local_gpus())
    images = handover.images_handed(handover.read_all(handed))
    with open_workspace(matrix, store=store, console=console, may_install=not no_setup) as opened:
        report, came = legs.smoke(
            loaded, patterns=lines_of(select), workspace=opened, images=images
        )
        if isinstance(opened.store, MirroredStore):
            send_images(report, store=opened.store, console=console)
    handover.write(handed, came)
    show_report(report, loaded=loaded, console=console, json=json, require_smoke=True)
    return exit_code(report, require_smoke=True)


@verb
def node_check(
    cell: Annotated[
        list[str] | None, typer.Option("--cell", metavar="ID", help="A cell. Repeatable.")
    ] = None,
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    json: JsonOption = False,
) -> int:
    """Whether this node has the GPU and the driver branch that the cells ask for; 7 when not.

    Examples: planyard node check --cell rtx/ocr-det/640/fp16/sm89, or planyard node check
    --select '*/sm89'
    """
    import msgspec

    from builders.github.node import check_node
    from planyard.edge.gpu import local_gpus

    console, loaded = Console(quiet=json, result=True), load(matrix)
    cells, _ = cells_of(loaded, [*(cell or ()), *(select or ())])
    gpus = local_gpus()
    check_node(cells, matrix=loaded.matrix, gpus=gpus)
    if json:
        document = {"schema": 1, "cells": [each.id for each in cells], "gpus": gpus}
        console.document(msgspec.json.encode(document).decode())
    here = ", ".join(f"SM {gpu.sm / 10}, driver {gpu.driver}" for gpu in gpus) or "no GPU"
    console.good(f"{len(cells)} cells fit this node: {here}")
    return 0
