"""The verb github judge: whether all of a run came to an end, and a good one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    SelectOption,
    StoreOption,
    load,
    open_store,
    verb,
)
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.github.judging import RunVerdict
    from engines.store.store import ObjectStore
    from planyard.core.cells import Cell
    from planyard.core.reader import LoadedMatrix


@verb
def judge(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    store: StoreOption = None,
    handed: HandedOption = DEFAULT_HANDED,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            metavar="NAME=RESULT",
            help="What GitHub says of a stage, like smoke=success. Repeatable.",
        ),
    ] = None,
    channel: ChannelsOption = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write the summary here, for a comment."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Whether every selected cell passed in the images of this run, by what the store has.

    Ends with 7 when something is missing: a stage that failed, a job that never ran, a cell that
    nobody reported on; with 4 when a cell failed or an image is bad.

    Example: planyard github judge --stage images=success --stage smoke=success --channel stable
    """
    import msgspec

    from builders.github.judging import channels_from, exit_code
    from builders.github.outputs import write_outputs
    from builders.github.summary import summary_of

    console, loaded = Console(quiet=json, result=True), load(matrix)
    cells, all_cells = cells_of(loaded, select)
    names = list(dict.fromkeys(cell.image for cell in cells))
    channels = channels_from(lines_of(channel), images=names)
    opened = open_store(store, root=matrix.absolute().parent)
    found = _judged(
        loaded,
        (cells, all_cells),
        store=opened,
        handed=handed,
        stages=lines_of(stage),
        channels=channels,
    )
    text = summary_of(found, store=opened, channels=channels)
    console.step_summary(text)
    if markdown:
        markdown.write_text(text, encoding="utf-8")
    write_outputs(_outputs(found))
    if json:
        console.document(msgspec.json.encode(found).decode())
    _show(found, console)
    return exit_code(found)


def _judged(
    loaded: LoadedMatrix,
    cells: tuple[tuple[Cell, ...], tuple[Cell, ...]],
    *,
    store: ObjectStore,
    handed: Path,
    stages: list[str],
    channels: dict[str, str],
) -> RunVerdict:
    """What was expected of the chosen cells (the first of two), against what there is."""
    from builders.github import handover
    from builders.github.jobs import jobs_of, to_outputs
    from builders.github.judging import judge_run, stages_from

    chosen, all_cells = cells
    wanted = to_outputs(jobs_of(chosen, all_cells=all_cells, matrix=loaded.matrix))
    empty = [name.removesuffix("_jobs") for name, count in wanted.items() if count == "0"]
    came = handover.read_all(handed)
    return judge_run(
        chosen,
        matrix=loaded.matrix,
        images=handover.images_handed(came),
        smoked=tuple(handover.smoke_handed(came)),
        store=store,
        jobs=stages_from(stages, empty=empty),
        channels=channels,
    )


def _outputs(found: RunVerdict) -> dict[str, str]:
    """For the jobs after this: the images to sign, the channels to move, as GitHub matrices."""
    import msgspec

    passed = [{"image": each.name, "digest": each.digest} for each in found.images if each.passed]
    return {
        "passed": msgspec.json.encode({"include": passed}).decode(),
        "passed_images": str(len(passed)),
        "promotions": msgspec.json.encode({"include": found.promotions}).decode(),
        "promoted_channels": str(len(found.promotions)),
    }


def _show(found: RunVerdict, console: Console) -> None:
    """Every gap and failure; one line when there is none."""
    for name, result in found.jobs.items():
        console.error(f"the stage {name} ended with {result}")
    for image in found.images:
        for finding in image.findings:
            show = console.error if finding.severity == "fail" else console.warn
            show(f"{image.name}: {finding.message} [{finding.rule}]")
    for cell in found.cells:
        if cell.verdict != "passed":
            console.error(f"{cell.cell} {cell.verdict}: {cell.why}")
    if found.passed:
        images = ", ".join(f"{each.name} {each.digest[:19]}" for each in found.images)
        console.good(f"all {len(found.cells)} cells passed, in the images of this run: {images}")
