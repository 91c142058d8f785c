"""The pages of `docs/reference` that say what the code says: verbs, rules of logs.

`python -m builders.reference docs/reference` writes them; a test holds them against the code. What
needs words of a person (the matrix, the gates) has pages of its own, which tests hold to the types.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from planyard.edge import files
from planyard.edge.console import Console

_NOTE = "<!-- Written by `nox -s schema` from the code: change that. -->"
_AFTERWARDS = ("help", "install_completion", "show_completion")


def reference_pages() -> dict[str, str]:
    """Every generated page by its name in `docs/reference`."""
    return {"commands.md": _commands(), "log-rules.md": _log_rules()}


def _commands() -> str:
    from builders.cli import add_verbs, app

    if not app.registered_commands:
        add_verbs()
    verbs = dict(sorted(verbs_of(typer.main.get_command(app))))
    listed = [
        f"- [`{words}`](#{words.replace(' ', '-')}): {_first(each)}"
        for words, each in verbs.items()
    ]
    sections = [_section(words, each) for words, each in verbs.items()]
    head = (
        f"{_NOTE}\n# Commands\n\nEvery verb has `--help`. With `--json` one document is on stdout "
        "and everything else on stderr;\nits schema is in [schemas](../schemas). What a verb ends "
        "with is in [exit codes](../exit-codes.md).\n"
    )
    return "\n".join([head, *listed, "", *sections])


def verbs_of(command: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb of the command line by its words: `plan show`."""
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
    for name, each in (below or {}).items():
        yield from verbs_of(each, f"{words} {name}".strip())


def _first(command: Any) -> str:
    return str(command.help).partition("\n\n")[0].replace("\n", " ")


def _section(words: str, command: Any) -> str:
    """A verb: how it is called, its help, a table of its arguments and options."""
    context = typer.Context(command, info_name=f"planyard {words}")
    usage = " ".join(command.collect_usage_pieces(context))
    rows = [_row(each) for each in command.params if each.name not in _AFTERWARDS]
    table = ["| | default | |", "|---|---|---|", *rows, ""] if rows else []
    text = [f"## {words}", "", f"`planyard {words} {usage}`", "", str(command.help).strip(), ""]
    return "\n".join([*text, *table])


def _row(parameter: Any) -> str:
    names = (
        parameter.opts if parameter.param_type_name == "option" else [parameter.make_metavar(None)]
    )
    metavar = "" if getattr(parameter, "is_flag", False) else parameter.metavar or ""
    shown = (
        " ".join((", ".join(names), metavar)) if parameter.param_type_name == "option" else names[0]
    )
    default = parameter.default
    said = "" if default is None or default is False or callable(default) else f"`{default}`"
    return f"| `{_cell(shown.strip())}` | {said} | {_cell(parameter.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _log_rules() -> str:
    from smoke.rules import load_rules

    rules = load_rules()
    rows = [f"| `{each.id}` | {each.severity} | {_cell(each.why)} |" for each in rules.rules]
    return "\n".join(
        [
            _NOTE,
            "# Rules of the log gate",
            "",
            "What `planyard log-check` and the log gate look for. `fail` fails, `warn` is shown.",
            "How rules are written, and how good they are: [the log gate](../log-gate.md).",
            "",
            "| rule | severity | what is lost |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def write_pages(folder: Path) -> None:
    """Write every page into `folder`."""
    for name, text in reference_pages().items():
        files.write_bytes(folder / name, text.encode())
        Console().say(f"wrote {folder / name}")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
