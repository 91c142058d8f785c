"""What `matrix.yaml` says, as frozen values. The JSON Schema is generated from these types.

Every value stays text or numbers: nothing here is ever given to a shell. How the types are read,
with all errors at once, is `reader.py`; what must hold between fields is `matrix_rules.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from planyard.core.matrix_fields import (
    BuildArgument,
    CellPattern,
    Commit,
    CudaMinor,
    DebianPackage,
    Digest,
    DriverBranch,
    HttpsUrl,
    HubRepository,
    InputShape,
    Name,
    PathInImage,
    PathPattern,
    PinnedPackage,
    PythonMinor,
    Reason,
    RegistryReference,
    S3Url,
    Shape,
    Sm,
    Stage,
)
from planyard.core.matrix_runtime import SessionSpec, TensorRtBuild, Workload
from planyard.core.matrix_smoke import AdmissionSpec, Gates, OwnSmoke, SmokeLimits
from planyard.core.units import ByteSize

MATRIX_SCHEMA = 1

Version = Annotated[
    str,
    Meta(pattern=r"^[0-9]+(\.[0-9]+){0,3}$", description='a version in quotes, like "13.0"'),
]
RelativePath = Annotated[
    str,
    Meta(
        pattern=r"^(?!(?:.*/)?\.\.(?:/|$))[^/\\\x00-\x1f][^\\\x00-\x1f]*$",
        description="a relative path, with / between its parts and no '..' among them",
    ),
]
Backend = Literal["tensorrt-rtx", "tensorrt", "onnxruntime-cpu", "onnxruntime-cuda"]
Precision = Literal["fp32", "fp16", "int8"]
DType = Literal["float32", "float16", "int64", "int32", "uint8", "int8", "bool"]

PLAN_BACKENDS: frozenset[str] = frozenset({"tensorrt-rtx", "tensorrt"})
GPU_BACKENDS: frozenset[str] = frozenset({"tensorrt-rtx", "tensorrt", "onnxruntime-cuda"})


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A level of the matrix: frozen, unknown keys refused."""


class OnnxRuntimePin(_Part, frozen=True, kw_only=True):
    """The ONNX Runtime version, and the wheels (by sha256) it may come from."""

    version: Version
    wheels: dict[str, Digest] = {}


class Pins(_Part, frozen=True, kw_only=True):
    """Versions that must agree with each other; contradictions are refused before any build."""

    driver: DriverBranch
    cuda: CudaMinor
    cudnn: Version
    onnxruntime: OnnxRuntimePin
    tensorrt: Version
    tensorrt_rtx: Version
    python: PythonMinor


class DebianBase(_Part, frozen=True, kw_only=True):
    """A root file system bootstrapped by mmdebstrap from a package list."""

    release: Name
    packages: Annotated[tuple[DebianPackage, ...], Meta(min_length=1)]
    remove: tuple[str, ...] = ()
    """fnmatch patterns of paths that are left out of the root, like `usr/share/man/*`."""


class Base(_Part, frozen=True, kw_only=True):
    """Where an image starts: exactly one of `debian` or `registry`."""

    debian: DebianBase | None = None
    registry: RegistryReference | None = None


class Budget(_Part, frozen=True, kw_only=True):
    """Byte limits of an image; passing one is a finding."""

    pull: ByteSize | None = None
    """Compressed layers, configuration and manifest: what a node downloads."""
    unpacked: ByteSize | None = None
    """All regular files of all layers: what a node's disk holds."""
    largest_layer: ByteSize | None = None
    """The largest compressed layer: what bounds a parallel pull."""


class Accepted(_Part, frozen=True, kw_only=True):
    """A finding of the image audit that is meant: the rule, where it holds, and why."""

    rule: Name
    """Without `image.` in front: `setuid`, `header-files`."""
    path: PathPattern = "*"
    reason: Reason


class Image(_Part, frozen=True, kw_only=True):
    """An image to build: a stage of a Dockerfile, its wheels, its budget."""

    backend: Backend
    base: Name | None = None
    dockerfile: RelativePath = "images/Dockerfile"
    context: RelativePath = "images"
    target: Stage | None = None
    """The Dockerfile stage; the image's own name when left out."""
    compiler: Stage | None = None
    """The stage that compiles this image's plans, or converts the models it serves."""
    lock: RelativePath | None = None
    """pip requirements with hashes for `target`; fetched outside, mounted at /wheels."""
    compiler_lock: RelativePath | None = None
    build_args: dict[BuildArgument, str] = {}
    network: Literal["none", "host"] = "none"
    budget: Budget = Budget()
    lazy_libraries: tuple[str, ...] = ()
    """Libraries that the program opens at run time; they must be in the image too."""
    python: PathInImage = "/usr/bin/python3"
    """The interpreter inside the image that runs the smoke script."""
    smoke: OwnSmoke | None = None
    session: SessionSpec = SessionSpec()
    """How ONNX Runtime's session is made; for the backends of ONNX Runtime only."""
    tensorrt: TensorRtBuild = TensorRtBuild()
    """How plans are built; for the backend `tensorrt` only."""
    admission: AdmissionSpec = AdmissionSpec()
    accept: tuple[Accepted, ...] = ()
    """What the audit finds in it and is meant to be there (docs/image-audit.md)."""


