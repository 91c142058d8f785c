"""Run the GPU lane: `tests/gpu/run.sh`, or `python tests/gpu lane --record FILE` with all in place.

The items go in their order, each on its own: one that fails or cannot run is in the record with
the reason, and the next goes on. The record is written after every run, so that whatever ends the
lane loses at most the run under way. Exit code 0: every item that was asked for passed; 4: one
failed; 7: none failed, and one could not be run.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from planyard.core.errors import EXIT_DONE, EXIT_FINDINGS, SmokeNotRunError
from planyard.core.results import Verdict
from planyard.edge.clock import utc_now
from tests.gpu.bench import Bench, Progress
from tests.gpu.items_load import run_sharing, run_workloads
from tests.gpu.items_ort import run_cuda, run_reference, run_without_libraries
from tests.gpu.items_plans import run_attention, run_classic
from tests.gpu.machine import ROOT, Places, Surroundings, machine_found
from tests.gpu.record import (
    Item,
    MachineFound,
    Record,
    item_of,
    read_record,
    with_item,
    write_record,
)
from tests.gpu.subjects import CannotRunError, lane_matrix

Run = Callable[[Bench, Progress], tuple[Verdict, str]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One item: what it is to prove, and how long it may take at the most."""

    title: str
    run: Run
    seconds: float
    needs_gpu: bool = True


TASKS: Mapping[int, Task] = {
    0: Task(
        title="The lane itself: a small model on the CPU, no GPU asked for",
        run=run_reference,
        seconds=60,
        needs_gpu=False,
    ),
    1: Task(
        title="ONNX Runtime on CUDA: the OCR models and the UNet, against the CPU",
        run=run_cuda,
        seconds=540,
    ),
    2: Task(
        title="The same with the CUDA library path broken: the gates refuse",
        run=run_without_libraries,
        seconds=150,
    ),
    3: Task(
        title="Classic TensorRT builds, rebuilds and runs a plan, and refuses another version's",
        run=run_classic,
        seconds=540,
    ),
    4: Task(
        title="Fused attention by the inspector on the UNet; fp16 against fp32 outputs",
        run=run_attention,
        seconds=580,
    ),
    5: Task(
        title="The workload table: 512 and 1024, 1 to 8 pictures, 1 to 32 at once",
        run=run_workloads,
        seconds=560,
    ),
    6: Task(
        title="What plans of two resolutions share in the store",
        run=run_sharing,
        seconds=120,
    ),
}
SPARE_SECONDS = 5.0
"""For the record, and for ending what runs: an item is stopped so long before the lane is."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked of a lane: items in their order, how long, from where to where.

    Without `numbers` it is every item; with `resume`, every item that has not passed there.
    """

    record: Path
    places: Places
    numbers: tuple[int, ...] = ()
    seconds: float
    cpu: bool = False
    resume: Path | None = None


def run_lane(order: Order, *, tasks: Mapping[int, Task] = TASKS) -> Record:
    """Run the items of an order one after another, and write the record as they come."""
    deadline = time.monotonic() + order.seconds
    machine = machine_found()
    if order.cpu:
        machine = msgspec.structs.replace(machine, gpu=None)
    record = _begun(order, machine, tasks)
    matrix, around = lane_matrix(), Surroundings(places=order.places)
    for number in _numbers_to_run(order, record, tasks):
        bench = Bench(
            places=order.places,
            around=around,
            machine=machine,
            matrix=matrix,
            deadline=min(deadline, time.monotonic() + tasks[number].seconds) - SPARE_SECONDS,
        )

        def save(item: Item) -> None:
            nonlocal record
            record = with_item(record, item)
            write_record(record, order.record)

        print(f"item {number}: {tasks[number].title}", file=sys.stderr, flush=True)
        item = run_item(number, tasks[number], bench, save=save)
        save(item)
        said = f"item {number}: {item.verdict} after {item.seconds:.0f} s {item.reason}"
        print(said.rstrip(), file=sys.stderr, flush=True)
    return record


