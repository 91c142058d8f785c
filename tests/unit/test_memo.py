"""The memo of the last build: it holds only while nothing that a build reads has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builders.closing import close_build
from builders.loading import load
from builders.memo import (
    memo_of,
    memo_path,
    named_matrix,
    own_files,
    read_memo,
    report_path,
    stamp_of,
    state_of,
)
from builders.workspace import Workspace
from engines.store.local_store import LocalStore
from planyard.core.report import BuildReport, ImageOutcome
from planyard.core.results import SmokeVerdict
from planyard.edge.console import Console
from tests import small_site

OPTIONS = ["--select", "rtx/*"]
NOT_RUN = SmokeVerdict(cell="a/b/c/d/e", verdict="not run", reason="no GPU")


@dataclass
class Kept:
    """A workspace whose last build left a memo."""

    root: Path
    options: list[str] = field(default_factory=lambda: list(OPTIONS))

    def path(self, name: str) -> Path:
        return self.root / name

    def leave(self) -> None:
        memo = memo_of(
            matrix=self.path("matrix.yaml"),
            options=OPTIONS,
            inputs=[self.path("Dockerfile"), self.path("context")],
            store=self.path("store"),
            stored=["blobs/aa", "index/b/bb", "blobs/aa"],
            summary={"plans": 9},
        )
        memo_path(self.path("state")).write_text(json.dumps(memo))
        report_path(self.path("state")).write_text("{}")

    def read(self) -> dict[str, object] | None:
        state = self.path("state")
        return read_memo(state, matrix=self.path("matrix.yaml"), options=self.options)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    for name in ("state", "store/blobs", "store/index/b", "context/deep"):
        (tmp_path / name).mkdir(parents=True)
    named = ("matrix.yaml", "Dockerfile", "context/a", "context/deep/b")
    for name in (*named, "store/blobs/aa", "store/index/b/bb"):
        (tmp_path / name).write_text("text")
    found = Kept(tmp_path)
    found.leave()
    return found


def test_a_memo_holds_while_nothing_changes(kept: Kept) -> None:
    memo = kept.read()
    assert memo is not None
    assert memo["summary"] == {"plans": 9}
    assert memo["stored"] == ["blobs/aa", "index/b/bb"]


def touch(path: Path) -> None:
    """Another modification time, whatever the clock says."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Kept], object]] = {
    "the matrix says something else": lambda kept: kept.path("matrix.yaml").write_text("next"),
    "the matrix is gone": lambda kept: kept.path("matrix.yaml").unlink(),
    "another selection": lambda kept: kept.options.append("--require-smoke"),
    "a file was written again": lambda kept: touch(kept.path("Dockerfile")),
    "a file in a folder was written": lambda kept: touch(kept.path("context/deep/b")),
    "a file in a folder grew": lambda kept: kept.path("context/a").write_text("longer text"),
    "a file came": lambda kept: kept.path("context/deep/c").write_text(""),
    "a file went": lambda kept: kept.path("context/a").unlink(),
    "a file got another name": lambda kept: kept.path("context/a").rename(kept.path("context/z")),
    "a folder went": lambda kept: kept.path("context").rename(kept.path("other")),
    "a blob is gone": lambda kept: kept.path("store/blobs/aa").unlink(),
    "an entry is gone": lambda kept: kept.path("store/index/b/bb").unlink(),
    "the store is gone": lambda kept: kept.path("store").rename(kept.path("moved")),
    "the report is gone": lambda kept: report_path(kept.path("state")).unlink(),
    "the memo is gone": lambda kept: memo_path(kept.path("state")).unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_memo_does_not_hold_when(kept: Kept, change: Callable[[Kept], object]) -> None:
    change(kept)
    assert kept.read() is None


@pytest.mark.parametrize(
    "document", ["", "{", "[]", "null", "{}", '{"key": 1}', '{"key": "x", "stamp": 1, "inputs": 3}']
)
def test_a_memo_that_cannot_be_read_is_none(kept: Kept, document: str) -> None:
    memo_path(kept.path("state")).write_text(document)
    assert kept.read() is None


@pytest.mark.parametrize("key", ["inputs", "stamp", "store"])
def test_a_memo_that_lacks_something_is_none(kept: Kept, key: str) -> None:
    memo = json.loads(memo_path(kept.path("state")).read_text())
    del memo[key]
    memo_path(kept.path("state")).write_text(json.dumps(memo))
    assert kept.read() is None


def test_another_epoch_is_another_build(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert kept.read() is None


def test_what_a_build_itself_leaves_does_not_count(kept: Kept) -> None:
    for name in ("__pycache__", ".planyard", ".git"):
        (kept.path("context") / name).mkdir()
        (kept.path("context") / name / "new").write_text("")
    assert kept.read() is not None


def test_a_stamp_does_not_depend_on_the_order_of_the_file_system(tmp_path: Path) -> None:
    stamps = []
    for names in (("a", "b", "c"), ("c", "a", "b")):
        for name in names:
            (tmp_path / name).write_text("x")
            os.utime(tmp_path / name, ns=(1, 1))
        stamps.append(stamp_of([str(tmp_path)]))
        for name in names:
            (tmp_path / name).unlink()
    assert stamps[0] == stamps[1]


def test_our_own_files_are_where_we_are() -> None:
    assert {path.name for path in own_files()} == {"planyard", "builders", "engines", "smoke"}
    assert all(path.is_dir() for path in own_files())


@pytest.mark.parametrize(
    ("arguments", "matrix"),
    [
        ([], "matrix.yaml"),
        (["--json"], "matrix.yaml"),
        (["--matrix", "a/b.yaml"], "a/b.yaml"),
        (["-s", "x", "-m", "b.yaml"], "b.yaml"),
        (["--matrix=b.yaml"], None),
        (["-mb.yaml"], None),
    ],
)
def test_the_matrix_is_found_in_the_arguments(arguments: list[str], matrix: str | None) -> None:
    assert named_matrix(arguments) == (None if matrix is None else Path(matrix).absolute())


@pytest.mark.parametrize(
    ("report", "required", "stays"),
    [
        (BuildReport(images=(), verdicts=(NOT_RUN,)), True, True),
        (BuildReport(images=(ImageOutcome(name="image", digest=None, error="no"),)), False, False),
    ],
    ids=["smoke was required", "an image failed"],
)
def test_a_memo_goes_when_the_store_says_otherwise(
    tmp_path: Path, report: BuildReport, required: bool, stays: bool
) -> None:
    """Runs that were required and could not be here say nothing about the store."""
    small_site.lay_out(tmp_path)
    matrix = tmp_path / "matrix.yaml"
    memo = memo_path(state_of(matrix))
    memo.parent.mkdir(parents=True)
    memo.write_text("{}")
    with Workspace(
        root=tmp_path, store=LocalStore(tmp_path / "store"), console=Console(quiet=True)
    ) as workspace:
        code = close_build(
            report,
            loaded=load(matrix),
            workspace=workspace,
            matrix=matrix,
            options=(),
            json=False,
            require_smoke=required,
        )
    assert code != 0
    assert memo.exists() is stays
