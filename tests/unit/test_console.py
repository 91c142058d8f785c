"""What a person, a pipe, and GitHub see: documents on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planyard.edge.console import Console

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def console_on(monkeypatch: pytest.MonkeyPatch, *, quiet: bool = False, **env: str) -> Console:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return Console(quiet=quiet)


def test_documents_go_to_stdout_and_words_to_stderr(capsys: Captured) -> None:
    console = Console()
    console.say("a")
    console.warn("b")
    console.error("c")
    console.document("{}")
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert captured.err == "a\nwarning: b\nerror: c\n"


def test_quiet_keeps_warnings_and_errors(capsys: Captured) -> None:
    console = Console(quiet=True)
    console.title("a")
    console.table(("x",), [("1",)])
    with console.step("s") as step:
        step.update("now")
    console.warn("b")
    console.error("c")
    assert capsys.readouterr().err == "warning: b\nerror: c\n"


def test_a_document_ends_in_one_newline(capsys: Captured) -> None:
    Console().document("x\n")
    assert capsys.readouterr().out == "x\n"


def test_off_a_terminal_there_is_no_colour_and_no_control_character(capsys: Captured) -> None:
    console = Console()
    assert (console.live, console.colour) == (False, False)
    with console.step("build") as step:
        step.update("1 of 3")
    console.good("done")
    assert "\x1b" not in capsys.readouterr().err


def test_a_step_is_two_lines_and_says_how_it_ended(capsys: Captured) -> None:
    console = Console()
    with console.step("build image"):
        pass
    with pytest.raises(KeyError), console.step("smoke"):
        raise KeyError("x")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "… build image",
        "✓ build image",
        "… smoke",
        "✗ smoke",
    ]


class Terminal:
    """A stderr that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return


@pytest.mark.parametrize(
    ("env", "live", "colour"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"CI": "true"}, False, True),
        ({"CI": "false"}, True, True),
        ({"TERM": "dumb"}, False, True),
    ],
)
def test_what_a_terminal_gets(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], live: bool, colour: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    console = console_on(monkeypatch, **env)
    assert (console.live, console.colour) == (live, colour)


def test_colour_can_be_forced_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    console_on(monkeypatch, FORCE_COLOR="1").error("x")
    assert capsys.readouterr().err == "\x1b[31;1merror: \x1b[0mx\n"


def test_a_live_step_shows_markup_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build says goes through a library that reads square brackets as markup."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console().step("build") as step:
        step.update("[/nothing] [bold]x")
    assert "build" in terminal.text


def test_columns_are_as_wide_as_their_contents(capsys: Captured) -> None:
    Console().table(("image", "digest"), [("a", "sha256:1"), ("longer name", "x")])
    assert capsys.readouterr().err.splitlines() == [
        "image        digest",
        "a            sha256:1",
        "longer name  x",
    ]


def test_a_table_without_rows_is_its_header(capsys: Captured) -> None:
    Console().table(("image", "digest"), [])
    assert capsys.readouterr().err == "image  digest\n"


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (
            "matrix.yaml:42:7 images.rtx: no",
            "::error file=matrix.yaml,line=42,col=7::matrix.yaml:42:7 images.rtx: no",
        ),
        ("no place", "::error::no place"),
        ("100 %\nof\r it", "::error::100 %25%0Aof%0D it"),
        ("x\n::set-output name=a::b", "::error::x%0A::set-output name=a::b"),
    ],
)
def test_an_annotation_is_one_line(capsys: Captured, problem: str, line: str) -> None:
    Console().annotate(problem)
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "::set-output name=digest::sha256:evil",
        "  \t::add-mask::a",
        "a line\n::stop-commands::x",
        "a line\r::error::x",
        "\u00a0::warning::x",
        "x ##[group]y",
    ],
)
def test_what_a_log_says_is_no_command_to_github(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, text: str
) -> None:
    """A runner obeys such lines; containers and compilers do not speak for this build."""
    console = console_on(monkeypatch, GITHUB_ACTIONS="true")
    for say in (console.say, console.detail, console.good, console.warn, console.error):
        say(text)
    for line in capsys.readouterr().err.splitlines():
        assert not line.strip().startswith("::")
        assert "##[" not in line
    monkeypatch.delenv("GITHUB_ACTIONS")
    Console().say(text)
    assert capsys.readouterr().err == text + "\n"


def test_github_still_obeys_our_own_annotations(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    console_on(monkeypatch, GITHUB_ACTIONS="true").annotate("x")
    assert capsys.readouterr().err == "::error::x\n"


def test_the_job_summary_is_added_to_on_github_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    console_on(monkeypatch, GITHUB_STEP_SUMMARY=str(path)).step_summary("no\n")
    console = console_on(monkeypatch, GITHUB_ACTIONS="true")
    console.step_summary("a\n")
    console.step_summary("b\n")
    assert path.read_text() == "before\na\nb\n"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    console.step_summary("nowhere\n")


def test_a_warning_is_annotated_as_one(monkeypatch, capsys):
    console_on(monkeypatch, GITHUB_ACTIONS="true").annotate("matrix.yaml:4:2 odd", level="warning")
    assert (
        capsys.readouterr().err == "::warning file=matrix.yaml,line=4,col=2::matrix.yaml:4:2 odd\n"
    )
