"""The command line as readers and programs meet it: help for every verb, one document on stdout."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from builders.cli import add_verbs
from builders.cli import app as planyard_app
from planyard.edge import proc

REPOSITORY = Path(__file__).parents[2]
MATRIX = str(REPOSITORY / "matrix.yaml")
NOWHERE = "sha256:" + "0" * 64

WITH_JSON = {
    *("build", "cells", "doctor", "image build", "log-check", "lookup", "plan build", "plan show"),
    *("channels", "promote", "rollback", "sign", "smoke", "snapshot show", "verify"),
    *("store copy", "store fsck", "store gc", "snapshot diff", "labels"),
    *("image audit", "image diff", "image sbom", "init", "load", "report", "node check"),
    *(f"github {each}" for each in ("jobs", "images", "plans", "smoke", "judge")),
}
WITHOUT_A_RESULT = {"lock", "schema", "setup"}
"""They change files or the machine, and print nothing but progress."""
WITH_MATRIX = {
    *("build", "cells", "channels", "image build", "lock", "plan build", "promote", "rollback"),
    *("load", "smoke", "image audit", "image diff", "image sbom", "report", "node check"),
    *(f"github {each}" for each in ("jobs", "images", "plans", "smoke", "judge")),
}
WITH_SELECT = {
    *("build", "cells", "image build", "load", "plan build", "smoke", "node check"),
    *(f"github {each}" for each in ("jobs", "images", "plans", "smoke", "judge")),
}
WITH_STORE = {
    *("build", "image build", "lookup", "plan build", "sign", "smoke", "snapshot show", "verify"),
    *("load", "channels", "doctor", "promote", "rollback", "store fsck", "store gc"),
    *("snapshot diff", "labels", "image audit", "image diff", "image sbom", "report"),
    *(f"github {each}" for each in ("images", "plans", "smoke", "judge")),
}


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    add_verbs()
    return planyard_app


@pytest.fixture(scope="module")
def verbs(app) -> dict[str, object]:
    """Every verb by its words: `plan show`."""
    found: dict[str, object] = {}

    def add(command: object, words: str) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            found[words] = command
        for name, each in (below or {}).items():
            add(each, f"{words} {name}".strip())

    add(typer.main.get_command(app), "")
    return found


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A verb takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def invoke(*args: str, stdin: str | None = None):
        return CliRunner().invoke(app, list(args), input=stdin)

    return invoke


def options(command) -> dict[str, object]:
    return {name: each for each in command.params for name in each.opts}


def test_the_verbs_are_those_of_the_design(verbs):
    assert set(verbs) == WITH_JSON | WITHOUT_A_RESULT


def test_every_verb_and_option_has_help(verbs):
    for words, command in verbs.items():
        assert command.help, words
        assert command.help.splitlines()[0].endswith("."), words
        silent = [each.name for each in command.params if not getattr(each, "help", "")]
        assert silent in ([], ["requirements"]), words


def test_the_main_verbs_show_an_example(verbs):
    for words in ("build", "cells", "lock", "log-check", "lookup"):
        assert "Example" in verbs[words].help, words


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--json", WITH_JSON),
        ("--matrix", WITH_MATRIX),
        ("--select", WITH_SELECT),
        ("--store", WITH_STORE),
    ],
)
def test_options_are_where_the_design_says(verbs, option, expected):
    assert {words for words, command in verbs.items() if option in options(command)} == expected


def test_options_that_share_a_name_share_a_meaning(verbs):
    meanings: dict[str, set[str]] = {}
    for words, command in verbs.items():
        for name, each in options(command).items():
            if words == "report" and name == "--matrix":
                continue  # it needs none, so it has no default there
            if name in ("--json", "--matrix", "--select", "--store", "--no-setup"):
                meanings.setdefault(name, set()).add(each.help)
    assert {name: len(texts) for name, texts in meanings.items() if len(texts) > 1} == {}


def test_help_is_text_on_stdout(run, verbs):
    for words in verbs:
        result = run(*words.split(), "--help")
        assert result.exit_code == 0, words
        assert result.stdout.startswith(f"Usage: planyard {words}"), words
        assert result.stderr == ""


@pytest.mark.parametrize(
    ("args", "stdin", "code"),
    [
        (["cells", "--json", "--matrix", MATRIX], None, 0),
        (["cells", "--json", "--explain", "--matrix", MATRIX, "--select", "rtx/*"], None, 0),
        (["cells", "--github", "--matrix", MATRIX], None, 0),
        (["log-check", "--json"], "all is well\n", 0),
        (["log-check", "--json"], "Failed to create CUDAExecutionProvider. Require cuDNN 9.*\n", 4),
        (["plan", "show", "--json", MATRIX], None, 10),
        (["doctor", "--json"], None, 0),
    ],
)
def test_json_is_the_only_thing_on_stdout(run, args, stdin, code):
    result = run(*args, stdin=stdin)
    assert result.exit_code == code, result.stderr
    assert isinstance(json.loads(result.stdout), dict | list)
    assert result.stdout.endswith("\n")


@pytest.mark.parametrize(
    "args", [["cells", "--matrix", MATRIX], ["log-check"], ["doctor"]], ids=lambda args: args[0]
)
def test_documents_name_their_schema(run, args):
    result = run(*args, "--json", stdin="")
    assert json.loads(result.stdout)["schema"] == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["cells", "--json"], 2, "matrix.yaml"),
        (["build", "--json"], 2, "matrix.yaml"),
        (["smoke", "--json", "--cell", "a/b/c/d/e"], 2, "matrix.yaml"),
        (["build", "--json", "--matrix", MATRIX, "--select", "nothing/*"], 3, "nothing/*"),
        (["cells", "--json", "--matrix", MATRIX, "--select", "nothing/*"], 3, "nothing/*"),
        (["lookup", "--json", NOWHERE], 9, "0000"),
        (["lookup", "--json", "not-a-digest"], 2, "not-a-digest"),
        (["lookup", "--json", "--store", "http://bucket", NOWHERE], 2, "s3://bucket"),
        (["log-check", "--json", "no-such-file"], 2, "no-such-file"),
        (["plan", "show", "--json", "no-such-file"], 2, "no-such-file"),
        (["cells", "--nonsense"], 2, "--nonsense"),
    ],
)
def test_an_error_says_so_on_stderr_alone(run, args, code, said):
    result = run(*args)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_cells_are_one_a_line(run):
    result = run("cells", "--matrix", MATRIX)
    assert result.stdout.splitlines()[0].count("/") == 4
    assert "dropped" in result.stderr


def test_nothing_is_written_where_the_matrix_is_wrong(run, tmp_path):
    (tmp_path / "matrix.yaml").write_text("schema: 1\nimgaes: {}\n")
    result = run("build")
    assert result.exit_code == 2
    assert "imgaes" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.yaml"]


def test_problems_become_annotations_on_github(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (tmp_path / "matrix.yaml").write_text("schema: 1\nimgaes: {}\n")
    result = run("cells")
    assert "::error file=matrix.yaml,line=2,col=1::" in result.stderr
    assert result.stdout == ""


def test_no_colour_where_none_is_wanted(run, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\033[" in run("cells", "--json").stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in run("cells", "--json").stderr


def test_the_module_is_the_command():
    """`python -m builders`, as a process of its own."""
    args = [sys.executable, "-m", "builders", "--help"]
    said = proc.run(args, timeout_seconds=60, cwd=REPOSITORY).output
    for words in (*WITH_JSON, *WITHOUT_A_RESULT):
        assert words.split()[0] in said
    version = proc.run([*args[:-1], "--version"], timeout_seconds=60, cwd=REPOSITORY).output
    assert version.startswith("planyard 0.")
