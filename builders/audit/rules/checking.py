"""All rules over one image, less what the matrix accepts. Pure: the image was read before."""

from __future__ import annotations

from collections.abc import Iterator

from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership
from builders.audit.rules.asked import Asked
from builders.audit.rules.catalogue import RULE
from builders.audit.rules.doors import find_doors
from builders.audit.rules.found import Found, Place
from builders.audit.rules.gpu import find_gpu_code
from builders.audit.rules.leftovers import find_leftovers
from builders.audit.rules.libraries import find_libraries
from builders.audit.rules.settings import find_secrets, find_settings
from builders.audit.rules.waste import find_waste
from planyard.core.findings import Finding
from planyard.core.matrix import Accepted


def check_contents(
    contents: ImageContents, ownership: Ownership, *, asked: Asked
) -> tuple[Finding, ...]:
    """The findings of an image: those that fail first, then the heaviest.

    An accept entry takes the places it means out of the findings of its rule; one that means
    nothing is a warning itself.
    """
    found = list(_find(contents, ownership, asked))
    idle = [entry for entry in asked.accept if all(each.without(entry) == each for each in found)]
    for entry in asked.accept:
        found = [each.without(entry) for each in found]
    found += [_idle(entry) for entry in idle]
    # `sorted` keeps the order of the rules among equals.
    pairs = [(each, made) for each in found if (made := each.finding(image=asked.image))]
    pairs.sort(key=lambda pair: (pair[1].severity != "fail", -pair[0].size_bytes))
    return tuple(made for _, made in pairs)


def _find(contents: ImageContents, ownership: Ownership, asked: Asked) -> Iterator[Found]:
    yield from find_libraries(contents, ownership, asked)
    yield from find_gpu_code(contents, asked)
    yield from find_secrets(contents)
    yield from find_settings(contents)
    yield from find_doors(contents)
    yield from find_leftovers(contents, ownership)
    yield from find_waste(contents)


def _idle(entry: Accepted) -> Found:
    if entry.rule in RULE:
        message = f"accept {entry.rule} at {entry.path} means nothing that is in the image"
    else:
        message = f"accept {entry.rule}: there is no such rule, only {', '.join(RULE)}"
    return Found(
        rule="accept-idle",
        message=message,
        places=(Place(f"images.*.accept {entry.rule}", note=entry.reason),),
    )
