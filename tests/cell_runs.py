"""Cells of the built workspace run by hand: in another image, with another provider, no GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import msgspec

from builders.image import load_image
from builders.models import fetch_model
from builders.smoking import Smoking
from builders.workspace import Workspace
from engines import index
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.gates import GATE_NAMES
from planyard.core.matrix_smoke import Gates
from planyard.core.reader import load_matrix
from planyard.core.results import ImageRecord, SmokeRun, SmokeVerdict
from planyard.edge.console import Console
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from tests.conftest import Built


@dataclass(frozen=True, kw_only=True)
class RanCell:
    """A run, and what the gates may look at."""

    evidence: Evidence

    @property
    def run(self) -> SmokeRun:
        return self.evidence.run

    @property
    def log(self) -> str:
        return self.run.stdout + self.run.stderr

    def judged(self, *names: str) -> SmokeVerdict:
        """The verdict with only these gates on."""
        on = {name: name in names for name in GATE_NAMES}
        return judge(self.evidence, gates=Gates(**on), rules=load_rules())  # type: ignore[arg-type]


def record_of(built: Built, name: str) -> ImageRecord:
    """An image of the built workspace."""
    digest = built.image(name)["digest"]
    return next(each for each in index.all_images(built.site.store) if each.digest == digest)


def workspace_of(built: Built) -> Workspace:
    """The built workspace; the engine is that of DOCKER_HOST."""
    return Workspace(root=built.site.root, store=built.site.store, console=Console(quiet=True))


def tag_of(built: Built, name: str) -> str:
    """The name of an image in the engine of DOCKER_HOST; loaded where it is not there."""
    record = record_of(built, name)
    with workspace_of(built) as workspace:
        return load_image(record, workspace=workspace)


def run_cell(
    built: Built, cell_id: str, *, cache: Path, room: Path, image: str | None = None
) -> RanCell:
    """Run a cell without a GPU, in its own image or in another of the engine."""
    matrix = load_matrix(built.site.matrix.read_bytes(), name="matrix.yaml").matrix
    cells = expand(matrix, load_compat()).cells
    cell = next(each for each in cells if each.id == cell_id)
    spec = matrix.models[cell.model]
    model = fetch_model(
        cell.model, spec, root=built.site.root, cache=cache, network=False, report=str
    )
    images = {name: record_of(built, name) for name in ("ort-cpu", cell.image)}
    with workspace_of(built) as workspace:
        smoking = Smoking(
            matrix=matrix,
            workspace=workspace,
            all_cells=cells,
            images=images,
            models={cell.model: model},
            plans={},
        )
        own = smoking._job(cell, room)
        few = msgspec.structs.replace(own.limits, warmup=1, requests=5)  # no test here is of time
        job = dataclasses.replace(own, image=image or own.image, limits=few, gpu=False)
        run, outputs = smoking._measure(job, room / "measured")
        return RanCell(evidence=smoking._evidence(job, run, outputs, accepted=()))
