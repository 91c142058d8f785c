"""The GPU lane's script as a machine without a GPU runs it: `tests/gpu/run.sh --cpu`, for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.gpu.judging import judge_again
from tests.gpu.machine import ROOT
from tests.gpu.record import item_of, read_record

SCRIPT = ROOT / "tests" / "gpu" / "run.sh"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = {name.upper(): str(folder / name) for name in ("parts", "joined", "work")}
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**os.environ, **places, "PYTHON": sys.executable, "OUT": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_machine_without_a_gpu_writes_a_record_that_says_so(tmp_path: Path):
    done = run(tmp_path, "--cpu", "--seconds", "200")
    assert done.returncode == 7, done.stderr
    record = read_record(tmp_path / "record.json")
    assert record.kind == "cpu"
    assert record.machine.gpu is None
    first = item_of(record, 0)
    assert first is not None
    assert first.verdict == "passed", first.reason
    assert [each.golden for each in first.runs] == ["own", "ort-cpu/small/256/fp32/cpu"]
    assert first.runs[1].outputs[0].max_abs == 0
    assert all(judge_again(each).gates == each.verdicts for each in first.runs)
    others = [item for item in record.items if item.number]
    assert {(item.verdict, item.reason) for item in others} == {
        ("not run", "this machine has no GPU")
    }
    text = (tmp_path / "record.json").read_text()
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    assert list((tmp_path / "work" / "scratch").iterdir()) == []
    again = run(tmp_path, "--cpu", "--only", "3", "--resume", str(tmp_path / "record.json"))
    assert again.returncode == 7
    assert read_record(tmp_path / "record.json").items[0] == first
