"""Load `matrix.yaml` and everything that must agree with it before anything is built.

Locks, calibration data, and what is only known once there are cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from builders.wheels import Requirement, read_lock
from planyard.core.cells import expand
from planyard.core.compat import contradictions, load_compat
from planyard.core.errors import InputError
from planyard.core.located import KeyPath, Problem
from planyard.core.matrix import PLAN_BACKENDS, Matrix, Pins
from planyard.core.matrix_rules import broken_cell_rules
from planyard.core.reader import LoadedMatrix, load_matrix

_READ_BYTES = (1 << 20) + 1  # one more than the reader takes, so that it can say so


def load(path: Path) -> LoadedMatrix:
    """The matrix at `path`; raises InputError with every problem: shape, rules, pins, locks."""
    try:
        with path.open("rb") as file:
            data = file.read(_READ_BYTES)
    except OSError as error:
        raise InputError(
            [f"{path}: cannot be read: {error.strerror}"],
            mend="run this in the folder of a matrix.yaml, or name one with --matrix",
        ) from error
    name = _name_of(path)
    loaded = load_matrix(data, name=name)
    problems = [
        Problem(where, *loaded.where(where), message)
        for where, message in _disagreements(loaded.matrix, root=path.parent)
    ]
    if problems:
        lines = [problem.text(name) for problem in sorted(problems, key=lambda each: each[1:])]
        raise InputError(lines, mend=f"mend {name} and run this again")
    return loaded


def _name_of(path: Path) -> str:
    """The file as it is called from here, so that GitHub finds it; else its last part."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def _disagreements(matrix: Matrix, *, root: Path) -> Iterator[tuple[KeyPath, str]]:
    backends = {image.backend for image in matrix.images.values()}
    for found in contradictions(load_compat(), matrix.pins, backends=backends):
        yield found.path, f"{found.message} ({found.source})"
    for name, image in matrix.images.items():
        for field, lock in (("lock", image.lock), ("compiler_lock", image.compiler_lock)):
            if lock is None:
                continue
            where: KeyPath = ("images", name, field)
            try:
                requirements = read_lock((root / lock).read_text(), name=lock)
            except InputError as error:
                yield from ((where, problem) for problem in error.problems)
            except (OSError, UnicodeDecodeError) as error:
                yield where, f"{lock} cannot be read: {error}"
            else:
                yield from ((where, text) for text in _against_pins(requirements, matrix.pins))
    yield from _batch_problems(matrix)
    if _depends_on_cells(matrix):
        cells = expand(matrix, load_compat()).cells
        yield from broken_cell_rules(matrix, cells)
        for name in dict.fromkeys(cell.model for cell in cells if cell.precision == "int8"):
            yield from _calibration_problems(name, matrix, root=root)


def _batch_problems(matrix: Matrix) -> Iterator[tuple[KeyPath, str]]:
    """Batch sizes of smoke runs that a profile does not take."""
    if not matrix.smoke.batches:
        return
    from smoke.inputs import shapes_at_batch

    for index, batch in enumerate(matrix.smoke.batches):
        for name, model in matrix.models.items():
            for profile in model.profiles:
                try:
                    shapes_at_batch(model, name=name, profile=profile, batch=batch)
                except InputError as error:
                    yield from ((("smoke", "batches", index), text) for text in error.problems)


def _depends_on_cells(matrix: Matrix) -> bool:
    """Whether a rule about cells could be broken: making 10,000 of them takes its time."""
    others = [image for image in matrix.images.values() if image.backend not in PLAN_BACKENDS]
    converts = set(matrix.precisions) != {"fp32"} or any(image.compiler for image in others)
    return "int8" in matrix.precisions or bool(others and converts)


def _calibration_problems(
    name: str, matrix: Matrix, *, root: Path
) -> Iterator[tuple[KeyPath, str]]:
    from builders.calibration import problems_of_calibration

    for problem in problems_of_calibration(matrix.models[name], root=root):
        yield ("models", name, "calibration"), problem


def _against_pins(requirements: tuple[Requirement, ...], pins: Pins) -> Iterator[str]:
    """Where a lock has another version, or another wheel, than the pins."""
    for wheel in requirements:
        name = re.sub(r"[-_.]+", "-", wheel.name).lower()  # how the index compares names
        pinned = _pinned(name, pins)
        if pinned and not _is_version(wheel.version, pinned):
            yield f"{wheel.name} is {wheel.version} in the lock, but the pins say {pinned}"
        digest = pins.onnxruntime.wheels.get(name)
        if digest and digest.removeprefix("sha256:") not in wheel.sha256:
            yield f"{wheel.name}: the lock names another wheel than pins.onnxruntime.wheels"


def _pinned(project: str, pins: Pins) -> str:
    """The pin a project must follow; empty for all others."""
    if project in ("onnxruntime", "onnxruntime-gpu"):
        return pins.onnxruntime.version
    families = (
        (r"tensorrt-rtx(-cu\d+)?(-libs|-bindings)?", pins.tensorrt_rtx),
        (r"tensorrt(-lean|-dispatch)?(-cu\d+)?(-libs|-bindings)?", pins.tensorrt),
        (r"nvidia-cudnn(-cu\d+)?", pins.cudnn),
        (r"nvidia-cuda-(runtime|nvrtc)(-cu\d+)?", pins.cuda),
    )
    return next((pin for name, pin in families if re.fullmatch(name, project)), "")


def _is_version(version: str, pinned: str) -> bool:
    return version == pinned or version.startswith(f"{pinned}.")
