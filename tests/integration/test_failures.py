"""What goes wrong, through the real command line: the exit code, the words, and what stays whole.

Of the exit codes in planyard/core/errors.py, 130 is reached in test_interrupt.py, the others here;
4, 5 and 7 also where budgets, setup and smoke runs are tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engines.index import all_images, read_manifest
from planyard.core.digest import digest_of_bytes, short
from planyard.edge import docker
from tests.conftest import Built
from tests.workspaces import WITHOUT_DOCKER, Site, damage, lay_out

SHAPE: list[str | int] = ["n", 3, "h", "w"]
MODEL = """
  {name}:
    source: {{file: models/{name}.onnx}}
    sha256: {sha256}
    inputs:
      x: {{dtype: float32, shape: [n, 3, h, w]}}
    profiles:
      small:
        x: {{min: [1, 3, 8, 8], opt: [1, 3, 8, 8], max: [2, 3, 8, 8]}}
      large:
        x: {{min: [1, 3, 16, 16], opt: [1, 3, 16, 16], max: [2, 3, 16, 16]}}
"""


def fine_model() -> bytes:
    return _model([helper.make_node("Relu", ["x"], ["y"])])


def refused_model() -> bytes:
    """ONNX by the book, and ONNX Runtime runs it; TensorRT for RTX has no importer for Det."""
    return _model([helper.make_node("Det", ["x"], ["y"], name="volume")], output=SHAPE[:2])


def _model(nodes: list[onnx.NodeProto], *, output: list[str | int] = SHAPE) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph(nodes, "small", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def use_models(site: Site, **models: bytes) -> None:
    """Put these models into the matrix instead of its own, in fp32."""
    text = site.matrix.read_text()
    start, stop = text.index("\nmodels:\n"), text.index("\nprecisions:")
    section = "\nmodels:" + "".join(
        MODEL.format(name=name, sha256=digest_of_bytes(data)) for name, data in models.items()
    )
    drops, gates = text.index("\ndrop:\n"), text.index("\ngates:\n")
    text = text[:start] + section + text[stop:drops] + text[gates:]
    site.matrix.write_text(text.replace("precisions: [fp32, fp16]", "precisions: [fp32]"))
    for name, data in models.items():
        site.write(f"models/{name}.onnx", data)


@pytest.mark.docker
def test_a_refused_model_ends_only_its_own_cells(site: Site) -> None:
    use_models(site, fine=fine_model(), refused=refused_model())
    ran = site.planyard("build", "--json", "--select", "rtx/*/sm89", "--select", "ort-cpu/*")
    report = ran.expect(6).document()
    assert {plan["cell"] for plan in report["plans"]} == {
        "rtx/fine/small/fp32/sm89",
        "rtx/fine/large/fp32/sm89",
    }
    failed = {failure["cell"]: failure["message"] for failure in report["plan_failures"]}
    assert set(failed) == {"rtx/refused/small/fp32/sm89", "rtx/refused/large/fp32/sm89"}
    for cell, message in failed.items():
        assert "the ONNX parser refused the model" in message
        assert f"error: {cell}: {message}" in ran.stderr
    assert {
        verdict["cell"] for verdict in report["verdicts"] if verdict["verdict"] == "passed"
    } == {
        f"ort-cpu/{model}/{profile}/fp32/cpu"
        for model in ("fine", "refused")
        for profile in ("small", "large")
    }
    refused = next(each for each in report["verdicts"] if each["cell"] in failed)
    assert (refused["verdict"], refused["reason"]) == ("not run", "it has no plan")
    digest = next(image["digest"] for image in report["images"] if image["name"] == "rtx")
    found = site.planyard("lookup", digest, "--json", env=WITHOUT_DOCKER).expect(0).document()
    assert {plan["cell"] for plan in found["plans"]} >= {plan["cell"] for plan in report["plans"]}
    # A failure leaves no memo: it is tried again, and only it.
    again = site.planyard("build", "--json", "--select", "rtx/*/sm89").expect(6).document()
    assert again["compiled"] == []
    assert len(again["plan_failures"]) == 2


@pytest.mark.docker
def test_the_summary_names_what_failed(site: Site) -> None:
    use_models(site, refused=refused_model())
    ran = site.planyard("build", "--select", "rtx/*/small/*/sm89").expect(6)
    lines = ran.stderr.splitlines()
    assert any(line.startswith("error: rtx/refused/small/fp32/sm89: ") for line in lines)
    row = next(line for line in lines if line.startswith("rtx "))
    assert "0 of 1" in row


TENSORRT = """
  trt:
    backend: tensorrt
    base: slim
    target: rtx
    lock: images/locks/rtx.txt
    compiler: rtx-compiler
    python: /usr/bin/python3.11

