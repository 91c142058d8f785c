"""Load runs: the requests of a workload, made in the image under test and measured.

The same scripts answer as in a smoke run, and the gates judge that tell whether the GPU was really
used. A run that fails one of them leaves no record: figures of a fallback are figures of something
else. A GPU cell has never been measured by this on a GPU, only its gates and figures in tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import planyard
from builders.cell_runs import CellRuns
from builders.making_images import make_missing_images
from builders.measuring import Instruments
from builders.pipeline import Build, Models, make_plans
from builders.workloads import LoadOrder
from builders.workspace import Workspace
from engines.loads import put_load
from planyard.core.cells import Cell
from planyard.core.errors import PlanCompileError
from planyard.core.findings import failures
from planyard.core.gates import gates_of_cell
from planyard.core.loads import LoadNotRun, LoadRecord, LoadRefused, LoadReport
from planyard.core.matrix_runtime import Workload
from planyard.core.matrix_smoke import Gates, SmokeLimits
from planyard.core.reader import LoadedMatrix
from planyard.core.results import SmokeRun, SmokeVerdict
from planyard.edge import files
from planyard.edge.clock import utc_now
from planyard.edge.console import Step
from smoke.gates.latency import Setting
from smoke.job import SmokeJob, series_of
from smoke.judge import judge
from smoke.load import check_series, load_series
from smoke.reference import host_name_of_speed
from smoke.rules import load_rules

if TYPE_CHECKING:
    from smoke.job import Arrays

_SERIES_ENDED = b"planyard: batch "
"""What `smoke/inside` prints when a series has ended."""
_LINE_BYTES = 4096
_NOT_ASKED = {"outputs": False, "attention": False, "utilization": False}
"""Gates of a smoke run that say nothing of a load, or of what a load measures itself."""


def measure_loads(
    loaded: LoadedMatrix,
    orders: Sequence[LoadOrder],
    *,
    workspace: Workspace,
    instruments: Instruments | None = None,
) -> LoadReport:
    """Run every workload on its cells, as far as this machine can, and enter the records.

    What the cells need is found in the store; for cells that can run here it is built first where
    it is not there. Raises what such a build ends with.
    """
    cells = list({cell.id: cell for order in orders for cell in order.cells}.values())
    here = LoadRuns(matrix=loaded.matrix, workspace=workspace, images={}, models={}, plans={})
    reasons = {cell.id: here.why_not_at_all(cell) for cell in cells}
    can_run = [cell for cell in cells if not reasons[cell.id]]
    runs = make_what_is_missing(loaded, can_run, workspace=workspace)
    runs.instruments = instruments or runs.instruments
    found: list[LoadRecord | LoadRefused | LoadNotRun] = []
    for order in orders:
        for cell in order.cells:
            if reason := reasons[cell.id] or runs.why_not(cell):
                found.append(LoadNotRun(workload=order.name, cell=cell.id, reason=reason))
            else:
                found.append(runs.run(order.name, order.workload, cell))
    return LoadReport(
        records=tuple(each for each in found if isinstance(each, LoadRecord)),
        refused=tuple(each for each in found if isinstance(each, LoadRefused)),
        not_run=tuple(each for each in found if isinstance(each, LoadNotRun)),
    )


def make_what_is_missing(
    loaded: LoadedMatrix, cells: Sequence[Cell], *, workspace: Workspace
) -> LoadRuns:
    """The images, plans and models of these cells; raises what a build of one of them ended with.

    No other cells are in this build: goldens and their references are not asked for.
    """
    work = Build(loaded=loaded, workspace=workspace, cells=tuple(cells), all_cells=tuple(cells))
    if cells:
        make_missing_images(work)
        for error in work.image_errors.values():
            raise error
        make_plans(work)
        for failure in work.failures:
            message = f"{failure.cell}: {failure.message}"
            raise PlanCompileError(message, log_tail=failure.log_tail)
    models = Models(work)
    return LoadRuns(
        matrix=loaded.matrix,
        workspace=workspace,
        images=work.images,
        models={cell.model: models[cell.model] for cell in cells},
        plans=work.plans,
        converted=work.converted,
        waiting={each.cell: each.reason for each in work.waiting},
    )


@dataclass(kw_only=True)
class LoadRuns(CellRuns):
    """The load runs of one command. `waiting` says why a cell's plan was not compiled here."""

    waiting: Mapping[str, str] = field(default_factory=dict)

    def why_not_at_all(self, cell: Cell) -> str:
        """Why a cell cannot be measured here, whatever is built; empty when it may."""
        if self.matrix.images[cell.image].smoke:
            return "its image is asked by a smoke command of its own, which makes no workloads"
        return self._why_no_gpu(cell)

    def why_not(self, cell: Cell) -> str:
        """Why a cell cannot be measured, now that what it needs was made; empty when it can."""
        return self.waiting.get(cell.id, "") or self._why_not(cell)

    def run(self, name: str, workload: Workload, cell: Cell) -> LoadRecord | LoadRefused:
        """Measure a workload on a cell; the record is in the store, what is refused left none."""
        with (
            files.scratch_folder(self.workspace.scratch, prefix="load-") as scratch,
            self.workspace.console.step(f"load {name} on {cell.id}") as step,
        ):
            job = self._load_job(workload, cell, scratch)
            progress = SeriesProgress(series_of(job), step)
            run, outputs = self._measure(job, scratch / "run", on_output=progress)
            verdict = self._judge(job, run, outputs)
        findings = (*verdict.findings, *check_series(run))
        if failures(findings):
            told = tuple(each for each in findings if each.rule != "latency.first")
            return LoadRefused(workload=name, cell=cell.id, findings=told)
        record = self._record(name, workload, run, verdict=verdict, cell=cell)
        put_load(self.workspace.store, record)
        return record

    def _load_job(self, workload: Workload, cell: Cell, scratch: Path) -> SmokeJob:
        limits = SmokeLimits(
            memory=workload.memory,
            timeout_seconds=workload.timeout_seconds,
            warmup=workload.warmup,
            requests=workload.requests,
            series_seconds=workload.series_seconds,
            batches=workload.batches,
            concurrency=workload.concurrency,
        )
        first = workload.batches[0]  # the first series is the workload's, not the profile's optimum
        return self._job(
            cell,
            scratch,
            limits=limits,
            batch=first,
            seed=workload.seed,
            steps=workload.steps,
            contexts=workload.contexts,
        )

    def _judge(self, job: SmokeJob, run: SmokeRun, outputs: Arrays) -> SmokeVerdict:
        """Whether the run was what it should be. Nothing is compared with earlier runs."""
        evidence = self._evidence_of(job, run, outputs)
        gates = load_gates(gates_of_cell(self.matrix.gates, job.cell.id))
        return judge(evidence, gates=gates, rules=load_rules())

    def _record(
        self,
        name: str,
        workload: Workload,
        run: SmokeRun,
        *,
        verdict: SmokeVerdict,
        cell: Cell,
    ) -> LoadRecord:
        gpu = self.gpu_of(cell)
        return LoadRecord(
            workload=name,
            cell=cell.id,
            image=self.images[cell.image].digest,
            served=self._digest_served(cell),
            gpu=f"{gpu.name or 'GPU'}, SM {gpu.sm / 10}" if gpu else host_processor(),
            steps=workload.steps,
            contexts=workload.contexts,
            seed=workload.seed,
            series=load_series(run),
            gates=verdict.gates,
            versions={name: each.version for name, each in sorted(verdict.loaded.items())},
            driver=gpu.driver if gpu else "",
            gpu_error=run.gpu_error,
            created=utc_now(),
            planyard_version=planyard.__version__,
        )


def load_gates(gates: Gates) -> Gates:
    """The gates that judge a load run of a cell, from those that judge its smoke runs.

    The latency gate is always on: without accepted runs all it asks is that every series is there
    with its times.
    """
    return msgspec.structs.replace(gates, latency=True, **_NOT_ASKED)


def host_processor() -> str:
    """This machine's processor and how many cores there are for it: no name of the machine."""
    return host_name_of_speed().partition(", sha256/")[0]


class SeriesProgress:
    """Says which series is under way, by the lines that the scripts print after each."""

    def __init__(self, settings: Sequence[Setting], step: Step) -> None:
        self._settings, self._step = settings, step
        self._line, self._ended = b"", 0
        self._show()

    def __call__(self, piece: bytes) -> None:
        """Take what the container printed; lines may come in parts."""
        *lines, rest = (self._line + piece).split(b"\n")
        self._line = rest[:_LINE_BYTES]
        self._ended += sum(line.startswith(_SERIES_ENDED) for line in lines)
        self._show()

    def _show(self) -> None:
        if self._ended < len(self._settings):
            batch, concurrency = self._settings[self._ended]
            number = f"series {self._ended + 1} of {len(self._settings)}"
            self._step.update(f"{number}: batch {batch}, {concurrency} at once")
