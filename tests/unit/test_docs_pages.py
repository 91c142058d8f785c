"""The pages: links lead somewhere, commands in sentences exist, what is generated is fresh."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import msgspec
import pytest
import typer

from builders.cli import add_verbs, app
from builders.reference import reference_pages, verbs_of
from planyard.core.matrix import Matrix
from planyard.core.reader import load_matrix
from tests.docs_commands import blocks_of, commands_of

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
REFERENCE = DOCS / "reference"
TOP = ("README.md", "CONTRIBUTING.md")
CODE = ("planyard", "builders", "engines", "smoke", "images")

_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_VARIABLE = re.compile(r"\bPLANYARD_[A-Z_]+\b")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")


@cache
def pages() -> dict[str, str]:
    paths = [*(REPOSITORY / name for name in TOP), *sorted(DOCS.rglob("*.md"))]
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in paths}


def without_blocks(text: str) -> str:
    return re.sub(r"^( *)(`{3,})[^\n]*\n.*?^ *\2`*$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: list[str] = []
    for line in without_blocks(text).splitlines():
        if match := re.match(r"#{1,6} +(.*?)\s*#*$", line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).lower()
            anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
            count = sum(
                re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", each) is not None for each in found
            )
            found.append(f"{anchor}-{count}" if anchor in found else anchor)
    return set(found)


def broken_links(name: str, page: str) -> list[str]:
    found = []
    for link in _LINK.findall(without_blocks(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        text = target.read_text() if target.exists() and target.suffix == ".md" else ""
        if not target.exists() or (anchor and text and anchor not in anchors(text)):
            found.append(link)
    return found


@pytest.mark.parametrize("name", sorted(pages()))
def test_every_link_leads_somewhere(name):
    assert broken_links(name, pages()[name]) == []


def test_every_page_is_found_from_the_index():
    """By links from README.md of docs, however many; decisions have an index of their own."""
    seen, open_pages = set(), ["docs/README.md"]
    while open_pages:
        name = open_pages.pop()
        if name in seen or name not in pages():
            continue
        seen.add(name)
        for link in _LINK.findall(without_blocks(pages()[name])):
            target = (REPOSITORY / name).parent / link.partition("#")[0]
            if target.is_file() and target.resolve().is_relative_to(REPOSITORY.resolve()):
                open_pages.append(str(target.resolve().relative_to(REPOSITORY.resolve())))
    assert {name for name in pages() if name.startswith("docs/")} - seen == set()


def test_broken_links_are_seen():
    text = "# One `two` [three](x)\n## A\n## A\n"
    assert anchors(text) == {"one-two-three", "a", "a-1"}
    assert broken_links("docs/x.md", "[a](none.md) [b](images.md#none) [c](images.md#budgets)") == [
        "none.md",
        "images.md#none",
    ]


# Commands in sentences


@cache
def verbs() -> dict[str, object]:
    if not app.registered_commands:
        add_verbs()
    return dict(verbs_of(typer.main.get_command(app)))


def problem_of(command: str) -> str:
    """Why a `planyard …` of a page cannot be meant; empty when its verb and options exist."""
    try:
        words = shlex.split(command, comments=True)[1:]
    except ValueError:
        return "quotes do not match"
    words = words[: next((at for at, word in enumerate(words) if word in {"|", ">", "&&"}), None)]
    named = next(
        (" ".join(words[:size]) for size in (2, 1) if " ".join(words[:size]) in verbs()), ""
    )
    if not named:
        is_group = words and any(each.startswith(f"{words[0]} ") for each in verbs())
        return (
            ""
            if not words or words[0].startswith("-") or (is_group and len(words) == 1)
            else "no such verb"
        )
    known = {name for each in verbs()[named].params for name in each.opts} | {"--help"}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return f"no option {sorted(given - known)}" if given - known else ""


@pytest.mark.parametrize("name", sorted(pages()))
def test_commands_in_sentences_and_blocks_exist(name):
    spans = _CODE_SPAN.findall(without_blocks(pages()[name]))
    found = [span for span in spans if re.match(r"planyard [a-z-]", span)]
    found += [each.text for each in commands_of(pages()[name]) if each.text.startswith("planyard ")]
    assert {each: problem for each in found if (problem := problem_of(each))} == {}


def test_a_command_that_does_not_exist_is_seen():
    assert problem_of("planyard biuld") == "no such verb"
    assert problem_of("planyard build --storre x") == "no option ['--storre']"
    assert problem_of("planyard store fsck --share 10% | cat --none") == ""
    assert problem_of("planyard plan") == ""


def test_nox_sessions_of_the_pages_exist():
    noxfile = (REPOSITORY / "noxfile.py").read_text()
    sessions = set(re.findall(r"@nox\.session[^\n]*\ndef (\w+)", noxfile))
    said = {word for text in pages().values() for word in re.findall(r"nox -s (\w+)", text)}
    assert said
    assert said <= sessions


# What is generated, and what is held to the code


@pytest.mark.parametrize("name", sorted(reference_pages()))
def test_a_reference_page_is_fresh(name):
    assert (REFERENCE / name).read_text() == reference_pages()[name], "run nox -s schema"


def test_every_variable_is_in_the_reference():
    code = "\n".join(path.read_text() for top in CODE for path in (REPOSITORY / top).rglob("*.py"))
    named = set(_VARIABLE.findall((REFERENCE / "environment.md").read_text()))
    assert set(re.findall(r'"(PLANYARD_[A-Z_]+)"', code)) == named


def keys_of(kind: object) -> set[str]:
    """Every key of a struct of the matrix, and of those below it."""
    found: set[str] = set()
    for struct in structs_in(kind):
        for each in msgspec.structs.fields(struct):
            found.add(each.encode_name)
            found |= keys_of(each.type)
    return found


def structs_in(kind: object) -> list[type]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    arguments = getattr(kind, "__args__", ())
    return [struct for each in arguments for struct in structs_in(each)]


def test_every_key_of_the_matrix_is_on_its_page():
    """docs/matrix.md is written by hand: this holds it to the types."""
    page = pages()["docs/matrix.md"] + pages()["docs/images.md"]
    missing = {key for key in keys_of(Matrix) if not re.search(rf"\b{key}\b", page)}
    assert missing == set()


def test_the_matrix_of_the_readme_loads():
    blocks = [lines for _, language, lines in blocks_of(pages()["README.md"]) if language == "yaml"]
    (text,) = ["\n".join(lines) for lines in blocks if lines[0] == "schema: 1"]
    assert load_matrix(text.encode(), name="matrix.yaml").matrix.schema == 1