models:
"""


@pytest.mark.docker
def test_classic_tensorrt_waits_for_a_gpu_and_is_never_dropped(site: Site) -> None:
    site.edit("\nmodels:\n", TENSORRT)
    site.edit("backends: [tensorrt-rtx, onnxruntime-cuda]", "backends: [tensorrt]")
    site.edit("cells: rtx/*/*/fp32/*", "cells: '*rt*x*/*/*/fp32/*'")
    cells = ("--select", "trt/*/fp16/*")
    ran = site.planyard("build", "--json", *cells).expect(0)
    report = ran.document()
    waiting = {f"trt/ocr-det/{profile}/fp16/sm89" for profile in ("640", "960", "1280")}
    assert {each["cell"] for each in report["waiting"]} == waiting
    assert all("awaiting a GPU runner" in each["reason"] for each in report["waiting"])
    for cell in waiting:
        assert f"warning: {cell}: awaiting a GPU runner" in ran.stderr
    assert {each["cell"] for each in report["verdicts"]} == waiting
    assert all(each["verdict"] == "not run" for each in report["verdicts"])
    assert report["plans"] == []
    (image,) = report["images"]
    assert (image["plans"], image["plans_wanted"]) == (0, 3)
    site.planyard("build", "--require-smoke", *cells).expect(7)
    found = site.planyard("lookup", image["digest"], "--json").expect(0).document()
    assert {each["cell"] for each in found["snapshots"][0]["smoke"]} == waiting


BROKEN = """\
ARG BASE
FROM ${BASE} AS broken
USER 0:0
RUN ["/usr/bin/python3.11", "-c", "raise SystemExit('the wheel is broken')"]
"""
BROKEN_IMAGE = """
  ort-broken:
    backend: onnxruntime-cpu
    target: broken
    base: slim
    dockerfile: broken/Dockerfile
    context: broken
    python: /usr/bin/python3.11

