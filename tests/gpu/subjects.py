"""What the lane runs: models of `matrix.gpu.yaml`, two that no matrix has, and their limits."""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from planyard.core.attention import count_attention
from planyard.core.cells import Cell
from planyard.core.digest import digest_of_bytes
from planyard.core.gates import gates_of_cell
from planyard.core.matrix import (
    Backend,
    Matrix,
    Model,
    Precision,
    ShapeRange,
    TensorSpec,
    Tolerance,
)
from planyard.core.matrix_smoke import Gates
from planyard.core.reader import read_matrix
from planyard.edge.files import digest_of_file
from smoke.inputs import batch_of, input_shapes
from tests.gpu.machine import ROOT, Places

MATRIX = ROOT / "matrix.gpu.yaml"
GENERATOR = ROOT / "models" / "sd15_unet.py"
UNET, OCR_DET, OCR_REC, SMALL = "sd15-unet", "ocr-det", "ocr-rec", "small"
OCR_REC_DIGEST = "sha256:6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"
IMAGES: Mapping[Backend, str] = {
    "onnxruntime-cpu": "ort-cpu",
    "onnxruntime-cuda": "ort-gpu",
    "tensorrt": "trt",
}


class CannotRunError(Exception):
    """Something that an item needs is not here: it is not run, and this says why."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model at one profile, its ONNX file, and how far from the CPU's its outputs may be."""

    name: str
    profile: str
    precision: Precision
    path: Path
    spec: Model
    tolerance: Tolerance

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The optimum shape of each input."""
        return input_shapes(self.spec.inputs, self.spec.profiles[self.profile])

    @property
    def batch(self) -> int:
        """The batch of these shapes."""
        return batch_of(self.spec.inputs, self.shapes)

    def cell(self, backend: Backend, *, sm: int | None) -> Cell:
        """The cell that this is on a backend; ids are those of the matrix."""
        gpu = "cpu" if sm is None else f"sm{sm}"
        image = IMAGES[backend]
        return Cell(
            id=f"{image}/{self.name}/{self.profile}/{self.precision}/{gpu}",
            image=image,
            model=self.name,
            profile=self.profile,
            precision=self.precision,
            gpu=gpu,
            sm=sm,
            backend=backend,
        )

    def attention_blocks(self) -> int | None:
        """Attention blocks of the graph; None where it cannot be read."""
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return count_attention(memoryview(mapped))
        except ValueError:
            return None


def lane_matrix() -> Matrix:
    """The matrix of the GPU lane."""
    return read_matrix(MATRIX.read_bytes(), name=MATRIX.name)


def gates_here(matrix: Matrix, cell: Cell, **changes: bool) -> Gates:
    """The gates that the matrix gives a cell, but for what a run is not to be asked."""
    return msgspec.structs.replace(gates_of_cell(matrix.gates, cell.id), cells=(), **changes)


def ocr_det(matrix: Matrix, places: Places, *, profile: str = "640") -> Subject:
    """The detector of text, as the matrix has it."""
    spec = matrix.models[OCR_DET]
    return Subject(
        name=OCR_DET,
        profile=profile,
        precision="fp32",
        path=_travelled(places, OCR_DET, spec.sha256),
        spec=spec,
        tolerance=spec.tolerance["fp32"],
    )


def ocr_rec(matrix: Matrix, places: Places) -> Subject:
    """The reader of text, of the same wheel; its outputs are probabilities as well."""
    shape = ShapeRange(min=(1, 3, 48, 320), opt=(4, 3, 48, 320), max=(8, 3, 48, 320))
    spec = msgspec.structs.replace(
        matrix.models[OCR_DET],
        sha256=OCR_REC_DIGEST,
        inputs={"x": TensorSpec(dtype="float32", shape=("batch", 3, 48, "width"))},
        profiles={"320": {"x": shape}},
    )
    return Subject(
        name=OCR_REC,
        profile="320",
        precision="fp32",
        path=_travelled(places, OCR_REC, OCR_REC_DIGEST),
        spec=spec,
        tolerance=spec.tolerance["fp32"],
    )


def unet(matrix: Matrix, places: Places, *, profile: str = "512") -> Subject:
    """Stable Diffusion's UNet; its weights are made here, from their seed, and verified.

    Profile `256` is no matrix's: a quarter of the work, for a processor that is too slow for 512.
    """
    spec = matrix.models[UNET]
    small = {
        name: ShapeRange(min=_at_256(each.min), opt=_at_256(each.opt), max=_at_256(each.max))
        for name, each in spec.profiles["512"].items()
    }
    spec = msgspec.structs.replace(spec, profiles={**spec.profiles, "256": small})
    return Subject(
        name=UNET,
        profile=profile,
        precision="fp16",
        path=_generated(places, spec),
        spec=spec,
        tolerance=UNET_TOLERANCE,
    )


def small(matrix: Matrix, places: Places) -> Subject:
    """Two operators on 1.5 million numbers: what a machine without anything can run."""
    from tests.onnx_models import plain_model

    path = places.work / "models" / f"{SMALL}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    model = plain_model()
    model.ir_version = 8  # what ONNX Runtime of any age reads
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    shape = ShapeRange(min=(1, 3, 256, 256), opt=(8, 3, 256, 256), max=(8, 3, 256, 256))
    spec = msgspec.structs.replace(
        matrix.models[OCR_DET],
        sha256=digest_of_bytes(data),
        inputs={"x": TensorSpec(dtype="float32", shape=("n", 3, "h", "w"))},
        profiles={"256": {"x": shape}},
    )
    return Subject(
        name=SMALL,
        profile="256",
        precision="fp32",
        path=path,
        spec=spec,
        tolerance=spec.tolerance["fp32"],
    )


UNET_TOLERANCE = Tolerance(max_abs=0.02, mean_abs=0.002, cosine=0.999)
"""The lane's own, as the matrix gives none. The golden of seed 0 has a largest value of 0.251 and
a standard deviation of 0.085 (measured on a CPU, at 256 and 512 alike)."""


def _at_256(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A latent of 64 by 64 becomes one of 32 by 32; other shapes stay."""
    return (*shape[:2], 32, 32) if len(shape) == 4 else shape


def _travelled(places: Places, name: str, digest: str) -> Path:
    path = places.model(name)
    if not path.is_file():
        raise CannotRunError(f"{name}.onnx is not here: the parts with the models were not joined")
    if digest_of_file(path) != digest:
        raise CannotRunError(f"{name}.onnx is not the file that the matrix means")
    return path


def _generated(places: Places, spec: Model) -> Path:
    """The UNet's file; made unless it is there whole."""
    folder = places.work / "models" / UNET
    done = folder / "verified"
    if not done.is_file():
        _generator().write_model(folder)
        wanted = {"model.onnx": spec.sha256, **spec.external_data}
        for name, digest in wanted.items():
            if digest_of_file(folder / name) != digest:
                raise CannotRunError(f"the generator made another {name} than the matrix means")
        done.write_text("")
    return folder / "model.onnx"


def _generator() -> Any:
    made = importlib.util.spec_from_file_location("sd15_unet", GENERATOR)
    if made is None or made.loader is None:
        raise CannotRunError("models/sd15_unet.py is not in this checkout")
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module
