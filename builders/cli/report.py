"""The verb that writes the page people look at: report. It only reads a store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.verbs import STORE_VARIABLE, JsonOption, StoreOption, load, open_store, verb
from planyard.core.errors import InputError, IntegrityError
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.page.making import ReportWritten
    from planyard.core.contents import ImageAudit

_AUDIT_LIMIT_BYTES = 64 << 20
_PASSWORD = re.compile(r"(?<=://)[^/@]*@")

HtmlOption = Annotated[
    Path,
    typer.Option(
        "--html",
        metavar="DIR",
        help="The folder to write: a new or empty one, or one that holds a report already.",
    ),
]
ReportMatrixOption = Annotated[
    Path | None,
    typer.Option(
        "--matrix",
        "-m",
        metavar="FILE",
        help="Show the cells of this matrix, also those that have no snapshot yet.",
    ),
]
AuditOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        help="What planyard image audit --json printed of an image. Repeatable.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add this verb to the application."""
    app.command("report")(report)


@verb
def report(
    html: HtmlOption,
    matrix: ReportMatrixOption = None,
    audit: AuditOption = None,
    title: Annotated[
        str, typer.Option("--title", help="What the page is called.")
    ] = "Planyard report",
    history: Annotated[
        int,
        typer.Option("--history", min=2, max=1000, help="Images of a name that are shown."),
    ] = 40,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Write a page of everything a store knows: verdicts, sizes, latencies, logs, comparisons.

    It is a folder of files that a browser opens from disk; no server, no script from elsewhere.
    Ends with 10 when a log is not what its digest says; the page is written, and says so.

    Example: planyard report --html report/ --matrix matrix.yaml
    """
    import msgspec

    from builders.page.making import write_report
    from engines.store.counted import Traffic
    from engines.store.opening import cache_place, open_reader
    from planyard.edge.clock import utc_now

    console = Console(quiet=json, result=True)
    loaded = load(matrix) if matrix else None
    root = matrix.absolute().parent if matrix else Path.cwd()
    audits = [audit_of_file(path) for path in audit or ()]
    opened = open_reader(open_store(store, root=root), cache=cache_place(), traffic=Traffic())
    written = write_report(
        opened,
        html,
        root=root,
        matrix=loaded.matrix if loaded else None,
        audits={each.image: each for each in audits},
        title=title,
        store_shown=_PASSWORD.sub("", store or os.environ.get(STORE_VARIABLE) or ""),
        made=utc_now(),
        steps=history,
    )
    if json:
        console.document(msgspec.json.encode(written).decode())
    else:
        _show(written, console)
    if not written.images:
        Console().warn(f"{opened.url} has no snapshots: the page shows none")
    for said in written.damaged:
        Console().error(said)
    return IntegrityError.exit_code if written.damaged else 0


def audit_of_file(path: Path) -> ImageAudit:
    """What `planyard image audit --json` printed; raises InputError that names the file."""
    import msgspec

    from planyard.core.contents import AUDIT_SCHEMA, ImageAudit

    mend = "save one with planyard image audit IMAGE --json > FILE"
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(_AUDIT_LIMIT_BYTES), type=ImageAudit)
    except OSError as error:
        raise InputError([f"{path}: cannot be read: {error.strerror}"], mend=mend) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError([f"{path}: no audit of an image: {error}"], mend=mend) from error
    if found.schema != AUDIT_SCHEMA:
        raise InputError([f"{path}: an audit of schema {found.schema}; {AUDIT_SCHEMA} is read"])
    return found


def _show(written: ReportWritten, console: Console) -> None:
    from planyard.core.units import format_bytes

    counts = ", ".join(f"{count} {state}" for state, count in written.cells.items() if count)
    console.good(
        f"wrote {written.index} ({format_bytes(written.size_bytes)} with {written.pages} pages)"
    )
    console.say(f"  cells   {counts or 'none'}; {written.dropped} dropped")
    console.say(f"  images  {len(written.images)} names, {written.steps} in their histories")
