"""Which nodes of a Kubernetes cluster an image fits, by the labels of GPU feature discovery. Pure.

One term of the node affinity for each SM that the image was built for; terms are alternatives, the
expressions of a term hold together. A branch, a CUDA release or a memory size may be larger, which
only `Gt` can say (there is no `Gte`, and it compares integers). A term asks for the same as
admission does at start: the SM, the driver's branch, the CUDA that the driver runs.

Names and meanings of the labels: https://github.com/NVIDIA/k8s-device-plugin, commit 1b826acc,
docs/gpu-feature-discovery/README.md and internal/lm/nvml.go. `nvidia.com/gpu.present` is not among
them: the GPU operator sets it, not feature discovery. Rules of the affinity:
https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from engines.diffing.views import View, view_of
from engines.snapshot import Snapshot
from planyard.core.compat import dotted
from planyard.core.errors import InputError
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS

LABELS_SCHEMA = 1
_PREFIX = "nvidia.com/"
_MIB = 1 << 20

SM_MAJOR, SM_MINOR = f"{_PREFIX}gpu.compute.major", f"{_PREFIX}gpu.compute.minor"
MEMORY = f"{_PREFIX}gpu.memory"
"""In MiB; of a slice where the MIG strategy is `single`."""


class VersionLabels(msgspec.Struct, frozen=True):
    """The labels of the driver's branch, and of the newest CUDA it runs (not of any toolkit)."""

    branch: str
    cuda_major: str
    cuda_minor: str


NEW_NAMES = VersionLabels(
    branch=f"{_PREFIX}cuda.driver-version.major",
    cuda_major=f"{_PREFIX}cuda.runtime-version.major",
    cuda_minor=f"{_PREFIX}cuda.runtime-version.minor",
)
"""Since GPU feature discovery 0.15."""
OLD_NAMES = VersionLabels(
    branch=f"{_PREFIX}cuda.driver.major",
    cuda_major=f"{_PREFIX}cuda.runtime.major",
    cuda_minor=f"{_PREFIX}cuda.runtime.minor",
)
"""Deprecated, and still set."""


class MatchExpression(msgspec.Struct, frozen=True, kw_only=True):
    """What one label of a node has to be."""

    key: str
    operator: Literal["In", "Gt"]
    values: tuple[str, ...]


