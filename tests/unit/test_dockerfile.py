"""The part of a Dockerfile that an image is made from, and nothing that two images could share."""

from __future__ import annotations

import pytest

from builders.dockerfile import stage_text
from planyard.core.errors import InputError

FILE = """\
# Comments do not count.
ARG BASE=debian

FROM ${BASE} AS root

FROM root AS build
RUN make  # not a comment
FROM root AS tools
RUN tools

FROM root AS app
COPY --from=build /out /app
FROM root AS other
RUN --mount=type=bind,from=tools,source=/,target=/t other
"""


def text(dockerfile: str, target: str | None = None, **arguments: str) -> str:
    return stage_text(dockerfile, target=target, name="Dockerfile", arguments=arguments)


def test_a_stage_comes_with_what_it_needs_and_nothing_else() -> None:
    assert text(FILE, "app").split("\n") == [
        "ARG BASE=debian",
        "FROM ${BASE} AS root",
        "FROM root AS build",
        "RUN make  # not a comment",
        "FROM root AS app",
        "COPY --from=build /out /app",
    ]


def test_a_mount_is_a_need() -> None:
    assert "RUN tools" in text(FILE, "other")
    assert "RUN make" not in text(FILE, "other")


def test_without_a_target_the_last_stage_counts() -> None:
    assert text(FILE) == text(FILE, "other")


def test_a_stage_for_another_image_changes_nothing() -> None:
    assert text(FILE + "FROM root AS third\nRUN more\n", "app") == text(FILE, "app")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Comments do not count.\n", ""),
        ("\n\n", "\n# more\n\n\n"),
        ("RUN tools", "RUN other tools"),
        ("\n", "\r\n"),
        ("# Comments", "\ufeff# Comments"),
    ],
)
def test_what_does_not_count(old: str, new: str) -> None:
    assert text(FILE.replace(old, new), "app") == text(FILE, "app")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("RUN a  b", "RUN a b"),
        ("RUN a\\\nb", "RUN a b"),
        ("RUN a \\\n  b", "RUN a b"),
        ("RUN a", "run a"),
        ("RUN cat <<E\n#!/bin/sh\nE", "RUN cat <<E\n#!/bin/bash\nE"),
        ("RUN cat <<E\n\nE", "RUN cat <<E\nE"),
        ("RUN cat <<-'E'\n\ta\nE", "RUN cat <<-'E'\na\nE"),
    ],
)
def test_instructions_that_differ_stay_apart(one: str, other: str) -> None:
    assert text(f"FROM a\n{one}\n") != text(f"FROM a\n{other}\n")


def test_continued_lines_are_one_instruction_with_comments_inside() -> None:
    dockerfile = (
        "FROM a AS b\nRUN one && \\\n  # why\n\n  two \\  \n# because\n && three\nENV x=y\n"
    )
    assert text(dockerfile) == "FROM a AS b\nRUN one &&   two  && three\nENV x=y"


def test_an_escaped_backslash_continues_nothing() -> None:
    dockerfile = "FROM a AS b\nRUN dir C:\\\\\nFROM c AS d\nRUN x\n"
    assert text(dockerfile, "d") == "FROM c AS d\nRUN x"


def test_a_last_line_that_is_continued_is_not_lost() -> None:
    assert text("FROM a\nRUN x \\") == "FROM a\nRUN x"


def test_lower_case_and_platforms() -> None:
    dockerfile = (
        "from --platform=$BUILDPLATFORM --other=x a as Build\nrun one\n"
        "from --platform=linux/amd64 b as unused\n"
        "from scratch as app\ncopy --chown=1:1 --from=build /a /b\n"
    )
    assert "run one" in text(dockerfile, "APP")
    assert "unused" not in text(dockerfile, "APP")