def run_item(number: int, task: Task, bench: Bench, *, save: Callable[[Item], None]) -> Item:
    """One item to its end, whatever that is."""
    progress = Progress(number=number, title=task.title, save=save)
    if task.needs_gpu and bench.machine.gpu is None:
        return progress.item("not run", "this machine has no GPU")
    try:
        bench.left_seconds()
        verdict, reason = task.run(bench, progress)
    except CannotRunError as error:
        if progress.runs or progress.plans or progress.loads:
            return progress.item("failed", f"only a part of it was run: {error}")
        return progress.item("not run", str(error))
    except Exception as error:  # noqa: BLE001 - the next item has to go on
        traceback.print_exc()
        return progress.item("failed", f"{type(error).__name__}: {error}"[:1000])
    return progress.item(verdict, reason)


def _begun(order: Order, machine: MachineFound, tasks: Mapping[int, Task]) -> Record:
    """The record to go on with, which has to be of this GPU; or a new one."""
    if order.resume is None or not order.resume.is_file():
        return _new_record(machine, tasks)
    record = read_record(order.resume)
    if record.machine.gpu != machine.gpu:
        gpu = record.machine.gpu
        there = f"of {gpu.name}, driver {gpu.driver}" if gpu else "of a machine without a GPU"
        raise ValueError(f"{order.resume.name} is {there}: begin another one here")
    return record


def _numbers_to_run(order: Order, record: Record, tasks: Mapping[int, Task]) -> tuple[int, ...]:
    if order.numbers or order.resume is None:
        return order.numbers or tuple(tasks)
    passed = {item.number for item in record.items if item.verdict == "passed"}
    return tuple(number for number in tasks if number not in passed)


def _new_record(machine: MachineFound, tasks: Mapping[int, Task]) -> Record:
    """A record in which nothing has been run yet."""
    nothing = tuple(
        Item(number=number, title=task.title, verdict="not run", reason="it was not asked for")
        for number, task in tasks.items()
    )
    return Record(
        kind="gpu" if machine.gpu else "cpu",
        created=utc_now(),
        revision=_revision(),
        machine=machine,
        items=nothing,
    )


@contextmanager
def one_at_a_time(work: Path) -> Iterator[None]:
    """Wait until no other lane of this work folder runs: two on one GPU would time each other."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _revision() -> str:
    """The commit of this checkout, with `-dirty` where files differ; a bare copy does not know."""
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    asked = ("git", "-C", str(ROOT), *describe)
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return os.environ.get("PLANYARD_REVISION", "")
    return done.stdout.strip() or os.environ.get("PLANYARD_REVISION", "")


def exit_code(record: Record, numbers: Sequence[int]) -> int:
    """What the lane ends with, by the items that were asked for; all of them where none was."""
    asked = numbers or [item.number for item in record.items]
    verdicts = [item.verdict for number in asked if (item := item_of(record, number))]
    if "failed" in verdicts:
        return EXIT_FINDINGS
    return SmokeNotRunError.exit_code if "not run" in verdicts else EXIT_DONE


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in text.split(",")}))
    if unknown := set(numbers) - TASKS.keys():
        raise ValueError(f"there is no item {min(unknown)}: {min(TASKS)} to {max(TASKS)}")
    return numbers


def order_of(arguments: Sequence[str]) -> Order:
    """The order on a command line; argparse ends the program for one that is none."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description="Run the GPU lane.")
    parser.add_argument("--record", type=Path, required=True, help="the record to write")
    parser.add_argument("--joined", type=Path, default=Path("tests/gpu/joined"))
    parser.add_argument("--work", type=Path, default=Path("tests/gpu/work"))
    parser.add_argument("--only", type=_numbers, help="items, like 1,3; default: all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all items together")
    parser.add_argument("--resume", type=Path, help="a record to go on with")
    parser.add_argument("--cpu", action="store_true", help="use no GPU, whatever is here")
    given = parser.parse_args(arguments)
    return Order(
        record=given.record.absolute(),
        places=Places(joined=given.joined.absolute(), work=given.work.absolute()),
        numbers=given.only or (),
        seconds=given.seconds,
        cpu=given.cpu,
        resume=given.resume,
    )


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    order = order_of(arguments)
    with one_at_a_time(order.places.work):
        record = run_lane(order)
        write_record(record, order.record)
    print(f"{order.record.name} is written", file=sys.stderr)
    return exit_code(record, order.numbers)
