"""An image as a runtime sees it: layers laid over each other, whiteouts applied, links followed.

Made of layer indexes alone, so nothing here reads a layer. An opaque folder and a whiteout say
nothing about their own layer, wherever in it they stand.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from planyard.core.contents import ElfFacts, LayerFile, LayerIndex, SecretHit

_HOPS = 40  # as many links as the kernel follows
_DEEP = 64
_ODD = re.compile(r"//|/\.{1,2}(?:/|$)|/$")


class Placed(NamedTuple):
    """A file that is visible in the image, and the number of the layer it comes from."""

    layer: int
    file: LayerFile


@dataclass(frozen=True, kw_only=True)
class ImageContents:
    """All layers of one image, lowest first, and what of them is visible.

    `created_by` is the instruction behind each layer. `config` is the OCI image configuration.
    """

    image: str
    name: str
    config: Mapping[str, Any]
    layers: tuple[LayerIndex, ...]
    created_by: tuple[str, ...]
    metadata_bytes: int
    """Manifest and configuration."""
    visible: Mapping[str, Placed] = field(init=False)

    def __post_init__(self) -> None:
        """Lay the layers over each other, once."""
        object.__setattr__(self, "visible", _overlay(self.layers))

    @property
    def pull_bytes(self) -> int:
        """What a node downloads."""
        return self.metadata_bytes + sum(layer.pull_bytes for layer in self.layers)

    @property
    def unpacked_bytes(self) -> int:
        """All regular files of all layers, hidden ones too."""
        return sum(layer.unpacked_bytes for layer in self.layers)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The part of the configuration that a runtime acts on: user, environment, entrypoint."""
        found = self.config.get("config")
        return found if isinstance(found, dict) else {}

    @cached_property
    def elf_files(self) -> Mapping[str, ElfFacts]:
        """The visible ELF files."""
        return dict(self._facts("elf"))

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """The visible files that say which package owns what."""
        return dict(self._facts("texts"))

    @cached_property
    def secrets(self) -> Mapping[str, tuple[SecretHit, ...]]:
        """Files that look like secrets, in any layer: what a later layer hides is pulled too."""
        return {path: hits for layer in self.layers for path, hits in layer.secrets.items()}

    def is_visible(self, path: str, *, layer: int) -> bool:
        """Whether this layer's file of that path is the one a runtime sees."""
        placed = self.visible.get(path)
        return placed is not None and placed.layer == layer

    def exists(self, path: str) -> bool:
        """Whether something is there, folders' and files' links followed."""
        return self.real_path(path) in self.visible

    def real_path(self, path: str) -> str:
        """`path` with every link in it replaced, as the kernel would; empty for a circle."""
        if path.startswith("/") and path.count("/") < _DEEP and not _ODD.search(path):
            folder, _, name = path.rpartition("/")
            known = self._real_folders.get(folder)
            if known is None:
                known = self._real_folders[folder] = self.real_path(folder)
            if not known:
                return ""  # a circle
            found = f"/{name}" if known == "/" else f"{known}/{name}"
            placed = self.visible.get(found)
            if placed is None or placed.file.kind != "link":
                return found
        return self._walk(path)

    @cached_property
    def _real_folders(self) -> dict[str, str]:
        return {"": "/"}

    def _walk(self, path: str) -> str:
        """Link by link: the way that is always right."""
        parts = [part for part in path.split("/") if part][::-1]
        resolved, hops = "/", 0
        while parts:
            candidate = posixpath.normpath(posixpath.join(resolved, parts.pop()))
            placed = self.visible.get(candidate)
            if placed is None or placed.file.kind != "link":
                resolved = candidate
                continue
            hops += 1
            if hops > _HOPS:
                return ""
            target = posixpath.join(resolved, placed.file.link)
            parts += [each for each in target.split("/") if each][::-1]
            resolved = "/"
        return resolved

    def _facts(self, field_name: str) -> Iterator[tuple[str, Any]]:
        for number, layer in enumerate(self.layers):
            for path, fact in getattr(layer, field_name).items():
                if self.is_visible(path, layer=number):
                    yield path, fact


def _overlay(layers: tuple[LayerIndex, ...]) -> dict[str, Placed]:
    visible: dict[str, Placed] = {}
    for number, layer in enumerate(layers):
        if visible:
            hidden = set(layer.hidden)
            emptied = {*layer.emptied, *hidden}
            # What is no folder has nothing below it.
            emptied |= {file.path for file in layer.files if file.kind != "folder"}
            is_gone = _Below(emptied)
            gone = [
                path
                for path in visible
                if path in hidden or is_gone[path.rpartition("/")[0] or "/"]
            ]
            for path in gone:
                del visible[path]
        for file in layer.files:
            visible[file.path] = Placed(number, file)
    return visible


class _Below(dict[str, bool]):
    """For each folder whether it, or one above it, is among these."""

    def __init__(self, folders: set[str]) -> None:
        super().__init__({"/": "/" in folders})
        self._folders = folders

    def __missing__(self, folder: str) -> bool:
        above = folder.rpartition("/")[0] or "/"
        found = self[folder] = folder in self._folders or self[above]
        return found
