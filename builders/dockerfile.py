"""Which part of a Dockerfile an image is made from.

An image's recipe holds the stages its target needs, not the whole file: a stage added for another
image must not change the identity of this one. Comments and blank lines do not count. Where text
alone cannot tell what belongs to what (heredocs, another escape character, variables in references
that nothing here sets), the file is taken whole, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from planyard.core.errors import InputError

_FROM = re.compile(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE)
_ARG = re.compile(r"^ARG\s+(\w+)=[\"']?([^\s\"']*)[\"']?\s*$", re.IGNORECASE)
_COPY_FROM = re.compile(r"(?:^|\s)--from=(\S+)")
_MOUNT_FROM = re.compile(r"--mount=\S*?\bfrom=([^,\s\"']+)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_HEREDOC = re.compile(r"<<-?\s*[\"'\\]?\w")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
# A line ends in one escape character, not in an escaped one; blanks may follow (BuildKit's parser).
_CONTINUED = re.compile(r"(?:(?<=[^\\])|^)\\[ \t]*$")


@dataclass
class Stage:
    """A stage: its name and number, the instructions in it, and what it is made from."""

    name: str
    number: int
    lines: list[str]
    needs: set[str] = field(default_factory=set)

    def is_called(self, name: str) -> bool:
        """Whether `name` is this stage; Docker does not tell upper from lower case."""
        return name.lower() == self.name.lower() or name == str(self.number)


def stage_text(
    dockerfile: str, *, target: str | None, name: str, arguments: Mapping[str, str] | None = None
) -> str:
    """The instructions that `target` (the last stage when None) depends on, in the file's order.

    `name` is the file's, for the error when it has no such stage. `arguments` are the build
    arguments, which a FROM may name.
    """
    text = dockerfile.removeprefix("\ufeff").replace("\r\n", "\n")
    directives, instructions = _directives(text), list(_instructions(text))
    preamble, stages = _stages(instructions, arguments or {})
    if not stages:
        raise InputError([f"{name}: there is no FROM instruction"])
    if target is not None and not any(stage.is_called(target) for stage in stages):
        known = ", ".join(stage.name for stage in stages)
        raise InputError([f"{name}: there is no stage {target!r}; the stages are {known}"])
    if _only_whole(directives, instructions, stages):
        return text
    needed = _closure(stages, target or str(stages[-1].number))
    kept = [line for stage in stages if stage.number in needed for line in stage.lines]
    return "\n".join([*directives, *preamble, *kept])


def _only_whole(
    directives: Sequence[str], instructions: Sequence[str], stages: Sequence[Stage]
) -> bool:
    """Whether text alone cannot tell the instructions or the stages of a file apart."""
    if any("escape" in line.lower() for line in directives):
        return True
    if any(_HEREDOC.search(line) for line in instructions):
        return True
    return any("$" in need for stage in stages for need in stage.needs)


def _directives(text: str) -> list[str]:
    """The parser's directives: comments on the first lines that change what the file means."""
    found = []
    for line in text.split("\n"):
        if not _DIRECTIVE.match(line.strip()):
            break
        found.append(line.strip())
    return found


def _instructions(text: str) -> Iterator[str]:
    """Instructions as one line each, joined as Docker does; comments and blank lines go."""
    pending = ""
    for raw in text.split("\n"):
        line = raw if pending else raw.lstrip()
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match := _CONTINUED.search(line):
            pending += line[: match.start()]
            continue
        yield (pending + line).rstrip()
        pending = ""
    if pending:
        yield pending.rstrip()


def _stages(
    instructions: Sequence[str], arguments: Mapping[str, str]
) -> tuple[list[str], list[Stage]]:
    preamble: list[str] = []
    stages: list[Stage] = []
    defaults: dict[str, str] = {}
    for line in instructions:
        if match := _FROM.match(line):
            number = len(stages)
            base = _with_values(match[1], {**defaults, **arguments})
            stages.append(Stage(match[2] or str(number), number, [line], {base}))
        elif not stages:
            preamble.append(line)
            if match := _ARG.match(line):
                defaults[match[1]] = match[2]
        else:
            stages[-1].lines.append(line)
            stages[-1].needs.update(_COPY_FROM.findall(line), _MOUNT_FROM.findall(line))
    return preamble, stages


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """`text` with each `$NAME` and `${NAME}` that has a value replaced by it."""
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), text)


def _closure(stages: Sequence[Stage], target: str) -> set[int]:
    """The numbers of the stages that `target` needs, itself among them."""
    needed: set[int] = set()
    open_names = [target]
    while open_names:
        name = open_names.pop()
        for stage in stages:
            if stage.is_called(name) and stage.number not in needed:
                needed.add(stage.number)
                open_names.extend(stage.needs)
    return needed
