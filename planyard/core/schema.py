"""JSON Schemas of the documents people and programs rely on, generated from the types.

An editor completes `matrix.yaml` from them. Their text depends on the types alone: same types,
same schema, so a stale file can be told by comparing it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from planyard.core import matrix, matrix_smoke
from planyard.core.matrix import MATRIX_SCHEMA, Base, Matrix, Source
from planyard.core.units import SIZE_PATTERN, ByteSize

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_CHOICES = (Base, Source)
"""Structs of which exactly one key is given."""
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("GB", 10**9), ("MB", 10**6))


def matrix_json_schema() -> dict[str, Any]:
    """The JSON Schema of `matrix.yaml`; what holds between fields is in `matrix_rules.py`."""
    definitions = msgspec.json.schema(Matrix, schema_hook=_custom_schema)["$defs"]
    for kind in _CHOICES:
        definitions[kind.__name__] = _exactly_one(definitions[kind.__name__])
    for name, definition in definitions.items():
        kind = getattr(matrix_smoke, name, None) or getattr(matrix, name)
        _add_defaults(definition, kind)
    document = {
        "$schema": DIALECT,
        "$id": f"urn:planyard:schema:matrix:{MATRIX_SCHEMA}",
        "title": "matrix.yaml",
        "description": "The build matrix of Planyard: images, models, profiles, GPUs.",
        "$ref": "#/$defs/Matrix",
        "$defs": dict(sorted(definitions.items())),
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    return plain  # lists where the types have tuples, as whoever reads the file will see it


def schemas() -> dict[str, dict[str, Any]]:
    """Every published schema, by the name of its file without `.schema.json`."""
    return {"matrix": matrix_json_schema()}


def _custom_schema(kind: type) -> dict[str, Any]:
    """The schema of a type that msgspec does not know."""
    if kind is ByteSize:
        return {
            "type": "string",
            "title": "ByteSize",
            "description": "a number and a unit, like 140 MB or 4 GiB",
            "pattern": SIZE_PATTERN,
            "examples": ["140 MB", "4 GiB"],
        }
    raise NotImplementedError(f"no schema is written for {kind!r}")


def _exactly_one(definition: dict[str, Any]) -> dict[str, Any]:
    """A definition of which one key is given; `null`, the default, is nothing to choose."""
    properties = {}
    for name, field in definition["properties"].items():
        kinds = [kind for kind in field["anyOf"] if kind != {"type": "null"}]
        (properties[name],) = kinds
    return definition | {"properties": properties, "minProperties": 1, "maxProperties": 1}


def _add_defaults(definition: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """Write out the default sizes, which msgspec leaves out of a schema."""
    for field in msgspec.structs.fields(kind):
        if callable(field.default_factory):
            default = field.default_factory()
            if isinstance(default, ByteSize):
                definition["properties"][field.encode_name]["default"] = _size_text(default)


def _size_text(size: ByteSize) -> str:
    """`4 GiB`: a size as it is written, in the largest unit that divides it."""
    for unit, factor in _UNITS:
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"
