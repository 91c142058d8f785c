"""A small matrix with its files and images in a store: a whole build without Docker.

Three images (`cpu` makes the goldens, `gpu` and `rtx` need SM 8.9), one ONNX model at two sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from builders.image import order_image
from builders.loading import load
from builders.models import FetchedModel, fetch_model
from builders.oci import store_image
from builders.workspace import Workspace
from engines import index
from engines.store.local_store import LocalStore
from planyard.core.cells import Cell, expand
from planyard.core.compat import load_compat
from planyard.core.digest import digest_of_bytes
from planyard.core.reader import LoadedMatrix
from planyard.core.results import ImageRecord
from planyard.edge.console import Console
from planyard.edge.docker import Container, Ended
from tests import onnx_models, tars
from tests.smoke_runs import LocalEngine

MODEL = onnx_models.plain_model().SerializeToString()
MATRIX = f"""\
schema: 1
pins:
  driver: "580"
  cuda: "13.0"
  cudnn: "9.28.0.42"
  onnxruntime: {{version: "1.31.1"}}
  tensorrt: "11.2.1.2"
  tensorrt_rtx: "1.7.1.116"
  python: "3.11"
images:
  cpu: {{backend: onnxruntime-cpu, dockerfile: ours/Dockerfile, context: ours}}
  gpu: {{backend: onnxruntime-cuda, dockerfile: ours/Dockerfile, context: ours}}
  rtx: {{backend: tensorrt-rtx, dockerfile: ours/Dockerfile, context: ours, compiler: compiler}}
models:
  plain:
    source: {{file: models/plain.onnx}}
    sha256: {digest_of_bytes(MODEL)}
    inputs:
      x: {{dtype: float32, shape: [n, 3, h, w]}}
    profiles:
      "8": {{x: {{min: [1, 3, 8, 8], opt: [1, 3, 8, 8], max: [2, 3, 8, 8]}}}}
      "16": {{x: {{min: [1, 3, 16, 16], opt: [1, 3, 16, 16], max: [2, 3, 16, 16]}}}}
    tolerance:
      fp32: {{max_abs: 0.001, mean_abs: 0.0001}}
precisions: [fp32]
gpus:
  cpu: {{backends: [onnxruntime-cpu]}}
  sm89: {{sm: 89, backends: [onnxruntime-cuda, tensorrt-rtx]}}
"""
DOCKERFILE = """\
FROM scratch AS cpu
FROM scratch AS gpu
FROM scratch AS rtx
FROM scratch AS compiler
"""


def lay_out(root: Path, *, matrix: str = MATRIX) -> LoadedMatrix:
    """Write the matrix and everything it names below `root`."""
    for name, data in (
        ("matrix.yaml", matrix.encode()),
        ("ours/Dockerfile", DOCKERFILE.encode()),
        ("models/plain.onnx", MODEL),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return load(root / "matrix.yaml")


def workspace_of(root: Path, runner: Callable[[Container], Ended], **engine: Any) -> Workspace:
    """A workspace whose engine is this machine."""
    local: Any = LocalEngine(runner, **engine)
    return Workspace(
        root=root,
        store=LocalStore(root / ".planyard" / "store"),
        console=Console(quiet=True),
        may_install=False,
        _engine=local,
    )


def put_images(
    loaded: LoadedMatrix, workspace: Workspace, *, names: tuple[str, ...] = ("cpu", "gpu", "rtx")
) -> dict[str, ImageRecord]:
    """Images in the store under the recipes that a build will ask for; the compiler's too."""
    wanted = [(name, False) for name in names] + [("rtx", True)] * ("rtx" in names)
    images = [put_image_of(name, loaded, workspace, compiler=each) for name, each in wanted]
    return {image.name: image for image in images}


def put_image_of(
    name: str, loaded: LoadedMatrix, workspace: Workspace, *, compiler: bool = False
) -> ImageRecord:
    """One image of the matrix, or its compiler, in the store."""
    spec = loaded.matrix.images[name]
    order = order_image(name, spec, matrix=loaded.matrix, workspace=workspace, compiler=compiler)
    return _put_image(order.name, order.recipe.digest, workspace)


def _put_image(name: str, recipe: str, workspace: Workspace) -> ImageRecord:
    workspace.scratch.mkdir(parents=True, exist_ok=True)
    layer = tars.tar([tars.file("who", name.encode() * 10)])
    archive = tars.docker_archive(workspace.scratch / "saved.tar", [layer])
    stored = store_image(archive, store=workspace.store, scratch=workspace.scratch, epoch_seconds=0)
    archive.unlink()
    record = ImageRecord(
        name=name,
        digest=stored.digest,
        recipe=recipe,
        pull_bytes=stored.pull_bytes,
        unpacked_bytes=stored.unpacked_bytes,
        layers=stored.layers,
    )
    index.put_image(workspace.store, record)
    return record


def cells_of(loaded: LoadedMatrix) -> dict[str, Cell]:
    """Every cell of the matrix by its id."""
    return {cell.id: cell for cell in expand(loaded.matrix, load_compat()).cells}


def model_of(loaded: LoadedMatrix, workspace: Workspace) -> FetchedModel:
    """The one model."""
    return fetch_model(
        "plain",
        loaded.matrix.models["plain"],
        root=workspace.root,
        cache=workspace.cache,
        network=False,
        report=lambda _: None,
    )


def plain(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model computes."""
    return {"y": np.maximum(feeds["x"], 0) + np.float32(0.5)}


def with_gates(loaded: LoadedMatrix, **changes: Any) -> LoadedMatrix:
    """The same matrix with other gates."""
    gates = msgspec.structs.replace(loaded.matrix.gates, **changes)
    matrix = msgspec.structs.replace(loaded.matrix, gates=gates)
    return msgspec.structs.replace(loaded, matrix=matrix)
