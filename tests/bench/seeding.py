"""A workspace whose matrix is "built", without compiling a thousand plans.

Small blobs stand for images and plans. They enter the store through its own API, under the recipes
that a build computes; then the line of a real build runs over them (images, plans, smoke), finds
all of them, and its own closing step writes the memo. The step of the snapshots would probe the
images in containers, so one snapshot that says nothing of their insides is entered instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

import planyard
from builders.closing import close_build
from builders.image import ImageOrder, order_image
from builders.loading import load
from builders.oci import MANIFEST_TYPE
from builders.pipeline import build
from builders.plan import PlanOrder, order_plans
from builders.snapshots import digest_of_matrix
from builders.workspace import Workspace
from engines import index
from engines.recipe import recipe_inputs
from engines.snapshot import BudgetFigures, DeviceReport, Snapshot, pins_as_text
from engines.store.local_store import LocalStore
from planyard.core.cells import compile_groups, expand
from planyard.core.compat import load_compat
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.gates import gates_off
from planyard.core.reader import LoadedMatrix
from planyard.core.report import BuildReport, SnapshotWritten
from planyard.core.results import ImageRecord, Layer, PlanRecord
from planyard.edge.clock import utc_now
from planyard.edge.console import Console
from tests import tars

BUILD_OPTIONS: tuple[str, ...] = ()
"""The memo is left for `planyard build`, as it stands."""


def seed_workspace(matrix: Path) -> int:
    """Leave the workspace of `matrix` as a finished build leaves it; returns how many plans.

    Wants no NVIDIA GPU in sight: cells that can run here are no part of this.
    """
    root = matrix.parent
    loaded = load(matrix)
    store = LocalStore(root / ".planyard" / "store")
    with Workspace(root=root, store=store, console=Console(quiet=True)) as workspace:
        plans = _fill_store(loaded, workspace=workspace)
        report = build(loaded, patterns=(), workspace=workspace, until="smoke")
        if report.compiled or len(report.plans) != plans:
            raise RuntimeError(f"{len(report.plans)} of {plans} plans were found in the store")
        code = close_build(
            msgspec.structs.replace(report, snapshots=(_put_snapshot(report, loaded, store),)),
            loaded=loaded,
            workspace=workspace,
            matrix=matrix.absolute(),
            options=BUILD_OPTIONS,
            json=False,
            require_smoke=False,
        )
    if code != 0:
        raise RuntimeError(f"the seeded build ended with {code}")
    return plans


def _fill_store(loaded: LoadedMatrix, *, workspace: Workspace) -> int:
    matrix = loaded.matrix
    compilers: dict[str, ImageRecord] = {}
    for name, spec in matrix.images.items():
        for compiler in (False, True):
            image = order_image(name, spec, matrix=matrix, workspace=workspace, compiler=compiler)
            compilers[name] = _put_image(image, workspace.store)
    orders = [
        order
        for group in compile_groups(expand(matrix, load_compat()).cells)
        for order in order_plans(group, matrix=matrix, compiler=compilers[group.image], packages={})
    ]
    for order in orders:
        _put_plan(order, workspace.store)
    return len(orders)


def _put_image(order: ImageOrder, store: LocalStore) -> ImageRecord:
    """An image of one layer with one file."""
    text = f"the layer of {order.name}, {order.recipe.digest}".encode()
    layer = tars.tar([tars.file("opt/image", text)])
    config = canonical_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"User": "65532:65532"},
            "rootfs": {"type": "layers", "diff_ids": [digest_of_bytes(layer)]},
        }
    )
    descriptors = [
        {"mediaType": f"application/octet-stream; {kind}", "digest": digest, "size": len(data)}
        for kind, data in (("config", config), ("layer", layer))
        for digest in [digest_of_bytes(data)]
    ]
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptors[0],
            "layers": descriptors[1:],
        }
    )
    for data in (layer, config, manifest):
        store.put_blob(digest_of_bytes(data), [data])
    record = ImageRecord(
        name=order.name,
        digest=digest_of_bytes(manifest),
        recipe=order.recipe.digest,
        pull_bytes=len(layer) + len(config) + len(manifest),
        unpacked_bytes=len(layer),
        layers=(
            Layer(
                digest=digest_of_bytes(layer),
                diff_id=digest_of_bytes(layer),
                pull_bytes=len(layer),
                unpacked_bytes=len(layer),
                created_by="seeded",
            ),
        ),
    )
    index.put_image(store, record)
    return record


def _put_plan(order: PlanOrder, store: LocalStore) -> None:
    data = f"the plan of {order.cell.id}, {order.digest}".encode()
    store.put_blob(digest_of_bytes(data), [data])
    index.put_plan(
        store,
        PlanRecord(
            cell=order.cell.id,
            recipe=order.digest,
            digest=digest_of_bytes(data),
            size_bytes=len(data),
            backend=order.recipe.backend,
            version=order.recipe.version,
            sm=order.recipe.sm_targets[0],
            model=order.cell.model,
            profile=order.cell.profile,
            precision=order.cell.precision,
            compile_seconds=0.0,
            inputs=recipe_inputs(order.recipe),
        ),
    )


def _put_snapshot(report: BuildReport, loaded: LoadedMatrix, store: LocalStore) -> SnapshotWritten:
    """A snapshot of the first GPU with its share of the plans, none of its fields made up."""
    matrix, image = loaded.matrix, report.images[0]
    gpu = next(iter(matrix.gpus))
    record = next(each for each in index.all_images(store) if each.digest == image.digest)
    snapshot = Snapshot(
        image=record.digest,
        image_name=record.name,
        image_recipe=record.recipe,
        gpu=gpu,
        sm=matrix.gpus[gpu].sm,
        pins=pins_as_text(matrix.pins),
        versions_found={},
        device=DeviceReport(),
        workspace_bytes=int(matrix.compile.workspace),
        plans=tuple(plan for plan in report.plans if plan.cell.endswith(f"/{gpu}")),
        smoke=tuple(each for each in report.verdicts if each.cell.endswith(f"/{gpu}")),
        gates_off=gates_off(matrix.gates, ()),
        budget=BudgetFigures(
            pull_bytes=record.pull_bytes,
            unpacked_bytes=record.unpacked_bytes,
            largest_layer_bytes=record.layers[0].pull_bytes,
        ),
        commit=None,
        matrix_digest=digest_of_matrix(matrix),
        created=utc_now(),
        planyard_version=planyard.__version__,
    )
    digest = index.put_snapshot(store, snapshot)
    return SnapshotWritten(image=record.digest, gpu=gpu, digest=digest)


if __name__ == "__main__":
    print(seed_workspace(Path(sys.argv[1])))
