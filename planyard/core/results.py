"""What the line produces, as frozen values that travel as JSON: images, plans, smoke runs.

Sizes are bytes, times are seconds. Everything here is evidence; verdicts come from the gates.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from planyard.core.findings import Finding

Verdict = Literal["passed", "failed", "not run"]


class FileSize(msgspec.Struct, frozen=True, kw_only=True):
    """A file inside an image and what it weighs, unpacked."""

    path: str
    size_bytes: int


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of an image: as pulled (`digest`, compressed) and as unpacked."""

    digest: str
    diff_id: str
    pull_bytes: int
    unpacked_bytes: int
    created_by: str
    largest_files: tuple[FileSize, ...] = ()


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A built image. `digest` is its OCI manifest digest, the one a registry serves."""

    name: str
    digest: str
    recipe: str
    pull_bytes: int
    unpacked_bytes: int
    layers: tuple[Layer, ...]
    base: tuple[Package, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What earlier versions found wrong with its contents; now a snapshot's audit says it."""


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A Debian package that was resolved for a base."""

    name: str
    version: str
    sha256: str


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled plan: `recipe` is the digest of its inputs, `digest` of its bytes."""

    cell: str
    recipe: str
    digest: str
    size_bytes: int
    backend: str
    version: str
    sm: int
    model: str
    profile: str
    precision: str
    compile_seconds: float
    inputs: dict[str, object]
    """The whole recipe, readable: what `recipe` is the digest of."""
    inspector: str = ""
    """The digest of what TensorRT's engine inspector says of its layers (JSON), kept beside it."""
    timing_cache: str = ""
    """The digest of the timing cache after this plan was built: what a `replay` names."""


class NodePlacement(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes of one operator type ran on one provider."""

    provider: str
    operator: str
    count: int


class TensorEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """An output: its shape and the file (below the run's folder) that holds its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str


class LatencySeries(msgspec.Struct, frozen=True, kw_only=True):
    """Timed requests at one batch size and concurrency, in the order they ended.

    `reference_ms` are times of a fixed load on the same device, taken beside the requests (GPU
    runs); for CPU runs the host measures its own, see `SmokeRun.reference_ms`.
    """

    batch: int
    concurrency: int
    latencies_ms: tuple[float, ...]
    reference_ms: tuple[float, ...] = ()
    began_seconds: float | None = None
    """When the first timed request of this series began, and below when the last ended: seconds of
    the epoch."""
    ended_seconds: float | None = None


class LoadedLibrary(msgspec.Struct, frozen=True, kw_only=True):
    """A library that the process had loaded after its requests, and the version it says it is."""

    version: str
    path: str


class AttentionFound(msgspec.Struct, frozen=True, kw_only=True):
    """Fused attention in what was run: `fused` kernels, by operator or layer type; `how` known."""

    fused: int
    kinds: dict[str, int] = {}
    how: str = ""


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """What NVML said of one GPU or MIG slice at one moment of a run; None where it cannot say.

    `at_seconds` counts from the container's start; `gpu_percent` and `memory_percent` are NVML's
    utilization rates; `throttled` names the reasons that hold clocks down because of heat or power.
    """

    at_seconds: float
    gpu: str
    gpu_percent: float | None = None
    memory_percent: float | None = None
    memory_used_bytes: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_watts: float | None = None
    throttled: tuple[str, ...] = ()


class SessionFound(msgspec.Struct, frozen=True, kw_only=True):
    """How ONNX Runtime's session was really made.

    `baked` is the file in the image, None where there is none; `options` are what the session says
    of each active provider; `io_binding` and `pinned_memory` say how requests were made.
    """

    baked: dict[str, Any] | None = None
    options: dict[str, dict[str, str]] = {}
    io_binding: bool = False
    pinned_memory: bool = False


class SmokeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the script inside the container says: asked, active, placed, produced, how fast."""

    providers_asked: tuple[str, ...] = ()
    providers_active: tuple[str, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    outputs: tuple[TensorEvidence, ...] = ()
    latencies_ms: tuple[float, ...] = ()
    """The times of the first series."""
    series: tuple[LatencySeries, ...] = ()
    memcpy_nodes: int | None = None
    """Copies between host and device in the graph that was run; None when nothing counted them."""
    cpu_fallback_refused: bool | None = None
    """Whether a session that may not fall back to the CPU was refused; None when not tried."""
    cpu_fallback_said: str = ""
    """With which words it was refused."""
    attention: AttentionFound | None = None
    session: SessionFound | None = None
    loaded: dict[str, LoadedLibrary] = {}
    """Libraries in the process's memory, by the names of the pins."""
    requests_began_seconds: float | None = None
    """When the first timed request began, and below when the last ended: seconds of the epoch."""
    requests_ended_seconds: float | None = None
    versions: dict[str, str] = {}
    error: str = ""


class SmokeRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one cell in its image: everything the gates may look at.

    `report` is None when the container said nothing readable; `stdout` and `stderr` are whole.
    `began_seconds` is when the container was started, in seconds of the epoch.
    """

    cell: str
    image: str
    exit_code: int | None
    timed_out: bool
    seconds: float
    stdout: str
    stderr: str
    report: SmokeReport | None = None
    out_of_memory: bool = False
    began_seconds: float = 0.0
    own_command: bool = False
    """The image's own smoke command ran, and reported by the protocol of docs/smoke-command.md."""
    memory_limit_bytes: int | None = None
    flooded: Literal["", "stdout", "stderr"] = ""
    """The stream that passed its limit: the run was stopped, and only its beginning is kept."""
    problems: tuple[str, ...] = ()
    """What was reported and cannot be read, with how to mend it: each one fails the run."""
    reference_ms: tuple[float, ...] = ()
    """Times of a fixed load on the host's cores, taken around the run."""
    gpu_samples: tuple[GpuSample, ...] | None = None
    """What NVML said during the run; None when nobody asked (a CPU cell)."""
    gpu_error: str = ""
    """Why NVML could not be asked."""


class LatencyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in ms at one batch size and concurrency, and what they were held against.

    `baseline_p50_ms` is None for a first run; `baseline_runs` accepted runs made it. Baselines are
    already scaled by how fast the reference load was in this run.
    """

    batch: int
    concurrency: int
    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    reference_ms: float | None = None
    baseline_p50_ms: float | None = None
    baseline_p95_ms: float | None = None
    baseline_runs: int = 0


class AttentionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Attention blocks in the model's graph, and how many of them ran fused."""

    blocks: int
    fused: int | None
    how: str = ""


class UtilizationFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Means and peaks over the samples while requests were answered."""

    samples: int
    gpu_percent: float | None = None
    peak_memory_bytes: int | None = None
    throttled_percent: float = 0.0
    throttled_by: tuple[str, ...] = ()


class SmokeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement of one cell: `not run` never counts as passed."""

    cell: str
    verdict: Verdict
    reason: str = ""
    gates: dict[str, Verdict | Literal["off"]] = {}
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    latencies_ms: tuple[float, ...] = ()
    latency: tuple[LatencyFigures, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    memcpy_nodes: int | None = None
    attention: AttentionFigures | None = None
    utilization: UtilizationFigures | None = None
    loaded: dict[str, LoadedLibrary] = {}
    """Versions the libraries in the process's memory said they were, by the names of the pins."""
    log_digest: str = ""
