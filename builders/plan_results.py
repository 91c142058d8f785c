"""What a compiler wrote: held against what was asked for, and kept with what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builders.plan_recipes import PlanOrder
from builders.workspace import Workspace
from engines import header, index
from engines.recipe import recipe_inputs
from planyard.core.errors import IntegrityError
from planyard.core.results import PlanRecord


def store_plan(
    order: PlanOrder,
    event: Mapping[str, Any],
    path: Path,
    *,
    workspace: Workspace,
    timing_cache: str = "",
) -> PlanRecord:
    """Check what the compiler wrote against what it says and what was asked, then keep it.

    The entry comes last: the plan, what the inspector says of it and the timing cache are stored
    before. Raises IntegrityError for another file than was asked for or said.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        found = header.read_header(file.read(header.HEAD_BYTES), size_bytes=size_bytes)
    if isinstance(found, header.NotAPlan):
        raise IntegrityError(f"{order.cell.id}: the compiler wrote no plan: {found.reason}")
    _check_header(order, found)
    digest = f"sha256:{event['sha256']}"
    workspace.store.put_blob(digest, path, take=True, family=order.recipe.model)
    record = PlanRecord(
        cell=order.cell.id,
        recipe=order.digest,
        digest=digest,
        size_bytes=size_bytes,
        backend=order.recipe.backend,
        version=order.recipe.version,
        sm=order.recipe.sm_targets[0],
        model=order.cell.model,
        profile=order.cell.profile,
        precision=order.cell.precision,
        compile_seconds=float(event["seconds"]),
        inputs=recipe_inputs(order.recipe),
        inspector=_store_inspector(order, event, path, workspace=workspace),
        timing_cache=timing_cache,
    )
    index.put_plan(workspace.store, record)
    return record


def _store_inspector(
    order: PlanOrder, event: Mapping[str, Any], plan: Path, *, workspace: Workspace
) -> str:
    """Keep what the engine inspector says of a plan; the digest, empty where it says nothing."""
    if "inspector" not in event:
        if said := event.get("inspector_said"):
            workspace.console.detail(f"{order.cell.id}: nothing from the inspector: {said}")
        return ""
    digest = f"sha256:{event['inspector_sha256']}"
    workspace.store.put_blob(digest, plan.with_suffix(".inspector.json"), take=True)
    return digest


def _check_header(order: PlanOrder, found: header.PlanHeader) -> None:
    """A plan says itself what it is: it has to be what was asked for, and all of it."""
    wanted = order.recipe
    if found.kind != wanted.backend:
        said = f"{found.kind}, not {wanted.backend}"
    elif found.version != wanted.version:
        said = f"version {found.version}, not {wanted.version}"
    elif found.sm_targets and found.sm_targets != wanted.sm_targets:
        said = f"SM {found.sm_targets}, not {wanted.sm_targets}"
    elif found.whole is False:
        said = found.problem
    else:
        return
    raise IntegrityError(f"{order.cell.id}: the compiler wrote a plan that says: {said}")
