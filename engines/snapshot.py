"""A snapshot: what one image proved on one GPU, as a JSON document that is never changed.

Equal snapshots are equal bytes, so a snapshot has a digest; what is written can be read again.
`None` says that nothing could be asked (no device was there); it is never a "no".
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from planyard.core.digest import canonical_json
from planyard.core.errors import InputError
from planyard.core.findings import Finding
from planyard.core.matrix import Pins
from planyard.core.matrix_fields import Digest
from planyard.core.results import PlanRecord, SmokeVerdict

SNAPSHOT_SCHEMA = 1

UtcTime = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
        r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$",
        description="RFC 3339 in UTC to the second, so that text order is time order",
    ),
]
Bytes = Annotated[int, Meta(ge=0)]


class VersionFound(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is really inside the image, and how that was found out."""

    version: str
    how: str
    """`imported`, `file name of /opt/…/libcudnn.so.9`, …: enough to look again."""


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the devices said when asked from inside the image; None where none could be asked."""

    count: Annotated[int, Meta(ge=0)] | None = None
    driver: str | None = None
    fp16: bool | None = None
    int8: bool | None = None


class BudgetFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the image weighs, and the limits it was held against (None: no limit)."""

    pull_bytes: Bytes
    unpacked_bytes: Bytes
    largest_layer_bytes: Bytes
    pull_limit_bytes: Bytes | None = None
    unpacked_limit_bytes: Bytes | None = None
    largest_layer_limit_bytes: Bytes | None = None


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """The Git commit the matrix was read at; `dirty` when files differed from it."""

    id: Annotated[str, Meta(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
    dirty: bool


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one image proved on one GPU of the matrix.

    `image` is the OCI manifest digest, `gpu` the GPU's name in the matrix with its `sm` (None for
    `cpu`). `gates_off` names the gates that did not judge. `commit` is None outside a repository.
    """

    schema: Annotated[int, Meta(ge=1, le=SNAPSHOT_SCHEMA)] = SNAPSHOT_SCHEMA
    image: Digest
    image_name: str
    image_recipe: Digest
    gpu: str
    sm: int | None
    pins: dict[str, str]
    versions_found: dict[str, VersionFound]
    device: DeviceReport
    workspace_bytes: Bytes
    plans: tuple[PlanRecord, ...]
    smoke: tuple[SmokeVerdict, ...]
    gates_off: tuple[str, ...]
    budget: BudgetFigures
    audit: tuple[Finding, ...] = ()
    """What is wrong with what the image holds, by the matrix of this build; budgets apart."""
    commit: Commit | None
    matrix_digest: Digest
    created: UtcTime
    planyard_version: str


class _SchemaNumber(msgspec.Struct):
    schema: int


# Made once: msgspec 0.22 can crash when several threads are the first to decode a type.
_NUMBER = msgspec.json.Decoder(_SchemaNumber)
_SNAPSHOT = msgspec.json.Decoder(Snapshot)


def to_json(snapshot: Snapshot) -> bytes:
    """The snapshot's one encoding. Raises InputError for values that could not be read again."""
    try:
        document = canonical_json(msgspec.to_builtins(snapshot))
    except ValueError as error:  # NaN, infinity, half a surrogate pair
        raise InputError(
            [f"the snapshot of {snapshot.image} cannot be written: {error}"]
        ) from error
    from_json(document)
    return document


def from_json(document: bytes) -> Snapshot:
    """Read a snapshot. Raises InputError that says what is wrong and where."""
    try:
        schema = _NUMBER.decode(document).schema
        if schema != SNAPSHOT_SCHEMA:
            raise InputError(
                [f"the snapshot has schema {schema}; this planyard reads {SNAPSHOT_SCHEMA}"],
                mend="read it with the planyard version that wrote it, or a newer one",
            )
        return _SNAPSHOT.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError([f"not a snapshot: {error}"]) from error


def snapshot_json_schema() -> dict[str, object]:
    """The JSON Schema of a snapshot, made from the types."""
    return msgspec.json.schema(Snapshot, schema_hook=any_json)


def any_json(_: type) -> dict[str, object]:
    """The schema of a field typed `object`: a recipe's inputs are whatever its backend needs."""
    return {"description": "any JSON value"}


def pins_as_text(pins: Pins) -> dict[str, str]:
    """The pins of a matrix by name: `{"cuda": "13.0", "onnxruntime": "1.31.1", …}`."""
    return {
        "driver": pins.driver,
        "cuda": pins.cuda,
        "cudnn": pins.cudnn,
        "onnxruntime": pins.onnxruntime.version,
        "tensorrt": pins.tensorrt,
        "tensorrt_rtx": pins.tensorrt_rtx,
        "python": pins.python,
    }
