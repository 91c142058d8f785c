import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from planyard.core import schema as schema_module
from planyard.core.reader import read_matrix
from planyard.core.schema import matrix_json_schema, schemas

VALID = (Path(__file__).parents[1] / "data/matrix/valid.yaml").read_text()
SCHEMA = matrix_json_schema()


def errors(value):
    checker = jsonschema.Draft202012Validator(SCHEMA)
    return sorted(error.message for error in checker.iter_errors(value))


def value_of(text=VALID):
    """The valid matrix as an editor's YAML language server would see it."""
    return yaml.safe_load(text)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["$id"] == "urn:planyard:schema:matrix:1"


def test_the_valid_matrix_fits():
    assert errors(value_of()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("schema: 1", "schema: 2"),
        ("pull: 140 MB", "pull: 140 mb"),
        ("pull: 140 MB", "pull: 140"),
        ("pull: 140 MB", "pul: 140 MB"),
        ("backend: tensorrt-rtx", "backend: other"),
        ("sha256: sha256:3", "sha256: sha256:33"),
        ('cudnn: "9.14.0"', "cudnn: 9.10"),
        ("images/locks/rtx.txt", "images/../../rtx.txt"),
        ("[n, 3, h, w]", "[-1, 3, h, w]"),
        ("precisions: [fp32, fp16]", "precisions: []"),
        ("  distroless:\n", "  distroless:\n    debian: {release: sid, packages: [libc6]}\n"),
        ("  distroless:\n", "  empty: {}\n  distroless:\n"),
    ],
)
def test_an_editor_shows_what_the_reader_refuses(old, new):
    assert len(errors(value_of(VALID.replace(old, new, 1)))) == 1


def test_every_default_is_one_that_the_reader_takes():
    fewest = value_of()
    for key in ("drop", "compile", "gates", "smoke"):
        fewest.pop(key, None)
    assert errors(fewest) == []
    with_defaults = fewest | {
        key: {name: field["default"] for name, field in SCHEMA["$defs"][kind]["properties"].items()}
        for key, kind in (("compile", "Compile"), ("gates", "Gates"), ("smoke", "SmokeLimits"))
    }
    assert errors(with_defaults) == []
    assert with_defaults["compile"]["memory"] == "12 GiB"
    read = read_matrix(json.dumps(with_defaults).encode())
    assert read == read_matrix(json.dumps(fewest).encode())


def test_every_struct_is_described_and_closed():
    for name, definition in SCHEMA["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert definition["description"], name


def test_the_text_is_the_same_every_time():
    before = json.dumps(SCHEMA)
    assert json.dumps(matrix_json_schema()) == before
    assert schemas()["matrix"] == SCHEMA
    assert list(SCHEMA["$defs"]) == sorted(SCHEMA["$defs"])


def test_a_type_without_a_schema_is_a_bug():
    class Odd(msgspec.Struct):
        value: Path

    with pytest.raises(TypeError, match="custom types requires"):
        msgspec.json.schema(Odd, schema_hook=schema_module._custom_schema)
