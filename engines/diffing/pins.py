"""Pins that changed, what the consequences' table says of them, and what then contradicts itself.

Where both sides have a plan, their recipes say whether it has to be compiled again; the table
decides where one side has none. Which versions fit together is asked of `planyard/core/compat.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engines.diffing import changes
from engines.diffing.changes import Change
from engines.diffing.consequences import Consequence, consequence_of
from engines.diffing.plans import Pair
from engines.diffing.views import ABSENT, View, gpu_of
from engines.snapshot import Snapshot
from planyard.core.compat import contradictions, load_compat, refusal
from planyard.core.matrix import GPU_BACKENDS, Backend, OnnxRuntimePin, Pins, Precision
from planyard.core.units import format_bytes

WORKSPACE = "workspace"
SUBJECTS = {
    "driver": "driver branch",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
    "python": "Python",
    WORKSPACE: "compiler workspace",
}
_LEAVES = {
    "driver": "built_on.driver",
    "cuda": "built_on.cuda",
    "tensorrt": "version",
    "tensorrt_rtx": "version",
    WORKSPACE: "workspace_bytes",
}
"""The leaf of a recipe that holds what was pinned."""


def pin_changes(pair: Pair) -> tuple[list[Change], dict[str, set[str]]]:
    """The pins that changed; and the leaves of each cell's recipe that they explain."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for gpu in pair.gpus:
        before, after = (_settings(view.gpus[gpu]) for view in (pair.before, pair.after))
        for name in changes.union(before, after):
            values = (before.get(name, ABSENT), after.get(name, ABSENT))
            if values[0] != values[1]:
                groups.setdefault((name, *values), []).append(gpu)
    found: list[Change] = []
    explained: dict[str, set[str]] = {}
    for (name, before_text, after_text), gpus in sorted(groups.items(), key=_order):
        row = consequence_of(name, pair.backend)
        rebuild, validate = _cells(pair, row, gpus=gpus)
        for cell in rebuild:
            explained.setdefault(cell, set()).add(_LEAVES.get(name, name))
        found.append(_pin_change(pair, row, (before_text, after_text), gpus, (rebuild, validate)))
    return found, explained


def _order(item: tuple[tuple[str, str, str], list[str]]) -> tuple[int, tuple[str, str, str]]:
    names = [*SUBJECTS]
    name = item[0][0]
    return (names.index(name) if name in names else len(names), item[0])


def _settings(snapshot: Snapshot) -> dict[str, str]:
    return {**snapshot.pins, WORKSPACE: format_bytes(snapshot.workspace_bytes)}


def _cells(pair: Pair, row: Consequence, *, gpus: list[str]) -> tuple[list[str], list[str]]:
    """The cells to rebuild and those to validate, for a change on these GPUs."""
    rebuild: list[str] = []
    validate: list[str] = []
    for cell in pair.cells:
        if row.effect == "none" or pair.other_backend or gpu_of(cell) not in gpus:
            continue
        if cell in pair.before.plans and cell in pair.after.plans:
            leaves = pair.differing.get(cell, {})
            (rebuild if _LEAVES.get(row.of) in leaves else validate).append(cell)
        elif cell in pair.before.plans:
            (rebuild if row.effect == "rebuild" else validate).append(cell)
        elif not pair.serves_plans:
            validate.append(cell)
    return rebuild, validate


def _pin_change(
    pair: Pair,
    row: Consequence,
    values: tuple[str, str],
    gpus: list[str],
    cells: tuple[list[str], list[str]],
) -> Change:
    rebuild, validate = cells
    return Change(
        kind="pin",
        subject=SUBJECTS.get(row.of, row.of),
        before=values[0],
        after=values[1],
        consequence=pair.work(rebuild=rebuild, validate=validate),
        severity="attention" if rebuild or validate else "none",
        gpus=tuple(gpus),
        cells=pair.ids([*rebuild, *validate]),
        rebuild=pair.ids(rebuild),
        validate=pair.ids(validate),
        seconds=changes.seconds_of(rebuild, pair.times),
        why=row.why,
        source=row.source,
    )


def compatibility_changes(pair: Pair) -> list[Change]:
    """What cannot hold together on the second side, and could on the first."""
    found = []
    for gpu in pair.gpus:
        known = set(_problems(pair.before, gpu, pair.before.backend))
        for problem in _problems(pair.after, gpu, pair.backend):
            if problem not in known:
                subject, message, source = problem
                found.append(
                    Change(
                        kind="compatibility",
                        subject=subject,
                        before="fits",
                        after="does not fit",
                        consequence=message,
                        severity="breaks",
                        gpus=(gpu,),
                        cells=pair.ids(pair.after.cells_of(gpu)),
                        source=source,
                    )
                )
    return changes.merged(found)


def _problems(view: View, gpu: str, backend: Backend | None) -> Iterator[tuple[str, str, str]]:
    """What the facts refuse of a side on one GPU: subject, message, source."""
    pins, snapshot = pins_of(view.gpus[gpu]), view.gpus[gpu]
    if pins is None or backend is None:
        return
    compat = load_compat()
    for each in contradictions(compat, pins, backends=[backend]):
        yield each.key, each.message, each.source
    if backend not in GPU_BACKENDS or snapshot.sm is None:
        return
    for precision in sorted({cell.split("/")[-2] for cell in view.cells_of(gpu) if "/" in cell}):
        try:
            wanted = msgspec.convert(precision, Precision)
        except msgspec.ValidationError:
            continue
        refused = refusal(compat, pins, backend=backend, precision=wanted, sm=snapshot.sm)
        if refused:
            yield f"{precision} on {gpu}", refused.reason, refused.source


def pins_of(snapshot: Snapshot) -> Pins | None:
    """The pins of a snapshot as the rules of compatibility take them; None if some are missing."""
    found: dict[str, object] = {**snapshot.pins}
    if "onnxruntime" in found:
        found["onnxruntime"] = msgspec.to_builtins(
            OnnxRuntimePin(version=str(found["onnxruntime"]))
        )
    try:
        return msgspec.convert(
            {name: value for name, value in found.items() if name in Pins.__struct_fields__}, Pins
        )
    except msgspec.ValidationError:
        return None
