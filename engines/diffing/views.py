"""One side of a comparison: the snapshots of an image seen as one, by GPU and by cell.

The newest snapshot of a GPU speaks for it; the newest that names a cell decides that cell, as in a
lookup, because `build --select` writes snapshots that name a few cells only. Cells are matched by
their id without the image's name, so that images of other names can be compared at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engines.snapshot import Snapshot
from planyard.core.errors import InputError
from planyard.core.matrix import Backend
from planyard.core.results import PlanRecord, SmokeVerdict

ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class View:
    """The snapshots of one image, newest first."""

    snapshots: tuple[Snapshot, ...]

    @property
    def newest(self) -> Snapshot:
        """The snapshot that was written last."""
        return self.snapshots[0]

    @cached_property
    def gpus(self) -> dict[str, Snapshot]:
        """The newest snapshot of each GPU, by its name in the matrix."""
        found: dict[str, Snapshot] = {}
        for snapshot in self.snapshots:
            found.setdefault(snapshot.gpu, snapshot)
        return dict(sorted(found.items()))

    @cached_property
    def plans(self) -> dict[str, PlanRecord]:
        """The plan of each cell, by the cell without its image."""
        found: dict[str, PlanRecord] = {}
        for snapshot in self.snapshots:
            for plan in snapshot.plans:
                found.setdefault(key_of(plan.cell), plan)
        return dict(sorted(found.items()))

    @cached_property
    def verdicts(self) -> dict[str, SmokeVerdict]:
        """The verdict of each cell, by the cell without its image."""
        found: dict[str, SmokeVerdict] = {}
        for snapshot in self.snapshots:
            for verdict in snapshot.smoke:
                found.setdefault(key_of(verdict.cell), verdict)
        return dict(sorted(found.items()))

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """Every cell that some snapshot names, without its image."""
        return tuple(sorted({*self.plans, *self.verdicts}))

    @cached_property
    def cell_set(self) -> frozenset[str]:
        """The cells, to look up."""
        return frozenset(self.cells)

    def cells_of(self, gpu: str) -> tuple[str, ...]:
        """The cells on one GPU."""
        return tuple(cell for cell in self.cells if gpu_of(cell) == gpu)

    def gates_off(self, gpu: str) -> tuple[str, ...]:
        """The gates that are off on a GPU, as all snapshots say that decide one of its cells."""
        cells = set(self.cells_of(gpu))
        found: dict[str, None] = {}
        for snapshot in self.snapshots:
            named = {key_of(verdict.cell) for verdict in snapshot.smoke}
            named |= {key_of(plan.cell) for plan in snapshot.plans}
            if snapshot.gpu == gpu and (named & cells or snapshot is self.gpus[gpu]):
                found |= dict.fromkeys(snapshot.gates_off)
                cells -= named
        return tuple(found)

    @cached_property
    def backend(self) -> Backend | None:
        """What serves in this image; None when nothing in its snapshots tells."""
        return backend_of(self.snapshots)


def view_of(snapshots: Sequence[Snapshot], *, side: str) -> View:
    """A view; `side` is what its reader called it, for errors.

    Raises InputError without a snapshot, and for snapshots of several images.
    """
    if not snapshots:
        raise InputError([f"{side}: there is no snapshot to compare"])
    images = sorted({f"{each.image_name} {each.image}" for each in snapshots})
    if len(images) > 1:
        raise InputError(
            [f"{side}: snapshots of several images: {', '.join(images)}"],
            mend="compare one image at a time: save each with planyard snapshot show",
        )
    by_gpu = sorted(snapshots, key=lambda each: each.gpu)
    newest_first = sorted(by_gpu, key=lambda each: each.created, reverse=True)
    return View(snapshots=tuple(newest_first))


def backend_of(snapshots: Sequence[Snapshot]) -> Backend | None:
    """The backend of an image: a snapshot does not name it, its plans and libraries do."""
    plans = [plan.backend for snapshot in snapshots for plan in snapshot.plans]
    if plans:
        return "tensorrt-rtx" if plans[0] == "tensorrt-rtx" else "tensorrt"
    if all(snapshot.sm is None for snapshot in snapshots):
        return "onnxruntime-cpu"
    names = {name for snapshot in snapshots for name in snapshot.versions_found}
    names |= {name for each in snapshots for verdict in each.smoke for name in verdict.loaded}
    if "onnxruntime" in names:
        return "onnxruntime-cuda"
    if "tensorrt_rtx" in names:
        return "tensorrt-rtx"
    return "tensorrt" if "tensorrt" in names else None


def key_of(cell: str) -> str:
    """A cell's id without its image."""
    return cell.partition("/")[2] or cell


def gpu_of(key: str) -> str:
    """The GPU that a cell, with or without its image, is for."""
    return key.rpartition("/")[2]
