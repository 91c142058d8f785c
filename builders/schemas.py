"""Every published JSON Schema by name, generated from the types."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.lookup import lookup_json_schema
from engines.snapshot import any_json, snapshot_json_schema
from planyard.core.report import BuildReport
from planyard.core.schema import matrix_json_schema


def all_schemas() -> dict[str, dict[str, Any]]:
    """The matrix, and the documents of `build`, `lookup` and `snapshot show`."""
    return {
        "matrix": matrix_json_schema(),
        "snapshot": snapshot_json_schema(),
        "lookup": lookup_json_schema(),
        "build": msgspec.json.schema(BuildReport, schema_hook=any_json),
    }
