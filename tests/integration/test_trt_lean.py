"""The image with TensorRT's lean runtime, as it is built, audited and started without a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.image import load_image
from builders.probing import probe_image
from builders.workspace import Workspace
from engines.index import all_images
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.matrix import Matrix
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.reader import load_matrix
from planyard.core.results import ImageRecord
from planyard.edge.console import Console
from planyard.edge.docker import Container
from smoke.job import SmokeJob
from smoke.run import run_job
from tests.conftest import do_without, why_missing
from tests.fake_cuda import plan_of
from tests.fake_machine import Machine
from tests.workspaces import REPOSITORY, lay_out

pytestmark = pytest.mark.docker

CELL = "trt-lean/ocr-det/640/fp16/sm90"
PULL_LIMIT_BYTES = 120_000_000  # what was asked of this image
VERSION = "11.2.1.2"


@dataclass(frozen=True, kw_only=True)
class Lean:
    """The image, in the store of its workspace and in the engine."""

    document: dict[str, Any]
    matrix: Matrix
    record: ImageRecord
    tag: str
    workspace: Workspace

    def inside(self, code: str) -> str:
        """What Python prints in it; the code has to end well."""
        command = ("/usr/bin/python3.11", "-c", code)
        limits = {"memory_bytes": 2 << 30, "timeout_seconds": 60}
        ended = self.workspace.engine().run(Container(image=self.tag, command=command, **limits))
        assert ended.exit_code == 0, ended.stderr.decode()
        return ended.stdout.decode().strip()


@pytest.fixture(scope="module")
def lean(
    request: pytest.FixtureRequest,
    engine_host: str,
    environment: dict[str, str],
    cache: Path,
    session_folder: Path,
) -> Iterator[Lean]:
    site = lay_out(session_folder / "trt-lean", environment=environment)
    data = (REPOSITORY / "matrix.gpu.yaml").read_bytes()
    site.write("matrix.gpu.yaml", data)
    build = ("image", "build", "--matrix", "matrix.gpu.yaml", "--select", "trt-lean/*", "--json")
    ran = site.planyard(*build)
    if ran.exit_code in (5, 8) and (reason := why_missing("network")):
        do_without(request.config, "network", f"{reason}, and the cache lacks what a build needs")
    document = ran.expect(0).document()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        patch.setenv("PLANYARD_CACHE", str(cache))
        with Workspace(root=site.root, store=site.store, console=Console(quiet=True)) as workspace:
            (record,) = all_images(site.store)
            yield Lean(
                document=document,
                matrix=load_matrix(data, name="matrix.gpu.yaml").matrix,
                record=record,
                tag=load_image(record, workspace=workspace),
                workspace=workspace,
            )
    shutil.rmtree(site.root, ignore_errors=True)


def test_it_is_small_and_nothing_in_it_is_found_fault_with(lean: Lean) -> None:
    (image,) = lean.document["images"]
    assert image["name"] == "trt-lean"
    assert image["findings"] == []
    assert 50_000_000 < image["pull_bytes"] <= PULL_LIMIT_BYTES
    assert image["unpacked_bytes"] <= image["budget"]["unpacked"]


def test_its_compiler_is_not_built_before_a_gpu_compiles(lean: Lean) -> None:
    assert [record.name for record in all_images(lean.workspace.store)] == ["trt-lean"]


def test_the_library_says_its_own_version(lean: Lean) -> None:
    python = lean.matrix.images["trt-lean"].python
    report = probe_image(lean.record, python=python, workspace=lean.workspace)
    found = report.versions["tensorrt"]
    assert found.version == VERSION == lean.matrix.pins.tensorrt
    assert "libnvinfer_lean.so.11" in found.how
    assert set(report.versions) == {"python", "tensorrt"}


def test_the_bindings_load_and_nothing_compiles(lean: Lean) -> None:
    code = "import tensorrt_lean_bindings as t; print(t.__version__, hasattr(t, 'Builder'))"
    assert lean.inside(code) == f"{VERSION} False"


def test_it_refuses_to_start_here_and_says_why(lean: Lean, engine_host: str) -> None:
    machine = Machine(host=engine_host, image=lean.tag, fakes=Path())
    gpu = ("toolkit", "devices", "driver", "cuda", "gpu", "sm")
    document = machine.run().refused(*gpu, "plans")
    found = {each["check"]: each["found"] for each in document["mismatches"]}
    assert "libcuda.so.1 not there" in found["toolkit"]
    assert "PLANYARD_PLANS names no folder" in found["plans"]


def test_it_expects_the_lean_library_and_the_gpu_of_its_cells(lean: Lean) -> None:
    said = json.loads(lean.inside("print(open('/etc/planyard/expect.json').read())"))
    assert said["libraries"] == ["libnvinfer_lean.so.11"]
    assert said["sms"] == [90]
    assert said["plans"] == {"kind": "tensorrt", "version": VERSION, "files": []}


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("11.1.0.9", f"a plan of TensorRT 11.1.0.9 does not run on {VERSION}"),
        (VERSION, "libcuda.so.1: cannot open shared object file"),
    ],
)
def test_the_smoke_script_looks_at_a_plans_header_first(
    lean: Lean, tmp_path: Path, version: str, said: str
) -> None:
    """With the real library, which says its version without a GPU; then it lacks the driver."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.plan").write_bytes(plan_of(version))
    cells = expand(lean.matrix, load_compat()).cells
    job = SmokeJob(
        cell=next(cell for cell in cells if cell.id == CELL),
        image=lean.tag,
        python=lean.matrix.images["trt-lean"].python,
        served=tmp_path / "model" / "model.plan",
        inputs={"x": np.zeros((1, 3, 8, 8), "float32")},
        limits=SmokeLimits(),
        gpu=False,
    )
    runner = lean.workspace.engine().run
    run, outputs = run_job(job, runner=runner, scratch=_scratch(tmp_path))
    assert (run.exit_code, outputs) == (1, {})
    assert run.report is not None
    assert said in run.report.error


def _scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder
