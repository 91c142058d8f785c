"""The verbs that tend: doctor, setup, lock, schema."""

from __future__ import annotations

import json as json_library
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from builders.cli.verbs import (
    DEFAULT_MATRIX,
    STORE_VARIABLE,
    JsonOption,
    MatrixOption,
    StoreOption,
    load,
    verb,
)
from planyard.core.errors import InputError
from planyard.edge.console import Console

EXTRA_TOOLS = ("cosign",)
"""What `planyard setup --with` knows; a build does without."""


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    app.command("doctor")(doctor)
    app.command("setup")(setup)
    app.command("lock")(lock)
    app.command("schema")(schema)


@verb
def doctor(store: StoreOption = None, json: JsonOption = False) -> int:
    """What is here, what is missing, and the command that mends it; also of a store elsewhere.

    Example: planyard doctor --store s3://bucket/prefix
    """
    from builders.doctor import examine, examine_store

    console = Console(quiet=json, result=True)
    checks = examine()
    if url := store or os.environ.get(STORE_VARIABLE):
        with console.step(f"ask {url}"):
            checks += examine_store(url)
    if json:
        import msgspec

        console.document(msgspec.json.encode({"schema": 1, "checks": checks}).decode())
        return 0
    rows = [("ok" if check.ok else "MISSING", check.name, check.found) for check in checks]
    console.table(("", "what", "found"), rows)
    for check in checks:
        if not check.ok:
            console.say()
            console.warn(f"{check.name}: {check.means}")
            console.say(f"mend:  {check.mend}")
    return 0


@verb
def setup(
    extra: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="TOOL",
            help=f"Also bring {', '.join(EXTRA_TOOLS)}, built with Go into the cache. Repeatable.",
        ),
    ] = None,
) -> int:
    """Install what a fresh Debian or Ubuntu machine lacks; each step is said first."""
    from builders import setup as machine
    from planyard.edge.docker import find_engine

    wanted = set(extra or ())
    if unknown := sorted(wanted - set(EXTRA_TOOLS)):
        raise InputError([f"--with {name}: choose {', '.join(EXTRA_TOOLS)}" for name in unknown])
    console = Console()
    if "cosign" in wanted:
        from builders.cosign_setup import ensure_cosign

        # First: it needs neither apt nor an engine, and may be all that this machine is for.
        found = ensure_cosign(console=console)
        console.good(f"cosign {'.'.join(map(str, found.version))} at {found.program}")
    missing = machine.missing_tools(engine_answers=find_engine() is not None)
    machine.install(missing, console=console, allowed=True)
    console.good("everything a build needs is here")
    return 0


@verb
def lock(
    file: Annotated[Path, typer.Argument(help="The lock file to write.")],
    requirements: Annotated[
        list[str], typer.Argument(metavar="NAME==VERSION...", help="Exactly what goes in.")
    ],
    matrix: MatrixOption = DEFAULT_MATRIX,
) -> int:
    """Write a lock file: each wheel by the hash it was downloaded with, for the pinned Python.

    Example: planyard lock images/locks/rtx.txt tensorrt-rtx-cu13-libs==1.7.1.116 pip==26.3
    """
    from builders.wheels import write_lock
    from planyard.edge import files

    loose = [each for each in requirements if "==" not in each]
    if loose:
        raise InputError([f"{each}: write name==version" for each in loose])
    console = Console()
    python = load(matrix).matrix.pins.python
    with (
        tempfile.TemporaryDirectory() as scratch,
        console.step(f"download {len(requirements)} wheels") as now,
    ):
        text = write_lock(
            tuple(requirements), python=python, scratch=Path(scratch), report=now.update
        )
    files.write_bytes(file, text.encode())
    console.good(f"wrote {file}")
    return 0


@verb
def schema(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path("docs/schemas"),
) -> int:
    """Write the JSON Schemas of the matrix and of every document planyard prints."""
    from builders.schemas import all_schemas
    from planyard.edge import files

    for name, document in all_schemas().items():
        text = json_library.dumps(document, indent=2, ensure_ascii=False) + "\n"
        files.write_bytes(folder / f"{name}.schema.json", text.encode())
        Console().say(f"wrote {folder / name}.schema.json")
    return 0