def test_stages_by_number() -> None:
    dockerfile = "FROM a\nRUN zero\nFROM b AS one\nRUN one\nFROM c\nCOPY --from=0 / /\n"
    assert text(dockerfile) == "FROM a\nRUN zero\nFROM c\nCOPY --from=0 / /"
    assert text(dockerfile, "1") == "FROM b AS one\nRUN one"


def test_another_image_as_source_is_no_stage() -> None:
    dockerfile = "FROM a AS nginx\nRUN x\nFROM b\nCOPY --from=nginx:1.27 / /\n"
    assert text(dockerfile) == "FROM b\nCOPY --from=nginx:1.27 / /"


def test_several_needs_of_one_instruction() -> None:
    dockerfile = (
        "FROM a AS b\nFROM a AS c\nFROM a AS d\nFROM a AS e\n"
        "RUN --mount=type=bind,source=/x,from=b,target=/b --mount=from=d,target=/d make\n"
    )
    assert text(dockerfile).startswith("FROM a AS b\nFROM a AS d\nFROM a AS e")


def test_a_stage_named_as_its_own_base_ends() -> None:
    assert text("FROM python AS python\nFROM python AS app\n").count("FROM") == 2


def test_two_stages_of_one_name_are_both_followed() -> None:
    dockerfile = "FROM x AS y\nRUN y\nFROM y AS a\nFROM z AS a\nFROM q\nCOPY --from=a / /\n"
    assert "RUN y" in text(dockerfile)


def test_a_base_chosen_by_an_argument_is_followed() -> None:
    dockerfile = "ARG BASE=slim\nFROM a AS slim\nRUN s\nFROM b AS full\nRUN f\nFROM $BASE AS app\n"
    assert text(dockerfile, "app") == "ARG BASE=slim\nFROM a AS slim\nRUN s\nFROM $BASE AS app"
    assert "RUN f" in text(dockerfile, "app", BASE="full")
    assert "RUN s" not in text(dockerfile, "app", BASE="full")


@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM a AS b\nRUN b\nFROM ${UNSET} AS app\n",
        "FROM a AS b\nRUN b\nFROM ${UNSET:-b} AS app\n",
        "FROM a AS b\nRUN b\nFROM c AS app\nRUN --mount=from=$X,target=/x make\n",
        "FROM a AS b\nRUN b\nFROM c AS app\nRUN cat <<EOF\nFROM x AS y\nEOF\n",
        "# escape=`\nFROM a AS b\nRUN b `\n  c\nFROM c AS app\n",
        "# Escape = `\nFROM a AS b\nRUN b\nFROM c AS app\n",
    ],
)
def test_where_text_cannot_tell_the_file_is_taken_whole(dockerfile: str) -> None:
    assert text(dockerfile, "app") == dockerfile


def test_the_syntax_directive_counts_and_only_at_the_top() -> None:
    plain = "FROM a\nRUN x\n"
    assert text("# syntax=docker/dockerfile:1\n" + plain) != text(plain)
    assert text("# a comment\n# syntax=docker/dockerfile:1\n" + plain) == text(plain)


def test_lines_end_where_docker_ends_them() -> None:
    """A form feed or a Unicode line separator is no line end: no stage begins after it."""
    assert (
        text("FROM a AS b\nRUN x\u2028FROM c AS d\x0cFROM e\nFROM q AS r\n", "r") == "FROM q AS r"
    )


@pytest.mark.parametrize("dockerfile", ["", "# nothing\n", "ARG A=1\nRUN x\n"])
def test_a_file_without_stages_is_refused(dockerfile: str) -> None:
    with pytest.raises(InputError, match=r"Dockerfile: there is no FROM"):
        text(dockerfile, "app")


@pytest.mark.parametrize("target", ["nothere", "--help", "9", "-"])
def test_a_stage_that_is_not_there_is_refused_with_those_that_are(target: str) -> None:
    with pytest.raises(InputError, match=r"no stage .*; the stages are root, build, tools, app"):
        text(FILE, target)
