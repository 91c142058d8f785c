"""What the line produces, as frozen values that travel as JSON: images, plans, smoke runs.

Sizes are bytes, times are seconds. Everything here is evidence; verdicts come from the gates.
"""

from __future__ import annotations

from typing import Literal

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
    """What is wrong with its contents, whatever the matrix allows it to weigh."""


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


class SmokeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the script inside the container says: asked, active, placed, produced, how fast."""

    providers_asked: tuple[str, ...] = ()
    providers_active: tuple[str, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    outputs: tuple[TensorEvidence, ...] = ()
    latencies_ms: tuple[float, ...] = ()
    versions: dict[str, str] = {}
    error: str = ""


class SmokeRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one cell in its image: everything the gates may look at.

    `report` is None when the container said nothing readable; `stdout` and `stderr` are whole.
    """

    cell: str
    image: str
    exit_code: int | None
    timed_out: bool
    seconds: float
    stdout: str
    stderr: str
    report: SmokeReport | None = None


class SmokeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement of one cell: `not run` never counts as passed."""

    cell: str
    verdict: Verdict
    reason: str = ""
    gates: dict[str, Verdict | Literal["off"]] = {}
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    latencies_ms: tuple[float, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    log_digest: str = ""
