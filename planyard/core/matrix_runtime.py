"""What `matrix.yaml` says of how models run: sessions, the builder of plans, workloads."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from planyard.core.matrix_fields import CellPattern, Digest
from planyard.core.units import ByteSize


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A level of the matrix: frozen, unknown keys refused."""


Provider = Literal["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
PROVIDER_NAMES: tuple[Provider, ...] = get_args(Provider)


class SessionSpec(_Part, frozen=True, kw_only=True):
    """How ONNX Runtime's session is made, in the smoke run and in the service.

    It is baked into the image as `/etc/planyard/session.json` (docs/sessions.md) and held against
    what the session itself says. None means ONNX Runtime's own default.
    """

    providers: tuple[Provider, ...] = ()
    """In this order and no other; none: the backend's own provider. No CPU in a GPU image."""
    io_binding: bool = False
    """Inputs and outputs stay on the device; copies are not part of a request's time."""
    pinned_memory: bool = False
    """A request copies its inputs to the device and its outputs back, by page-locked memory; needs
    `io_binding`."""
    gpu_memory: ByteSize | None = None
    """Limit of the CUDA arena (`gpu_mem_limit`)."""
    arena: Literal["next-power-of-two", "same-as-requested"] | None = None
    """How the CUDA arena grows (`arena_extend_strategy`)."""
    copy_stream: Literal["compute", "own"] | None = None
    """Which stream copies run on (`do_copy_in_default_stream`)."""
    cudnn_search: Literal["exhaustive", "heuristic", "default"] | None = None
    """How cuDNN's convolution algorithm is chosen (`cudnn_conv_algo_search`)."""
    tf32: bool | None = None
    """Whether matrix products of fp32 may be rounded to TF32 (`use_tf32`)."""
    cuda_graph: bool = False
    """Requests are replayed as one CUDA graph (`enable_cuda_graph`); needs `io_binding`."""
    intra_threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Threads inside an operator on the CPU."""


class TensorRtBuild(_Part, frozen=True, kw_only=True):
    """What classic TensorRT is asked for besides `compile`; all of it is in the recipe."""

    runtime: Literal["full", "lean"] = "full"
    """The library in the image: the lean one runs version-compatible plans only."""
    version_compatible: bool = False
    """Plans that a later minor version of TensorRT runs as well."""
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    """Which other GPUs a plan runs on."""
    refit_identical: bool = False
    """Plans without their weights, which are put back from the model when they are loaded."""
    keep_timings: bool = True
    """Tactics measured once for a GPU, driver and TensorRT are not measured again."""
    replay: Digest | None = None
    """A kept timing cache to build from, and an error for what it does not hold."""


class Workload(_Part, frozen=True, kw_only=True):
    """Requests to measure: `planyard load NAME` (docs/load.md).

    A request runs the model `steps` times, one after another, as a diffusion model is asked.
    """

    cells: CellPattern
    """Cells it is for: fnmatch over image/model/profile/precision/gpu."""
    steps: Annotated[int, Meta(ge=1, le=1000)] = 1
    batches: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=4096)], ...], Meta(min_length=1, max_length=16)
    ] = (1,)
    """Sizes of the model's batch dimension."""
    concurrency: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=256)], ...], Meta(min_length=1, max_length=8)
    ] = (1,)
    contexts: Annotated[int, Meta(ge=1, le=256)] | None = None
    """Execution contexts of a plan: other requests wait for one, as behind a service's queue. Each
    has device memory for the profile's largest batch. None: one for each request under way."""
    requests: Annotated[int, Meta(ge=5, le=100_000)] = 20
    """Timed requests of each batch size and concurrency."""
    warmup: Annotated[int, Meta(ge=0, le=10_000)] = 2
    series_seconds: Annotated[int, Meta(ge=1, le=3600)] = 60
    """No request is begun later than this, but for the first five."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    memory: ByteSize = msgspec.field(default_factory=lambda: ByteSize(8 * 2**30))
    timeout_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 3600
