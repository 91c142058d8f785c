"""What a machine lacks is said, with the command that mends it, before anything is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builders import setup
from builders.setup import DOCKERD, MMDEBSTRAP, SKOPEO, SetupRefusedError, Tool
from planyard.core.errors import ImageBuildError
from planyard.edge import proc
from planyard.edge.console import Console
from planyard.edge.proc import find_program

ABSENT = Tool(program="planyard-absent", purpose="tests", packages=("absent-a", "absent-b"))


def tools(tmp_path: Path, *programs: str) -> str:
    for program in programs:
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    return str(tmp_path)


def test_a_program_is_found_on_the_path_and_in_system_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", tools(tmp_path, "planyard-tool"))
    assert find_program("planyard-tool") == str(tmp_path / "planyard-tool")
    assert find_program("sh") is not None
    assert find_program("planyard-absent") is None


def test_an_engine_that_answers_needs_no_dockerd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert setup.missing_tools(engine_answers=True) == (SKOPEO, MMDEBSTRAP)
    assert setup.missing_tools(engine_answers=False) == (DOCKERD, SKOPEO, MMDEBSTRAP)


def test_what_is_there_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", tools(tmp_path, "skopeo", "dockerd"))
    assert setup.missing_tools(engine_answers=False) == (MMDEBSTRAP,)


def test_the_command_is_one_a_person_can_type() -> None:
    command = setup.install_command([ABSENT, SKOPEO])
    sudo = "" if os.geteuid() == 0 else "sudo "
    words = "apt-get install --yes --no-install-recommends absent-a absent-b skopeo"
    assert command == sudo + words


def test_with_nothing_missing_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    setup.install((), console=Console(), allowed=False)
    assert capsys.readouterr() == ("", "")


def test_what_may_not_be_installed_is_refused_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # nothing could be installed by mistake
    with pytest.raises(
        SetupRefusedError, match="planyard-absent missing, and --no-setup"
    ) as caught:
        setup.install((ABSENT,), console=Console(), allowed=False)
    assert caught.value.mend == setup.install_command([ABSENT])
    assert caught.value.exit_code == ImageBuildError.exit_code
    assert "missing: planyard-absent (tests)" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="no Debian or Ubuntu")
def test_a_refusal_of_apt_is_told_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`apt-get` is found on the PATH: here it is a script that refuses."""
    for program in ("apt-get", "sudo"):
        (tmp_path / program).write_text("#!/bin/sh\necho E: no mirror; exit 100\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupRefusedError, match=r"apt-get update .*exited with 100") as caught:
        setup.install((ABSENT,), console=Console(), allowed=True)
    assert caught.value.log_tail == ("E: no mirror",)
    said = capsys.readouterr().err
    assert said.index("missing: planyard-absent") < said.index("apt-get update")
