"""What all verbs share: options, the workspace they open, and how errors become exit codes."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from planyard.core.errors import EXIT_BUG, CancelledError, InputError, PlanyardError
from planyard.edge.console import Console, forget_stdout

if TYPE_CHECKING:
    from builders.workspace import Workspace
    from engines.store.local import LocalStore
    from planyard.core.reader import LoadedMatrix

Parameters = ParamSpec("Parameters")

MatrixOption = Annotated[
    Path, typer.Option("--matrix", "-m", help="The matrix to read.", show_default=True)
]
SelectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        "-s",
        metavar="GLOB",
        help="Only cells whose id matches, like 'rtx/*' or '*/640/*'. Repeatable.",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="The store; .planyard/store beside the matrix."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")
]
NoSetupOption = Annotated[
    bool, typer.Option("--no-setup", help="Refuse to install what is missing; say the command.")
]
DEFAULT_MATRIX = Path("matrix.yaml")


def verb(function: Callable[Parameters, int | None]) -> Callable[Parameters, None]:
    """Turn a function that returns an exit code, or raises, into a command."""

    @functools.wraps(function)
    def command(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        # CI cancels with SIGTERM: what is half done is removed as for Ctrl-C.
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = function(*args, **kwargs) or 0
        except PlanyardError as error:
            show_error(Console(), error)
            code = error.exit_code
        except KeyboardInterrupt:
            Console().error("interrupted; what was half done has been removed")
            code = CancelledError.exit_code
        except BrokenPipeError:
            forget_stdout()
            code = EXIT_BUG
        raise typer.Exit(code)

    return command


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def show_error(console: Console, error: PlanyardError) -> None:
    """An error for people: what, the log's tail, how to mend it; annotations on GitHub."""
    for line in error.log_tail:
        console.detail(f"  │ {line}")
    problems = error.problems if isinstance(error, InputError) else (error.message,)
    for problem in problems:
        console.error(problem)
        if console.github:
            console.annotate(problem)
    if error.mend:
        console.say(console.paint("mend:  ", "1") + error.mend)


def open_store(url: str | None, *, root: Path) -> LocalStore:
    """The store at `url`, or the workspace's own."""
    from engines.store.local import LocalStore

    if url is None:
        return LocalStore(root / ".planyard" / "store")
    path = url.removeprefix("file://")
    if "://" in path:
        raise InputError([f"--store {url}: only file:// stores can be used yet"])
    return LocalStore(Path(path).absolute())


def open_workspace(
    matrix: Path, *, store: str | None, console: Console, may_install: bool
) -> Workspace:
    """The workspace around a matrix."""
    from builders.workspace import Workspace, epoch_from_environment

    root = matrix.absolute().parent
    return Workspace(
        root=root,
        store=open_store(store, root=root),
        console=console,
        may_install=may_install,
        epoch_seconds=epoch_from_environment(),
    )


def load(matrix: Path) -> LoadedMatrix:
    """The matrix, checked."""
    from builders.loading import load as load_checked

    return load_checked(matrix)
