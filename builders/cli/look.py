"""The verbs that look: cells, plan show, lookup. None needs Docker."""

from __future__ import annotations

import json as json_library
from pathlib import Path
from typing import Annotated, Any

import typer

from builders.cli.build import plan_app
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
from planyard.core.errors import InputError, IntegrityError
from planyard.core.units import format_bytes
from planyard.edge.console import Console

DigestArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", help="sha256:…, 12 or more of its hex digits, or the name of a channel."
    ),
]

SeedOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--seed",
        metavar="DIR",
        help="Another folder of an earlier --pull: what its plans have is not fetched again. "
        "Repeatable.",
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Keep what is fetched from a store elsewhere here; by default "
        "$PLANYARD_STORE_CACHE, else nowhere.",
    ),
]
CacheLimitOption = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        metavar="SIZE",
        help="How much of it, like '20 GB'; by default $PLANYARD_STORE_CACHE_LIMIT.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command("cells")(cells)
    app.command("lookup")(lookup)
    plan_app.command("show")(plan_show)


@verb
def cells(
    matrix: MatrixOption = DEFAULT_MATRIX,
    select: SelectOption = None,
    json: JsonOption = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every dropped cell with rule, reason, source.")
    ] = False,
    github: Annotated[
        bool, typer.Option("--github", help="GitHub matrices, each below 256 jobs, as JSON.")
    ] = False,
) -> int:
    """The cells of the matrix, and why the others were dropped.

    Examples: planyard cells --explain, or planyard cells --json --select 'rtx/*'
    """
    import msgspec

    from builders.schemas import CellsDocument
    from planyard.core.cells import expand, github_matrix
    from planyard.core.cells import select as select_cells
    from planyard.core.compat import load_compat

    console = Console(quiet=json or github)
    loaded = load(matrix)
    expansion = expand(loaded.matrix, load_compat())
    chosen = select_cells(expansion.cells, select or [])
    for rule in expansion.idle_rules:
        console.warn(f"{matrix.name}: the drop rule {rule} matches no cell")
    if github:
        matrices = github_matrix(chosen, gpus=loaded.matrix.gpus)
        console.document(json_library.dumps(matrices))
    elif json:
        document = CellsDocument(cells=chosen, dropped=expansion.dropped)
        console.document(msgspec.json.encode(document).decode())
    else:
        for cell in chosen:
            console.document(cell.id)
        if explain:
            _explain(expansion.dropped, console)
        console.detail(
            f"{len(chosen)} cells; {len(expansion.dropped)} dropped"
            + ("" if explain else " (--explain says why)")
        )
    return 0


def _explain(dropped: tuple[Any, ...], console: Console) -> None:
    """Every dropped cell, under the rule that dropped it."""
    by_rule: dict[tuple[str, str, str], list[str]] = {}
    for each in dropped:
        by_rule.setdefault((each.rule, each.reason, each.source), []).append(each.id)
    for (rule, reason, source), ids in by_rule.items():
        console.say()
        console.title(f"{rule}: {reason}")
        console.detail(f"  source: {source}")
        for cell in ids:
            console.say(f"  - {cell}")


@verb
def plan_show(
    file: Annotated[Path, typer.Argument(help="A TensorRT or TensorRT for RTX plan.")],
    json: JsonOption = False,
) -> int:
    """What a plan file says about itself, without TensorRT or a GPU.

    Ends with 10 when the file is no plan, or not the whole of one.
    """
    import msgspec

    from engines.header import HEAD_BYTES, NotAPlan, read_header

    console = Console(quiet=json)
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        found = read_header(head, size_bytes=file.stat().st_size)
    except OSError as error:
        raise InputError([f"{file}: cannot be read: {error.strerror}"]) from error
    if json:
        console.document(msgspec.json.encode({"schema": 1, "plan": found}).decode())
    if isinstance(found, NotAPlan):
        raise IntegrityError(f"{file}: {found.reason}")
    if not json:
        console.document(_describe_plan(found))
    if found.whole is False:
        raise IntegrityError(f"{file}: {found.problem}")
    return 0


def _describe_plan(found: Any) -> str:
    targets = ", ".join(f"{sm / 10}" for sm in found.sm_targets) or "not in the header"
    whole = {True: "yes", False: "no", None: "cannot be told from the header"}[found.whole]
    lines = [
        f"kind      {found.kind}",
        f"version   {found.version}",
        f"SM        {targets}",
        f"size      {format_bytes(found.size_bytes)}",
        f"whole     {whole}",
    ]
    return "\n".join(lines)


@verb
def lookup(
    digest: DigestArgument,
    sm: Annotated[int | None, typer.Option("--sm", help="Only plans for this SM, like 89.")] = None,
    pull: Annotated[
        Path | None, typer.Option("--pull", metavar="DIR", help="Write the verified files here.")
    ] = None,
    seed: SeedOption = None,
    cache: CacheOption = None,
    cache_limit: CacheLimitOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """The plans and snapshots of an image, by its digest or a channel. The store is only read.

    Examples: planyard lookup sha256:0123456789ab --sm 89 --pull plans/, or planyard lookup stable
    """
    from builders.image_names import image_named
    from engines.lookup import lookup as look
    from engines.lookup import lookup_to_json
    from engines.lookup import pull as pull_plans
    from engines.store.counted import Traffic
    from engines.store.opening import cache_place, open_reader

    console, traffic = Console(quiet=json, result=True), Traffic()
    place = cache_place(cache, cache_limit)
    opened = open_reader(open_store(store, root=Path.cwd()), cache=place, traffic=traffic)
    result = look(opened, image_named(opened, digest, root=Path.cwd()), sm=sm)
    written = pull_plans(opened, result, pull, seeds=seed or (), traffic=traffic) if pull else ()
    if json:
        console.document(lookup_to_json(result).decode())
        return 0
    _show_result(result, console)
    for path in written:
        console.good(f"wrote {path}")
    if not opened.objects.is_near:
        fetched, reused = map(format_bytes, (traffic.fetched_bytes, traffic.reused_bytes))
        console.detail(f"fetched {fetched} from {opened.url}; {reused} were here already")
    return 0


def _show_result(result: Any, console: Console) -> None:
    console.title(f"{result.snapshots[0].image_name}  {result.image}")
    for snapshot in result.snapshots:
        _show_snapshot(snapshot, console)
    rows = [
        (plan.cell, f"{plan.sm / 10}", format_bytes(plan.size_bytes), plan.digest[:19])
        for plan in result.plans
    ]
    if rows:
        console.say()
        console.table(("plan", "SM", "size", "digest"), rows)
    for left in result.not_fitting:
        console.detail(f"left out: {left.cell}: {left.why}")


def _show_snapshot(snapshot: Any, console: Console) -> None:
    from collections import Counter

    from planyard.core.report import smoke_text

    counts = Counter(verdict.verdict for verdict in snapshot.smoke)
    found = ", ".join(f"{name} {each.version}" for name, each in snapshot.versions_found.items())
    console.say(f"  {snapshot.gpu}: smoke {smoke_text(dict(counts))}; {snapshot.created}; {found}")
