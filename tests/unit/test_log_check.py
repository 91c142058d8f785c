"""`planyard log-check` on files, gzip, rotation, growing files, and allow entries of one's own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from builders.cli.log import add_to
from planyard.core.errors import InputError
from planyard.edge.follow import GrowingFile, ticks
from planyard.edge.log_files import in_order_of_writing, pieces_of
from smoke.allow_file import with_allow_file
from smoke.gates.logs import scan_text
from smoke.rules import load_rules

LOSS = "Failed to create CUDAExecutionProvider.\n"
MINE = "CUDA not found on the build host"


def log_check(*args: str | Path, stdin: str = "") -> Result:
    app = typer.Typer()
    add_to(app)
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def found_in(result: Result) -> list[tuple[str, int]]:
    findings = json.loads(result.stdout)["findings"]
    return [(Path(each["file"]).name, each["line"]) for each in findings]


def write(path: Path, text: str, *, changed: float | None = None) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    if changed is not None:
        os.utime(path, (changed, changed))
    return path


def test_standard_input_is_read_where_no_file_is_given() -> None:
    result = log_check("--json", stdin=f"ready\n{LOSS}")
    assert (result.exit_code, found_in(result)) == (4, [("stdin", 2)])


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    newest = write(tmp_path / "app.log", LOSS, changed=3000)
    oldest = write(tmp_path / "app.log.2.gz", f"a\nb\n{LOSS}", changed=1000)
    middle = write(tmp_path / "app.log.1", f"a\n{LOSS}", changed=2000)
    other = write(tmp_path / "b.log", LOSS, changed=1)
    result = log_check("--json", newest, oldest, middle, other)
    names = [("app.log.2.gz", 3), ("app.log.1", 2), ("app.log", 1), ("b.log", 1)]
    assert found_in(result) == names


def test_rotated_files_of_one_time_are_ordered_by_number(tmp_path: Path) -> None:
    names = ["app.log", "app.log.1", "app.log.10", "app.log.9.gz"]
    files = [write(tmp_path / name, "x\n", changed=1000) for name in names]
    ordered = [file.name for file in in_order_of_writing(files)]
    assert ordered == ["app.log.10", "app.log.9.gz", "app.log.1", "app.log"]


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    file = tmp_path / "renamed.log"
    file.write_bytes(gzip.compress(LOSS.encode()))
    assert b"".join(pieces_of(file)) == LOSS.encode()


@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_damaged_gzip_is_an_error_and_not_a_clean_log(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b"x" * 100 + os.urandom(5000))
    broken = whole[:-400] if damage == "cut off" else whole[:50] + b"\0\0\0\0" + whole[54:]
    (tmp_path / "app.log.gz").write_bytes(broken)
    result = log_check(tmp_path / "app.log.gz")
    assert result.exit_code == 2


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert log_check(tmp_path / "none.log").exit_code == 2


def read_all(file: GrowingFile) -> list[bytes | None]:
    return list(file.read())


def test_a_growing_file_through_creation_rename_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    file = GrowingFile(path)
    assert read_all(file) == []
    path.write_bytes(b"one\n")
    assert read_all(file) == [b"one\n"]
    assert read_all(file) == []
    with path.open("ab") as writer:
        writer.write(b"two\n")
        writer.flush()
        path.rename(tmp_path / "app.log.1")
        assert read_all(file) == [b"two\n"]
        writer.write(b"late\n")
    assert read_all(file) == [b"late\n"]
    path.write_bytes(b"new\n")
    assert read_all(file) == [None, b"new\n"]
    path.write_bytes(b"x\n")
    assert read_all(file) == [None, b"x\n"]
    file.close()


def test_ticks_end_with_the_process_and_look_once_more() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        ends = ticks(timeout_seconds=None, until_exit=process.pid)
        next(ends)
        next(ends)
        process.communicate(b"\n")
        assert len(list(ends)) <= 2


def test_ticks_end_in_time() -> None:
    assert len(list(ticks(timeout_seconds=0, until_exit=None))) == 2


def test_follow_ends_at_the_first_loss(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", f"ready\n{LOSS}")
    result = log_check("--follow", log, "--exit-on-finding")
    assert result.exit_code == 4
    assert f"{log}:2: fail: " in result.stdout


def test_follow_judges_the_unfinished_last_line_at_the_end(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", LOSS.rstrip())
    result = log_check("--follow", log, "--timeout", "0", "--json")
    assert (result.exit_code, found_in(result)) == (4, [("app.log", 1)])


def test_follow_prints_a_loss_before_it_ends(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    command = [sys.executable, "-m", "builders", "log-check", "--follow", str(log)]
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server,
        subprocess.Popen(
            [*command, "--until-exit", str(server.pid)], stdout=subprocess.PIPE, text=True
        ) as follower,
    ):
        assert follower.stdout is not None
        log.write_text(f"ready\n{LOSS}")
        assert follower.stdout.readline().startswith(f"{log}:2: fail: ")
        log.rename(tmp_path / "app.log.1")
        log.write_text(LOSS)
        assert follower.stdout.readline().startswith(f"{log}:1: fail: ")
        server.communicate(b"\n")
        assert follower.wait(timeout=20) == 4


@pytest.mark.parametrize(
    "args", [["--timeout", "1"], ["--follow"], ["--follow", "x", "--until-exit", "-3"]]
)
def test_options_that_make_no_sense_are_refused(args: list[str]) -> None:
    assert log_check(*args).exit_code == 2


ALLOW = """
schema = 1
[[allow]]
id = "build-host"
patterns = ['cuda not found on the build host']
reason = "the build host has no GPU on purpose"
scope = { stage = ["build"], process = "cmake*" }
example = "CUDA not found on the build host"
"""


def test_an_allow_entry_of_ones_own_holds_in_its_scope(tmp_path: Path) -> None:
    file = tmp_path / "allow.toml"
    file.write_text(ALLOW)
    codes = {
        (stage, process): log_check(
            "--rules", file, "--stage", stage, "--process", process, stdin=MINE
        ).exit_code
        for stage in ("build", "serve")
        for process in ("cmake3", "server")
    }
    assert codes == {
        ("build", "cmake3"): 0,
        ("build", "server"): 4,
        ("serve", "cmake3"): 4,
        ("serve", "server"): 4,
    }
    assert scan_text(MINE + LOSS, with_allow_file(load_rules(), file))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('reason = "the', 'because = "the', "because"),
        ('"the build host has no GPU on purpose"', '" "', "say why"),
        ('["build"]', "[]", "say where"),
        ('["build"]', '["deploy"]', "deploy"),
        ("['cuda", "['(?=cuda)", "not RE2"),
        ("['cuda", "['<accel>", "no word"),
        ("host']", "hosts']", "own example"),
        ("host']", "host', 'x*']", "everything"),
        ('"build-host"', '"host-buffer"', "used already"),
        ("[[allow]]", "[[rule]]", "rule"),
    ],
)
def test_a_bad_allow_entry_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in ALLOW
    file = tmp_path / "allow.toml"
    file.write_text(ALLOW.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        with_allow_file(load_rules(), file)
