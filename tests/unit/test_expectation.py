"""What an image expects is made from the matrix alone, and `images/admit.py` understands it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.expectation import (
    ADMISSION_FOLDER,
    DIGEST_LIMIT_BYTES,
    Admission,
    Expectation,
    admission_digests,
    expect_plan,
    expectation_of,
    stage_admission,
    wants_admission,
)
from builders.image import order_image
from builders.wheels import read_lock
from builders.workspace import Workspace
from engines.store.local_store import LocalStore
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.errors import InputError
from planyard.core.matrix import Matrix
from planyard.core.reader import load_matrix
from planyard.edge.console import Console
from tests import small_site

REPOSITORY = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32


def load_admit() -> Any:
    spec = importlib.util.spec_from_file_location("admit", REPOSITORY / "images" / "admit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


admit = load_admit()


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return load_matrix((REPOSITORY / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix


def expected(matrix: Matrix, name: str, admission: Admission | None = None) -> Expectation:
    lock = REPOSITORY / str(matrix.images[name].lock)
    return expectation_of(
        name,
        matrix=matrix,
        cells=expand(matrix, load_compat()).cells,
        wheels=read_lock(lock.read_text(), name=lock.name),
        admission=admission,
    )


def is_on(expectation: Expectation) -> set[str]:
    return {check for check, state in expectation.checks.items() if state == "on"}


@pytest.mark.parametrize("name", ["rtx", "ort-cpu", "ort-gpu"])
def test_admit_understands_it(matrix, name):
    document = admit.parse_expectation(expected(matrix, name).to_json())
    assert document["image"] == name
    assert document["backend"] == matrix.images[name].backend


def test_both_sides_know_the_same_fields_and_checks():
    fields = {field.name for field in msgspec.structs.fields(Expectation)}
    assert fields == set(admit.FIELDS)
    loaded = load_matrix((REPOSITORY / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix
    assert set(expected(loaded, "rtx").checks) == set(admit.CHECKS) == set(admit.JUDGES)


def test_a_gpu_image_expects_what_the_pins_say(matrix):
    found = expected(matrix, "ort-gpu")
    assert is_on(found) == set(admit.CHECKS) - {"memory", "mig", "plans"}
    assert (found.driver.branch, found.driver.newer, found.cuda) == (580, True, "13.0")
    assert found.sms == (89,)
    assert set(found.libraries) == {
        *("libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13", "libcurand.so.10"),
        *("libcudnn.so.9", "libnvrtc.so.13"),
    }
    assert found.packages["nvidia-cudnn-cu13"] == "9.28.0.42"
    assert found.packages["onnxruntime-gpu"] == "1.31.1"
    assert "pip" not in found.packages
    assert "onnxruntime" in found.rivals
    assert "onnxruntime-gpu" not in found.rivals
    assert found.provider.files[0] == "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    assert found.site == ("/usr/local/lib/python3.11/dist-packages",)


def test_an_image_of_plans_expects_plans_for_the_sms_of_its_cells(matrix):
    found = expected(matrix, "rtx")
    assert found.checks["plans"] == "on"
    assert (found.plans.kind, found.plans.version) == ("tensorrt-rtx", "1.7.1.116")
    assert found.sms == (86, 89, 120)
    assert found.libraries == ("libtensorrt_rtx.so.1",)
    assert found.checks["provider"].startswith("off: ")


def test_a_cpu_image_expects_no_gpu_and_says_why(matrix):
    found = expected(matrix, "ort-cpu")
    assert is_on(found) == {"packages"}
    assert found.checks["driver"] == "off: onnxruntime-cpu needs no GPU"
    assert "onnxruntime-gpu" in found.rivals


def test_the_libraries_of_onnxruntime_are_in_its_image(matrix):
    """The names are those of the wheels in the lock, by their CUDA and cuDNN major."""
    packages = expected(matrix, "ort-gpu").packages
    for library, package in {
        "libcublas.so.13": "nvidia-cublas",
        "libcudart.so.13": "nvidia-cuda-runtime",
        "libcudnn.so.9": "nvidia-cudnn-cu13",
    }.items():
        assert packages[package].split(".")[0] == library.rpartition(".")[2]


def test_classic_tensorrt_is_held_to_its_driver_branch(matrix):
    images = {"trt": msgspec.structs.replace(matrix.images["rtx"], backend="tensorrt")}
    classic = msgspec.structs.replace(matrix, images=images)
    found = expectation_of("trt", matrix=classic, cells=())
    assert not found.driver.newer
    assert found.libraries == ("libnvinfer.so.11",)
    assert found.checks["packages"].startswith("off: ")


def test_what_the_owner_says_counts(matrix):
    plan = expect_plan("/plans/a.plan", digest=DIGEST, size_bytes=10, sms=(89,))
    said = Admission(
        free_memory_bytes=1 << 30,
        mig="1g.10gb",
        off={"toolkit": "the driver is part of this image"},
        plans=(plan,),
        site=("/opt/site",),
    )
    found = expected(matrix, "ort-gpu", said)
    assert found.free_bytes == 1 << 30
    assert found.mig == "1g.10gb"
    assert found.site == ("/opt/site",)
    assert {"memory", "mig"} <= is_on(found)
    assert found.checks["toolkit"] == "off: the driver is part of this image"
    assert admit.parse_expectation(found.to_json())["plans"]["files"][0]["path"] == "/plans/a.plan"


def test_a_check_that_does_not_exist_cannot_be_off(matrix):
    with pytest.raises(InputError, match="there is no check 'divers'"):
        expected(matrix, "ort-gpu", Admission(off={"divers": "no such thing is there"}))


@pytest.mark.parametrize(
    ("size_bytes", "verify"),
    [(DIGEST_LIMIT_BYTES, "digest"), (DIGEST_LIMIT_BYTES + 1, "header")],
)
def test_a_large_plan_is_looked_at_by_its_header(size_bytes, verify):
    plan = expect_plan("/p", digest=DIGEST, size_bytes=size_bytes, sms=())
    assert (plan.verify, plan.sha256) == (verify, "ab" * 32)


def test_the_same_matrix_gives_the_same_bytes(matrix):
    first, again = (expected(matrix, "rtx").to_json() for _ in range(2))
    assert first == again
    assert json.loads(first)["schema"] == 1


# How it gets into an image and its recipe

ADMITTED = """\
FROM scratch AS cpu
FROM scratch AS gpu
COPY planyard-admission/admit.py /opt/planyard/admit.py
COPY planyard-admission/expect.json /etc/planyard/expect.json
FROM scratch AS rtx
FROM scratch AS compiler
"""


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, Workspace]:
    small_site.lay_out(tmp_path)
    (tmp_path / "ours" / "Dockerfile").write_text(ADMITTED)
    (tmp_path / "ours" / ".dockerignore").write_text("*\n")
    (tmp_path / "ours" / "admit.py").write_text("pass\n")
    store = LocalStore(tmp_path / "store")
    return tmp_path, Workspace(root=tmp_path, store=store, console=Console(quiet=True))


def recipe(site: tuple[Path, Workspace], name: str, *, compiler: bool = False) -> Any:
    root, workspace = site
    read = load_matrix((root / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix
    spec = read.images[name]
    return order_image(name, spec, matrix=read, workspace=workspace, compiler=compiler).recipe


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_it_is_part_of_the_recipe_of_the_stages_that_copy_it(site):
    wanted = {f"{ADMISSION_FOLDER}/admit.py", f"{ADMISSION_FOLDER}/expect.json"}
    assert set(recipe(site, "gpu").files) == wanted
    assert recipe(site, "cpu").files == {}
    assert recipe(site, "rtx", compiler=True).files == {}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("ours/admit.py", "pass", "raise SystemExit(0)"),
        ("matrix.yaml", 'driver: "580"', 'driver: "590"'),
        ("matrix.yaml", "sm: 89", "sm: 120"),
    ],
)
def test_a_change_of_it_is_another_image_and_leaves_the_others(site, file, old, new):
    before = {name: recipe(site, name).digest for name in ("cpu", "gpu")}
    change(site[0] / file, old, new)
    after = {name: recipe(site, name).digest for name in ("cpu", "gpu")}
    assert after["gpu"] != before["gpu"]
    assert after["cpu"] == before["cpu"]


def test_a_context_without_admit_is_refused(site):
    (site[0] / "ours" / "admit.py").unlink()
    with pytest.raises(InputError) as caught:
        recipe(site, "gpu")
    assert "a stage copies planyard-admission/admit.py" in caught.value.message
    assert "images/admit.py" in caught.value.mend


def test_what_is_staged_is_what_the_recipe_says(matrix, tmp_path):
    found = expected(matrix, "ort-gpu")
    staged = tmp_path / "staged"
    stage_admission(found, context=REPOSITORY / "images", staged=staged)
    folder = staged / ADMISSION_FOLDER
    assert (folder / "expect.json").read_bytes() == found.to_json()
    assert (folder / "admit.py").read_bytes() == (REPOSITORY / "images/admit.py").read_bytes()
    assert list((folder / "run").iterdir()) == []
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"expect.json": 0o644, "admit.py": 0o644, "run": 0o755}
    digests = admission_digests(found, context=REPOSITORY / "images")
    assert set(digests) == {f"{ADMISSION_FOLDER}/admit.py", f"{ADMISSION_FOLDER}/expect.json"}
    assert all(digest.endswith(" 644") for digest in digests.values())


def test_stages_that_want_it():
    assert wants_admission("COPY planyard-admission/admit.py /opt/planyard/admit.py")
    assert not wants_admission("COPY admit.py /opt/planyard/admit.py")


@pytest.mark.parametrize("name", ["rtx", "ort-cpu", "ort-gpu"])
def test_every_runtime_image_of_the_default_matrix_wants_it(name):
    text = (REPOSITORY / "images" / "Dockerfile").read_text()
    stage = text.split(f"FROM root AS {name}\n")[1].split("\nFROM ")[0]
    assert wants_admission(stage)
    assert 'ENTRYPOINT ["/usr/bin/python3.11", "-I", "-S", "/opt/planyard/admit.py"]' in stage
