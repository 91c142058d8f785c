"""How the lane runs a cell: as `builders.measuring` does, here instead of in an image."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

import smoke.job
from planyard.core.cells import Cell
from planyard.core.matrix import GPU_BACKENDS, Backend, Matrix, Precision
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import SmokeRun, Verdict
from planyard.core.units import ByteSize
from planyard.edge.clock import utc_now
from planyard.edge.docker import Container, Ended
from planyard.edge.nvml import Sampler
from smoke.gates.versions import pins_to_check
from smoke.inputs import SEED, make_inputs, shapes_at_batch
from smoke.job import SmokeJob
from smoke.reference import measure_reference
from smoke.run import run_job
from tests.gpu.host_runner import HostRunner
from tests.gpu.judging import NONE, OWN, Array, Limits, judged
from tests.gpu.machine import Places, Surroundings, pins_here
from tests.gpu.record import Item, JudgedRun, LoadRow, MachineFound, PlanFound
from tests.gpu.subjects import CannotRunError, Subject, gates_here

LEAST_SECONDS = 10.0
"""What a program needs to be worth starting."""
_MEMORY_SHARE = 0.9


@dataclass(kw_only=True)
class Progress:
    """An item as it comes about. Whatever is added is written at once, by `save`."""

    number: int
    title: str
    save: Callable[[Item], None]
    began: str = field(default_factory=utc_now)
    started: float = field(default_factory=time.monotonic)
    runs: list[JudgedRun] = field(default_factory=list)
    plans: list[PlanFound] = field(default_factory=list)
    loads: list[LoadRow] = field(default_factory=list)
    figures: dict[str, float | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def item(self, verdict: Verdict = "not run", reason: str = "it was cut off here") -> Item:
        """The item as it stands."""
        return Item(
            number=self.number,
            title=self.title,
            verdict=verdict,
            reason=reason,
            began=self.began,
            seconds=round(time.monotonic() - self.started, 1),
            runs=tuple(self.runs),
            plans=tuple(self.plans),
            loads=tuple(self.loads),
            figures=dict(self.figures),
            notes=tuple(self.notes),
        )

    def add(self, found: JudgedRun | PlanFound | LoadRow) -> None:
        """Keep something that was found, and write the record."""
        kept: Mapping[type, list[Any]] = {
            JudgedRun: self.runs,
            PlanFound: self.plans,
            LoadRow: self.loads,
        }
        kept[type(found)].append(found)
        self.save(self.item())

    def compiled(self, plans: Iterable[PlanFound], *, how: str) -> None:
        """Keep plans, and the seconds that each took."""
        for plan in plans:
            self.figures[f"{plan.what} by {plan.version}, {how}: seconds"] = plan.compile_seconds
            self.add(plan)

    def note(self, text: str) -> None:
        """A sentence for whoever reads the record."""
        self.notes.append(text)
        self.save(self.item())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is asked for beyond its subject.

    `served` is the plan, where it is not the subject's own model. `golden` is None for a run that
    makes the golden itself.
    """

    what: str
    backend: Backend
    environment: Mapping[str, str]
    served: Path | None = None
    golden: str | None = None
    wanted: Literal["passed", "refused"] = "passed"
    counts: bool = True
    tensorrt: str | None = None
    limits: SmokeLimits = field(default_factory=SmokeLimits)
    batch: int | None = None
    steps: int = 1
    contexts: int | None = None
    seed: int | None = None
    gates_off: tuple[str, ...] = ()
    tolerance_of: Precision | None = None


