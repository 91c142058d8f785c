"""`session.json` in an image: in its recipe where a stage copies it, refused otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.expectation import (
    ADMISSION_FOLDER,
    admission_digests,
    expectation_of,
    stage_admission,
)
from builders.image import ImageOrder, order_image
from builders.workspace import Workspace
from engines.store.local_store import LocalStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.reader import load_matrix
from planyard.edge.console import Console
from smoke.session import TENSORRT, session_document, session_json
from tests import small_site

REPOSITORY = Path(__file__).parents[2]
COPY = "COPY planyard-admission/session.json /etc/planyard/session.json\n"
STAGES = f"""\
FROM scratch AS cpu
COPY planyard-admission/expect.json /etc/planyard/expect.json
FROM scratch AS gpu
{COPY}FROM scratch AS rtx
FROM scratch AS compiler
"""
BAKED = f"{ADMISSION_FOLDER}/session.json"
Images = tuple[Path, Workspace]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    small_site.lay_out(tmp_path)
    (tmp_path / "ours" / "Dockerfile").write_text(STAGES)
    (tmp_path / "ours" / ".dockerignore").write_text("*\n")
    (tmp_path / "ours" / "admit.py").write_text("pass\n")
    store = LocalStore(tmp_path / "store")
    return tmp_path, Workspace(root=tmp_path, store=store, console=Console(quiet=True))


def say(images: Images, session: str, *, image: str) -> None:
    """Write `session:` into an image of the matrix."""
    path = images[0] / "matrix.yaml"
    [line] = [
        each for each in path.read_text().splitlines() if each.startswith(f"  {image}: {{backend:")
    ]
    text = path.read_text().replace(line, f"{line[:-1]}, session: {session}}}")
    path.write_text(text)


def order(images: Images, name: str, *, compiler: bool = False) -> ImageOrder:
    root, workspace = images
    read = load_matrix((root / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix
    spec = read.images[name]
    return order_image(name, spec, matrix=read, workspace=workspace, compiler=compiler)


def test_it_is_in_the_recipe_of_the_stages_that_copy_it(images: Images) -> None:
    gpu = order(images, "gpu")
    expected = session_json(SessionSpec(), "onnxruntime-cuda")
    assert gpu.session == expected
    assert gpu.recipe.files[BAKED] == f"{digest_of_bytes(expected)} 644"
    assert BAKED not in order(images, "cpu").recipe.files
    assert BAKED not in order(images, "rtx", compiler=True).recipe.files


def test_what_the_matrix_says_is_another_image(images: Images) -> None:
    before = order(images, "gpu").recipe
    say(images, "{copy_stream: own}", image="gpu")
    after = order(images, "gpu").recipe
    assert {path for path, _ in before.files.items() ^ after.files.items()} == {BAKED}
    assert after.digest != before.digest


def test_a_session_that_says_nothing_changes_nothing(images: Images) -> None:
    before = order(images, "gpu").recipe
    say(images, "{}", image="gpu")
    assert order(images, "gpu").recipe == before


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_a_session_whose_service_would_not_know_is_refused(images: Images, image: str) -> None:
    dockerfile = images[0] / "ours" / "Dockerfile"
    dockerfile.write_text(STAGES.replace(COPY, ""))
    say(images, "{io_binding: true}", image=image)
    with pytest.raises(InputError) as caught:
        order(images, image)
    assert f"images.{image}.session: the stage {image} does not copy {BAKED}" in (
        caught.value.message
    )
    assert COPY.strip() in caught.value.mend


def test_a_stage_for_plans_has_no_session_to_copy(images: Images) -> None:
    dockerfile = images[0] / "ours" / "Dockerfile"
    dockerfile.write_text(STAGES.replace("AS rtx\n", f"AS rtx\n{COPY}"))
    with pytest.raises(InputError) as caught:
        order(images, "rtx")
    assert f"the stage rtx copies {BAKED}, tensorrt-rtx runs plans" in caught.value.message
    assert "remove the line" in caught.value.mend


def expected(images: Images, session: SessionSpec) -> Any:
    """What the GPU image expects of the machine it starts on."""
    matrix = load_matrix((images[0] / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix
    image = msgspec.structs.replace(matrix.images["gpu"], session=session)
    matrix = msgspec.structs.replace(matrix, images={**matrix.images, "gpu": image})
    return expectation_of("gpu", matrix=matrix, cells=())


def test_what_is_staged_is_what_the_recipe_says(images: Images, tmp_path: Path) -> None:
    found, session = expected(images, SessionSpec()), b"{}\n"
    staged = tmp_path / "staged"
    stage_admission(found, context=REPOSITORY / "images", staged=staged, session=session)
    path = staged / BAKED
    assert path.read_bytes() == session
    assert path.stat().st_mode & 0o777 == 0o644
    digests = admission_digests(found, context=REPOSITORY / "images", session=session)
    assert digests[BAKED] == f"{digest_of_bytes(session)} 644"


def test_an_image_on_tensorrt_expects_its_libraries(images: Images) -> None:
    plain = expected(images, SessionSpec())
    found = expected(images, SessionSpec(providers=(TENSORRT, "CUDAExecutionProvider")))
    folder = "onnxruntime/capi/libonnxruntime_providers_"
    assert found.provider.name == TENSORRT
    assert found.provider.files == (f"{folder}tensorrt.so", *plain.provider.files)
    assert found.libraries == (*plain.libraries, "libnvinfer.so.11", "libnvonnxparser.so.11")
    assert (plain.provider.name, found.checks) == ("CUDAExecutionProvider", plain.checks)


@pytest.mark.parametrize(("name", "backend"), [("ort-cpu", "cpu"), ("ort-gpu", "cuda")])
def test_images_of_the_default_matrix_carry_it(name: str, backend: str) -> None:
    text = (REPOSITORY / "images" / "Dockerfile").read_text()
    stage = text.split(f"FROM root AS {name}\n")[1].split("\nFROM ")[0]
    assert COPY in stage
    matrix = load_matrix((REPOSITORY / "matrix.yaml").read_bytes(), name="matrix.yaml").matrix
    document = session_document(matrix.images[name].session, matrix.images[name].backend)
    assert matrix.images[name].backend == f"onnxruntime-{backend}"
    assert json.dumps(document)
