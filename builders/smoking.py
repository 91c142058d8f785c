"""Which cells are smoked here, against which golden, and what came of it.

A run that passed is not repeated while nothing it depends on has changed: image, model or plan,
inputs, gates, rules. A GPU cell without its GPU is `not run`, and says why.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import smoke
from builders.baselines import Window, read_window, record_run
from builders.cell_runs import CellRuns
from builders.goldens import find_golden, golden_key, has_golden, put_golden
from builders.models import identity_of_model
from engines.snapshot import pins_as_text
from planyard.core.cells import Cell
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.gates import gates_of_cell
from planyard.core.results import SmokeRun, SmokeVerdict
from planyard.edge import files
from planyard.edge.clock import utc_now
from smoke.baseline import AcceptedRun, accepted_run
from smoke.gates.latency import needs_second_run
from smoke.inputs import input_shapes
from smoke.job import SmokeJob
from smoke.judge import Evidence, judge
from smoke.reference import host_name_of_speed
from smoke.rules import load_rules

if TYPE_CHECKING:
    from smoke.job import Arrays

_VERDICTS = "verdicts"


@dataclass(kw_only=True)
class Smoking(CellRuns):
    """The smoke runs of one build. Verdicts are kept by cell id as they come."""

    all_cells: Sequence[Cell]
    verdicts: dict[str, SmokeVerdict] = field(default_factory=dict)

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

    def _evidence(
        self, job: SmokeJob, run: SmokeRun, outputs: Arrays, *, accepted: Sequence[AcceptedRun]
    ) -> Evidence:
        golden = None
        reference, is_reference = self.reference_of(job.cell), self._is_reference(job.cell)
        if reference and not is_reference:
            golden = find_golden(self.workspace.store, self._golden_key(reference))
        return dataclasses.replace(
            self._evidence_of(job, run, outputs),
            golden=golden,
            golden_missing=golden is None and not is_reference,
            window=accepted,
        )

    def _judge(self, evidence: Evidence) -> SmokeVerdict:
        gates = gates_of_cell(self.matrix.gates, evidence.run.cell)
        return judge(evidence, gates=gates, rules=load_rules())

    def _window(self, cell: Cell) -> Window:
        """What the accepted runs of a cell have in common."""
        spec, limits = self.matrix.models[cell.model], self.matrix.smoke
        gpu = self.gpu_of(cell)
        host = host_name_of_speed()  # where the device has no reference load, the host's counts
        return Window(
            cell=cell.id,
            machine=f"{gpu.name or f'SM {gpu.sm}'}; {host}" if gpu else host,
            shapes=input_shapes(spec.inputs, spec.profiles[cell.profile]),
            batches=limits.batches,
            concurrency=limits.concurrency,
            warmup=limits.warmup,
        )

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
