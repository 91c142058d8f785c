"""Snapshots: what each image proved on each GPU of the matrix, written into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

import planyard
from builders.probing import ProbeReport, probe_image
from builders.workspace import Workspace
from engines import index
from engines.snapshot import (
    BudgetFigures,
    Commit,
    DeviceReport,
    Snapshot,
    pins_as_text,
    to_json,
)
from planyard.core.cells import Cell
from planyard.core.digest import digest_of_bytes, digest_of_value
from planyard.core.findings import Finding
from planyard.core.gates import gates_off
from planyard.core.matrix import Matrix
from planyard.core.reader import LoadedMatrix
from planyard.core.report import SnapshotWritten
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict
from planyard.core.units import ByteSize
from planyard.edge.clock import utc_now
from planyard.edge.git import commit_of


def write_snapshots(
    loaded: LoadedMatrix,
    *,
    cells: Sequence[Cell],
    images: Mapping[str, ImageRecord],
    plans: Mapping[str, PlanRecord],
    verdicts: Mapping[str, SmokeVerdict],
    findings: Mapping[str, tuple[Finding, ...]],
    workspace: Workspace,
) -> tuple[SnapshotWritten, ...]:
    """One snapshot for each image and GPU among the cells; those that say nothing new are kept."""
    found = commit_of(workspace.root)
    commit = Commit(id=found[0], dirty=found[1]) if found else None
    probes = {
        name: probe_image(record, python=loaded.matrix.images[name].python, workspace=workspace)
        for name, record in images.items()
    }
    written = []
    for (image, gpu), mine in _by_image_and_gpu(cells):
        if image not in images:
            continue
        snapshot = _snapshot(
            loaded.matrix,
            image=images[image],
            gpu=gpu,
            cells=mine,
            plans=plans,
            verdicts=verdicts,
            findings=findings[image],
            probe=probes[image],
            commit=commit,
            matrix_digest=digest_of_matrix(loaded.matrix),
        )
        digest = _put_if_new(workspace, snapshot)
        written.append(SnapshotWritten(image=snapshot.image, gpu=gpu, digest=digest))
    return tuple(written)


def _put_if_new(workspace: Workspace, snapshot: Snapshot) -> str:
    """Enter a snapshot, unless one that differs only in its time is the newest of its cells.

    An older one that says the same does not count: what came after it would stay the newest word.
    """
    cells = {verdict.cell for verdict in snapshot.smoke}
    for kept in index.snapshots_of_image(workspace.store, snapshot.image):
        if msgspec.structs.replace(kept, created=snapshot.created) == snapshot:
            return digest_of_bytes(to_json(kept))
        if kept.gpu == snapshot.gpu and cells & {verdict.cell for verdict in kept.smoke}:
            break
    return index.put_snapshot(workspace.store, snapshot)


def digest_of_matrix(matrix: Matrix) -> str:
    """The digest of what the matrix says; comments and order of keys do not count."""
    return digest_of_value(msgspec.to_builtins(matrix, enc_hook=int))


def _by_image_and_gpu(cells: Sequence[Cell]) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.image, cell.gpu), []).append(cell)
    yield from groups.items()


def _snapshot(
    matrix: Matrix,
    *,
    image: ImageRecord,
    gpu: str,
    cells: Sequence[Cell],
    plans: Mapping[str, PlanRecord],
    verdicts: Mapping[str, SmokeVerdict],
    findings: Sequence[Finding],
    probe: ProbeReport,
    commit: Commit | None,
    matrix_digest: str,
) -> Snapshot:
    budget = matrix.images[image.name].budget
    ran = any(verdicts[cell.id].verdict != "not run" for cell in cells)
    on_cpu = matrix.gpus[gpu].sm is None
    return Snapshot(
        image=image.digest,
        image_name=image.name,
        image_recipe=image.recipe,
        gpu=gpu,
        sm=matrix.gpus[gpu].sm,
        pins=pins_as_text(matrix.pins),
        versions_found=probe.versions,
        # Devices say something about this GPU only when its cells ran on them.
        device=probe.device if ran or on_cpu else DeviceReport(count=0),
        workspace_bytes=int(matrix.compile.workspace),
        plans=tuple(plans[cell.id] for cell in cells if cell.id in plans),
        smoke=tuple(verdicts[cell.id] for cell in cells),
        gates_off=gates_off(matrix.gates, tuple(cell.id for cell in cells)),
        budget=BudgetFigures(
            pull_bytes=image.pull_bytes,
            unpacked_bytes=image.unpacked_bytes,
            largest_layer_bytes=max((layer.pull_bytes for layer in image.layers), default=0),
            pull_limit_bytes=_plain(budget.pull),
            unpacked_limit_bytes=_plain(budget.unpacked),
            largest_layer_limit_bytes=_plain(budget.largest_layer),
        ),
        audit=tuple(each for each in findings if each.gate != "budget"),
        commit=commit,
        matrix_digest=matrix_digest,
        created=utc_now(),
        planyard_version=planyard.__version__,
    )


def _plain(size: ByteSize | None) -> int | None:
    return None if size is None else int(size)
