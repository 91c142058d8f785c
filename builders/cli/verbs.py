"""What all verbs share: options, the workspace they open, and how errors become exit codes."""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from planyard.core.errors import EXIT_BUG, CancelledError, InputError, PlanyardError, StoreError
from planyard.edge.console import Console, forget_stdout

if TYPE_CHECKING:
    from builders.workspace import BuildStore, Workspace
    from engines.store.store import ObjectStore
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
    typer.Option(
        "--store",
        metavar="URL",
        help="file:///folder, s3://bucket/prefix or oci://host/repository; by default "
        "$PLANYARD_STORE, else .planyard/store beside the matrix.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")
]
NoSetupOption = Annotated[
    bool, typer.Option("--no-setup", help="Refuse to install what is missing; say the command.")
]
DEFAULT_MATRIX = Path("matrix.yaml")
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
STORE_VARIABLE = "PLANYARD_STORE"


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
        except BrokenPipeError:
            forget_stdout()
            code = EXIT_BUG
        except OSError as error:
            if error.errno not in _FULL:
                raise
            show_error(Console(), disk_is_full(error))
            code = StoreError.exit_code
        except KeyboardInterrupt:
            Console().error("interrupted; what was half done has been removed")
            code = CancelledError.exit_code
        raise typer.Exit(code)

    return command


def disk_is_full(error: OSError) -> StoreError:
    """What to say when there is no room: nothing half written is left, so room is all it takes."""
    where = f" for {error.filename}" if error.filename else ""
    return StoreError(
        f"no space left on the disk{where}; what was half written has been removed",
        mend="free space and run this again, it goes on where it stopped; the caches below "
        ".planyard/cache may be deleted, planyard store gc removes what nothing names",
    )


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


def open_store(url: str | None, *, root: Path) -> ObjectStore:
    """The store at `url`, at PLANYARD_STORE, or the workspace's own."""
    from engines.store.opening import open_url

    return open_url(url or os.environ.get(STORE_VARIABLE) or str(own_store(root)))


def open_build_store(url: str | None, *, root: Path) -> BuildStore:
    """The store a build writes: one elsewhere has the workspace's own in front of it."""
    from engines.store.local_store import LocalStore
    from engines.store.mirrored import MirroredStore

    found = open_store(url, root=root)
    if isinstance(found, LocalStore):
        return found
    return MirroredStore(near=LocalStore(own_store(root)), far=found)


def own_store(root: Path) -> Path:
    """The directory of a workspace's own store."""
    return root / ".planyard" / "store"


def open_workspace(
    matrix: Path, *, store: str | None, console: Console, may_install: bool
) -> Workspace:
    """The workspace around a matrix."""
    from builders.workspace import Workspace, epoch_from_environment

    root = matrix.absolute().parent
    return Workspace(
        root=root,
        store=open_build_store(store, root=root),
        console=console,
        may_install=may_install,
        epoch_seconds=epoch_from_environment(),
    )


def load(matrix: Path) -> LoadedMatrix:
    """The matrix, checked."""
    from builders.loading import load as load_checked

    return load_checked(matrix)
