"""The project's own files: schemas fit the types, matrices load, no trace of a machine is left."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

import planyard
from builders.loading import load
from builders.schemas import all_schemas
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.matrix import PLAN_BACKENDS
from planyard.core.reader import load_matrix
from planyard.edge import proc

REPOSITORY = Path(__file__).parents[2]
SCHEMAS = REPOSITORY / "docs" / "schemas"
MATRICES = ("matrix.yaml", "matrix.sd15.yaml", "matrix.gpu.yaml")


@cache
def files() -> tuple[str, ...]:
    """Every file of the repository, as Git names them: tracked, or new and not ignored."""
    args = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    args += ["--cached", "--others", "--exclude-standard"]
    names = proc.run(args, timeout_seconds=30, cwd=REPOSITORY).output.split("\0")
    return tuple(sorted(name for name in names if name and (REPOSITORY / name).is_file()))


@cache
def texts() -> dict[str, str]:
    """The text files of the repository by name."""
    found = {}
    for name in files():
        data = (REPOSITORY / name).read_bytes()
        if b"\0" not in data[:8192]:
            found[name] = data.decode(errors="replace")
    return found


def test_the_files_are_found():
    assert {"pyproject.toml", "matrix.yaml", "images/Dockerfile"} <= set(texts())
    assert len(texts()) > 100


# The schemas


@pytest.mark.parametrize("name", sorted(all_schemas()))
def test_a_schema_is_fresh(name):
    path = SCHEMAS / f"{name}.schema.json"
    assert path.is_file(), "run nox -s schema"
    written = json.loads(path.read_text())
    wanted = json.loads(json.dumps(all_schemas()[name]))
    assert written == wanted, "the types have changed: run nox -s schema"


def test_no_schema_is_left_over():
    on_disk = {path.name.removesuffix(".schema.json") for path in SCHEMAS.iterdir()}
    assert on_disk == set(all_schemas())


@pytest.mark.parametrize("name", sorted(all_schemas()))
def test_a_schema_is_one(name):
    jsonschema.Draft202012Validator.check_schema(all_schemas()[name])


# The matrices


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_fits_the_published_schema(name):
    schema = json.loads((SCHEMAS / "matrix.schema.json").read_text())
    document = yaml.safe_load((REPOSITORY / name).read_text())
    problems = jsonschema.Draft202012Validator(schema).iter_errors(document)
    assert [f"{'.'.join(map(str, each.path))}: {each.message}" for each in problems] == []


@pytest.mark.parametrize("name", MATRICES)
def test_an_editor_finds_the_schema_of_a_matrix(name):
    first = (REPOSITORY / name).read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=docs/schemas/matrix.schema.json"


@pytest.mark.parametrize(
    ("name", "plans"), [("matrix.yaml", 9), ("matrix.sd15.yaml", 2), ("matrix.gpu.yaml", 3)]
)
def test_a_matrix_loads_and_asks_for_the_promised_plans(name, plans):
    matrix = load(REPOSITORY / name).matrix
    expansion = expand(matrix, load_compat())
    assert sum(cell.backend in PLAN_BACKENDS for cell in expansion.cells) == plans
    assert expansion.idle_rules == ()


def test_a_matrix_that_does_not_fit_is_seen():
    schema = json.loads((SCHEMAS / "matrix.schema.json").read_text())
    document = yaml.safe_load((REPOSITORY / "matrix.yaml").read_text())
    document["images"]["rtx"]["bugdet"] = {}
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(document))


# What no file may hold. The patterns are put together here, so that this file does not hold them.

REGISTRIES = [
    ("py" + "pi", "org"),
    ("python" + "hosted", "org"),
    ("deb" + "ian", "org"),
    ("ubun" + "tu", "com"),
    ("npm" + "js", "org"),
    ("npm" + "js", "com"),
    ("ma" + "ven", "org"),
    ("go" + "lang", "org"),
    ("crates", "i" + "o"),
    ("py" + "pi.nvidia", "com"),
]
HOSTS = re.compile(
    "|".join(rf"\b(?:[a-z0-9-]+\.)*{name}\.{top}\b" for name, top in REGISTRIES), re.IGNORECASE
)
PLACES = re.compile(
    r"(?<![\w.$})/-])/(?:"
    + "|".join(["ro" + "ot", "wo" + "rk", "ho" + "me", "Us" + "ers"])
    + r")/\w"
    r"|/tmp/la" + r"b\b"
)


@pytest.mark.parametrize(
    ("what", "pattern"), [("a registry", HOSTS), ("a place on a machine", PLACES)]
)
def test_no_file_names(what, pattern):
    found = [
        f"{name}:{number} names {what}: {line.strip()[:80]}"
        for name, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_a_trace_is_seen():
    assert HOSTS.search("https://files." + "python" + "hosted.org/x")
    assert HOSTS.search("deb http://deb." + "deb" + "ian.org/deb" + "ian bookworm main")
    assert not HOSTS.search("docker.io")  # a Debian package
    assert PLACES.search("see /wo" + "rk/main/x")
    assert PLACES.search("'/ho" + "me/someone/.cache'")
    assert not PLACES.search("$HOME/root/x /usr/bin/x docs/wo" + "rk/x")


# The package


def test_the_version_is_one():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert planyard.__version__ == project["version"]
    assert f"## {project['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_licence_is_the_plain_text():
    text = (REPOSITORY / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def yaml_examples() -> list[tuple[str, str]]:
    documents = [name for name in files() if name.endswith(".md") and "/adr/" not in name]
    return [
        (name, block)
        for name in documents
        for block in YAML_BLOCK.findall((REPOSITORY / name).read_text())
    ]


@pytest.mark.parametrize(("name", "block"), yaml_examples())
def test_examples_in_the_documents_load(name, block):
    """A whole matrix as it stands; a part of one in the place of that part of matrix.yaml."""
    if not block.startswith("schema:"):
        document = yaml.safe_load((REPOSITORY / "matrix.yaml").read_text())
        for key, value in yaml.safe_load(block).items():
            document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
        block = yaml.safe_dump(document)
    assert load_matrix(block.encode(), name=name).matrix


def test_there_are_examples():
    assert {name for name, _ in yaml_examples()} >= {"README.md", "docs/matrix.md"}


LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("name", [name for name in files() if name.endswith(".md")])
def test_links_between_documents_lead_somewhere(name):
    place = (REPOSITORY / name).parent
    links = LINK.findall((REPOSITORY / name).read_text())
    assert [link for link in links if not (place / link).exists()] == []


def test_the_check_in_ci_is_the_readme_command():
    command = "nox -s tests"
    assert command in (REPOSITORY / "README.md").read_text()
    script = (REPOSITORY / ".ci" / "run").read_text()
    assert '"$nox" -s tests -- --require docker,network,s3' in script
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111
