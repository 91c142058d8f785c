"""The files that `planyard init` writes: all or none, and ours where they are ours."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from builders.cli import init as init_verb
from builders.dockerfile import stage_text
from builders.starting import ours, placing
from builders.starting.placing import lay_down
from builders.starting.start import PLACEHOLDER, WORKFLOW, choices_of, start
from planyard.core.errors import InputError, StoreError

REPOSITORY = Path(__file__).parents[2]
ACTION = "somebody/planyard@" + "1234567890" * 4
TWO = {"a.txt": b"a", "deep/er/b.txt": b"b"}


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"/"
        for path in root.rglob("*")
    }


# All or none


def test_files_are_laid_down(tmp_path):
    assert lay_down(TWO, root=tmp_path / "new") == ()
    assert tree(tmp_path / "new") == {
        "a.txt": b"a",
        "deep": b"/",
        "deep/er": b"/",
        "deep/er/b.txt": b"b",
    }
    assert stat.S_IMODE((tmp_path / "new" / "a.txt").stat().st_mode) == 0o644


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"deep/er/b\.txt: is there already"):
        lay_down(TWO, root=tmp_path)
    assert not (tmp_path / "a.txt").exists()


def test_force_keeps_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    assert lay_down(TWO, root=tmp_path, force=True) == ("a.txt.bak",)
    assert (tmp_path / "a.txt.bak").read_text() == "before"
    assert (tmp_path / "a.txt").read_text() == "a"
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"a\.txt\.bak: is in the way"):
        lay_down(TWO, root=tmp_path, force=True)
    assert tree(tmp_path) == before


def test_a_folder_in_the_way_is_no_file_to_keep(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match=r"a\.txt/: is in the way"):
        lay_down(TWO, root=tmp_path, force=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["write_bytes", "hardlink_to"])
def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, error, at):
    (tmp_path / "a.txt").write_text("before")
    before = tree(tmp_path)
    target = placing.files if at == "write_bytes" else Path
    real, calls = getattr(target, at), []

    def fails(*args: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise error
        real(*args)

    monkeypatch.setattr(target, at, fails)
    with pytest.raises((StoreError, KeyboardInterrupt)):
        lay_down(TWO, root=tmp_path, force=True)
    assert len(calls) == 2
    assert tree(tmp_path) == before


def test_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch):
    def look(path: object) -> bool:
        return False

    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.txt").write_text("somebody's")
    monkeypatch.setattr(os.path, "lexists", look)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="is there already"):
        lay_down(TWO, root=tmp_path)
    assert tree(tmp_path) == before


# What is ours


@pytest.fixture
def example(tmp_path) -> Path:
    start(None, root=tmp_path, choices=choices_of(["rtx", "gpu"]))
    return tmp_path


def test_stages_are_those_that_we_test(example):
    """The instructions of each stage, without comments, are those of images/Dockerfile."""
    mine = (REPOSITORY / "images" / "Dockerfile").read_text()
    theirs = (example / "images" / "Dockerfile").read_text()
    for target in ("rtx", "rtx-compiler", "ort-cpu", "ort-gpu"):
        found, ours_ = (
            stage_text(text, target=target, name="x", arguments={"BASE": "base"})
            for text in (theirs, mine)
        )
        assert found == ours_
        assert "#" not in found
    comments = [line for line in theirs.splitlines() if line.startswith("#")]
    assert len(comments) == len(set(comments))


def test_pins_bases_and_images_are_those_that_we_test(example):
    mine = yaml.safe_load((REPOSITORY / "matrix.yaml").read_text())
    theirs = yaml.safe_load((example / "matrix.yaml").read_text())
    assert [theirs[key] for key in ("pins", "bases", "images")] == [
        mine[key] for key in ("pins", "bases", "images")
    ]


def test_copied_files_are_ours(example):
    for name in (".dockerignore", "admit.py", "install_wheels.py", "locks/rtx.txt"):
        assert (example / "images" / name).read_bytes() == (
            REPOSITORY / "images" / name
        ).read_bytes()


def test_a_block_that_is_gone_is_an_error():
    for cut in (ours.section, ours.image_entry):
        with pytest.raises(LookupError):
            cut("nonsense")
    with pytest.raises(KeyError):
        ours.stages(["nonsense"])


# The workflow, and .gitignore


def test_the_placeholder_is_said_and_cannot_run(example):
    text = (example / WORKFLOW).read_text()
    assert f"uses: {PLACEHOLDER} # FILL IN" in text
    assert text.count("FILL IN") == 2


def test_an_action_fills_the_placeholder(tmp_path):
    done = start(None, root=tmp_path, choices=("cpu",), action=ACTION)
    text = (tmp_path / WORKFLOW).read_text()
    assert f"uses: {ACTION}\n" in text
    assert "FILL IN" not in text
    assert "0" * 40 not in text
    assert not any(WORKFLOW in line for line in done.look_at)
    assert yaml.safe_load(text)["permissions"] == {}


@pytest.mark.parametrize("action", ["planyard", "a/b@main", "a/b@" + "0" * 39, "a b/c@" + "0" * 40])
def test_an_action_is_pinned_by_commit(tmp_path, action):
    with pytest.raises(InputError, match="OWNER/NAME@COMMIT"):
        start(None, root=tmp_path, choices=("cpu",), action=action)
    assert tree(tmp_path) == {}


def test_every_action_of_the_workflow_is_pinned(example):
    text = (example / WORKFLOW).read_text()
    used = re.findall(r"uses: (\S+)", text)
    assert len(used) >= 2
    assert all(re.fullmatch(r"\S+@[0-9a-f]{40}", each) for each in used)
    assert not re.search(r"run:.*\$\{\{", text)


def test_gitignore_is_written_only_where_there_is_none(tmp_path):
    start(None, root=tmp_path / "one", choices=("cpu",))
    assert (tmp_path / "one" / ".gitignore").read_text() == ".planyard/\n"
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / ".gitignore").write_text("dist\n")
    done = start(None, root=tmp_path / "two", choices=("cpu",))
    assert (tmp_path / "two" / ".gitignore").read_text() == "dist\n"
    assert any(line.startswith(".gitignore: add .planyard/") for line in done.look_at)


# The verb


@pytest.fixture
def run(tmp_path, monkeypatch):
    import typer

    app = typer.Typer()
    app.callback()(lambda: None)
    init_verb.add_to(app)
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(app, ["init", *args])


def test_people_are_told_what_was_written_and_what_to_do(run, tmp_path):
    done = run()
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "wrote matrix.yaml" in lines
    assert lines[-1] == "next:  planyard build"
    assert any(PLACEHOLDER in line for line in lines)
    assert {line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")} == {
        name for name, data in tree(tmp_path).items() if data != b"/"
    }


def test_json_is_one_document(run, tmp_path):
    done = run("--json", "--dir", "in", "--image-backend", "rtx")
    document = json.loads(done.stdout)
    assert (document["schema"], document["model"]) == (1, "example")
    assert document["images"] == ["rtx", "ort-cpu"]
    assert document["next"] == "planyard build --matrix in/matrix.yaml"
    assert all((tmp_path / "in" / name).is_file() for name in document["written"])


def test_errors_end_with_2_and_write_nothing(run, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    for args in (["net.onnx"], ["none.onnx"], ["--image-backend", "cuda"], ["--dir", "net.onnx"]):
        done = run(*args)
        assert (done.exit_code, done.stdout) == (2, ""), args
        assert done.stderr.startswith("error: "), args
    assert list(tree(tmp_path)) == ["net.onnx"]
