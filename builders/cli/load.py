"""The verb that measures: load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from builders.cli.verbs import (
    DEFAULT_MATRIX,
    JsonOption,
    MatrixOption,
    NoSetupOption,
    SelectOption,
    StoreOption,
    open_workspace,
    verb,
)
from builders.cli.verbs import load as load_matrix
from planyard.core.units import format_bytes, format_seconds
from planyard.edge.console import Console

if TYPE_CHECKING:
    from planyard.core.loads import LoadRecord, LoadReport, LoadSeries

_HEADER = ("batch", "at once", "requests", "P50", "P95", "requests/s", "items/s", "GPU", "memory")

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...",
        help="Workloads of the matrix (`loads`), by default all; adhoc is options alone.",
        show_default=False,
    ),
]
CellOption = Annotated[
    list[str] | None, typer.Option("--cell", metavar="ID", help="A cell to measure. Repeatable.")
]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", min=1, max=1000, help="Runs of the model that make one request."),
]
BatchOption = Annotated[
    list[int] | None,
    typer.Option("--batch", min=1, max=4096, metavar="N", help="A batch size. Repeatable."),
]
ConcurrencyOption = Annotated[
    list[int] | None,
    typer.Option(
        "--concurrency", min=1, max=256, metavar="N", help="Requests at once. Repeatable."
    ),
]
RequestsOption = Annotated[
    int | None,
    typer.Option("--requests", min=5, max=100_000, help="Timed requests of each series."),
]
SecondsOption = Annotated[
    int | None,
    typer.Option(
        "--seconds", min=1, max=3600, help="No request of a series is begun after this, but five."
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the inputs.")
]
RequireOption = Annotated[
    bool, typer.Option("--require", help="Exit 7 when a cell could not be measured here.")
]


def add_to(app: typer.Typer) -> None:
    """Add this verb to the application."""
    app.command("load")(load)


@verb
def load(
    names: NamesArgument = None,
    cell: CellOption = None,
    select: SelectOption = None,
    steps: StepsOption = None,
    batch: BatchOption = None,
    concurrency: ConcurrencyOption = None,
    requests: RequestsOption = None,
    seconds: SecondsOption = None,
    seed: SeedOption = None,
    require: RequireOption = False,
    matrix: MatrixOption = DEFAULT_MATRIX,
    store: StoreOption = None,
    json: JsonOption = False,
    no_setup: NoSetupOption = False,
) -> int:
    """Measure workloads on cells: latency, throughput, GPU. A run that falls back has no figures.

    Examples: planyard load, or planyard load adhoc --cell ort-cpu/ocr-det/640/fp32/cpu --batch 1
    --concurrency 1 --concurrency 2
    """
    from builders.load_runs import measure_loads
    from builders.workloads import order_loads
    from planyard.core.cells import expand
    from planyard.core.compat import load_compat
    from planyard.core.loads import load_exit_code

    loaded = load_matrix(matrix)
    changes = _changes(
        steps=steps,
        batches=tuple(batch or ()) or None,
        concurrency=tuple(concurrency or ()) or None,
        requests=requests,
        series_seconds=seconds,
        seed=seed,
    )
    orders = order_loads(
        loaded.matrix,
        expand(loaded.matrix, load_compat()).cells,
        names=names or (),
        patterns=[*(cell or ()), *(select or ())],
        changes=changes,
    )
    console = Console(quiet=json)
    opened = open_workspace(matrix, store=store, console=console, may_install=not no_setup)
    with opened as workspace:
        report = measure_loads(loaded, orders, workspace=workspace)
    show_loads(report, console=console, result=Console(quiet=json, result=True))
    if json:
        import msgspec

        console.document(msgspec.json.encode(report).decode())
    return load_exit_code(report, required=require)


def _changes(**options: Any) -> dict[str, Any]:
    """The fields of a workload that options give; a number that is given twice counts once."""
    return {
        name: tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }


def show_loads(report: LoadReport, *, console: Console, result: Console) -> None:
    """What was refused and not run to `console`, and a table for each record to `result`."""
    for refused in report.refused:
        for finding in refused.findings:
            show = console.error if finding.severity == "fail" else console.warn
            show(f"{finding.where}: {finding.message} [{finding.rule}]")
            for each in finding.evidence:
                console.detail(f"    {each}")
        console.error(f"{refused.cell}: no figures of {refused.workload}, the run failed its gates")
    for missed in report.not_run:
        console.warn(f"{missed.cell} was not run ({missed.workload}): {missed.reason}")
    for record in report.records:
        if record.gpu_error:
            console.warn(f"{record.cell}: what NVML knows is not whole: {record.gpu_error}")
        result.title(f"{record.workload} on {record.cell}")
        result.detail(_told(record))
        result.table(_HEADER, [_row(each) for each in record.series])
        result.say()


def _told(record: LoadRecord) -> str:
    """What the figures are of."""
    steps = "1 run" if record.steps == 1 else f"{record.steps} runs"
    return f"{record.gpu}; a request is {steps} of the model; image {record.image[:19]}"


def _row(series: LoadSeries) -> tuple[str, ...]:
    percent, memory = series.gpu_percent, series.gpu_memory_bytes
    return (
        str(series.batch),
        str(series.concurrency),
        f"{series.requests} in {format_seconds(series.seconds)}",
        _milliseconds(series.p50_ms),
        _milliseconds(series.p95_ms),
        _rate(series.requests_per_second),
        _rate(series.items_per_second),
        "-" if percent is None else f"{percent:.0f} %",
        "-" if memory is None else format_bytes(memory),
    )


def _milliseconds(value_ms: float) -> str:
    """`1.52 ms`, `152 ms`, `3520 ms`."""
    return f"{value_ms:.2f} ms" if value_ms < 10 else f"{value_ms:.0f} ms"


def _rate(per_second: float) -> str:
    """`0.042`, `4.21`, `421`."""
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"
