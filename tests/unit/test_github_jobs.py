"""Which jobs a selection needs: no cell is lost, however many are packed into one job."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from builders.github.jobs import (
    ARGUMENT_BYTES,
    Job,
    Jobs,
    images_of,
    jobs_of,
    packed,
    runner_labels,
    to_outputs,
)
from builders.github.node import check_node
from builders.github.outputs import write_outputs
from planyard.core.cells import GITHUB_JOBS, Cell, expand, select
from planyard.core.compat import load_compat
from planyard.core.errors import InputError, SmokeNotRunError
from planyard.core.matrix import Matrix
from planyard.core.reader import read_matrix
from planyard.edge.gpu import LocalGpu
from tests.workspaces import REPOSITORY

MATRIX = read_matrix((REPOSITORY / "matrix.yaml").read_bytes())
CELLS = expand(MATRIX, load_compat()).cells
RTX = select(CELLS, ["rtx/*/sm89"])


def jobs(patterns: list[str], **options: Any) -> Jobs:
    return jobs_of(select(CELLS, patterns), all_cells=CELLS, matrix=MATRIX, **options)


def covered(found: tuple[Job, ...]) -> list[str]:
    """The cells that the jobs are about, as planyard itself reads their lines."""
    patterns = [line for job in found for line in job.cells.splitlines()]
    return sorted(cell.id for cell in select(CELLS, patterns))


def test_the_whole_matrix():
    found = jobs([])
    assert [job.name for job in found.images] == ["rtx", "ort-cpu", "ort-gpu"]
    assert [job.name for job in found.plans] == ["rtx/ocr-det/fp16"]
    assert {job.name for job in found.smoke} == {
        *("rtx on sm86", "rtx on sm89", "rtx on sm120", "ort-cpu on cpu", "ort-gpu on sm89")
    }
    assert covered(found.smoke) == sorted(cell.id for cell in CELLS)
    assert covered(found.plans) == sorted(cell.id for cell in CELLS if cell.image == "rtx")


def test_a_part_of_a_pair_is_named_cell_by_cell():
    found = jobs(["rtx/*/640/*"])
    assert found.smoke[0].cells == "rtx/ocr-det/640/fp16/sm86"
    assert covered(found.smoke) == sorted(cell.id for cell in select(CELLS, ["rtx/*/640/*"]))


def test_images_include_the_references_of_gpu_cells():
    assert images_of(RTX, all_cells=CELLS) == ("rtx", "ort-cpu")
    assert images_of(select(CELLS, ["ort-cpu/*"]), all_cells=CELLS) == ("ort-cpu",)


def test_gpu_cells_ask_for_the_driver_branch_and_others_do_not():
    assert runner_labels(RTX[0], matrix=MATRIX) == ("self-hosted", "gpu", "sm89", "driver-580")
    (cpu, *_) = select(CELLS, ["ort-cpu/*"])
    assert runner_labels(cpu, matrix=MATRIX) == ("ubuntu-latest",)
    assert jobs(["rtx/*"], hosted=("mine",)).plans[0].runs_on == ("mine",)


def classic() -> tuple[Matrix, tuple[Cell, ...]]:
    text = (REPOSITORY / "matrix.yaml").read_text()
    text = text.replace("backend: tensorrt-rtx", "backend: tensorrt")
    text = text.replace("[tensorrt-rtx", "[tensorrt")
    matrix = read_matrix(text.encode())
    return matrix, expand(matrix, load_compat()).cells


def test_classic_tensorrt_compiles_on_the_labels_of_its_gpu():
    matrix, cells = classic()
    found = jobs_of(cells, all_cells=cells, matrix=matrix).plans
    assert {job.runs_on for job in found} == {
        ("self-hosted", "gpu", gpu, "driver-580") for gpu in ("sm86", "sm89", "sm120")
    }


def test_models_are_converted_before_they_are_smoked():
    chosen = select(CELLS, ["ort-gpu/*"])
    half = tuple(msgspec.structs.replace(cell, precision="fp16") for cell in chosen)
    (job,) = jobs_of(half, all_cells=half, matrix=MATRIX).plans
    assert (job.name, job.runs_on) == ("ort-gpu/ocr-det/fp16", ("ubuntu-latest",))
    assert len(job.cells.splitlines()) == len(half)


# Packing


def many(count: int, *labels: str) -> list[Job]:
    return [
        Job(name=f"{labels[0]}-{n}", cells=f"{labels[0]}/{n}", runs_on=labels) for n in range(count)
    ]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000, 10_000])
def test_at_most_256_jobs_and_nothing_lost(count):
    wanted = [*many(count, "a"), *many(3, "b", "c")]
    found = packed(wanted)
    assert len(found) <= GITHUB_JOBS
    lines = sorted(line for job in found for line in job.cells.splitlines())
    assert lines == sorted(job.cells for job in wanted)
    assert all(line.startswith(f"{job.runs_on[0]}/") for job in found for line in job.cells.split())


def test_many_kinds_of_runners_leave_little_room_for_the_rest():
    wanted = [*many(1000, "a"), *(job for n in range(200) for job in many(1, f"label-{n}"))]
    found = packed(wanted)
    assert len(found) <= GITHUB_JOBS
    assert sorted(line for job in found for line in job.cells.splitlines()) == sorted(
        job.cells for job in wanted
    )


def test_few_jobs_stay_as_they_are():
    assert packed(many(256, "a")) == tuple(many(256, "a"))


def test_more_kinds_of_runners_than_jobs_are_refused():
    with pytest.raises(InputError, match="257 kinds of runners"):
        packed([job for n in range(257) for job in many(1, f"label-{n}")])


def test_the_outputs_are_matrices_and_numbers():
    outputs = to_outputs(jobs(["ort-cpu/*"]))
    assert outputs["plans_jobs"] == "0"
    assert outputs["smoke_jobs"] == "1"
    assert json.loads(outputs["plans"]) == {"include": []}
    (smoke,) = json.loads(outputs["smoke"])["include"]
    assert smoke == {
        "name": "ort-cpu on cpu",
        "cells": "ort-cpu/*/*/*/cpu",
        "runs_on": ["ubuntu-latest"],
    }


def test_what_github_cannot_hand_on_is_refused():
    long = msgspec.structs.replace(many(1, "a")[0], cells="x" * (ARGUMENT_BYTES + 1))
    with pytest.raises(InputError, match="one argument"):
        to_outputs(Jobs(images=(), plans=(), smoke=(long,)))
    large = msgspec.structs.replace(long, cells="x" * (ARGUMENT_BYTES - 1))
    with pytest.raises(InputError, match="hands on"):
        to_outputs(Jobs(images=(), plans=(), smoke=(large,) * 6))


# Outputs of a step


def test_outputs_are_written_one_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "out"))
    write_outputs({"a": "1", "b_c": '{"x":"y=z"}'})
    assert (tmp_path / "out").read_text() == 'a=1\nb_c={"x":"y=z"}\n'


@pytest.mark.parametrize("value", ["a\nb=1", "a\rb", "a\n", "\x85b", "a\u2028b"])
def test_an_output_of_several_lines_is_refused(value, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "out"))
    with pytest.raises(InputError):
        write_outputs({"good": "1", "bad": value})
    assert not (tmp_path / "out").exists()


# The node


def gpu(sm: int = 89, driver: str = "580.95.05") -> LocalGpu:
    return LocalGpu(sm=sm, driver=driver)


@pytest.mark.parametrize(
    "gpus", [(gpu(),), (gpu(86), gpu()), (gpu(driver="575.1"), gpu()), (gpu(driver="580"),)]
)
def test_the_node_of_a_cell(gpus):
    check_node(RTX, matrix=MATRIX, gpus=gpus)


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ((), "nvidia-smi finds no GPU here"),
        ((gpu(86),), "here is SM 8.6"),
        ((gpu(driver="575.57.08"),), "here is driver 575.57.08"),
        ((gpu(driver="5800.1"),), "here is driver 5800.1"),
        ((gpu(86), gpu(driver="590.1")), "here is driver 590.1"),
    ],
)
def test_another_node_is_refused(gpus, said):
    with pytest.raises(SmokeNotRunError, match="driver branch 580") as caught:
        check_node(RTX, matrix=MATRIX, gpus=gpus)
    assert said in caught.value.message
    assert "self-hosted, gpu, sm89" in caught.value.mend


def test_a_cell_on_the_cpu_runs_anywhere():
    check_node(select(CELLS, ["ort-cpu/*"]), matrix=MATRIX, gpus=())
