"""INT8 and fp16 conversions in the real compiler image, and what refuses those that are no good.

One matrix: a net with calibration data that fits, the same net with data that does not, and a
model whose activations leave fp16. Plans are compiled for SM 8.9 without a GPU, and ort-cpu serves
the int8 model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from planyard.core.digest import digest_of_bytes
from tests import quantized_models as models
from tests.workspaces import Ran, Site, lay_out

pytestmark = pytest.mark.docker

MODEL = """
  {name}:
    source: {{file: models/{file}.onnx}}
    sha256: {sha256}
    inputs:
      x: {{dtype: float32, shape: [n, 3, 16, 16]}}
    profiles:
      "16":
        x: {{min: [1, 3, 16, 16], opt: [1, 3, 16, 16], max: [4, 3, 16, 16]}}
    tolerance:
      fp32: {{max_abs: 0.001, mean_abs: 0.0001}}
      fp16: {{max_abs: 0.1, mean_abs: 0.01}}
      int8: {{max_abs: 0.1, mean_abs: 0.02, cosine: 0.999, psnr_db: 40}}
    calibration: {{file: models/{name}.npz, sha256: {calibration}}}
"""
REST = """
precisions: [fp32, fp16, int8]

gpus:
  cpu: {backends: [onnxruntime-cpu]}
  sm89: {sm: 89, backends: [tensorrt-rtx]}

drop:
  - {id: only-int8, cells: "*/wrong-*/*/fp*/*", reason: they differ in their calibration alone}
  - {id: no-int8, cells: "*/overflows/*/int8/*", reason: it is about fp16}
  - {id: reference-is-fp32, cells: "ort-cpu/*/*/fp16/*", reason: ONNX Runtime serves no fp16 here}