class WheelSource(_Part, frozen=True, kw_only=True):
    """A member of a wheel on the Python package index."""

    package: PinnedPackage
    member: RelativePath


class HuggingFaceSource(_Part, frozen=True, kw_only=True):
    """A file on the Hugging Face Hub at a commit."""

    repository: HubRepository
    revision: Commit
    file: RelativePath


class GeneratorSource(_Part, frozen=True, kw_only=True):
    """A Python script of the matrix's repository that writes the model into the folder given."""

    script: RelativePath
    model: RelativePath = "model.onnx"
    arguments: tuple[str, ...] = ()


class Source(_Part, frozen=True, kw_only=True):
    """Where a model comes from: exactly one of these."""

    file: RelativePath | None = None
    wheel: WheelSource | None = None
    https: HttpsUrl | None = None
    s3: S3Url | None = None
    huggingface: HuggingFaceSource | None = None
    generator: GeneratorSource | None = None


class TensorSpec(_Part, frozen=True, kw_only=True):
    """An input of a model: `shape` names its dynamic dimensions and numbers the fixed ones."""

    dtype: DType
    shape: InputShape


class ShapeRange(_Part, frozen=True, kw_only=True):
    """Minimum, optimum and maximum of one input's shape."""

    min: Shape
    opt: Shape
    max: Shape


class Tolerance(_Part, frozen=True, kw_only=True):
    """How far an output may be from the golden of `ort-cpu` in fp32."""

    max_abs: Annotated[float, Meta(ge=0)]
    mean_abs: Annotated[float, Meta(ge=0)]
    cosine: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Least cosine similarity between an output and its golden."""
    psnr_db: Annotated[float, Meta(ge=0, le=200)] | None = None
    """Least peak signal-to-noise ratio in dB, with the golden's range as peak: for images."""


class Calibration(_Part, frozen=True, kw_only=True):
    """Samples that int8 ranges are measured on: an .npz file with an array for each input.

    The first dimension of every array counts samples; each is fed as a batch of one.
    """

    file: RelativePath
    sha256: Digest


class Model(_Part, frozen=True, kw_only=True):
    """A model: where it comes from, what it is, and the shapes it is served at."""

    source: Source
    sha256: Digest
    external_data: dict[RelativePath, Digest] = {}
    """Files of external weights beside the model, each with its digest."""
    inputs: Annotated[dict[str, TensorSpec], Meta(min_length=1)]
    profiles: Annotated[dict[Name, dict[str, ShapeRange]], Meta(min_length=1)]
    tolerance: dict[Precision, Tolerance] = {}
    calibration: Calibration | None = None
    """Needed for int8, together with `tolerance.int8`."""


class Gpu(_Part, frozen=True, kw_only=True):
    """A place to run: a GPU by its SM, or `cpu` with no SM."""

    sm: Sm | None = None
    backends: Annotated[tuple[Backend, ...], Meta(min_length=1)]
    runs_on: tuple[str, ...] = ()


class Drop(_Part, frozen=True, kw_only=True):
    """A rule that takes cells out of the matrix, with its reason."""

    id: Name
    cells: CellPattern
    reason: Reason


class Compile(_Part, frozen=True, kw_only=True):
    """How plans are compiled; every field is part of a plan's recipe but the limits."""

    memory: ByteSize = msgspec.field(default_factory=lambda: ByteSize(12 * 2**30))
    timeout_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 3600
    workspace: ByteSize = msgspec.field(default_factory=lambda: ByteSize(2 * 2**30))
    optimization_level: Annotated[int, Meta(ge=0, le=5)] | None = None


class Promotion(_Part, frozen=True, kw_only=True):
    """What `planyard promote` asks of an image besides its gates.

    Whose signature counts: a public key beside the matrix, or an identity and its issuer; when
    neither is here, options or the environment of `promote` say it.
    """

    signed: bool = False
    """Only with signed evidence that holds."""
    key: RelativePath | None = None
    identity: str | None = None
    issuer: str | None = None


class Matrix(_Part, frozen=True, kw_only=True):
    """The whole of `matrix.yaml`."""

    schema: Literal[1]
    pins: Pins
    bases: dict[Name, Base] = {}
    images: Annotated[dict[Name, Image], Meta(min_length=1)]
    models: Annotated[dict[Name, Model], Meta(min_length=1)]
    precisions: Annotated[tuple[Precision, ...], Meta(min_length=1)]
    gpus: Annotated[dict[Name, Gpu], Meta(min_length=1)]
    drop: tuple[Drop, ...] = ()
    compile: Compile = msgspec.field(default_factory=Compile)
    smoke: SmokeLimits = msgspec.field(default_factory=SmokeLimits)
    gates: Gates = Gates()
    loads: dict[Name, Workload] = {}
    promotion: Promotion = Promotion()
