"""Which cells of a build can be run here, and what a run of one is made of: job, plan, evidence.

A smoke run (`smoking.py`) and a load run (`load_runs.py`) ask the same image in the same way; they
differ in how many requests they make, and in which gates judge them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from builders.conversion import ConvertedModel, kept_conversion
from builders.converted import is_converted
from builders.image import load_image
from builders.measuring import Instruments, measure
from builders.models import FetchedModel, identity_of_model
from builders.workspace import Workspace
from planyard.core.cells import Cell
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Matrix
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import ImageRecord, PlanRecord, SmokeRun
from planyard.edge.docker import Container, Ended
from planyard.edge.docker_streams import OnOutput
from planyard.edge.gpu import LocalGpu, local_gpus
from smoke.gates.versions import pins_to_check
from smoke.inputs import SEED, batch_of, input_shapes, make_inputs, shapes_at_batch
from smoke.job import SmokeJob, series_of
from smoke.judge import Evidence

if TYPE_CHECKING:
    from smoke.job import Arrays


@dataclass(kw_only=True)
class CellRuns:
    """Runs of a build's cells, as far as this machine can make them."""

    matrix: Matrix
    workspace: Workspace
    images: Mapping[str, ImageRecord]
    models: Mapping[str, FetchedModel]
    plans: Mapping[str, PlanRecord]
    converted: Mapping[str, ConvertedModel] = field(default_factory=dict)
    instruments: Instruments = field(default_factory=Instruments)

    @functools.cached_property
    def gpus(self) -> tuple[LocalGpu, ...]:
        """The GPUs of this machine."""
        return local_gpus()

    def gpu_of(self, cell: Cell) -> LocalGpu | None:
        """The GPU here that a cell runs on; None for a CPU cell, and where there is none."""
        return next((gpu for gpu in self.gpus if gpu.sm == cell.sm), None)

    def _why_not(self, cell: Cell) -> str:
        """Why a cell cannot run here; empty when it can."""
        if cell.image not in self.images:
            return "its image was not built"
        if cell.backend in PLAN_BACKENDS and cell.id not in self.plans:
            return "it has no plan"
        if is_converted(cell) and cell.id not in self.converted:
            return f"its model could not be had in {cell.precision}"
        if self._is_refitted(cell) and self._source(cell) is None:
            return "its plan has no weights, and the model it was made from is not here any more"
        return self._why_no_gpu(cell)

    def _why_no_gpu(self, cell: Cell) -> str:
        """Why there is no GPU for a cell; empty when there is, or it needs none."""
        if cell.backend not in GPU_BACKENDS:
            return ""
        if not self.gpus:
            return "this machine has no GPU"
        if not self.gpu_of(cell):
            here = ", ".join(f"SM {gpu.sm / 10}" for gpu in self.gpus)
            return f"this machine has {here}, the cell needs SM {(cell.sm or 0) / 10}"
        if not self.workspace.engine().has_gpu_runtime():
            return "the Docker engine has no NVIDIA runtime"
        return ""

    def _job(
        self,
        cell: Cell,
        scratch: Path,
        *,
        limits: SmokeLimits | None = None,
        batch: int | None = None,
        seed: int = SEED,
        steps: int = 1,
        contexts: int | None = None,
    ) -> SmokeJob:
        """A run of a cell: `limits` are the matrix's for smoke runs, `batch` is the optimum's."""
        spec, image = self.matrix.models[cell.model], self.matrix.images[cell.image]
        optimum = batch_of(spec.inputs, input_shapes(spec.inputs, spec.profiles[cell.profile]))

        def inputs_at(batch: int) -> Arrays:
            at = shapes_at_batch(spec, name=cell.model, profile=cell.profile, batch=batch)
            return make_inputs(spec.inputs, at, seed=seed)

        return SmokeJob(
            cell=cell,
            image=load_image(self.images[cell.image], workspace=self.workspace),
            python=image.python,
            served=self._served(cell, scratch),
            inputs=inputs_at(batch or optimum),
            limits=limits or self.matrix.smoke,
            gpu=cell.backend in GPU_BACKENDS,
            batch=batch or optimum,
            inputs_at=inputs_at,
            command=image.smoke.command if image.smoke else (),
            session=image.session,
            source=self._source(cell),
            version_compatible=image.tensorrt.version_compatible,
            steps=steps,
            contexts=contexts,
        )

    def _measure(
        self, job: SmokeJob, folder: Path, *, on_output: OnOutput | None = None
    ) -> tuple[SmokeRun, Arrays]:
        """Run a job in a new folder; `on_output` is given what the container prints, as it does."""
        folder.mkdir()

        def runner(container: Container) -> Ended:
            with self.workspace.outside.running():
                return self.workspace.engine().run(container, on_output=on_output)

        return measure(job, runner=runner, scratch=folder, instruments=self.instruments)

    def _evidence_of(self, job: SmokeJob, run: SmokeRun, outputs: Arrays) -> Evidence:
        """What the gates may look at, but for what it is compared with: golden, accepted runs."""
        cell = job.cell
        pins, needed = pins_to_check(cell.backend, self.matrix.pins, own_command=run.own_command)
        return Evidence(
            run=run,
            backend=cell.backend,
            outputs=outputs,
            golden=None,
            tolerance=self.matrix.models[cell.model].tolerance.get(cell.precision),
            pins=pins,
            needed=needed,
            attention_blocks=self.models[cell.model].attention_blocks(),
            asked=series_of(job),
            session=job.session,
        )

    def _served(self, cell: Cell, scratch: Path) -> Path:
        """The file a cell serves: its plan, verified on the way out of the store, or its model."""
        if cell.id in self.converted:
            return self.converted[cell.id].path
        if cell.backend not in PLAN_BACKENDS:
            return self.models[cell.model].path
        folder = scratch / "served"
        folder.mkdir()
        self.workspace.store.fetch_blob(self.plans[cell.id].digest, folder / "model.plan")
        return folder / "model.plan"

    def _is_refitted(self, cell: Cell) -> bool:
        image = self.matrix.images[cell.image]
        return image.backend == "tensorrt" and image.tensorrt.refit_identical

    def _source(self, cell: Cell) -> Path | None:
        """The ONNX file that a plan without weights is filled from: what it was compiled from."""
        if not self._is_refitted(cell):
            return None
        return kept_conversion(
            self.plans[cell.id].inputs,
            self.matrix.models[cell.model],
            fetched=self.models[cell.model].path,
            cache=self.workspace.cache,
        )

    def _digest_served(self, cell: Cell) -> str:
        made = self.plans.get(cell.id) or self.converted.get(cell.id)
        return made.digest if made else identity_of_model(self.matrix.models[cell.model])