"""
WRONG = {
    "wrong-zeros": models.WRONG["zeros"],
    "wrong-small": models.WRONG["a thousand times too small"],
    "wrong-large": models.WRONG["a thousand times too large"],
}
CONVERTER = "    compiler: rtx-compiler\n    compiler_lock: images/locks/rtx-compiler.txt\n"


def use_nets(site: Site) -> Site:
    """The images of the default matrix but ort-gpu, and these models instead of its own."""
    net, overflowing = models.net(), models.overflowing_net()
    nets = {"net": net.SerializeToString(), "overflowing": overflowing.SerializeToString()}
    section = "\nmodels:"
    for name, calibration in {"net": models.RIGHT, **WRONG, "overflows": models.RIGHT}.items():
        file = "overflowing" if name == "overflows" else "net"
        site.write(f"models/{name}.npz", calibration)
        section += MODEL.format(
            name=name,
            file=file,
            sha256=digest_of_bytes(nets[file]),
            calibration=digest_of_bytes(calibration),
        )
    for name, data in nets.items():
        site.write(f"models/{name}.onnx", data)
    text = site.matrix.read_text()
    text = text[: text.index("\nmodels:\n")]
    gpu = text.index("\n  ort-gpu:\n")
    text = text[:gpu] + "\n"
    lock = "    lock: images/locks/ort-cpu.txt\n"
    assert text.count(lock) == 1
    site.matrix.write_text(text.replace(lock, lock + CONVERTER) + section + REST)
    return site


@pytest.fixture(scope="module")
def int8_site(session_folder: Path, environment: Mapping[str, str]) -> Site:
    return use_nets(lay_out(session_folder / "int8", environment=environment))


@pytest.fixture(scope="module")
def ran(int8_site: Site) -> Ran:
    return int8_site.planyard("plan", "build", "--json", "--select", "rtx/*/sm89")


@pytest.fixture(scope="module")
def report(ran: Ran) -> Any:
    return ran.expect(6).document()


def failure(report: Any, cell: str) -> Any:
    [found] = [each for each in report["plan_failures"] if each["cell"] == cell]
    return found


def test_the_models_that_are_no_good_end_only_their_own_cells(report: Any) -> None:
    assert {plan["cell"] for plan in report["plans"]} == {
        *(f"rtx/net/16/{precision}/sm89" for precision in ("fp32", "fp16", "int8")),
        "rtx/overflows/16/fp32/sm89",
    }
    assert {failure["cell"] for failure in report["plan_failures"]} == {
        "rtx/overflows/16/fp16/sm89",
        *(f"rtx/{name}/16/int8/sm89" for name in WRONG),
    }


def test_the_int8_plan_is_another_than_that_of_any_other_precision(report: Any) -> None:
    plans = {plan["precision"]: plan for plan in report["plans"] if plan["model"] == "net"}
    assert len({plan["size_bytes"] for plan in plans.values()}) == 3
    assert len({plan["recipe"] for plan in plans.values()}) == 3
    calibration = digest_of_bytes(models.RIGHT)
    assert plans["int8"]["inputs"]["conversion"]["calibration"] == calibration
    assert "calibration" not in plans["fp16"]["inputs"]["conversion"]
    assert plans["fp32"]["inputs"]["conversion"] is None


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calibration_data_is_refused_with_the_figures(
    ran: Ran, report: Any, name: str
) -> None:
    found = failure(report, f"rtx/{name}/16/int8/sm89")
    assert found["message"].startswith("int8 is too far from fp32 in ")
    assert "the limit is 0.1" in found["message"]
    assert f"models.{name}.tolerance.int8" in found["message"]
    assert f"error: rtx/{name}/16/int8/sm89: {found['message']}" in ran.stderr
    assert len(found["log_tail"]) == 5
    assert found["log_tail"][-1].startswith("seeded inputs: y: max_abs 2")


def test_data_that_fits_no_better_than_itself_is_refused_on_other_inputs(report: Any) -> None:
    """Samples that are held out are as wrong as those measured on: they are told apart by none."""
    held_out = failure(report, "rtx/wrong-zeros/16/int8/sm89")["log_tail"][:-1]
    assert all("max_abs 0 (limit 0.1)" in line for line in held_out)


def test_activations_that_leave_fp16_are_refused_by_the_layer_that_makes_them(report: Any) -> None:
    said = failure(report, "rtx/overflows/16/fp16/sm89")["message"]
    assert said.startswith("fp16 overflows: c1, made by Conv, reaches 126,8")
    assert "fp16 ends at 65,504; tensors that overflow: 2" in said
    assert "keep this model in fp32, or find the layer that overflows" in said


def test_a_plan_that_is_good_builds_alone_and_is_found_the_second_time(
    int8_site: Site, report: Any
) -> None:
    args = ("plan", "build", "--json", "--select", "rtx/net/*/int8/sm89")
    again = int8_site.planyard(*args).expect(0).document()
    assert again["compiled"] == []
    # Other samples are another recipe; the net is calibrated and compiled again.
    other = models.npz({"x": models.samples(24)})
    old, new = digest_of_bytes(models.RIGHT), digest_of_bytes(other)
    text = int8_site.matrix.read_text()
    try:
        int8_site.write("models/net.npz", other)
        refused = int8_site.planyard(*args).expect(2)
        assert f"has the digest {new}" in refused.stderr
        head, tail = text.split("models/net.npz, sha256: " + old)
        int8_site.matrix.write_text(head + "models/net.npz, sha256: " + new + tail)
        changed = int8_site.planyard(*args).expect(0).document()
        assert changed["compiled"] == ["rtx/net/16/int8/sm89"]
        assert changed["plans"][0]["recipe"] != again["plans"][0]["recipe"]
    finally:
        int8_site.matrix.write_text(text)
        int8_site.write("models/net.npz", models.RIGHT)


def test_onnx_runtime_serves_the_converted_model_within_the_golden(int8_site: Site) -> None:
    ran = int8_site.planyard("build", "--json", "--select", "ort-cpu/net/*")
    verdicts = {each["cell"]: each for each in ran.expect(0).document()["verdicts"]}
    int8 = verdicts["ort-cpu/net/16/int8/cpu"]
    assert (int8["verdict"], int8["gates"]["outputs"]) == ("passed", "passed")
    operators = {each["operator"] for each in int8["placement"]}
    assert operators & {"QLinearConv", "DequantizeLinear", "QuantizeLinear"}, operators
    reference = verdicts["ort-cpu/net/16/fp32/cpu"]["placement"]
    assert {each["operator"] for each in reference}.isdisjoint({"QuantizeLinear", "QLinearConv"})


def test_onnx_runtime_is_refused_a_model_that_is_no_good(int8_site: Site) -> None:
    ran = int8_site.planyard("build", "--json", "--select", "ort-cpu/wrong-zeros/*").expect(6)
    assert "int8 is too far from fp32" in ran.stderr