@dataclass(kw_only=True)
class Bench:
    """The machine, and until when the lane may use it (`time.monotonic`)."""

    places: Places
    around: Surroundings
    machine: MachineFound
    matrix: Matrix
    deadline: float
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def sm(self) -> int:
        """The SM of the GPU; CannotRunError where there is none."""
        if self.machine.gpu is None:
            raise CannotRunError("this machine has no GPU")
        return self.machine.gpu.sm

    def left_seconds(self) -> float:
        """How long there is still to go; CannotRunError where that is too short for anything."""
        left = self.deadline - time.monotonic()
        if left < LEAST_SECONDS:
            raise CannotRunError("the time for this item was over")
        return left

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of its own, gone afterwards."""
        folder = self.places.work / "scratch" / str(next(self._numbers))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, subject: Subject, asked: Asked) -> tuple[JudgedRun, SmokeRun]:
        """Run a subject, judge it; returns what is kept, and the run as it was."""
        job = self._job(subject, asked)
        with self.scratch() as folder:
            run, outputs = measured(job, HostRunner(environment=asked.environment), folder)
        kept = judged(
            job,
            run,
            outputs,
            what=asked.what,
            limits=self._limits(subject, job.cell, asked),
            wanted=asked.wanted,
            counts=asked.counts,
        )
        if asked.golden is None and kept.verdict == "passed":
            self._put_golden(kept.run.cell, outputs)
        return kept, run

    def has_golden(self, cell: str) -> bool:
        """Whether a run of a cell has left its outputs here."""
        return self._golden(cell).is_file()

    def program(
        self, command: tuple[str, ...], *, environment: Mapping[str, str], seconds: float
    ) -> Ended:
        """Run another program within what is left."""
        container = Container(
            image="",
            command=command,
            memory_bytes=self._memory_bytes,
            timeout_seconds=min(seconds, self.left_seconds()),
        )
        return HostRunner(environment=environment)(container)

    @property
    def _memory_bytes(self) -> int:
        return int(self.machine.memory_bytes * _MEMORY_SHARE)

    def _job(self, subject: Subject, asked: Asked) -> SmokeJob:
        gpu = asked.backend in GPU_BACKENDS
        cell = subject.cell(asked.backend, sm=self.sm if gpu else None)
        batch = asked.batch or subject.batch
        shapes = shapes_at_batch(
            subject.spec, name=subject.name, profile=subject.profile, batch=batch
        )
        seed = SEED if asked.seed is None else asked.seed
        seconds = min(float(asked.limits.timeout_seconds), self.left_seconds())
        return SmokeJob(
            cell=cell,
            image=cell.image,
            python=sys.executable,
            served=(asked.served or subject.path).absolute(),
            inputs=make_inputs(subject.spec.inputs, shapes, seed=seed),
            limits=msgspec.structs.replace(
                asked.limits,
                timeout_seconds=max(1, int(seconds)),
                memory=ByteSize(self._memory_bytes),
            ),
            gpu=gpu,
            batch=batch,
            steps=asked.steps,
            contexts=asked.contexts,
        )

    def _limits(self, subject: Subject, cell: Cell, asked: Asked) -> Limits:
        pins, needed = pins_to_check(cell.backend, self.matrix.pins)
        tolerance = subject.tolerance
        if asked.tolerance_of:
            tolerance = subject.spec.tolerance[asked.tolerance_of]
        golden = OWN if asked.golden is None else asked.golden
        arrays = None
        if asked.golden is not None:
            arrays = self._read_golden(asked.golden)
            golden = asked.golden if arrays else NONE
        return Limits(
            gates=gates_here(self.matrix, cell, **dict.fromkeys(asked.gates_off, False)),
            pins=pins_here(pins, tensorrt=asked.tensorrt),
            needed=tuple(needed),
            attention_blocks=subject.attention_blocks(),
            tolerance=tolerance,
            golden=golden,
            arrays=arrays,
        )

    def _golden(self, cell: str) -> Path:
        return self.places.work / "goldens" / f"{cell.replace('/', '~')}.npz"

    def _put_golden(self, cell: str, outputs: Mapping[str, Array]) -> None:
        path = self._golden(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **outputs)

    def _read_golden(self, cell: str) -> dict[str, Array]:
        if not self.has_golden(cell):
            return {}
        with np.load(self._golden(cell)) as kept:
            return {name: kept[name] for name in kept.files}


def measured(
    job: SmokeJob, runner: HostRunner, folder: Path
) -> tuple[SmokeRun, Mapping[str, Array]]:
    """A run with what only the host sees of it, as `builders.measuring.measure` has it."""
    places = smoke.job.Places(
        model=str(job.served.parent),
        source=str((job.source or job.served).parent),
        out=str(folder / "out"),
    )
    before = measure_reference()
    if not job.gpu:
        run, outputs = run_job(job, runner=runner, scratch=folder, places=places)
    else:
        with Sampler() as sampling:
            run, outputs = run_job(job, runner=runner, scratch=folder, places=places)
        run = msgspec.structs.replace(
            run,
            gpu_samples=sampling.samples_since(run.began_seconds),
            gpu_error=sampling.error,
        )
    return msgspec.structs.replace(run, reference_ms=before + measure_reference()), outputs
