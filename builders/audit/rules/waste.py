"""Bytes that are pulled twice or for nothing: equal files, and what later layers hide."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator

from builders.audit.contents import ImageContents
from builders.audit.rules.found import Found, Place
from builders.audit.rules.libraries import cuda_library

WORTH_SAYING_BYTES = 1_000_000
_SMALLEST_BYTES = 4096  # a disk block: less is not saved by a link


def find_waste(contents: ImageContents) -> Iterator[Found]:
    """Both, from 1 MB on."""
    yield Found(
        rule="same-file-twice",
        message="{size} in {files} that are copies of others",
        places=tuple(_copies(contents)),
        least_bytes=WORTH_SAYING_BYTES,
    )
    yield Found(
        rule="hidden-bytes",
        message="{size} in {files} that later layers hide",
        places=tuple(_hidden(contents)),
        least_bytes=WORTH_SAYING_BYTES,
    )


def _copies(contents: ImageContents) -> Iterator[Place]:
    """All but one of each group of equal files; CUDA libraries have a rule of their own."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for path, placed in contents.visible.items():
        file = placed.file
        if cuda_library(posixpath.basename(path)):
            continue
        if file.kind == "file" and file.digest and file.size_bytes >= _SMALLEST_BYTES:
            groups[file.digest].append(Place(path, file.size_bytes))
    for group in groups.values():
        first, *others = sorted(group)
        for other in others:
            yield other._replace(note=f"as {first.path}")


def _hidden(contents: ImageContents) -> Iterator[Place]:
    for number, layer in enumerate(contents.layers):
        for file in layer.files:
            if file.kind == "file" and not contents.is_visible(file.path, layer=number):
                made = contents.created_by[number] if number < len(contents.created_by) else ""
                yield Place(file.path, file.size_bytes, f"layer {number + 1}, {made[:60]}")
