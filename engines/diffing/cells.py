"""Cells that only one side has, by the axis that explains it: GPU, model, profile, precision."""

from __future__ import annotations

from collections.abc import Collection

from engines.diffing import changes
from engines.diffing.changes import Change
from engines.diffing.pins import pins_of
from engines.diffing.plans import Pair
from engines.diffing.views import ABSENT, View
from planyard.core.compat import dotted, load_compat, refusal
from planyard.core.matrix import GPU_BACKENDS, Precision

_PRESENT = "present"
_GONE_OR_NOT_YET = "not in the matrix any more, or not built yet"


def cell_changes(pair: Pair) -> list[Change]:
    """Cells that are gone, cells that are new, and GPUs whose SM is another now."""
    found = [
        _moved(pair, gpu) for gpu in pair.gpus if _sm(pair.before, gpu) != _sm(pair.after, gpu)
    ]
    for subject, cells in _by_axis(pair.before, pair.after).items():
        found.append(_gone(pair, subject, cells))
    for subject, cells in _by_axis(pair.after, pair.before).items():
        found.append(_new(pair, subject, cells))
    return found


def _sm(view: View, gpu: str) -> int | None:
    return view.gpus[gpu].sm


def _by_axis(here: View, there: View) -> dict[str, list[str]]:
    """The cells that only `here` has, by what only `here` has; a GPU also without a cell."""
    found: dict[str, list[str]] = {
        _gpu_subject(here, gpu): [] for gpu in here.gpus if gpu not in there.gpus
    }
    others = [_axes(cell) for cell in there.cells]
    models = {axes[0] for axes in others}
    profiles = {axes[:2] for axes in others}
    precisions = {axes[2] for axes in others}
    for cell in here.cells:
        if cell in there.cell_set:
            continue
        model, profile, precision, gpu = _axes(cell)
        if gpu in here.gpus and gpu not in there.gpus:
            subject = _gpu_subject(here, gpu)
        elif model not in models:
            subject = f"model {model}"
        elif (model, profile) not in profiles:
            subject = f"profile {profile} of {model}"
        elif precision not in precisions:
            subject = f"precision {precision}"
        else:
            subject = f"{model}/{profile}/{precision}/{gpu}"
        found.setdefault(subject, []).append(cell)
    return found


def _axes(cell: str) -> tuple[str, str, str, str]:
    model, profile, precision, gpu, *_ = (*cell.split("/"), "", "", "", "")
    return model, profile, precision, gpu


def _gpu_subject(view: View, gpu: str) -> str:
    sm = _sm(view, gpu)
    return f"GPU {gpu}" if sm is None else f"GPU {gpu} (SM {dotted(sm)})"


def _gone(pair: Pair, subject: str, cells: Collection[str]) -> Change:
    plans = [cell for cell in cells if cell in pair.before.plans]
    parts = [f"{changes.count(len(plans), 'plan')} nobody needs"] if plans else []
    parts += [f"{changes.count(len(cells), 'cell')} not served any more"]
    why, source = _why_gone(pair, cells)
    return Change(
        kind="cells",
        subject=subject,
        before=_PRESENT,
        after=ABSENT,
        consequence=", ".join(parts),
        severity="breaks",
        gpus=tuple(sorted({cell.rpartition("/")[2] for cell in cells})),
        cells=pair.ids(cells),
        why=why,
        source=source,
    )


def _why_gone(pair: Pair, cells: Collection[str]) -> tuple[str, str]:
    """What the facts of compatibility say of the first cell under the pins there are now."""
    backend, pins = pair.before.backend, pins_of(pair.after.newest)
    for cell in cells:
        _, _, precision, gpu = _axes(cell)
        sm = _sm(pair.before, gpu) if gpu in pair.before.gpus else None
        if pins is None or sm is None or backend not in GPU_BACKENDS or backend is None:
            continue
        if precision in Precision.__args__:  # type: ignore[attr-defined]
            refused = refusal(
                load_compat(),
                pins,
                backend=backend,
                precision=precision,  # type: ignore[arg-type]
                sm=sm,
            )
            if refused:
                return refused.reason, refused.source
    return _GONE_OR_NOT_YET, ""


def _new(pair: Pair, subject: str, cells: Collection[str]) -> Change:
    built = [cell for cell in cells if cell in pair.after.plans]
    missing = [cell for cell in cells if cell not in built] if pair.serves_plans else []
    seconds = changes.seconds_of(missing, pair.times)
    parts = []
    if missing:
        timed = "" if seconds is None else f", {changes.about(seconds)} by the last build's times"
        parts.append(f"{changes.count(len(missing), 'plan')} missing{timed}")
    if built:
        carried = len(set(built) & set(pair.carried))
        parts.append(
            f"{changes.count(len(built), 'plan')} built"
            + (f", {carried} of them carried over" if carried else "")
        )
    return Change(
        kind="cells",
        subject=subject,
        before=ABSENT,
        after=_PRESENT,
        consequence=", ".join(parts) or f"{changes.count(len(cells), 'cell')} more",
        severity="attention" if missing else "none",
        gpus=tuple(sorted({cell.rpartition("/")[2] for cell in cells})),
        cells=pair.ids(cells),
        rebuild=pair.ids(missing),
        seconds=seconds,
    )


def _moved(pair: Pair, gpu: str) -> Change:
    """A GPU of the same name with another SM."""
    texts = [
        "no SM" if sm is None else f"SM {dotted(sm)}"
        for sm in (_sm(pair.before, gpu), _sm(pair.after, gpu))
    ]
    cells = [cell for cell in pair.cells if cell.rpartition("/")[2] == gpu]
    rebuild = [
        cell
        for cell in cells
        if cell in pair.before.plans and (cell not in pair.after.plans or cell in pair.differing)
    ]
    validate = [cell for cell in cells if cell not in rebuild]
    return Change(
        kind="cells",
        subject=f"GPU {gpu}",
        before=texts[0],
        after=texts[1],
        consequence=pair.work(rebuild=rebuild, validate=validate),
        severity="breaks",
        gpus=(gpu,),
        cells=pair.ids(cells),
        rebuild=pair.ids(rebuild),
        validate=pair.ids(validate),
        seconds=changes.seconds_of(rebuild, pair.times),
        why="the same name means another GPU now; a plan runs only on the SM it was built for",
    )
