"""The folder of a report, and the verb that writes it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from builders.cli import report as cli_report
from builders.cli.verbs import open_store
from builders.page import making, writing
from engines import index
from engines.store.memory import MemoryObjects
from engines.store.store import ObjectStore
from planyard.core.contents import ImageAudit
from planyard.core.errors import InputError
from tests import small_site, workspaces
from tests.capability_sites import a_verdict
from tests.page_stores import a_log, of_image
from tests.signed_evidence import an_image
from tests.unit.test_page import CELL, at

Run = Callable[..., Any]
MADE = "2026-11-22T10:00:00Z"


def put(store: Any, day: int, name: str, verdict: str = "passed", **fields: Any) -> str:
    """A snapshot of an image that is stored; the image's digest."""
    image = an_image(store, name)
    said = a_verdict(
        CELL, verdict, **{"log_digest": a_log(store, stdout=f"log of {name}\n")} | fields
    )
    index.put_snapshot(store, of_image(at(day, name, smoke=(said,)), image))
    return image.digest


@pytest.fixture
def store() -> ObjectStore:
    made = ObjectStore(MemoryObjects())
    put(made, 1, "one")
    return made


def write(store: ObjectStore, folder: Path, **options: Any) -> making.ReportWritten:
    return making.write_report(store, folder, root=folder.parent, made=MADE, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The folder


def test_a_report_links_only_to_files_that_it_wrote(store, tmp_path):
    import re

    write(store, tmp_path / "r")
    for page in (tmp_path / "r").rglob("*.html"):
        for link in re.findall(r'href="([^"#]+)', page.read_text()):
            assert (page.parent / link).is_file(), link
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "index.html",
        "report.json",
        next(path.name for path in (tmp_path / "r").glob("evidence-*")),
    }


def test_the_same_store_gives_the_same_files_and_another_replaces_them(store, tmp_path):
    folder = tmp_path / "r"
    write(store, folder)
    first = contents(folder)
    write(store, folder)
    assert contents(folder) == first
    put(store, 2, "two", "failed")
    write(store, folder)
    second = contents(folder)
    assert len(list(folder.glob("evidence-*"))) == 1
    assert not {name for name in first if name.startswith("evidence")} & set(second)


def test_foreign_files_are_refused_and_beside_a_report_left_alone(store, tmp_path):
    foreign = tmp_path / "r"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that are no report's: thesis\.txt"):
        write(store, foreign)
    assert contents(foreign) == {"thesis.txt": b"mine"}
    (foreign / "thesis.txt").unlink()
    write(store, foreign)
    (foreign / "thesis.txt").write_text("mine")
    put(store, 2, "two")
    write(store, foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "mark", [b"{}", b"not json", b'{"schema":1,"kind":"x","planyard":"","made":"","evidence":""}']
)
def test_a_mark_that_is_not_ours_is_none(store, tmp_path, mark):
    (tmp_path / "report.json").write_bytes(mark)
    (tmp_path / "index.html").write_text("a site")
    with pytest.raises(InputError, match="no report's"):
        write(store, tmp_path)
    assert (tmp_path / "index.html").read_text() == "a site"


def test_a_mark_cannot_make_another_folder_be_removed(store, tmp_path):
    folder, victim = tmp_path / "r", tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    write(store, folder)
    (folder / "evidence-000000000000").symlink_to(victim)
    for evidence in ("../victim", "evidence-000000000000", "."):
        mark = writing.Mark(kind=writing.KIND, planyard="0", made=MADE, evidence=evidence)
        (folder / "report.json").write_bytes(msgspec.json.encode(mark))
        write(store, folder)
        assert (victim / "kept").read_text() == "kept"


def test_a_file_in_the_place_of_the_folder_is_refused(store, tmp_path):
    (tmp_path / "r").write_text("a file")
    with pytest.raises(InputError, match="is no folder"):
        write(store, tmp_path / "r")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no folder"):
        write(store, tmp_path / "dangling")


@pytest.mark.parametrize("there_before", [True, False])
def test_what_fails_half_way_leaves_all_as_it_was(store, tmp_path, monkeypatch, there_before):
    folder = tmp_path / "r"
    if there_before:
        write(store, folder)
    before = contents(folder) if there_before else None
    put(store, 2, "two")

    def fail(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "render_index", fail)
    with pytest.raises(OSError, match="No space"):
        write(store, folder)
    assert (contents(folder) if folder.exists() else None) == before
    assert not list(tmp_path.glob("r/.report-*"))


