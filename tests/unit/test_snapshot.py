"""A snapshot is one JSON document: stable bytes, clear refusals, a published schema."""

from __future__ import annotations

import json
import math

import jsonschema
import msgspec
import pytest

from engines.snapshot import (
    SNAPSHOT_SCHEMA,
    BudgetFigures,
    Commit,
    DeviceReport,
    Snapshot,
    VersionFound,
    from_json,
    pins_as_text,
    snapshot_json_schema,
    to_json,
)
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.findings import Finding
from planyard.core.matrix import OnnxRuntimePin, Pins
from planyard.core.results import NodePlacement, PlanRecord, SmokeVerdict

PLAN = PlanRecord(
    cell="rtx/ocr-det/640/fp16/sm89",
    recipe=digest_of_bytes(b"recipe"),
    digest=digest_of_bytes(b"plan"),
    size_bytes=11_000_000,
    backend="tensorrt-rtx",
    version="1.7.1.116",
    sm=89,
    model="ocr-det",
    profile="640",
    precision="fp16",
    compile_seconds=0.6,
    inputs={"sm": [89], "flags": {"b": 1, "a": None}},
)
SMOKE = SmokeVerdict(
    cell="ort-gpu/ocr-det/640/fp32/l4",
    verdict="failed",
    gates={"logs": "failed", "providers": "failed", "outputs": "off"},
    findings=(
        Finding(gate="logs", rule="ort-cuda-failed", message="CPU", line=3, evidence=("Failed…",)),
    ),
    latencies_ms=(1.5, 2.25),
    placement=(NodePlacement(provider="CPUExecutionProvider", operator="Conv", count=62),),
    log_digest=digest_of_bytes(b"log"),
)
SNAPSHOT = Snapshot(
    image=digest_of_bytes(b"image"),
    image_name="rtx",
    image_recipe=digest_of_bytes(b"image recipe"),
    gpu="sm89",
    sm=89,
    pins={"cuda": "13.0", "driver": "580"},
    versions_found={"tensorrt": VersionFound(version="1.7.1.116", how="imported")},
    device=DeviceReport(),
    workspace_bytes=2 << 30,
    plans=(PLAN,),
    smoke=(SMOKE,),
    gates_off=("outputs",),
    budget=BudgetFigures(pull_bytes=133, unpacked_bytes=318, largest_layer_bytes=95),
    commit=Commit(id="a" * 40, dirty=True),
    matrix_digest=digest_of_bytes(b"matrix"),
    created="2026-11-21T15:00:00Z",
    planyard_version="0.1.0",
)


def changed(**fields: object) -> bytes:
    """The document of SNAPSHOT with other top-level fields."""
    return canonical_json(msgspec.to_builtins(SNAPSHOT) | fields)


def test_a_snapshot_is_read_as_it_was_written() -> None:
    assert from_json(to_json(SNAPSHOT)) == SNAPSHOT


def test_nothing_is_left_out_of_the_document() -> None:
    document = json.loads(to_json(SNAPSHOT))
    assert set(document) == set(Snapshot.__struct_fields__)
    assert document["schema"] == SNAPSHOT_SCHEMA
    assert document["device"] == {"count": None, "driver": None, "fp16": None, "int8": None}


def test_equal_snapshots_are_equal_bytes() -> None:
    turned = dict(reversed(SNAPSHOT.pins.items()))
    assert to_json(msgspec.structs.replace(SNAPSHOT, pins=turned)) == to_json(SNAPSHOT)


def test_a_newer_schema_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError) as raised:
        from_json(changed(schema=7, something_new=1))
    assert "7" in raised.value.message
    assert str(SNAPSHOT_SCHEMA) in raised.value.message
    assert raised.value.mend


def test_a_newer_schema_is_refused_whatever_else_it_says() -> None:
    with pytest.raises(InputError, match="schema 2"):
        from_json(b'{"schema":2,"image":5}')


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema":"1"}',
        b'{"schema":0}',
        b'{"schema":1}',
        b'{"schema":1,"pins":' + b"[" * 100_000,
        to_json(SNAPSHOT)[:-1],
        to_json(SNAPSHOT) + b"x",
        b'{"schema":1,"x":"\xff"}',
    ],
)
def test_what_is_no_snapshot_is_refused(document: bytes) -> None:
    with pytest.raises(InputError) as raised:
        from_json(document)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "rtx:latest"),
        ("image", "sha256:" + "A" * 64),
        ("image_recipe", ""),
        ("matrix_digest", None),
        ("created", "yesterday"),
        ("created", "2026-13-01T00:00:00Z"),
        ("created", "2026-11-21T15:00:00+01:00"),
        ("created", "2026-11-21T15:00:00.5Z"),
        ("workspace_bytes", -1),
        ("commit", {"id": "main", "dirty": False}),
        ("sm", "89"),
        ("plans", [{}]),
        ("smoke", [{"cell": "x", "verdict": "skipped"}]),
        ("budget", {"pull_bytes": 1}),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        from_json(changed(**{field: value}))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_json_has_not_is_refused_before_it_is_written(number: float) -> None:
    smoke = msgspec.structs.replace(SMOKE, latencies_ms=(number,))
    with pytest.raises(InputError, match="cannot be written"):
        to_json(msgspec.structs.replace(SNAPSHOT, smoke=(smoke,)))


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(InputError, match="created"):
        to_json(msgspec.structs.replace(SNAPSHOT, created="now"))
    with pytest.raises(InputError, match="schema"):
        to_json(msgspec.structs.replace(SNAPSHOT, schema=2))


def test_unknown_fields_of_the_same_schema_are_passed_over() -> None:
    assert from_json(changed(added_later=1)) == SNAPSHOT


def test_the_json_schema_takes_a_snapshot_and_refuses_another() -> None:
    schema = snapshot_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(json.loads(to_json(SNAPSHOT)))
    assert list(validator.iter_errors(json.loads(changed(image="latest"))))
    assert list(validator.iter_errors(json.loads(changed(schema=2))))


def test_pins_are_named_texts() -> None:
    pins = Pins(
        driver="580",
        cuda="13.0",
        cudnn="9.28",
        onnxruntime=OnnxRuntimePin(version="1.31.1"),
        tensorrt="11.2",
        tensorrt_rtx="1.7.1.116",
        python="3.11",
    )
    assert pins_as_text(pins)["onnxruntime"] == "1.31.1"
    assert set(pins_as_text(pins)) == set(Pins.__struct_fields__)
