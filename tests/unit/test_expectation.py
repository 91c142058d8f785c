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
    Expectation,
    PlanExpected,
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
from planyard.core.matrix_runtime import TensorRtBuild
from planyard.core.matrix_smoke import ADMISSION_CHECKS, AdmissionSpec
from planyard.core.reader import load_matrix
from planyard.core.units import ByteSize
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


def expected(
    matrix: Matrix,
    name: str,
    admission: AdmissionSpec | None = None,
    *,
    plans: tuple[PlanExpected, ...] = (),
) -> Expectation:
    spec = matrix.images[name]
    lock = REPOSITORY / str(spec.lock)
    said = msgspec.structs.replace(spec, admission=admission or spec.admission)
    return expectation_of(
        name,
        matrix=msgspec.structs.replace(matrix, images={**matrix.images, name: said}),
        cells=expand(matrix, load_compat()).cells,
        wheels=read_lock(lock.read_text(), name=lock.name),
        plans=plans,
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
    assert admit.CHECKS == ADMISSION_CHECKS


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


def test_the_lean_runtime_is_another_library(matrix):
    lean = TensorRtBuild(runtime="lean", version_compatible=True)
    image = msgspec.structs.replace(matrix.images["rtx"], backend="tensorrt", tensorrt=lean)
    classic = msgspec.structs.replace(matrix, images={"trt": image})
    found = expectation_of("trt", matrix=classic, cells=())
    assert found.libraries == ("libnvinfer_lean.so.11",)
    assert (found.plans.kind, found.plans.version) == ("tensorrt", matrix.pins.tensorrt)
    assert found.checks["plans"] == "on"


def test_a_plan_that_lies_in_the_image_is_expected(matrix):
    plan = expect_plan("/plans/a.plan", digest=DIGEST, size_bytes=10, sms=(89,))
    found = expected(matrix, "rtx", plans=(plan,))
    assert admit.parse_expectation(found.to_json())["plans"]["files"][0]["path"] == "/plans/a.plan"


REASON = "the driver is part of this image"
SAID: dict[str, tuple[AdmissionSpec, dict[str, object]]] = {
    "free_memory": (
        AdmissionSpec(free_memory=ByteSize(1 << 30)),
        {"free_bytes": 1 << 30, "memory": "on"},
    ),
    "mig": (AdmissionSpec(mig="1g.10gb"), {"mig": "1g.10gb", "mig check": "on"}),
    "no mig": (AdmissionSpec(mig="none"), {"mig check": "on"}),
    "site": (AdmissionSpec(site=("/opt/a", "/opt/b")), {"site": ["/opt/a", "/opt/b"]}),
    "gpu_seconds": (AdmissionSpec(gpu_seconds=300), {"gpu_seconds": 300}),
    "gpu_seconds, least": (AdmissionSpec(gpu_seconds=1), {"gpu_seconds": 1}),
    **{
        f"off {check}": (AdmissionSpec(skip={check: REASON}), {f"{check} check": f"off: {REASON}"})
        for check in ADMISSION_CHECKS
    },
}
"""What an image may say, and all that is then different in its expectation."""


def flat(expectation: Expectation) -> dict[str, object]:
    """Fields by name, checks by `NAME check` (`memory` alone for short), as admit.py reads them."""
    document = admit.parse_expectation(expectation.to_json())
    checks = {f"{check} check": state for check, state in document.pop("checks").items()}
    checks["memory"] = checks.pop("memory check")
    return {**document, **checks}


@pytest.mark.parametrize("name", SAID)
def test_what_the_image_says_is_expected_and_nothing_else_changes(matrix, name):
    admission, wanted = SAID[name]
    wanted = {key.replace("memory check", "memory"): value for key, value in wanted.items()}
    before, after = flat(expected(matrix, "ort-gpu")), flat(expected(matrix, "ort-gpu", admission))
    assert {key: value for key, value in after.items() if value != before[key]} == wanted


def test_a_check_that_is_off_is_off_whatever_else_is_said(matrix):
    said = AdmissionSpec(free_memory=ByteSize(1 << 30), skip={"memory": REASON})
    found = expected(matrix, "ort-gpu", said)
    assert (found.checks["memory"], found.free_bytes) == (f"off: {REASON}", 1 << 30)


def test_a_folder_that_admission_would_not_take_is_refused(matrix):
    with pytest.raises(InputError, match=r"images\.ort-gpu\.admission\.site\[1\]: /opt/\.\./etc"):
        expected(matrix, "ort-gpu", AdmissionSpec(site=("/opt/..a", "/opt/../etc")))


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


GPU_IMAGE = "  gpu: {backend: onnxruntime-cuda, dockerfile: ours/Dockerfile, context: ours}"
CPU_IMAGE = GPU_IMAGE.replace("gpu:", "cpu:").replace("cuda", "cpu")


def say(site: tuple[Path, Workspace], admission: str, *, image: str = GPU_IMAGE) -> None:
    change(site[0] / "matrix.yaml", image, f"{image[:-1]}, admission: {admission}}}")


@pytest.mark.parametrize(
    "admission",
    [
        "{free_memory: 2 GiB}",
        "{mig: none}",
        "{mig: 3g.40gb}",
        '{skip: {driver: "the driver is newer here"}}',
        "{site: [/opt/site]}",
        "{gpu_seconds: 6}",
    ],
)
def test_each_key_of_the_matrix_is_another_image_and_leaves_the_others(site, admission):
    before = {name: recipe(site, name) for name in ("cpu", "gpu", "rtx")}
    say(site, admission)
    after = {name: recipe(site, name) for name in ("cpu", "gpu", "rtx")}
    files = before["gpu"].files.items() ^ after["gpu"].files.items()
    assert {path for path, _ in files} == {f"{ADMISSION_FOLDER}/expect.json"}
    assert after["gpu"].digest != before["gpu"].digest
    assert (after["cpu"], after["rtx"]) == (before["cpu"], before["rtx"])


def test_an_admission_that_says_nothing_changes_nothing(site):
    before = recipe(site, "gpu")
    say(site, "{}")
    assert recipe(site, "gpu") == before


def test_what_is_baked_in_is_pinned_so_that_no_image_is_rebuilt_by_accident(site):
    """Another digest here: every image in the world is built again. Is that what was meant?"""
    found = recipe(site, "gpu").files[f"{ADMISSION_FOLDER}/expect.json"]
    assert found == ("sha256:acd388f05ba6a85cae2d012ae484f5c9ec4d618eebe0b3c642e3d973e88cff59 644")


def test_admission_that_no_stage_copies_is_refused(site):
    say(site, "{mig: none}", image=CPU_IMAGE)
    with pytest.raises(InputError) as caught:
        recipe(site, "cpu")
    wanted = "images.cpu.admission: the stage cpu does not copy planyard-admission/"
    assert wanted in caught.value.message
    assert "COPY planyard-admission/admit.py" in caught.value.mend


def test_a_compiler_needs_no_admission_of_its_image(site):
    image = "compiler: compiler}"
    change(site[0] / "matrix.yaml", image, f"{image[:-1]}, admission: {{mig: none}}}}")
    assert recipe(site, "rtx", compiler=True).files == {}


@pytest.mark.parametrize(
    ("admission", "said"),
    [
        (
            '{skip: {divers: "no such thing is there"}}',
            'images.gpu.admission.skip.divers: "divers" is not known here: write one of cuda, '
            "devices, driver, gpu, libraries, memory, mig, packages, plans, provider, sm, toolkit; "
            'did you mean "driver"?',
        ),
        ('{skip: {driver: "short"}}', "images.gpu.admission.skip.driver: "),
        ("{mig: 1g}", 'images.gpu.admission.mig: "1g" does not fit: write none for whole GPUs'),
        ("{gpu_seconds: 301}", "images.gpu.admission.gpu_seconds: 301 is out of range"),
        ("{gpu_second: 3}", 'did you mean "gpu_seconds"?'),
        ("{free_memory: lots}", "images.gpu.admission.free_memory: "),
        ("{site: [opt]}", "images.gpu.admission.site[0]: "),
    ],
)
def test_what_cannot_be_said_is_refused_where_it_stands(site, admission, said):
    say(site, admission)
    with pytest.raises(InputError) as caught:
        recipe(site, "gpu")
    assert said in caught.value.message
    text = (site[0] / "matrix.yaml").read_text()
    line = 1 + text[: text.index("admission:")].count("\n")
    assert f"matrix.yaml:{line}:" in caught.value.message


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
