"""Which jobs a selection of cells needs: by image, by plan group, by image and GPU. Pure.

A matrix of GitHub has at most 256 jobs. More than that are packed: jobs of the same runner labels
do several things one after another, so any number of cells fits.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from builders.converted import is_converted
from planyard.core.cells import GITHUB_JOBS, HOSTED_RUNNER, Cell
from planyard.core.errors import InputError
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Matrix

OUTPUT_BYTES = 1_000_000
"""GitHub takes 1 MB of outputs of a job, which it counts in UTF-16."""
ARGUMENT_BYTES = 100_000
"""Linux takes 128 KiB for one argument, or one variable of the environment."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job: the name people see, the cells it is about, the labels of its runner.

    `cells` is one id or pattern a line, as `--select` takes them.
    """

    name: str
    cells: str
    runs_on: tuple[str, ...]


class Jobs(msgspec.Struct, frozen=True, kw_only=True):
    """All jobs of a run, stage by stage: the document of `planyard github jobs --json`."""

    schema: Literal[1] = 1
    images: tuple[Job, ...]
    plans: tuple[Job, ...]
    smoke: tuple[Job, ...]


def jobs_of(
    cells: Sequence[Cell],
    *,
    all_cells: Sequence[Cell],
    matrix: Matrix,
    hosted: Sequence[str] = HOSTED_RUNNER,
    limit: int = GITHUB_JOBS,
) -> Jobs:
    """The jobs of the chosen `cells`; `hosted` are the labels where no GPU is needed.

    Images include those of the references that GPU cells are compared with. Raises InputError for
    more kinds of runners than one matrix has jobs.
    """
    everything = _by_image_and_gpu(all_cells)
    images = tuple(
        Job(name=name, cells=f"{name}/*", runs_on=tuple(hosted))
        for name in images_of(cells, all_cells=all_cells)
    )
    plans = tuple(
        Job(name=name, cells=_ids(mine), runs_on=labels)
        for name, labels, mine in _plan_groups(cells, matrix=matrix, hosted=hosted)
    )
    smoke = tuple(
        Job(
            name=f"{image} on {gpu}",
            cells=f"{image}/*/*/*/{gpu}" if mine == everything[image, gpu] else _ids(mine),
            runs_on=runner_labels(mine[0], matrix=matrix, hosted=hosted),
        )
        for (image, gpu), mine in _by_image_and_gpu(cells).items()
    )
    return Jobs(
        images=packed(images, limit=limit),
        plans=packed(plans, limit=limit),
        smoke=packed(smoke, limit=limit),
    )


def images_of(cells: Sequence[Cell], *, all_cells: Sequence[Cell]) -> tuple[str, ...]:
    """The images of the cells, and of the references that those on a GPU are compared with."""
    served = {(cell.model, cell.profile) for cell in cells if cell.sm is not None}
    references = [
        cell
        for cell in all_cells
        if cell.backend == "onnxruntime-cpu"
        and cell.precision == "fp32"
        and (cell.model, cell.profile) in served
    ]
    return tuple(dict.fromkeys(cell.image for cell in (*cells, *references)))


def runner_labels(
    cell: Cell, *, matrix: Matrix, hosted: Sequence[str] = HOSTED_RUNNER
) -> tuple[str, ...]:
    """Where a cell runs: its GPU's labels, for a GPU with the driver branch of the pins.

    `driver-580` is a label of its own, so that a node that is moved to another branch takes no
    more jobs of this one.
    """
    gpu = matrix.gpus[cell.gpu]
    labels = tuple(gpu.runs_on or hosted)
    if cell.backend not in GPU_BACKENDS:
        return labels
    return tuple(dict.fromkeys((*labels, f"driver-{matrix.pins.driver}")))


def packed(jobs: Sequence[Job], *, limit: int = GITHUB_JOBS) -> tuple[Job, ...]:
    """At most `limit` jobs that do the same: those on the same labels share one."""
    if len(jobs) <= limit:
        return tuple(jobs)
    groups: dict[tuple[str, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.runs_on].append(job)
    if len(groups) > limit:
        raise InputError(
            [f"{len(groups)} kinds of runners are more than the {limit} jobs of one matrix"],
            mend="call the workflow several times, each with a narrower select",
        )
    size = -(-len(jobs) // limit)
    while sum(-(-len(each) // size) for each in groups.values()) > limit:
        size += 1
    return tuple(
        _together(group[start : start + size])
        for group in groups.values()
        for start in range(0, len(group), size)
    )


def to_outputs(jobs: Jobs) -> dict[str, str]:
    """The outputs of the job `cells`: a `strategy.matrix` and a number of jobs for each stage."""
    found = {}
    for stage in ("images", "plans", "smoke"):
        mine: tuple[Job, ...] = getattr(jobs, stage)
        include = [msgspec.to_builtins(job) for job in mine]
        found[stage] = json.dumps({"include": include}, separators=(",", ":"))
        found[f"{stage}_jobs"] = str(len(mine))
        longest = max(mine, key=lambda job: len(job.cells), default=None)
        if longest and len(longest.cells) > ARGUMENT_BYTES:
            raise InputError(
                [f"the job {longest.name} names more cells than one argument holds"],
                mend="select whole images or GPUs, or call the workflow several times",
            )
    size_bytes = 2 * sum(len(text) for text in found.values())
    if size_bytes > OUTPUT_BYTES:
        raise InputError(
            [f"the jobs take {size_bytes} bytes, more than the {OUTPUT_BYTES} GitHub hands on"],
            mend="select whole images or GPUs, or call the workflow several times",
        )
    return found


def _plan_groups(
    cells: Sequence[Cell], *, matrix: Matrix, hosted: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...], list[Cell]]]:
    """What is compiled together: on a hosted runner, or, for classic TensorRT, on the GPU's own."""
    groups: dict[tuple[str, tuple[str, ...]], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.backend not in PLAN_BACKENDS and not is_converted(cell):
            continue
        name, labels = f"{cell.image}/{cell.model}/{cell.precision}", tuple(hosted)
        if cell.backend == "tensorrt":
            name = f"{name} on {cell.gpu}"
            labels = runner_labels(cell, matrix=matrix, hosted=hosted)
        groups[name, labels].append(cell)
    for (name, labels), mine in groups.items():
        yield name, labels, mine


def _by_image_and_gpu(cells: Sequence[Cell]) -> Mapping[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.image, cell.gpu].append(cell)
    return groups


def _ids(cells: Sequence[Cell]) -> str:
    return "\n".join(cell.id for cell in cells)


def _together(jobs: Sequence[Job]) -> Job:
    rest = len(jobs) - 1
    name = jobs[0].name + (f" and {rest} more" if rest else "")
    return Job(name=name, cells="\n".join(job.cells for job in jobs), runs_on=jobs[0].runs_on)
