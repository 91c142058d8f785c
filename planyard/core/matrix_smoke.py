"""What `matrix.yaml` says of smoke runs, their gates, and admission at start."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from planyard.core.matrix_fields import CellPattern, MigSlice, PathInImage, Reason
from planyard.core.units import ByteSize


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A level of the matrix: frozen, unknown keys refused."""


class SmokeLimits(_Part, frozen=True, kw_only=True):
    """Limits of the container an image is smoked in, and how many requests it answers."""

    memory: ByteSize = msgspec.field(default_factory=lambda: ByteSize(4 * 2**30))
    timeout_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 600
    warmup: Annotated[int, Meta(ge=0, le=10_000)] = 2
    """Requests before the first timed one, in each series."""
    requests: Annotated[int, Meta(ge=5, le=100_000)] = 20
    """Timed requests of a series; fewer (at least 5) where `series_seconds` are over before."""
    series_seconds: Annotated[int, Meta(ge=1, le=3600)] = 10
    batches: Annotated[tuple[Annotated[int, Meta(ge=1, le=4096)], ...], Meta(max_length=8)] = ()
    """Batch sizes, each timed in series of its own; none: the profile's optimum shapes."""
    concurrency: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=256)], ...], Meta(min_length=1, max_length=8)
    ] = (1,)
    """How many requests are under way at once; each number is timed in series of its own."""


class OwnSmoke(_Part, frozen=True, kw_only=True):
    """A smoke command of the image's own, instead of planyard's script (docs/smoke-command.md)."""

    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    """The program inside the image and its arguments; nothing goes through a shell."""


AdmissionCheck = Literal[
    "toolkit",
    "devices",
    "driver",
    "cuda",
    "gpu",
    "sm",
    "memory",
    "mig",
    "libraries",
    "packages",
    "provider",
    "plans",
]
ADMISSION_CHECKS: tuple[AdmissionCheck, ...] = get_args(AdmissionCheck)
"""What `images/admit.py` looks at when an image starts, in its order; docs/admission.md."""


class AdmissionSpec(_Part, frozen=True, kw_only=True):
    """What an image asks of the machine it starts on, besides what follows from the matrix."""

    free_memory: ByteSize | None = None
    """Device memory that has to be free on every visible GPU."""
    mig: MigSlice | None = None
    skip: dict[AdmissionCheck, Reason] = {}
    """Checks that are not made, each with its reason, which the capability snapshot repeats."""
    site: tuple[PathInImage, ...] = ()
    """Folders of Python packages in the image, where they are not Debian's."""
    gpu_seconds: Annotated[int, Meta(ge=1, le=300)] = 5
    """How long the driver may take to answer."""


class LatencyLimits(_Part, frozen=True, kw_only=True):
    """How much slower than the last accepted runs of a cell a run may be: both have to be passed.

    The noise of those runs is a floor under both.
    """

    relative: Annotated[float, Meta(ge=0, le=100)] = 0.25
    """Share over the baseline: 0.25 is a quarter slower."""
    absolute_ms: Annotated[float, Meta(ge=0)] = 2.0
    window: Annotated[int, Meta(ge=1, le=1000)] = 10
    """How many of the last accepted runs of the same cell and GPU are the baseline."""


class UtilizationFloor(_Part, frozen=True, kw_only=True):
    """What NVML has to say of the GPU while a GPU cell answers its requests."""

    gpu_percent: Annotated[float, Meta(ge=0, le=100)] = 20.0
    """Least mean utilization of the busiest GPU, or slice, while requests were answered."""
    memory: ByteSize | None = None
    """Least device memory in use at the peak."""
    throttled_percent: Annotated[float, Meta(ge=0, le=100)] = 50.0
    """Most samples with clocks held down by heat or power, in percent of all."""


class GateChange(_Part, frozen=True, kw_only=True):
    """Other gates or limits for some cells; later entries win over earlier ones."""

    cells: CellPattern
    reason: Reason
    logs: bool | None = None
    providers: bool | None = None
    placement: bool | None = None
    attention: bool | None = None
    outputs: bool | None = None
    latency: bool | None = None
    utilization: bool | None = None
    versions: bool | None = None
    cpu_operators: tuple[str, ...] | None = None
    memcpy_nodes: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    unfused_attention: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    latency_limits: LatencyLimits | None = None
    utilization_floor: UtilizationFloor | None = None


class Gates(_Part, frozen=True, kw_only=True):
    """Which gates judge a smoke run. A gate that is off is named in the snapshot."""

    logs: bool = True
    providers: bool = True
    placement: bool = True
    attention: bool = True
    outputs: bool = True
    latency: bool = True
    utilization: bool = True
    versions: bool = True
    cpu_operators: tuple[str, ...] = ()
    """Operator types that may run on the CPU in a GPU cell: shape arithmetic."""
    memcpy_nodes: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Copies between host and device that ONNX Runtime may put into a graph."""
    unfused_attention: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Attention blocks that may be left unfused."""
    latency_limits: LatencyLimits = LatencyLimits()
    utilization_floor: UtilizationFloor = UtilizationFloor()
    cells: tuple[GateChange, ...] = ()
