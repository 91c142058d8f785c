"""The benchmark measures what it says: matrices of the size it names, and a real memo.

No clock here: what is checked are counts, words and the reading of traces.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from builders.loading import load
from builders.memo import read_memo, state_of
from planyard.core.cells import expand, plan_cells
from planyard.core.compat import load_compat
from tests.bench import full, matrices, seeding
from tests.bench.loading import with_planyard, with_yaml
from tests.bench.measure import BenchError, Command, in_turns, run_once
from tests.bench.nothing_changed import read_trace
from tests.bench.tables import Figure, Section, as_text, update_document

TINY = matrices.Size(models=2, profiles=1, gpus=2)


@pytest.mark.parametrize(
    ("size", "cells"),
    [(matrices.THOUSAND, 1_000), (matrices.TEN_THOUSAND, 10_000), (matrices.LONG_FILE, 10_000)],
)
def test_a_generated_matrix_has_the_cells_it_is_named_for(tmp_path, size, cells):
    matrix = matrices.write_workspace(tmp_path, size)
    found = expand(load(matrix).matrix, load_compat())
    assert (len(found.cells), len(found.dropped)) == (cells, 0)
    assert len({cell.id for cell in found.cells}) == cells == size.cells
    assert plan_cells(found.cells) == found.cells


def test_the_peer_makes_the_same_cells(tmp_path):
    matrix = matrices.write_workspace(tmp_path, matrices.THOUSAND)
    assert with_planyard(matrix).cells == with_yaml(matrix).cells == 1_000


@pytest.fixture
def seeded(tmp_path, monkeypatch):
    """A workspace that a build without Docker, without any program, left finished."""
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    matrix = matrices.write_workspace(tmp_path / "work", TINY)
    assert seeding.seed_workspace(matrix) == TINY.cells == 8
    return matrix


def memo_of(matrix):
    return read_memo(state_of(matrix), matrix=matrix, options=seeding.BUILD_OPTIONS)


def test_a_seeded_workspace_has_nothing_to_do(seeded):
    memo = memo_of(seeded)
    assert memo["summary"]["plans"] == 8
    assert sum(path.startswith("blobs/") for path in memo["stored"]) >= 9


@pytest.mark.parametrize("lost", ["image/Dockerfile", "a blob", "the index", "matrix.yaml"])
def test_a_seeded_workspace_has_something_to_do_when_one_thing_changes(seeded, lost):
    assert memo_of(seeded)
    store = seeded.parent / ".planyard" / "store"
    if lost == "a blob":
        (store / memo_of(seeded)["stored"][0]).unlink()
    elif lost == "the index":
        (store / "index").rename(store / "elsewhere")
    else:
        with (seeded.parent / lost).open("a") as file:
            file.write("# more\n")
    assert memo_of(seeded) is None


TRACE = """\
7 execve("/venv/bin/planyard", ["planyard", "build"], 0x7 /* 5 vars */) = 0
7 openat(AT_FDCWD, "/usr/lib/libc.so.6", O_RDONLY|O_CLOEXEC) = 3
7 openat(AT_FDCWD, "/w/matrix.yaml", O_RDONLY|O_CLOEXEC) = 3
7 openat(AT_FDCWD, "image", O_RDONLY) = 3
7 +++ exited with 0 +++
"""


def test_a_trace_names_the_files_of_the_workspace():
    assert read_trace(TRACE, workspace=Path("/w")) == ("matrix.yaml", "image")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("7 socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 3", "asked the network"),
        ("8 connect(3, {sa_family=AF_UNIX}, 110) = -1 ENOENT", "asked the network"),
        ('7 openat(AT_FDCWD, "/w/models/ocr-000.onnx", O_RDONLY) = 3', "models/ocr-000.onnx"),
        ('9 execve("/usr/bin/git", ["git"], 0x7) = 0', "started 1 programs"),
    ],
)
def test_a_trace_of_more_than_a_look_is_refused(line, says):
    with pytest.raises(BenchError, match=says):
        read_trace(TRACE + line + "\n", workspace=Path("/w"))


def test_a_trace_without_the_workspace_proves_nothing():
    with pytest.raises(BenchError, match="no file at all"):
        read_trace(TRACE.replace('"image"', '"/image"'), workspace=Path("/elsewhere"))


def shell(script, tmp_path, must_say=""):
    args = ["/bin/sh", "-c", script]
    return Command(args=args, cwd=tmp_path, env=dict(os.environ), must_say=must_say)


def test_a_run_that_fails_or_says_something_else_is_no_figure(tmp_path):
    with pytest.raises(BenchError, match="ended with 3"):
        run_once(shell("exit 3", tmp_path))
    with pytest.raises(BenchError, match="did not say 'nothing to do'"):
        run_once(shell("echo built", tmp_path, "nothing to do"))


def test_commands_run_in_turns_and_warm_ups_do_not_count(tmp_path):
    commands = {name: shell(f"echo {name} >> log", tmp_path) for name in ("a", "b")}
    series = in_turns(commands, rounds=2, warm_ups=1)
    assert (tmp_path / "log").read_text().split() == ["a", "b"] * 3
    assert [len(each.runs) for each in series.values()] == [2, 2]


def a_section(key, measured):
    figures = [
        Figure(what="one", measured=measured, target="under 5 ms", reached=False),
        Figure(what="two", measured="3 ms", peer="ninja: 1 ms"),
    ]
    return Section(key=key, title=key, machine="2 cores", figures=figures, notes=["a note"])


def test_a_section_replaces_itself_and_leaves_the_other(tmp_path):
    document = tmp_path / "benchmarks.md"
    update_document(document, a_section("full", "6 ms"))
    update_document(document, a_section("small", "7 ms"))
    update_document(document, a_section("small", "8 ms"))
    text = document.read_text()
    assert text.count("| one | 6 ms | under 5 ms | missed | - |") == 1
    assert "7 ms" not in text
    assert text.count("| one | 8 ms | under 5 ms | missed | - |") == 1
    assert text.index("## small") < text.index("## full")
    assert text.count("# Benchmarks\n") == 1
    assert "| two | 3 ms | - | - | ninja: 1 ms |" in text


def test_what_people_wrote_behind_the_sections_stays(tmp_path):
    document = tmp_path / "benchmarks.md"
    update_document(document, a_section("full", "6 ms"))
    document.write_text(document.read_text() + "\n## Why one was missed\n\nBecause.\n")
    for measured in ("7 ms", "8 ms"):
        update_document(document, a_section("store", measured))
    text = document.read_text()
    assert text.endswith("<!-- full: end -->\n\n## Why one was missed\n\nBecause.\n")
    assert text.count("Because.") == 1


def test_the_table_for_a_terminal_has_every_figure():
    text = as_text(a_section("small", "8 ms"))
    assert "missed" in text
    assert "ninja: 1 ms" in text
    assert "a note" in text


def test_the_change_of_one_profile_fits_the_default_matrix(tmp_path):
    workspace = full.copy_workspace(tmp_path / "work")
    before = load(workspace / "matrix.yaml").matrix
    changed = full.change_profile(workspace / "matrix.yaml")
    after = load(workspace / "matrix.yaml").matrix
    differing = {
        (model, profile)
        for model, spec in before.models.items()
        for profile, shapes in spec.profiles.items()
        if after.models[model].profiles[profile] != shapes
    }
    assert {profile for _, profile in differing} == {full.PROFILE}
    assert changed
    assert all(f"/{full.PROFILE}/" in cell for cell in changed)


def test_a_changed_matrix_without_that_profile_is_refused(tmp_path):
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text("models: {}\n")
    with pytest.raises(BenchError, match="not once"):
        full.change_profile(matrix)


def test_the_generated_yaml_is_what_other_readers_see():
    value = yaml.safe_load(matrices.matrix_text(TINY))
    assert sorted(value["models"]) == list(matrices.model_names(TINY))
    assert json.loads(json.dumps(value)) == value
