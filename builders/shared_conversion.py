"""A converted model between builds on one store: converted by one of them, fetched by the others.

Each build judges it by its own tolerances, as it does a model from its own cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from builders.conversion import (
    ConversionJob,
    ConvertedModel,
    converted_model,
    digest_of_conversion,
)
from builders.inside import out_folder
from builders.models import identity_of_model
from builders.sharing import Sharing, Wanted
from builders.workspace import Workspace
from engines.conversions import CONVERSIONS, fetch_conversion, find_conversion, put_conversion
from engines.store.store import ObjectStore
from planyard.core.errors import PlanCompileError
from planyard.edge import files
from planyard.edge.console import Step


def shared_conversion(
    job: ConversionJob, *, workspace: Workspace, scratch: Path, step: Step, sharing: Sharing
) -> ConvertedModel:
    """The converted model: from the cache, from another build, or converted now and shared.

    Raises PlanCompileError as `converted_model` does.
    """
    key = digest_of_conversion(job.spec, job.conversion, builder=job.builder)
    kept = workspace.cache / "converted" / key.removeprefix("sha256:")
    made: list[ConvertedModel] = []

    def find(_: ConversionJob) -> bool:
        if sharing.place is None:
            return _is_kept(kept)
        if _is_kept(kept):
            return any(sharing.place.entries(CONVERSIONS, key))  # else it is sent
        return _fetch(key, kept, place=sharing.place, step=step)

    def make(_: Sequence[ConversionJob]) -> None:
        try:
            made.append(converted_model(job, workspace=workspace, scratch=scratch, step=step))
        except PlanCompileError:
            _share(key, kept, job=job, sharing=sharing)  # others may allow what this one refuses
            raise
        _share(key, kept, job=job, sharing=sharing)

    wanted = Wanted(recipe=key, what=f"{job.name} in {job.precision}", group=key, order=job)
    sharing.each_once([wanted], find=find, make=make, step=step)
    if made:
        return made[0]
    return converted_model(job, workspace=workspace, scratch=scratch, step=step)


def _is_kept(kept: Path) -> bool:
    """Whether the cache has it; whoever uses it verifies it."""
    return (kept / "report.json").is_file()


def _fetch(key: str, kept: Path, *, place: ObjectStore, step: Step) -> bool:
    """Bring what another build converted into the cache; False when there is nothing."""
    record = find_conversion(place, key)
    if record is None:
        return False
    step.update("fetch the converted model")
    with files.scratch_folder(kept.parent, prefix=".work-") as scratch:
        folder = out_folder(scratch, "files")
        fetch_conversion(place, record, folder)
        shutil.rmtree(kept, ignore_errors=True)
        folder.replace(kept)
    return True


def _share(key: str, kept: Path, *, job: ConversionJob, sharing: Sharing) -> None:
    if sharing.place is not None and _is_kept(kept):
        put_conversion(sharing.place, key, kept, family=identity_of_model(job.spec))