class NodeSelectorTerm(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Expressions that all have to hold."""

    match_expressions: tuple[MatchExpression, ...]


class NodeSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Terms of which one has to hold. Kubernetes takes no empty list."""

    node_selector_terms: tuple[NodeSelectorTerm, ...]


class NodeAffinity(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a node has to have when a pod is placed; a pod that runs stays where it is."""

    required_during_scheduling_ignored_during_execution: NodeSelector


class Affinity(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`affinity` of a pod's specification; empty where any node will do."""

    node_affinity: NodeAffinity | None = None


class GpuFit(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU of the matrix: whether its nodes are chosen, what was proved on it, or why not.

    `proved` is the worst verdict of its cells; `memory_bytes` the least memory that is asked for.
    """

    gpu: str
    sm: int | None
    chosen: bool
    proved: Literal["passed", "failed", "not run"]
    memory_bytes: int | None = None
    why: str = ""


class NodeLabels(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image may run: `planyard labels --json`."""

    schema: int = LABELS_SCHEMA
    image: str
    image_name: str
    backend: str
    needs_gpu: bool
    gpus: tuple[GpuFit, ...]
    affinity: Affinity


def node_labels(
    snapshots: Sequence[Snapshot], *, memory_bytes: int | None = None, old_names: bool = False
) -> NodeLabels:
    """The affinity of an image, by all its snapshots.

    A GPU is left out where a cell failed, and where a plan is needed and there is none.
    `memory_bytes` is the least memory of a GPU; without it, the peak of the smoke runs on that SM
    is, where it was measured. Raises InputError when the backend or a pin cannot be told.

    With no GPU left, `affinity` is empty although `needs_gpu`: nothing may be scheduled by it.
    """
    view = view_of(snapshots, side="the image")
    backend = view.backend
    if backend is None:
        raise InputError(
            [f"{view.newest.image_name} {view.newest.image}: no snapshot tells what serves in it"],
            mend="planyard build writes new snapshots, with the versions found in the image",
        )
    needs_gpu = backend in GPU_BACKENDS
    names = OLD_NAMES if old_names else NEW_NAMES
    fits = tuple(_fit(view, gpu, least=memory_bytes) for gpu in view.gpus)
    terms = tuple(_terms(view, fits, names)) if needs_gpu else ()
    return NodeLabels(
        image=view.newest.image,
        image_name=view.newest.image_name,
        backend=backend,
        needs_gpu=needs_gpu,
        gpus=fits,
        affinity=_affinity(terms),
    )


def _affinity(terms: tuple[NodeSelectorTerm, ...]) -> Affinity:
    if not terms:
        return Affinity()
    selector = NodeSelector(node_selector_terms=terms)
    return Affinity(
        node_affinity=NodeAffinity(required_during_scheduling_ignored_during_execution=selector)
    )


def _fit(view: View, gpu: str, *, least: int | None) -> GpuFit:
    snapshot, cells = view.gpus[gpu], view.cells_of(gpu)
    verdicts = [view.verdicts[cell] for cell in cells if cell in view.verdicts]
    said = {verdict.verdict for verdict in verdicts}
    proved = next((each for each in ("failed", "not run") if each in said), "passed")
    if len(verdicts) < len(cells) or not verdicts:
        proved = "failed" if proved == "failed" else "not run"
    why = ""
    if "failed" in said:
        failed = [verdict.cell for verdict in verdicts if verdict.verdict == "failed"]
        why = f"{', '.join(failed)} failed on it"
    elif view.backend in GPU_BACKENDS and snapshot.sm is None:
        why = f"{view.backend} needs a GPU, and it has no SM"
    elif view.backend in PLAN_BACKENDS and not any(cell in view.plans for cell in cells):
        why = f"there is no plan for SM {dotted(snapshot.sm or 0)}"
    peaks = [
        verdict.utilization.peak_memory_bytes
        for verdict in verdicts
        if verdict.utilization and verdict.utilization.peak_memory_bytes
    ]
    return GpuFit(
        gpu=gpu,
        sm=snapshot.sm,
        chosen=not why,
        proved=proved,  # type: ignore[arg-type]
        memory_bytes=least if least is not None else max(peaks, default=None),
        why=why,
    )


def _terms(view: View, fits: Sequence[GpuFit], names: VersionLabels) -> Iterator[NodeSelectorTerm]:
    """One for each SM, and two where a CUDA minor has to be asked for."""
    by_sm: dict[int, list[GpuFit]] = {}
    for fit in fits:
        if fit.chosen and fit.sm is not None:
            by_sm.setdefault(fit.sm, []).append(fit)
    for sm, chosen in sorted(by_sm.items()):
        memory = max((fit.memory_bytes or 0 for fit in chosen), default=0)
        snapshot = max((view.gpus[fit.gpu] for fit in chosen), key=lambda each: each.created)
        for cuda in _cuda_expressions(snapshot, names):
            expressions = (
                _is(SM_MAJOR, sm // 10),
                _is(SM_MINOR, sm % 10),
                _branch_expression(snapshot, names, exactly=view.backend == "tensorrt"),
                *cuda,
                *((_at_least(MEMORY, math.ceil(memory / _MIB)),) if memory else ()),
            )
            yield NodeSelectorTerm(match_expressions=expressions)


def _branch_expression(
    snapshot: Snapshot, names: VersionLabels, *, exactly: bool
) -> MatchExpression:
    """Newer branches run what older ones do; a plan of classic TensorRT knows its branch."""
    branch = _number(snapshot, "driver")[0]
    return _is(names.branch, branch) if exactly else _at_least(names.branch, branch)


def _cuda_expressions(
    snapshot: Snapshot, names: VersionLabels
) -> tuple[tuple[MatchExpression, ...], ...]:
    """A driver that runs the pinned CUDA: alternatives, as no expression compares two labels."""
    major, minor = (*_number(snapshot, "cuda"), 0)[:2]
    if not minor:
        return ((_at_least(names.cuda_major, major),),)
    same = (_is(names.cuda_major, major), _at_least(names.cuda_minor, minor))
    return (same, (_at_least(names.cuda_major, major + 1),))


def _number(snapshot: Snapshot, pin: str) -> tuple[int, ...]:
    parts = snapshot.pins.get(pin, "").split(".")
    if not all(part.isdigit() for part in parts):
        raise InputError(
            [f"the snapshot of {snapshot.image_name} on {snapshot.gpu} pins no {pin}"],
            mend="planyard build writes a snapshot with the pins of the matrix",
        )
    return tuple(int(part) for part in parts)


def _is(key: str, value: int) -> MatchExpression:
    return MatchExpression(key=key, operator="In", values=(str(value),))


def _at_least(key: str, value: int) -> MatchExpression:
    return MatchExpression(key=key, operator="Gt", values=(str(value - 1),))
