"""Files laid down together: all of them or none, and never over one that is there.

Each file is written beside its place and then linked to its name, which fails where the name is
taken, whoever took it meanwhile. What was laid down before that goes again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from planyard.core.errors import InputError, StoreError
from planyard.edge import files

KEPT_AS = ".bak"


def lay_down(contents: Mapping[str, bytes], *, root: Path, force: bool = False) -> tuple[str, ...]:
    """Write `contents`, by their paths below `root`; returns what `force` kept as `NAME.bak`.

    Raises InputError where a file, or with `force` its `.bak`, is there already; StoreError where
    the disk refuses. Nothing is changed then.
    """
    taken = tuple(name for name in contents if os.path.lexists(root / name))
    _refuse(taken, root=root, force=force)
    with contextlib.ExitStack() as undo:
        try:
            staged = _stage(contents, root=root, undo=undo)
            for name, temporary in staged.items():
                path = root / name
                if name in taken:
                    kept = path.with_name(path.name + KEPT_AS)
                    path.rename(kept)
                    undo.callback(kept.rename, path)
                path.hardlink_to(temporary)
                undo.callback(path.unlink)
        except FileExistsError as error:
            raise InputError([f"{error.filename}: is there already"]) from error
        except OSError as error:
            where = error.filename or root
            raise StoreError(f"{where}: cannot be written: {error.strerror}") from error
        undo.pop_all()
        for temporary in staged.values():
            temporary.unlink()
    return tuple(name + KEPT_AS for name in taken)


def _refuse(taken: tuple[str, ...], *, root: Path, force: bool) -> None:
    if taken and not force:
        raise InputError(
            [f"{name}: is there already, and is not overwritten" for name in taken],
            mend="start in another folder, or keep these as NAME.bak with --force",
        )
    stuck = [name + KEPT_AS for name in taken if os.path.lexists(root / (name + KEPT_AS))]
    stuck += [f"{name}/" for name in taken if (root / name).is_dir()]
    if stuck:
        raise InputError(
            [f"{name}: is in the way" for name in stuck], mend="move it away and run this again"
        )


def _stage(
    contents: Mapping[str, bytes], *, root: Path, undo: contextlib.ExitStack
) -> dict[str, Path]:
    """Write every file under a name of its own beside its place, with the folders it needs."""
    staged = {}
    for name, data in contents.items():
        path = root / name
        missing = [each for each in (path.parent, *path.parents) if not each.exists()]
        for folder in reversed(list(dict.fromkeys(missing))):
            folder.mkdir()
            undo.callback(_remove_empty, folder)
        temporary = path.with_name(f".{path.name}.planyard-init")
        files.write_bytes(temporary, data)
        undo.callback(temporary.unlink, missing_ok=True)
        staged[name] = temporary
    return staged


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
