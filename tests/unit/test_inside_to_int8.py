"""Quantization inside the compiler image, run here: what it writes, what it holds out, refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from smoke.gates.outputs import measure
from smoke.inputs import make_inputs, write_inputs
from tests import quantized_models as models

INSIDE = Path(__file__).parents[2] / "engines" / "inside"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, INSIDE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


to_int8 = script("to_int8")
fp16_range = script("fp16_range")


def write_job(
    folder: Path, *, model: bytes | None = None, calibration: bytes = models.RIGHT, **changes: Any
) -> dict[str, Any]:
    """A job in `folder` with everything it names."""
    data = model if model is not None else models.net().SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    (folder / "calibration.npz").write_bytes(calibration)
    (folder / "out").mkdir(exist_ok=True)
    inputs = models.declared(data).inputs
    seeded: Any = write_inputs(make_inputs(inputs, {"x": (1, 3, 16, 16)}), folder)
    for entry in seeded.values():
        entry["file"] = str(folder / entry["file"])
    return {
        "schema": 1,
        "model": str(folder / "model.onnx"),
        "out": str(folder / "out"),
        "calibration": str(folder / "calibration.npz"),
        "seeded": seeded,
        **changes,
    }


def convert(job: dict[str, Any]) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    to_int8.run(job, lambda event, **fields: events.append({"event": event, **fields}))
    [event] = events
    return event


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("int8")
    return folder, convert(write_job(folder))


def test_every_weight_and_what_flows_into_it_is_symmetric_int8(
    quantized: tuple[Path, dict[str, Any]],
) -> None:
    folder, event = quantized
    model = onnx.load(folder / "out" / "model.onnx")
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts == {"QuantizeLinear": 3, "DequantizeLinear": 6, "Conv": 3, "Relu": 2}
    assert event["quantized"] == {"Conv": 3}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "Conv":
            activation, weight = (made[name] for name in node.input[:2])
            assert constants[activation.input[1]].size == 1  # one scale for the tensor
            values = constants[weight.input[0]]
            assert values.dtype == np.int8
            assert constants[weight.input[1]].size == len(values)  # one for each channel


def test_a_fourth_of_the_samples_is_compared_and_not_measured_on(
    quantized: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _folder, event = quantized
    assert (event["samples"], event["held_out"]) == (16, [3, 7, 11, 15])
    names = [each["inputs"] for each in event["comparisons"]]
    assert names == [*(f"held-out sample {i}" for i in (3, 7, 11, 15)), "seeded inputs"]
    seen = []

    def stop(model: object, *, samples: list[dict[str, np.ndarray]], **_: object) -> None:
        seen.extend(samples)
        raise to_int8.RefusedError("seen")

    monkeypatch.setattr(to_int8, "quantize", stop)
    with pytest.raises(to_int8.RefusedError, match="seen"):
        convert(write_job(tmp_path))
    every = models.samples()
    kept = [every[i : i + 1] for i in range(16) if i not in event["held_out"]]
    assert np.array_equal([each["x"] for each in seen], kept)


def test_the_same_job_gives_the_same_bytes_whatever_the_hashes(
    quantized: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps(write_job(tmp_path)))
    done = subprocess.run(
        [sys.executable, str(INSIDE / "to_int8.py"), str(job)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PYTHONHASHSEED": "12345"},
    )
    event = json.loads(done.stdout)  # one line and nothing else, whatever the libraries print
    assert event["event"] == "converted"
    assert event["files"] == quantized[1]["files"]
    [file] = [path.name for path in (tmp_path / "out").iterdir()]
    assert file == "model.onnx"


def test_the_figures_are_those_of_the_gate(quantized: tuple[Path, dict[str, Any]]) -> None:
    random = np.random.default_rng(3)
    for shift in (0.0, 0.1):
        golden = random.standard_normal((2, 9)).astype("float32")
        array = golden + np.float32(shift) * random.standard_normal((2, 9)).astype("float32")
        found, wanted = (
            to_int8.compare_output("y", reference=golden, candidate=array),
            measure(array, golden),
        )
        for name in ("max_abs", "mean_abs", "cosine"):
            assert found[name] == pytest.approx(getattr(wanted, name))
        if shift:
            assert found["psnr_db"] == pytest.approx(wanted.psnr_db)
        else:
            assert found["psnr_db"] is None


def test_what_is_not_finite_is_counted_and_not_averaged() -> None:
    reference = np.ones(4, dtype="float32")
    candidate = np.array([1, np.nan, np.inf, 1.5], dtype="float32")
    found = to_int8.compare_output("y", reference=reference, candidate=candidate)
    assert (found["nan"], found["inf"], found["max_abs"]) == (1, 1, 0.5)


@pytest.mark.parametrize(
    ("reference", "candidate", "cosine"),
    [([0.0, 0.0], [1.0, 0.0], 0.0), ([0.0, 0.0], [0.0, 0.0], 1.0), ([1.0, 1.0], [0.0, 0.0], 0.0)],
)
def test_zero_vectors_are_as_in_the_gate(
    reference: list[float], candidate: list[float], cosine: float
) -> None:
    arrays = np.float32(reference), np.float32(candidate)
    found = to_int8.compare_output("y", reference=arrays[0], candidate=arrays[1])
    assert found["cosine"] == cosine == measure(arrays[1], arrays[0]).cosine


def external(model: onnx.ModelProto, folder: Path) -> bytes:
    """The same model with its weights in a file beside it."""
    onnx.save_model(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    return (folder / "model.onnx").read_bytes()


def test_weights_outside_stay_outside(tmp_path: Path) -> None:
    job = write_job(tmp_path, model=external(models.net(), tmp_path))
    event = convert(job)
    assert [file["name"] for file in event["files"]] == ["model.onnx", "weights.bin"]
    written = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    outside = {each.name for each in written.graph.initializer if each.external_data}
    assert any(name.endswith("_quantized") for name in outside)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "weights.bin",
    ]


def test_a_bias_stays_as_it_is(tmp_path: Path) -> None:
    """TensorRT dequantizes no int32."""
    convert(write_job(tmp_path, model=models.biased_net().SerializeToString()))
    model = onnx.load(tmp_path / "out" / "model.onnx")
    [first, *_] = (node for node in model.graph.node if node.op_type == "Conv")
    assert first.input[2] == "bias"


def test_an_older_opset_is_brought_to_the_first_with_channels(tmp_path: Path) -> None:
    event = convert(write_job(tmp_path, model=models.net(opset=11).SerializeToString()))
    assert event["opset"] == 11
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert [each.version for each in written.opset_import if not each.domain] == [13]
    assert event["comparisons"][0]["outputs"][0]["cosine"] > 0.999


def with_nan() -> np.ndarray:
    samples = models.samples()
    samples[3, 0, 0, 0] = np.nan
    return samples


def as_fp16(model: onnx.ModelProto) -> bytes:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float16"), tensor.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    data: bytes = model.SerializeToString()
    return data


def nothing_to_quantize() -> bytes:
    model = models.net()
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.append(relu)
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": models.samples(7)}, "7 samples: all inputs need the same, 8 or more"),
        ({"z": models.samples()}, "the calibration holds z; the inputs are x"),
        ({}, "the calibration holds nothing"),
        ({"x": with_nan()}, "x holds NaN or Inf"),
        ({"x": models.samples()[:, :, :8]}, "the quantizer failed"),
        ({"x": models.samples().astype("float64")}, "the quantizer failed"),
        ({"x": np.float32(1)}, "0 samples"),
    ],
    ids=["seven", "another name", "nothing", "NaN", "another shape", "another type", "a scalar"],
)
def test_calibration_that_cannot_be_used_is_refused_and_leaves_nothing(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    job = write_job(tmp_path, calibration=models.npz(arrays))
    with pytest.raises(to_int8.RefusedError, match=said):
        convert(job)
    assert list((tmp_path / "out").iterdir()) == []


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}] * 16, dtype=object)
    job = write_job(tmp_path, calibration=models.npz({"x": objects}))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        convert(job)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: as_fp16(models.net()), "its weights are fp16"),
        (nothing_to_quantize, "it has no Conv, ConvTranspose, Gemm, MatMul"),
        (lambda: b"no onnx at all", "ONNX Runtime refuses the fp32 model|DecodeError|parsing"),
    ],
    ids=["fp16", "nothing", "no model"],
)
def test_a_model_that_int8_is_not_made_of_is_refused(
    tmp_path: Path, model: Callable[[], bytes], said: str
) -> None:
    with pytest.raises(Exception, match=said):
        convert(write_job(tmp_path, model=model()))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_quantized_model_is_not_quantized_again(
    quantized: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    data = (quantized[0] / "out" / "model.onnx").read_bytes()
    with pytest.raises(to_int8.RefusedError, match="quantized already"):
        convert(write_job(tmp_path, model=data))


def test_a_result_that_does_not_load_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = to_int8.open_session

    def refuse(path: Any, *, name: str) -> Any:
        if name == "int8":
            raise to_int8.RefusedError("ONNX Runtime refuses the int8 model")
        return opened(path, name=name)

    monkeypatch.setattr(to_int8, "open_session", refuse)
    with pytest.raises(to_int8.RefusedError, match="refuses the int8 model"):
        convert(write_job(tmp_path))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"schema": 2}, {"versions": {"onnx": "0.0.1"}}], ids=["schema", "versions"]
)
def test_another_protocol_or_library_ends_with_two(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = write_job(tmp_path, **changes)
    with pytest.raises((ValueError, RuntimeError), match=r"schema 1|onnx is .*, not 0\.0\.1"):
        convert(job)


# What leaves fp16


def range_job(folder: Path, wide: onnx.ModelProto, narrow: onnx.ModelProto) -> dict[str, Any]:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "a" / "model.onnx").write_bytes(wide.SerializeToString())
    (folder / "b" / "model.onnx").write_bytes(narrow.SerializeToString())
    return {
        "schema": 1,
        "model": str(folder / "a" / "model.onnx"),
        "converted": str(folder / "b" / "model.onnx"),
        "shapes": [{"x": [1, 3, 16, 16]}],
        "seed": 1,
    }


def in_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in fp16 between two casts, as the converter would write it."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in model.graph.node:
        node.input[:] = ["x16" if name == "x" else name for name in node.input]
        node.output[:] = ["y16" if name == "y" else name for name in node.output]
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x16"], to=10))
    model.graph.node.append(onnx.helper.make_node("Cast", ["y16"], ["y"], to=1))
    return model


def test_an_overflow_that_the_outputs_do_not_show_is_seen(tmp_path: Path) -> None:
    wide, narrow = models.overflowing_net(), in_fp16(models.overflowing_net())
    job = range_job(tmp_path, wide, narrow)
    outputs = to_int8.open_session(job["converted"], name="fp16").run(
        None, {"x": np.ones((1, 3, 16, 16), dtype="float32")}
    )
    assert np.isfinite(outputs[0]).all()  # why the comparison of outputs is not enough
    found = fp16_range.check(job)
    assert found["count"] == 2
    assert [each["tensor"] for each in found["overflows"]] == ["c1", "r1"]
    assert found["overflows"][0]["operator"] == "Conv"
    assert found["overflows"][0]["largest"] > 65504


def test_a_model_that_stays_within_fp16_has_no_overflow(tmp_path: Path) -> None:
    found = fp16_range.check(range_job(tmp_path, models.net(), in_fp16(models.net())))
    assert found == {"tensors": 5, "count": 0, "overflows": []}


def test_what_is_infinite_in_fp32_too_is_no_overflow(tmp_path: Path) -> None:
    both = models.net_with_logarithm(), in_fp16(models.net_with_logarithm())
    assert fp16_range.check(range_job(tmp_path, *both))["count"] == 0


def test_weights_outside_are_found_by_both(tmp_path: Path) -> None:
    job = range_job(tmp_path, models.net(), in_fp16(models.net()))
    external(models.net(), tmp_path / "a")
    external(in_fp16(models.net()), tmp_path / "b")
    assert fp16_range.check(job)["count"] == 0


def test_a_model_whose_tensors_are_not_found_again_is_no_evidence(tmp_path: Path) -> None:
    other = models.net()
    for node in other.graph.node:
        node.input[:] = [
            name if name in ("x", "w0", "w1", "w2") else f"z{name}" for name in node.input
        ]
        node.output[:] = [f"z{name}" for name in node.output]
    with pytest.raises(fp16_range.RefusedError, match="no fp32 tensor"):
        fp16_range.check(range_job(tmp_path, models.net(), other))
