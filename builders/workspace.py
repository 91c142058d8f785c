"""Where a build happens: the folder of the matrix, the store, the caches, and an engine on demand.

Everything a build writes lies below `.planyard` beside the matrix, unless the store is elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from builders import setup
from builders.base import BaseCache
from builders.layers import DEFAULT_EPOCH_SECONDS
from builders.wheels import WheelCache
from engines.store.local_store import LocalStore
from engines.store.mirrored import MirroredStore
from planyard.core.errors import InputError
from planyard.edge import docker, dockerd, files
from planyard.edge.clock import Stopwatch
from planyard.edge.console import Console

BuildStore = LocalStore | MirroredStore
"""What a build writes: both can give an image to an engine."""


@dataclass(kw_only=True)
class Workspace:
    """The outside of a build, passed to every step. Use it as a context manager."""

    root: Path
    store: BuildStore
    console: Console
    may_install: bool = True
    epoch_seconds: int = DEFAULT_EPOCH_SECONDS
    outside: Stopwatch = field(default_factory=Stopwatch)
    """The time spent in Docker, compilers, downloads and containers."""
    _engine: docker.Engine | None = None
    _exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def state(self) -> Path:
        """The folder for what a build keeps between runs."""
        return self.root / ".planyard"

    @property
    def cache(self) -> Path:
        """Fetched models, wheels and bases; safe to delete."""
        named = os.environ.get("PLANYARD_CACHE")
        return Path(named) if named else self.state / "cache"

    @property
    def scratch(self) -> Path:
        """Folders that live as long as a step."""
        return self.state / "scratch"

    @property
    def bases(self) -> BaseCache:
        """Bootstrapped Debian roots."""
        return BaseCache(self.cache / "bases", epoch_seconds=self.epoch_seconds)

    @property
    def wheels(self) -> WheelCache:
        """Fetched wheels."""
        return WheelCache(self.cache / "wheels")

    def engine(self) -> docker.Engine:
        """The Docker engine that answers, or a private one that ends with the workspace."""
        if self._engine is None:
            self._engine = docker.find_engine()
            found = self._engine is not None
            if not found and (named := os.environ.get("DOCKER_HOST")):
                raise docker.EngineError(
                    f"no Docker engine answers at DOCKER_HOST={named}",
                    mend="start it, or unset DOCKER_HOST to let planyard start a private one",
                )
            missing = setup.missing_tools(engine_answers=found)
            setup.install(missing, console=self.console, allowed=self.may_install)
            self._engine = self._engine or self._start_engine()
        return self._engine

    def _start_engine(self) -> docker.Engine:
        with self.console.step("start a private Docker engine") as now:
            room = dockerd.private_engine(self.state / "engine", report=now.update)
            with self.outside.running():
                return self._exits.enter_context(room)

    def __enter__(self) -> Workspace:
        """One build at a time: the engine's data and the scratch folder are not shared.

        What a killed build left in the scratch folder goes.
        """
        lock = files.exclusive_lock(
            self.state / "lock",
            on_wait=lambda: self.console.say("waiting for another build in this folder to end"),
        )
        self._exits.enter_context(lock)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()


def epoch_from_environment() -> int:
    """SOURCE_DATE_EPOCH, or the fixed date every image gets without it."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return DEFAULT_EPOCH_SECONDS
    if not text.isdigit():
        raise InputError([f"SOURCE_DATE_EPOCH={text!r}: write seconds since 1970 as digits"])
    return int(text)
