"""Which part of a Dockerfile an image is made from.

An image's recipe holds the stages its target needs, not the whole file: a stage added for another
image must not change the identity of this one. Comments and blank lines do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from planyard.core.errors import InputError

_FROM = re.compile(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE)
_COPY_FROM = re.compile(r"(?:^|\s)--from=(\S+)")
_MOUNT_FROM = re.compile(r"--mount=\S*?\bfrom=([^,\s]+)")
_HEREDOC = re.compile(r"<<-?\s*[\"']?\w+")


@dataclass
class Stage:
    """A stage: its name, the instructions in it, and what it is made from."""

    name: str
    lines: list[str]
    needs: set[str] = field(default_factory=set)


def stage_text(dockerfile: str, *, target: str | None, name: str) -> str:
    """The instructions that `target` (the last stage when None) depends on, in the file's order.

    `name` is the file's, for the error when it has no such stage. A file with heredocs is taken
    whole: an instruction inside one cannot be told from text.
    """
    instructions = list(_instructions(dockerfile))
    preamble, stages = _stages(instructions)
    if target is not None and not any(stage.name == target for stage in stages):
        known = ", ".join(stage.name for stage in stages) or "none"
        raise InputError([f"{name}: there is no stage {target!r}; the stages are {known}"])
    if not stages:
        raise InputError([f"{name}: there is no FROM instruction"])
    if any(_HEREDOC.search(line) for line in instructions):
        return "\n".join(instructions)
    needed = _closure(stages, target or stages[-1].name)
    kept = [line for stage in stages if stage.name in needed for line in stage.lines]
    return "\n".join([*preamble, *kept])


def _instructions(text: str) -> list[str]:
    """Instructions as one line each; comments and blank lines go."""
    found: list[str] = []
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        pending = f"{pending} {line.removesuffix(chr(92)).strip()}".strip()
        if not line.endswith("\\"):
            found.append(pending)
            pending = ""
    return [*found, pending] if pending else found


def _stages(instructions: list[str]) -> tuple[list[str], list[Stage]]:
    preamble: list[str] = []
    stages: list[Stage] = []
    for line in instructions:
        if match := _FROM.match(line):
            stages.append(Stage(match[2] or str(len(stages)), [line], {match[1]}))
        elif not stages:
            preamble.append(line)
        else:
            stages[-1].lines.append(line)
            stages[-1].needs.update(_COPY_FROM.findall(line), _MOUNT_FROM.findall(line))
    return preamble, stages


def _closure(stages: list[Stage], target: str) -> set[str]:
    by_name = {stage.name: stage for stage in stages}
    by_number = {str(number): stage for number, stage in enumerate(stages)}
    needed: set[str] = set()
    open_names = [target]
    while open_names:
        stage = by_name.get(name := open_names.pop()) or by_number.get(name)
        if stage and stage.name not in needed:
            needed.add(stage.name)
            open_names.extend(stage.needs)
    return needed
