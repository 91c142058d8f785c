"""The GPU lane's order: items one after another, a record after each, and going on with one."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gpu import lane
from tests.gpu.lane import Order, Task, exit_code, one_at_a_time, order_of, run_lane
from tests.gpu.machine import ROOT, Places, Surroundings
from tests.gpu.record import GpuFound, MachineFound, Record, read_record, write_record
from tests.gpu.subjects import CannotRunError

H200 = GpuFound(name="NVIDIA H200", sm=90, driver="580.159.03")
MACHINE = MachineFound(processor="a processor", cores=2, memory_bytes=1 << 33, python="3.12.3")


@pytest.fixture(autouse=True)
def on_an_h200(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lane, "machine_found", lambda: msgspec.structs.replace(MACHINE, gpu=H200))


@pytest.fixture
def order(tmp_path: Path) -> Order:
    places = Places(joined=tmp_path / "joined", work=tmp_path / "work")
    return Order(record=tmp_path / "record.json", places=places, seconds=600)


def passes(bench: Any, progress: Any) -> Any:
    return "passed", ""


def fails(bench: Any, progress: Any) -> Any:
    raise RuntimeError("out of luck")


def cannot(bench: Any, progress: Any) -> Any:
    raise CannotRunError("something is not here")


def tasks(*runs: Any, **changes: Any) -> dict[int, Task]:
    return {
        number: Task(**{"title": f"item {number}", "run": run, "seconds": 60, **changes})
        for number, run in enumerate(runs)
    }


def verdicts(record: Record) -> list[tuple[int, str]]:
    return [(item.number, item.verdict) for item in record.items]


def test_one_item_that_fails_does_not_stop_the_next(order):
    record = run_lane(order, tasks=tasks(fails, cannot, passes))
    assert verdicts(record) == [(0, "failed"), (1, "not run"), (2, "passed")]
    assert [item.reason for item in record.items] == [
        "RuntimeError: out of luck",
        "something is not here",
        "",
    ]
    assert read_record(order.record) == record


def test_a_lane_that_is_killed_has_written_what_it_had(order):
    def killed(bench: Any, progress: Any) -> Any:
        progress.note("so far")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_lane(order, tasks=tasks(passes, killed, passes))
    record = read_record(order.record)
    assert verdicts(record) == [(0, "passed"), (1, "not run"), (2, "not run")]
    assert record.items[1].reason == "it was cut off here"
    assert record.items[1].notes == ("so far",)
    assert record.items[2].reason == "it was not asked for"


def test_only_some(order):
    some = Order(record=order.record, places=order.places, seconds=600, numbers=(1,))
    record = run_lane(some, tasks=tasks(fails, passes))
    assert verdicts(record) == [(0, "not run"), (1, "passed")]


def test_going_on_runs_what_has_not_passed(order):
    run_lane(order, tasks=tasks(passes, fails))
    on = Order(record=order.record, places=order.places, seconds=600, resume=order.record)
    record = run_lane(on, tasks=tasks(fails, passes))
    assert verdicts(record) == [(0, "passed"), (1, "passed")]


@pytest.mark.parametrize("gpu", [None, msgspec.structs.replace(H200, driver="590.1")])
def test_a_record_of_another_machine_is_not_gone_on_with(order, gpu):
    record = run_lane(order, tasks=tasks(passes))
    machine = msgspec.structs.replace(record.machine, gpu=gpu)
    write_record(msgspec.structs.replace(record, machine=machine), order.record)
    on = Order(record=order.record, places=order.places, seconds=600, resume=order.record)
    with pytest.raises(ValueError, match="begin another one here"):
        run_lane(on, tasks=tasks(passes))


def test_the_time_of_all_is_the_limit_of_each(order):
    left: list[float] = []

    def looks(bench: Any, progress: Any) -> Any:
        left.append(bench.left_seconds())
        return "passed", ""

    short = Order(record=order.record, places=order.places, seconds=40)
    run_lane(short, tasks=tasks(looks))
    run_lane(order, tasks=tasks(looks))
    assert 30 < left[0] <= 35
    assert 50 < left[1] <= 55


def test_on_a_cpu_a_record_says_so(order):
    asked = Order(record=order.record, places=order.places, seconds=600, cpu=True)
    record = run_lane(asked, tasks=tasks(passes))
    assert record.kind == "cpu"
    assert record.machine.gpu is None
    assert record.items[0].reason == "this machine has no GPU"
    assert run_lane(order, tasks=tasks(passes)).kind == "gpu"


@pytest.mark.parametrize(
    ("runs", "numbers", "code"),
    [
        ((passes, passes), (), 0),
        ((passes, fails), (), 4),
        ((passes, cannot), (), 7),
        ((fails, cannot), (), 4),
        ((passes, fails), (0,), 0),
    ],
)
def test_exit_codes(order, runs, numbers, code):
    assert exit_code(run_lane(order, tasks=tasks(*runs)), numbers) == code


def test_a_command_line(tmp_path):
    given = ["--record", str(tmp_path / "r.json"), "--only", "3,1", "--seconds", "90", "--cpu"]
    order = order_of(given)
    assert (order.numbers, order.seconds, order.cpu, order.resume) == ((1, 3), 90, True, None)
    with pytest.raises(SystemExit):
        order_of(["--record", "r", "--only", "9"])


def test_two_lanes_take_turns(tmp_path):
    def take() -> None:
        with (tmp_path / "work" / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with one_at_a_time(tmp_path / "work"), pytest.raises(BlockingIOError):
        take()
    take()


def test_another_package_called_tests_does_not_get_in_the_way(tmp_path):
    """A folder that is no package gives way to one that is, wherever that is on the path."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").write_text("raise SystemExit('the other one')")
    command = [sys.executable, str(ROOT / "tests" / "gpu"), "lane", "--help"]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout


# Environments of programs.


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    for folder in ("joined/site/nvidia/cu13/lib", "joined/site-trt11", "driver", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "driver" / "libcuda.so.1").write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/other:{tmp_path}/driver")
    places = Places(joined=tmp_path / "joined", work=tmp_path / "work")
    return Surroundings(places=places)


def test_libraries_of_wheels_come_first_and_the_drivers_stay(around, tmp_path):
    paths = around.onnxruntime()["LD_LIBRARY_PATH"].split(":")
    assert paths[0] == f"{tmp_path}/joined/site/nvidia/cu13/lib"
    assert paths[-2:] == [f"{tmp_path}/other", f"{tmp_path}/driver"]


def test_an_empty_library_path_keeps_the_driver_alone(around, tmp_path):
    paths = around.emptied()["LD_LIBRARY_PATH"].split(":")
    assert paths == [f"{tmp_path}/work/no-libraries", f"{tmp_path}/driver"]
    assert list((tmp_path / "work" / "no-libraries").iterdir()) == []


def test_a_hidden_library_cannot_be_opened(around, tmp_path):
    environment = around.hidden()
    first = environment["LD_LIBRARY_PATH"].split(":")[0]
    code = "import ctypes; ctypes.CDLL('libcudnn.so.9')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"LD_LIBRARY_PATH": environment["LD_LIBRARY_PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{first}/libcudnn.so.9: file too short" in done.stderr


def test_each_version_of_tensorrt_sees_its_own(around, tmp_path):
    environment = around.tensorrt("11.2.1.2")
    assert environment["LD_LIBRARY_PATH"].startswith(f"{tmp_path}/joined/lib-trt11:")
    assert environment["PYTHONPATH"] == f"{tmp_path}/joined/site-trt11"