models:
"""


@pytest.mark.docker
def test_an_image_that_cannot_be_built_ends_with_5_and_its_log(built: Built, site: Site) -> None:
    site.edit("\nmodels:\n", BROKEN_IMAGE)
    site.write("broken/Dockerfile", BROKEN)
    ran = site.planyard("build", "--json", "--select", "*/ocr-det/640/fp32/cpu").expect(5)
    report = ran.document()
    assert "error: ort-broken: docker build failed" in ran.stderr
    by_name = {image["name"]: image for image in report["images"]}
    assert by_name["ort-broken"]["digest"] is None
    assert "docker build failed" in by_name["ort-broken"]["error"]
    assert by_name["ort-cpu"]["digest"] == built.image("ort-cpu")["digest"]
    verdicts = {each["cell"].split("/")[0]: each for each in report["verdicts"]}
    assert verdicts["ort-cpu"]["verdict"] == "passed"
    assert verdicts["ort-broken"]["reason"] == "its image was not built"
    plain = site.planyard("build", "--select", "ort-broken/*/640/*").expect(5)
    assert "the wheel is broken" in plain.stderr
    assert any(
        line.startswith("ort-broken") and "not built" in line for line in plain.stderr.splitlines()
    )


@pytest.mark.docker
def test_a_corrupted_plan_is_never_written(built: Built, site: Site, room: Path) -> None:
    digest = built.image("rtx")["digest"]
    plan = next(each for each in built.report["plans"] if each["sm"] == 89)
    damage(site.store, plan["digest"])
    ran = site.planyard("lookup", digest, "--sm", "89", "--pull", str(room / "out")).expect(10)
    assert "is damaged at byte" in ran.stderr
    assert "store fsck" in ran.stderr
    written = sorted(path.name for path in (room / "out").glob("*"))
    assert "snapshot.json" not in written
    profile = plan["profile"]
    assert not any(profile in name for name in written), written
    assert all(path.suffix == ".plan" for path in (room / "out").iterdir())
    others = site.planyard("lookup", digest, "--sm", "86", "--pull", str(room / "others")).expect(0)
    assert (others.stdout + others.stderr).count("wrote ") == 4


@pytest.mark.docker
def test_a_corrupted_layer_is_never_run(built: Built, site: Site, engine: docker.Engine) -> None:
    """The compiler's image is loaded from the store, with one bit turned; nothing is compiled."""
    compiler = built.report["plans"][0]["inputs"]["builder_image"]
    record = next(each for each in all_images(site.store) if each.digest == compiler)
    layer = record.layers[-1].digest
    assert layer in read_manifest(site.store, record.digest).digests
    damage(site.store, layer)
    engine.remove_image(f"planyard/rtx-compiler:{short(record.digest)}")
    site.edit("max: [4, 3, 1280, 1280]", "max: [3, 3, 1280, 1280]")
    ran = site.planyard("build", "--select", "rtx/*")
    assert ran.exit_code == 10, ran.stderr
    assert layer in ran.stderr
    assert not engine.has_image(f"planyard/rtx-compiler:{short(record.digest)}")
    assert site.leftovers() == []


@pytest.mark.docker
def test_a_corrupted_index_is_never_believed(built: Built, site: Site) -> None:
    digest = built.image("rtx")["digest"]
    folder = site.store.root / "index" / "snapshots" / digest.removeprefix("sha256:")
    for path in folder.iterdir():
        text = path.read_text().replace('"sm":89', '"sm":86')
        path.unlink()
        path.write_text(text)
    ran = site.planyard("lookup", digest).expect(10)
    assert "damaged" in ran.stderr


BAD = {
    '  cuda: "13.0"': "  cuda: 13.0",
    '  python: "3.11"': '  pyhton: "3.11"',
    "budget: {pull: 80 MB,": "budget: {pull: 80 megs,",
    "min: [1, 3, 960, 960]": "min: [2, 3, 960, 960]",
    "  ort-gpu:\n    backend: onnxruntime-cuda\n    base: slim": (
        "  ort-gpu:\n    backend: onnxruntime-cuda\n    base: slimm"
    ),
}


def test_a_bad_matrix_tells_everything_and_writes_nothing(room: Path) -> None:
    site = lay_out(room / "bad", environment=WITHOUT_DOCKER)
    for old, new in BAD.items():
        site.edit(old, new)
    lines = site.matrix.read_text().splitlines()
    ran = site.planyard("build").expect(2)
    problems = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(problems) >= len(BAD)
    for new in BAD.values():
        text = new.splitlines()[-1].strip()
        number = next(n for n, line in enumerate(lines, 1) if text in line)
        assert any(f"matrix.yaml:{number}:" in each for each in problems), f"{new}\n{ran.stderr}"
    assert "pins.cuda" in ran.stderr
    assert "python" in next(each for each in problems if "pyhton" in each)
    assert not site.state.exists()
    seen = {path.relative_to(site.root).parts[0] for path in site.root.iterdir()}
    assert seen == {"matrix.yaml", "matrix.sd15.yaml", "images", "models"}


def test_a_lock_that_disagrees_with_the_pins_is_refused(room: Path) -> None:
    site = lay_out(room / "bad", environment=WITHOUT_DOCKER)
    site.edit('tensorrt_rtx: "1.7.1.116"', 'tensorrt_rtx: "1.7.0.1"')
    ran = site.planyard("build").expect(2)
    assert "1.7.1.116 in the lock, but the pins say 1.7.0.1" in ran.stderr
    assert not site.state.exists()