def test_evidence_that_was_damaged_on_disk_is_written_again(store, tmp_path):
    folder = tmp_path / "r"
    write(store, folder)
    first = contents(folder)
    page = next(folder.glob("evidence-*/cells/*.html"))
    page.write_text("damaged")
    write(store, folder)
    assert contents(folder) == first


# The verb


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The verb in a folder of its own, with a store that has two images."""
    monkeypatch.chdir(tmp_path)
    for name in ("PLANYARD_STORE", "PLANYARD_STORE_CACHE", "GITHUB_ACTIONS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = typer.Typer()
    app.callback()(lambda: None)
    cli_report.add_to(app)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: CliRunner().invoke(app, ["report", *(str(each) for each in args)])
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Any:
    return open_store(None, root=tmp_path)


def test_the_document_says_what_was_written(run, own, tmp_path):
    put(own, 1, "one")
    newest = put(own, 2, "two", "failed")
    done = run("--html", "out", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["cells"] == {"failed": 1, "not run": 0, "no evidence": 0, "passed": 0}
    assert document["images"] == {"rtx": newest}
    assert (document["steps"], document["compared"]) == (2, 1)
    assert (document["pages"], document["logs"], document["damaged"]) == (1, 1, [])
    sizes = [path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()]
    mark = (tmp_path / "out/report.json").stat().st_size
    assert document["size_bytes"] == sum(sizes) - mark
    said = run("--html", "out")
    assert "1 failed" in said.stdout + said.stderr


def test_a_matrix_adds_the_cells_that_nobody_built(run, own, tmp_path):
    small_site.lay_out(tmp_path)
    done = run("--html", "out", "--matrix", "matrix.yaml", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["cells"]["no evidence"] == 6
    assert document["cells"]["passed"] == 0
    text = (tmp_path / "out/index.html").read_text()
    assert text.count(">no evidence</b>") == 6
    assert "dropped by rules" in text


def test_a_damaged_log_ends_with_10_and_the_page_says_so(run, own, tmp_path):
    put(own, 1, "one")
    (log,) = [
        s.smoke[0].log_digest for s in index.snapshots_of_image(own, next(own.keys("snapshots")))
    ]
    workspaces.damage(own, log)
    done = run("--html", "out", "--json")
    assert done.exit_code == 10
    assert len(json.loads(done.stdout)["damaged"]) == 1
    page = next((tmp_path / "out").glob("evidence-*/cells/*.html"))
    assert "is damaged" in page.read_text()
    assert "log of one" not in page.read_text()
    assert not list((tmp_path / "out").rglob("*.txt"))


def test_a_damaged_snapshot_writes_nothing(run, own, tmp_path):
    put(own, 1, "one")
    entries = (tmp_path / ".planyard/store/index/snapshots").rglob("*")
    (path,) = (each for each in entries if each.is_file())
    path.write_bytes(path.read_bytes().replace(b"passed", b"Passed"))
    done = run("--html", "out")
    assert done.exit_code == 10
    assert not (tmp_path / "out").exists()


def test_an_audit_of_the_newest_image_is_shown_and_another_file_refused(run, own, tmp_path):
    image = put(own, 1, "one")
    audit = ImageAudit(
        image=image, name="rtx", pull_bytes=1, unpacked_bytes=1, layers=(), owners=(), packages=()
    )
    (tmp_path / "audit.json").write_bytes(msgspec.json.encode(audit))
    assert run("--html", "out", "--audit", "audit.json").exit_code == 0
    assert "Contents by owner (0)" in (tmp_path / "out/index.html").read_text()
    (tmp_path / "audit.json").write_text("{}")
    refused = run("--html", "other", "--audit", "audit.json")
    assert refused.exit_code == 2
    assert "audit.json: no audit of an image" in refused.output
    assert not (tmp_path / "other").exists()


def test_the_store_is_shown_without_a_password(run, own, tmp_path, monkeypatch):
    put(own, 1, "one")
    url = f"file://{tmp_path}/.planyard/store"
    assert run("--html", "out", "--store", url).exit_code == 0
    assert f"--store {url}" in next((tmp_path / "out").glob("evidence-*/cells/*")).read_text()
    assert cli_report._PASSWORD.sub("", "oci://user:secret@host/x") == "oci://host/x"


def test_an_empty_store_gives_a_page_and_a_warning(run, own, tmp_path):
    done = run("--html", "out")
    assert done.exit_code == 0
    assert "has no snapshots" in done.stderr
    assert "no snapshots yet" in (tmp_path / "out/index.html").read_text()
