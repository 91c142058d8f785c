"""Which cells are smoked here, against which golden, and what came of it.

A run that passed is not repeated while nothing it depends on has changed: image, model or plan,
inputs, gates, rules. A GPU cell without its GPU is `not run`, and says why.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import smoke
from builders.goldens import find_golden, golden_key, has_golden, put_golden
from builders.image import load_image
from builders.models import FetchedModel, identity_of_model
from builders.workspace import Workspace
from planyard.core.cells import Cell
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Matrix
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict
from planyard.edge import files
from planyard.edge.docker import Container, Ended
from planyard.edge.gpu import LocalGpu, local_gpus
from smoke.inputs import input_shapes, make_inputs
from smoke.job import SmokeJob, can_smoke
from smoke.judge import Evidence, judge
from smoke.rules import load_rules
from smoke.run import run_job

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
                and other.precision == "fp32"
                and (other.model, other.profile) == (cell.model, cell.profile)
            ):
                return other
        return None

    def _why_not(self, cell: Cell) -> str:
        """Why a cell cannot run here; empty when it can."""
        if cell.image not in self.images:
            return "its image was not built"
        if not can_smoke(cell.backend):
            return f"no smoke script for {cell.backend} yet"
        if cell.backend in PLAN_BACKENDS and cell.id not in self.plans:
            return "it has no plan"
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
        reference, store = self.reference_of(cell), self.workspace.store
        makes_golden = reference and reference.id == cell.id and self.matrix.gates.outputs
        if not makes_golden or has_golden(store, self._golden_key(cell)):
            yield from store.entries(_VERDICTS, key)

    def _run(self, cell: Cell) -> SmokeVerdict:
        reference = self.reference_of(cell)
        if reference and reference.id != cell.id:
            self.smoke(reference)
        workspace, spec = self.workspace, self.matrix.models[cell.model]
        shapes = input_shapes(spec.inputs, spec.profiles[cell.profile])
        tag = load_image(self.images[cell.image], workspace=workspace)
        with (
            files.scratch_folder(workspace.scratch, prefix="smoke-") as scratch,
            workspace.console.step(f"smoke {cell.id}"),
        ):
            job = SmokeJob(
                cell=cell,
                image=tag,
                python=self.matrix.images[cell.image].python,
                served=self._served(cell, scratch),
                inputs=make_inputs(spec.inputs, shapes),
                limits=self.matrix.smoke,
                gpu=cell.backend in GPU_BACKENDS,
            )
            run, outputs = run_job(job, runner=self._runner, scratch=scratch)
            golden = None
            if reference and reference.id != cell.id:
                golden = find_golden(workspace.store, self._golden_key(reference))
            evidence = Evidence(
                run=run,
                outputs=outputs,
                golden=golden,
                tolerance=spec.tolerance.get(cell.precision),
                golden_missing=golden is None and (reference is None or reference.id != cell.id),
            )
            verdict = judge(evidence, gates=self.matrix.gates, rules=load_rules())
            proved = verdict.verdict == verdict.gates["outputs"] == "passed"
            if proved and reference and reference.id == cell.id:
                put_golden(workspace.store, self._golden_key(cell), outputs)
        log = canonical_json({"stdout": run.stdout, "stderr": run.stderr})
        workspace.store.put_blob(digest_of_bytes(log), [log])
        return msgspec.structs.replace(verdict, log_digest=digest_of_bytes(log))

    def _runner(self, container: Container) -> Ended:
        with self.workspace.outside.running():
            return self.workspace.engine().run(container)

    def _served(self, cell: Cell, scratch: Path) -> Path:
        """The file a cell serves: its plan, verified on the way out of the store, or its model."""
        if cell.backend not in PLAN_BACKENDS:
            return self.models[cell.model].path
        folder = scratch / "served"
        folder.mkdir()
        self.workspace.store.fetch_blob(self.plans[cell.id].digest, folder / "model.plan")
        return folder / "model.plan"

    def _golden_key(self, reference: Cell) -> str:
        spec = self.matrix.models[reference.model]
        return golden_key(
            image=self.images[reference.image].digest,
            model=identity_of_model(spec),
            shapes=input_shapes(spec.inputs, spec.profiles[reference.profile]),
        )

    def _key(self, cell: Cell) -> str:
        """Everything a verdict depends on."""
        spec = self.matrix.models[cell.model]
        plan = self.plans.get(cell.id)
        reference = self.reference_of(cell)
        tolerance = spec.tolerance.get(cell.precision)
        return digest_of_value(
            {
                "image": self.images[cell.image].digest,
                "python": self.matrix.images[cell.image].python,
                "served": plan.digest if plan else identity_of_model(spec),
                "shapes": input_shapes(spec.inputs, spec.profiles[cell.profile]),
                "backend": cell.backend,
                "gpu": [(gpu.sm, gpu.driver) for gpu in self.gpus if gpu.sm == cell.sm],
                "gates": msgspec.to_builtins(self.matrix.gates),
                "tolerance": msgspec.to_builtins(tolerance),
                "requests": self.matrix.smoke.requests,
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
