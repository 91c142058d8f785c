"""Which cells are smoked here, against which golden, and what came of it.

A run that passed is not repeated while nothing it depends on has changed: image, model or plan,
inputs, gates, rules. A GPU cell without its GPU is `not run`, and says why.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import smoke
from builders.baselines import Window, read_window, record_run
from builders.conversion import ConvertedModel
from builders.converted import is_converted
from builders.goldens import find_golden, golden_key, has_golden, put_golden
from builders.image import load_image
from builders.measuring import Instruments, measure
from builders.models import FetchedModel, identity_of_model
from builders.workspace import Workspace
from engines.snapshot import pins_as_text
from planyard.core.cells import Cell
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.gates import gates_of_cell
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Matrix
from planyard.core.results import ImageRecord, PlanRecord, SmokeRun, SmokeVerdict
from planyard.edge import files
from planyard.edge.clock import utc_now
from planyard.edge.docker import Container, Ended
from planyard.edge.gpu import LocalGpu, local_gpus
from smoke.baseline import AcceptedRun, accepted_run
from smoke.gates.latency import needs_second_run
from smoke.gates.versions import pins_to_check
from smoke.inputs import batch_of, input_shapes, make_inputs, shapes_at_batch
from smoke.job import SmokeJob, can_smoke, series_of
from smoke.judge import Evidence, judge
from smoke.reference import host_name_of_speed
from smoke.rules import load_rules

if TYPE_CHECKING:
    from smoke.job import Arrays

_VERDICTS = "verdicts"


@dataclass(kw_only=True)
class Smoking:
    """The smoke runs of one build. Verdicts are kept by cell id as they come."""

    matrix: Matrix
    workspace: Workspace
    all_cells: Sequence[Cell]
    images: Mapping[str, ImageRecord]
    models: Mapping[str, FetchedModel]
    plans: Mapping[str, PlanRecord]
    converted: Mapping[str, ConvertedModel] = field(default_factory=dict)
    instruments: Instruments = field(default_factory=Instruments)
    verdicts: dict[str, SmokeVerdict] = field(default_factory=dict)

    @functools.cached_property
    def gpus(self) -> tuple[LocalGpu, ...]:
        """The GPUs of this machine."""
        return local_gpus()

    def smoke(self, cell: Cell) -> SmokeVerdict:
        """The verdict of a cell: from the store, from a run now, or `not run`."""
        if cell.id not in self.verdicts:
            reason = self._why_not(cell)
            self.verdicts[cell.id] = (
                SmokeVerdict(cell=cell.id, verdict="not run", reason=reason)
                if reason
                else self._verdict(cell)
            )
        return self.verdicts[cell.id]

    def reference_of(self, cell: Cell) -> Cell | None:
        """The fp32 cell on the CPU that makes the golden of this one's model and profile."""
        for other in self.all_cells:
            if (
                other.image in self.images
                and other.backend == "onnxruntime-cpu"
                # Goldens come from planyard's own script: a command could report anything.
                and not self.matrix.images[other.image].smoke
                and other.precision == "fp32"
                and (other.model, other.profile) == (cell.model, cell.profile)
            ):
                return other
        return None

    def _is_reference(self, cell: Cell) -> bool:
        reference = self.reference_of(cell)
        return reference is not None and reference.id == cell.id

    def _why_not(self, cell: Cell) -> str:
        """Why a cell cannot run here; empty when it can."""
        if cell.image not in self.images:
            return "its image was not built"
        if not self.matrix.images[cell.image].smoke and not can_smoke(cell.backend):
            return f"no smoke script for {cell.backend} yet"
        if cell.backend in PLAN_BACKENDS and cell.id not in self.plans:
            return "it has no plan"
        if is_converted(cell) and cell.id not in self.converted:
            return f"its model could not be had in {cell.precision}"
        return self._why_no_gpu(cell) if cell.backend in GPU_BACKENDS else ""

    def _why_no_gpu(self, cell: Cell) -> str:
        if not self.gpus:
            return "this machine has no GPU"
        if not any(gpu.sm == cell.sm for gpu in self.gpus):
            here = ", ".join(f"SM {gpu.sm / 10}" for gpu in self.gpus)
            return f"this machine has {here}, the cell needs SM {(cell.sm or 0) / 10}"
        if not self.workspace.engine().has_gpu_runtime():
            return "the Docker engine has no NVIDIA runtime"
        return ""

    def _verdict(self, cell: Cell) -> SmokeVerdict:
        key = self._key(cell)
        for document in self._kept_verdicts(cell, key):
            kept = msgspec.json.decode(document, type=SmokeVerdict)
            if self.workspace.store.has_blob(kept.log_digest):
                return msgspec.structs.replace(kept, cell=cell.id)
        verdict = self._run(cell)
        if verdict.verdict == "passed":
            document = canonical_json(msgspec.to_builtins(verdict))
            self.workspace.store.put_entry(_VERDICTS, key, document)
        return verdict

    def _kept_verdicts(self, cell: Cell, key: str) -> Iterator[bytes]:
        """Verdicts of this very run; a reference runs again when its golden is gone."""
        store, gates = self.workspace.store, gates_of_cell(self.matrix.gates, cell.id)
        makes_golden = self._is_reference(cell) and gates.outputs
        if not makes_golden or has_golden(store, self._golden_key(cell)):
            yield from store.entries(_VERDICTS, key)

    def _run(self, cell: Cell) -> SmokeVerdict:
        reference, is_reference = self.reference_of(cell), self._is_reference(cell)
        if reference and not is_reference:
            self.smoke(reference)
        store = self.workspace.store
        with (
            files.scratch_folder(self.workspace.scratch, prefix="smoke-") as scratch,
            self.workspace.console.step(f"smoke {cell.id}") as step,
        ):
            job = self._job(cell, scratch)
            window = self._window(cell)
            run, outputs = self._measure(job, scratch / "first")
            evidence = self._evidence(job, run, outputs, accepted=read_window(store, window))
            verdict = self._judge(evidence)
            if needs_second_run(verdict.findings):
                step.update("slower than accepted runs: measured once more")
                again, _ = self._measure(job, scratch / "again")
                evidence = dataclasses.replace(evidence, again=again)
                verdict = self._judge(evidence)
        if is_reference and verdict.verdict == verdict.gates["outputs"] == "passed":
            put_golden(store, self._golden_key(cell), outputs)
        if verdict.verdict == verdict.gates["latency"] == "passed":
            accepted = accepted_run(
                evidence.again or run,
                created=utc_now(),
                image=self.images[cell.image].digest,
                served=self._digest_served(cell),
            )
            record_run(store, window, accepted, verdict=verdict)
        log = canonical_json({"stdout": run.stdout, "stderr": run.stderr})
        store.put_blob(digest_of_bytes(log), [log])
        return msgspec.structs.replace(verdict, log_digest=digest_of_bytes(log))

    def _job(self, cell: Cell, scratch: Path) -> SmokeJob:
        spec, image = self.matrix.models[cell.model], self.matrix.images[cell.image]
        shapes = input_shapes(spec.inputs, spec.profiles[cell.profile])

        def inputs_at(batch: int) -> Arrays:
            at = shapes_at_batch(spec, name=cell.model, profile=cell.profile, batch=batch)
            return make_inputs(spec.inputs, at)

        return SmokeJob(
            cell=cell,
            image=load_image(self.images[cell.image], workspace=self.workspace),
            python=image.python,
            served=self._served(cell, scratch),
            inputs=make_inputs(spec.inputs, shapes),
            limits=self.matrix.smoke,
            gpu=cell.backend in GPU_BACKENDS,
            batch=batch_of(spec.inputs, shapes),
            inputs_at=inputs_at,
            command=image.smoke.command if image.smoke else (),
            session=image.session,
            source=self.models[cell.model].path if image.tensorrt.refit_identical else None,
        )

    def _measure(self, job: SmokeJob, folder: Path) -> tuple[SmokeRun, Arrays]:
        folder.mkdir()
        return measure(job, runner=self._runner, scratch=folder, instruments=self.instruments)

    def _evidence(
        self, job: SmokeJob, run: SmokeRun, outputs: Arrays, *, accepted: Sequence[AcceptedRun]
    ) -> Evidence:
        cell, golden = job.cell, None
        reference, is_reference = self.reference_of(cell), self._is_reference(cell)
        if reference and not is_reference:
            golden = find_golden(self.workspace.store, self._golden_key(reference))
        pins, needed = pins_to_check(cell.backend, self.matrix.pins, own_command=run.own_command)
        return Evidence(
            run=run,
            backend=cell.backend,
            outputs=outputs,
            golden=golden,
            tolerance=self.matrix.models[cell.model].tolerance.get(cell.precision),
            golden_missing=golden is None and not is_reference,
            pins=pins,
            needed=needed,
            attention_blocks=self.models[cell.model].attention_blocks(),
            asked=series_of(job),
            window=accepted,
        )

    def _judge(self, evidence: Evidence) -> SmokeVerdict:
        gates = gates_of_cell(self.matrix.gates, evidence.run.cell)
        return judge(evidence, gates=gates, rules=load_rules())

    def _runner(self, container: Container) -> Ended:
        with self.workspace.outside.running():
            return self.workspace.engine().run(container)

    def _window(self, cell: Cell) -> Window:
        """What the accepted runs of a cell have in common."""
        spec, limits = self.matrix.models[cell.model], self.matrix.smoke
        gpu = next((gpu for gpu in self.gpus if gpu.sm == cell.sm), None)
        host = host_name_of_speed()  # where the device has no reference load, the host's counts
        return Window(
            cell=cell.id,
            machine=f"{gpu.name or f'SM {gpu.sm}'}; {host}" if gpu else host,
            shapes=input_shapes(spec.inputs, spec.profiles[cell.profile]),
            batches=limits.batches,
            concurrency=limits.concurrency,
            warmup=limits.warmup,
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

    def _digest_served(self, cell: Cell) -> str:
        made = self.plans.get(cell.id) or self.converted.get(cell.id)
        return made.digest if made else identity_of_model(self.matrix.models[cell.model])

    def _golden_key(self, reference: Cell) -> str:
        spec = self.matrix.models[reference.model]
        return golden_key(
            image=self.images[reference.image].digest,
            model=identity_of_model(spec),
            shapes=input_shapes(spec.inputs, spec.profiles[reference.profile]),
        )

    def _key(self, cell: Cell) -> str:
        """Everything a verdict depends on."""
        spec, image = self.matrix.models[cell.model], self.matrix.images[cell.image]
        reference = self.reference_of(cell)
        tolerance = spec.tolerance.get(cell.precision)
        return digest_of_value(
            {
                "image": self.images[cell.image].digest,
                "python": image.python,
                "command": image.smoke.command if image.smoke else (),
                "session": msgspec.to_builtins(image.session, enc_hook=int),
                "served": self._digest_served(cell),
                "shapes": input_shapes(spec.inputs, spec.profiles[cell.profile]),
                "backend": cell.backend,
                "gpu": [(gpu.sm, gpu.driver) for gpu in self.gpus if gpu.sm == cell.sm],
                "gates": msgspec.to_builtins(
                    gates_of_cell(self.matrix.gates, cell.id), enc_hook=int
                ),
                "pins": pins_as_text(self.matrix.pins),
                "tolerance": msgspec.to_builtins(tolerance),
                "smoke": msgspec.to_builtins(self.matrix.smoke, enc_hook=int),
                "golden": self._golden_key(reference) if reference else "",
                "judge": digest_of_judge(),
            }
        )


@functools.cache
def digest_of_judge() -> str:
    """The digest of everything that runs and judges: scripts, gates and rules."""
    folder = Path(smoke.__file__).parent
    seen = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.glob("*.toml")]):
        seen.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return "sha256:" + seen.hexdigest()
