"""Timing caches of a compile job: brought from the store before it, kept there after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders.plan_recipes import PlanOrder
from builders.workspace import Workspace
from engines.timing_caches import TimingKey, find_timings, put_timings
from planyard.core.errors import LookupMissError, PlanCompileError
from planyard.core.matrix_runtime import TensorRtBuild
from planyard.edge.console import Step
from planyard.edge.gpu import LocalGpu

OUT = "timing.cache"
"""The file in the job's folder that the script writes the cache of its builds to."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """The caches that a job starts from: `given` are their digests by file name in `folder`.

    `key` is None where what the job measures is not kept; `replayed` is the digest of a cache that
    is the only one.
    """

    folder: Path
    given: dict[str, str] = field(default_factory=dict)
    key: TimingKey | None = None
    replayed: str = ""

    def fields(self, target: str) -> dict[str, Any]:
        """What the job says of them, with `folder` at `target` in the container."""
        return {
            "timing_caches": [f"{target}/{name}" for name in self.given],
            "timing_cache_out": OUT if self.key else None,
            "replay": bool(self.replayed),
        }


def bring_timings(
    orders: Sequence[PlanOrder],
    *,
    build: TensorRtBuild,
    gpu: LocalGpu | None,
    workspace: Workspace,
    folder: Path,
) -> Timings:
    """Write the caches for a job into `folder`; raises PlanCompileError for a replay without its
    cache."""
    folder.mkdir()
    recipe, store = orders[0].recipe, workspace.store
    if recipe.timing_cache is not None:
        name = "0.cache"
        try:
            store.fetch_blob(recipe.timing_cache, folder / name)
        except LookupMissError as error:
            said = f"the timing cache to replay is not stored: {error.message}"
            mend = "take `replay` out of the matrix, or name a plan's own `timing_cache`"
            raise PlanCompileError(said, mend=mend) from error
        given = {name: recipe.timing_cache}
        return Timings(folder=folder, given=given, replayed=recipe.timing_cache)
    if not build.keep_timings or gpu is None:
        return Timings(folder=folder)
    key = TimingKey(gpu=gpu.name, driver=gpu.driver, version=recipe.version)
    given = {}
    for number, record in enumerate(find_timings(store, key)):
        store.fetch_blob(record.digest, folder / f"{number}.cache")
        given[f"{number}.cache"] = record.digest
    return Timings(folder=folder, given=given, key=key)


def keep_timings(
    timings: Timings,
    events: Sequence[Mapping[str, Any]],
    *,
    out: Path,
    workspace: Workspace,
    step: Step,
) -> str:
    """Keep what the job measured; gives the digest of the cache its plans were built with, if any.

    A cache that TensorRT refused stays as it is: it may be another GPU's of the same name.
    """
    for event in events:
        if event["event"] == "cache-refused":
            digest = timings.given.get(event["file"], event["file"])
            step.update(f"the timing cache {digest} was not taken: {event['message']}")
    if timings.replayed:
        return timings.replayed
    written = next((each for each in events if each["event"] == "cache"), None)
    if timings.key is None or written is None:
        return ""
    digest = f"sha256:{written['sha256']}"
    combined = [timings.given[name] for name in written["combined"] if name in timings.given]
    put_timings(workspace.store, timings.key, out / OUT, digest=digest, combines=combined)
    return digest
