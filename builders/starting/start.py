"""A start: which files a repository gets for a model, checked as a build checks them, and written.

Everything is put together in a scratch folder first and loaded there like any matrix, so that what
is written loads.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from builders.starting.example import example_model
from builders.starting.matrix_text import IMAGES, Choice, matrix_text, size_text
from builders.starting.model import StartingModel, read_model
from builders.starting.ours import our_file, stages, template
from builders.starting.placing import lay_down
from planyard.core.errors import InputError
from planyard.edge import files

EXAMPLE = "models/example.onnx"
MATRIX = "matrix.yaml"
WORKFLOW = ".github/workflows/planyard.yml"
PLACEHOLDER = "OWNER/planyard@" + "0" * 40
_ACTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+(/[A-Za-z0-9._/-]+)?@[0-9a-f]{40}")
_IGNORED = ".planyard/"

_STAGES: Mapping[Choice, tuple[str, ...]] = {
    "cpu": ("ort-cpu-site", "ort-cpu"),
    "gpu": ("ort-gpu-site", "ort-gpu"),
    "rtx": ("rtx-site", "rtx-compiler-site", "rtx-compiler", "rtx"),
}
_LOCKS: Mapping[Choice, tuple[str, ...]] = {
    "cpu": ("ort-cpu",),
    "gpu": ("ort-gpu",),
    "rtx": ("rtx", "rtx-compiler"),
}
_SITE = """\
# A builder stage: pip lives here and nowhere else. What is removed a runtime never opens. To add a
# package, put it into the lock with planyard lock, and copy what you need into the runtime stage.
"""
_COMPILER = "# Compiles plans, in CI only.\n"
_RUNTIME = """\
# What is served. COPY your own program here and start it with CMD; admit.py starts it only on a
# machine that fits this image. planyard lays planyard-admission/ into the context.
"""


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard init --json`: what was written, and what a person has to look at."""

    schema: int = 1
    folder: str
    model: str
    images: tuple[str, ...]
    written: tuple[str, ...]
    kept: tuple[str, ...]
    """Files that were there, now `NAME.bak`."""
    look_at: tuple[str, ...]
    next: str


def choices_of(words: Sequence[str]) -> tuple[Choice, ...]:
    """The images of `--image-backend`, the reference on the CPU among them; raises InputError."""
    if unknown := sorted(set(words) - set(IMAGES)):
        raise InputError([f"--image-backend {each}: write cpu, gpu or rtx" for each in unknown])
    return tuple(each for each in IMAGES if each in words or each == "cpu")


def start(
    path: Path | None,
    *,
    root: Path,
    choices: Sequence[Choice],
    action: str | None = None,
    force: bool = False,
) -> Started:
    """Write a start for the model at `path`, or for the example, into `root`.

    `action` is planyard's own action, OWNER/NAME@COMMIT. Raises InputError, and StoreError where
    the disk refuses; nothing is written then.
    """
    if action is not None and not _ACTION.fullmatch(action):
        raise InputError([f"--action {action}: write OWNER/NAME@COMMIT, with 40 hex digits"])
    if root.exists() and not root.is_dir():
        raise InputError([f"--dir {root}: is not a folder"])
    with tempfile.TemporaryDirectory(prefix="planyard-init-") as scratch:
        if path is None:
            files.write_bytes(Path(scratch) / EXAMPLE, example_model())
            model = read_model(Path(scratch) / EXAMPLE, root=Path(scratch))
        else:
            model = read_model(path, root=root)
        contents = _contents(model, choices=choices, action=action, is_example=path is None)
        _check(contents, folder=Path(scratch))
    contents |= _ignore_file(root)
    kept = lay_down(contents, root=root, force=force)
    return Started(
        folder=str(root),
        model=model.name,
        images=tuple(IMAGES[each] for each in choices),
        written=tuple(contents),
        kept=kept,
        look_at=tuple(_look_at(model, root=root, action=action)),
        next="planyard build" if root == Path() else f"planyard build --matrix {root / MATRIX}",
    )


def _contents(
    model: StartingModel, *, choices: Sequence[Choice], action: str | None, is_example: bool
) -> dict[str, bytes]:
    """Every file by its path below the folder of the matrix."""
    workflow = template("planyard.yml")
    if action is not None:
        workflow = workflow.replace(f"{PLACEHOLDER} # FILL IN", action)
        workflow = re.sub(r"^# FILL IN.*\n# refuses.*\n", "", workflow, flags=re.MULTILINE)
    found = {
        MATRIX: matrix_text(model, choices=choices).encode(),
        "images/Dockerfile": _dockerfile(choices).encode(),
    }
    for name in (".dockerignore", "install_wheels.py", "admit.py"):
        found[f"images/{name}"] = our_file(f"images/{name}")
    for name in (lock for each in choices for lock in _LOCKS[each]):
        found[f"images/locks/{name}.txt"] = our_file(f"images/locks/{name}.txt")
    found[WORKFLOW] = workflow.encode()
    return found | ({EXAMPLE: example_model()} if is_example else {})


def _dockerfile(choices: Sequence[Choice]) -> str:
    names = [name for each in choices for name in _STAGES[each]]
    blocks, said = [template("Dockerfile")], set()
    for name, text in stages(names).items():
        comment = _comment(name)
        blocks.append(text if comment in said else comment + text)
        said.add(comment)
    return "\n".join(blocks)


def _comment(stage: str) -> str:
    if stage.endswith("-site"):
        return _SITE
    return _COMPILER if stage.endswith("-compiler") else _RUNTIME


def _check(contents: Mapping[str, bytes], *, folder: Path) -> None:
    """Load the matrix where everything it names is; what the model's file says may not fit one."""
    from builders.loading import load

    for name, data in contents.items():
        files.write_bytes(folder / name, data)
    try:
        load(folder / MATRIX)
    except InputError as error:
        problems = [f"no matrix can be written for this model: {each}" for each in error.problems]
        raise InputError(problems, mend="export it with plain names") from error


def _ignore_file(root: Path) -> dict[str, bytes]:
    there = (root / ".gitignore").exists()
    return {} if there else {".gitignore": f"{_IGNORED}\n".encode()}


def _look_at(model: StartingModel, *, root: Path, action: str | None) -> list[str]:
    """What nobody but a person can know."""
    found = []
    where = f"{MATRIX}: models.{model.name}.profiles"
    for name, size in model.inputs.ranges.items():
        found.append(f"{where}: {name} from {size_text(size)}")
    ignore = root / ".gitignore"
    if ignore.exists() and _IGNORED.strip("/") not in ignore.read_text(errors="replace"):
        found.append(f".gitignore: add {_IGNORED}, where builds keep what they made")
    if action is None:
        found.append(f"{WORKFLOW}: put owner and commit of planyard in place of {PLACEHOLDER}")
    return found
