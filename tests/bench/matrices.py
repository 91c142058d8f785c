"""Matrices of a chosen size: OCR-like models with every axis an OCR service has.

A model has the input of a text detector, a profile is a square size, and one image of backend
`tensorrt-rtx` compiles all of them. No rule drops a cell, so the size is the product of the axes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

SMS = (75, 80, 86, 89, 120)
"""Every GPU of a generated matrix; all of them are targets of the pinned backend."""
PRECISIONS = ("fp32", "fp16")

_HEAD = """\
# Generated: {models} models x {profiles} profiles x {precisions} precisions x {gpus} GPUs.
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
  rtx:
    backend: tensorrt-rtx
    dockerfile: image/Dockerfile
    context: image
    compiler: rtx-compiler
    budget: {{pull: 140 MB, unpacked: 340 MB}}

"""
_MODEL = """\
  {name}:
    source: {{file: models/{name}.onnx}}
    sha256: sha256:{sha256}
    inputs:
      x: {{dtype: float32, shape: [batch, 3, height, width]}}
    profiles:
"""
_PROFILE = """\
      "{side}":
        x: {{min: [1, 3, {side}, {side}], opt: [1, 3, {side}, {side}], max: [4, 3, {side}, {side}]}}
"""
_GPU = """\
  sm{sm}:
    sm: {sm}
    backends: [tensorrt-rtx]
    runs_on: [self-hosted, gpu, sm{sm}]
"""
_DOCKERFILE = """\
FROM scratch AS rtx
COPY Dockerfile /Dockerfile
FROM scratch AS rtx-compiler
COPY Dockerfile /Dockerfile
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The axes of a generated matrix."""

    models: int
    profiles: int
    precisions: int = len(PRECISIONS)
    gpus: int = len(SMS)

    @property
    def cells(self) -> int:
        """The product of the axes; the one image adds nothing."""
        return self.models * self.profiles * self.precisions * self.gpus


THOUSAND = Size(models=10, profiles=10)
TEN_THOUSAND = Size(models=100, profiles=10)
LONG_FILE = Size(models=50, profiles=50, gpus=2)
"""10,000 cells from 2,500 profiles instead of 1,000: more of the work is reading the file."""


def matrix_text(size: Size) -> str:
    """The YAML of a matrix with `size.cells` cells."""
    parts = [
        _HEAD.format(
            models=size.models,
            profiles=size.profiles,
            precisions=size.precisions,
            gpus=size.gpus,
        ),
        "models:\n",
    ]
    profiles = "".join(_PROFILE.format(side=320 + 32 * n) for n in range(size.profiles))
    for name in model_names(size):
        parts += [_MODEL.format(name=name, sha256=_hex(model_bytes(name))), profiles]
    parts.append(f"\nprecisions: [{', '.join(PRECISIONS[-size.precisions :])}]\n\ngpus:\n")
    parts += [_GPU.format(sm=sm) for sm in SMS[: size.gpus]]
    return "".join(parts)


def model_names(size: Size) -> tuple[str, ...]:
    """`ocr-000`, `ocr-001`, …"""
    return tuple(f"ocr-{number:03}" for number in range(size.models))


def model_bytes(name: str) -> bytes:
    """What stands for a model's file. It is never parsed: nothing is compiled from it."""
    return f"a model that no benchmark may open: {name}\n".encode() * 64


def write_workspace(folder: Path, size: Size) -> Path:
    """A workspace with the matrix, its models and its image's context; returns the matrix."""
    (folder / "models").mkdir(parents=True)
    for name in model_names(size):
        (folder / "models" / f"{name}.onnx").write_bytes(model_bytes(name))
    (folder / "image").mkdir()
    (folder / "image" / "Dockerfile").write_text(_DOCKERFILE)
    matrix = folder / "matrix.yaml"
    matrix.write_text(matrix_text(size))
    return matrix


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