@pytest.fixture
def quiet_site(room: Path) -> Site:
    """A workspace without an engine: for what ends before one is needed."""
    return lay_out(room / "quiet", environment=WITHOUT_DOCKER)


def test_nothing_selected_ends_with_3_and_a_suggestion(quiet_site: Site) -> None:
    ran = quiet_site.planyard("build", "--select", "rxt/ocr-det/640/*/sm86").expect(3)
    assert "'rxt/ocr-det/640/*/sm86' matches none of 15 cells" in ran.stderr
    assert "rtx/ocr-det/640/fp16/sm86" in ran.stderr
    assert not quiet_site.state.exists()


def test_an_unknown_matrix_ends_with_2(quiet_site: Site) -> None:
    ran = quiet_site.planyard("build", "--matrix", "absent.yaml").expect(2)
    assert "absent.yaml: cannot be read" in ran.stderr
    assert "--matrix" in ran.stderr


@pytest.mark.docker
def test_a_store_that_cannot_be_written_ends_with_8(built: Built, site: Site) -> None:
    args = ("image", "build", "--select", "ort-cpu/*", "--store")
    ran = site.planyard(*args, "file:///proc/store").expect(8)
    assert "/proc/store" in ran.stderr


@pytest.mark.docker
def test_a_model_that_cannot_be_fetched_ends_with_8(built: Built, site: Site) -> None:
    start = "source:\n      wheel: {package: rapidocr==3.10.0, member: "
    member = "rapidocr/models/PP-OCRv6_det_small.onnx}"
    site.edit(start + member, "source: {https: 'https://127.0.0.1:9/model.onnx'}")
    site.edit("sha256: sha256:090f04", "sha256: sha256:190f04")
    ran = site.planyard("build", "--select", "rtx/*/640/*").expect(8)
    assert "127.0.0.1:9" in ran.stderr
    assert site.leftovers() == []


@pytest.mark.docker
def test_a_lookup_miss_ends_with_9_and_what_is_near(built: Built) -> None:
    digest = built.image("rtx")["digest"]
    slip = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    ran = built.site.planyard("lookup", slip, env=WITHOUT_DOCKER).expect(9)
    assert digest in ran.stderr
    built.site.planyard("lookup", "sha256:" + "0" * 64, env=WITHOUT_DOCKER).expect(9)
    built.site.planyard("lookup", "nonsense", env=WITHOUT_DOCKER).expect(2)


@pytest.mark.docker
def test_a_cut_plan_ends_with_10(built: Built, room: Path) -> None:
    plan = built.report["plans"][0]
    whole = room / "whole.plan"
    built.site.store.fetch_blob(plan["digest"], whole)
    shown = built.site.planyard("plan", "show", str(whole), "--json", env=WITHOUT_DOCKER).expect(0)
    assert shown.document()["plan"]["version"] == plan["version"]
    cut = room / "cut.plan"
    cut.write_bytes(whole.read_bytes()[:-1])
    built.site.planyard("plan", "show", str(cut), env=WITHOUT_DOCKER).expect(10)
    (room / "text.plan").write_text("not a plan")
    built.site.planyard("plan", "show", str(room / "text.plan"), env=WITHOUT_DOCKER).expect(10)


def test_a_closed_pipe_ends_with_1_and_no_traceback(quiet_site: Site) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "builders", "cells"],
        cwd=quiet_site.root,
        env=quiet_site.variables(),
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in stderr


@pytest.mark.docker
def test_the_log_gate_is_a_verb(built: Built, quiet_site: Site) -> None:
    line = "[E:onnxruntime:Default] Failed to create CUDAExecutionProvider. Require cuDNN 9.*"
    log = quiet_site.write("server.log", f"started\n{line}\n")
    ran = quiet_site.planyard("log-check", str(log), "--json").expect(4)
    (finding, *_) = ran.document()["findings"]
    assert finding["line"] == 2
    quiet_site.write("clean.log", "started\nready\n")
    quiet_site.planyard("log-check", str(quiet_site.root / "clean.log")).expect(0)
