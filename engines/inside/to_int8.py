"""Quantize an fp32 ONNX model to int8 in the builder container: `python to_int8.py JOB.json`.

Explicit Q/DQ only: symmetric int8, per tensor for what flows into Conv, ConvTranspose, Gemm and
MatMul, per channel for their weights. Every fourth calibration sample is held out: ranges are
measured on the others, and the result is compared with the fp32 model on those held out, and on
seeded inputs that have nothing to do with the calibration. One JSON object on stdout; exit code 0
unless the event is `failed` (2). Why so: docs/precision.md.

Job: schema, model, out, calibration (an .npz: an array for each input, samples first), seeded
(input -> file, dtype, shape), versions (optional pins).
Events: `converted` (model, files, versions, samples, held_out, quantized, comparisons, …),
`refused` (message), `failed` (message).
"""

import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

SCHEMA = 1
PACKAGES = ("ml-dtypes", "numpy", "onnx", "onnxruntime", "protobuf")
WEIGHTS_NAME = "weights.bin"
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QDQ = ("QuantizeLinear", "DequantizeLinear")
LEAST_OPSET = 13  # the first whose DequantizeLinear has an axis
LEAST_SAMPLES = 8
HELD_OUT_EVERY = 4
FLOAT, INT8, FLOAT16 = 1, 3, 10  # onnx.TensorProto


class RefusedError(Exception):
    """This model cannot be had in int8 with this calibration."""


def open_events():
    """Keep stdout for the event alone: whatever native code prints to it goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event, **fields):
        events.write(json.dumps({"event": event, **fields}, allow_nan=False) + "\n")
        events.flush()

    return emit


def check_versions(pins):
    """The versions really here; another one than pinned would give another model."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    wrong = [f"{n} is {found.get(n)}, not {v}" for n, v in pins.items() if found.get(n) != v]
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return found


def open_session(path, *, name):
    """A CPU session; ONNX Runtime's own words when it refuses the model."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedError(f"ONNX Runtime refuses the {name} model: {error}") from error


def load_samples(path, session):
    """The feeds of each calibration sample, a batch of one; types and shapes the runtime checks."""
    import numpy

    ranks = {node.name: len(node.shape) for node in session.get_inputs()}
    with numpy.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if arrays.keys() != ranks.keys():
        given = ", ".join(sorted(arrays)) or "nothing"
        raise RefusedError(f"the calibration holds {given}; the inputs are {', '.join(ranks)}")
    counts = sorted({len(array) if array.ndim else 0 for array in arrays.values()})
    if len(counts) > 1 or counts[0] < LEAST_SAMPLES:
        said = " and ".join(map(str, counts))
        raise RefusedError(f"{said} samples: all inputs need the same, {LEAST_SAMPLES} or more")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not numpy.isfinite(array).all():
            raise RefusedError(f"{name} holds NaN or Inf in the calibration")
    return [
        {name: array[i : i + 1] if ranks[name] else array[i, ...] for name, array in arrays.items()}
        for i in range(counts[0])
    ]


def load_seeded(entries):
    """The seeded inputs, from raw files."""
    import numpy

    return {
        name: numpy.fromfile(entry["file"], dtype=entry["dtype"]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


def load_model(path):
    """An fp32 model with opset 13 or later, and whether its weights lie outside."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    numbers = {FLOAT: 0, FLOAT16: 0}
    for tensor in model.graph.initializer:
        if tensor.data_type in numbers:
            numbers[tensor.data_type] += math.prod(tensor.dims)
    if numbers[FLOAT16] > numbers[FLOAT]:
        raise RefusedError("its weights are fp16: int8 is made from the fp32 model, give that one")
    if any(node.op_type in QDQ for node in model.graph.node):
        raise RefusedError("it is quantized already: serve it as it was published, not as int8")
    external = any(tensor.data_location for tensor in model.graph.initializer)
    opset = next((each.version for each in model.opset_import if not each.domain), 0)
    model = onnx.load(path)
    if opset >= LEAST_OPSET:
        return model, external, opset
    if external:  # the library serializes the whole model, which protobuf allows below 2 GiB
        raise RefusedError(f"opset {opset}, with weights outside: export it with opset 13 or later")
    try:
        return onnx.version_converter.convert_version(model, LEAST_OPSET), external, opset
    except Exception as error:
        raise RefusedError(f"opset {opset} cannot be brought to {LEAST_OPSET}: {error}") from error


def quantize(model, *, samples, folder, external):
    """The model with Q/DQ, its ranges the smallest and largest values seen in `samples`."""
    import onnx
    from onnxruntime import quantization

    class Samples(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(samples)

        def get_next(self):
            return next(self.left, None)

    written = folder / "quantized.onnx"
    try:
        quantization.quantize_static(
            model,
            str(written),
            Samples(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            use_external_data_format=external,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # int32 biases are nothing TensorRT dequantizes
                "OpTypesToExcludeOutputQuantization": list(OPERATORS),
            },
        )
    except Exception as error:
        raise RefusedError(f"the quantizer failed: {type(error).__name__}: {error}") from error
    return onnx.load(str(written))


def count_quantized(model):
    """How many nodes of each type compute in int8; raises RefusedError unless Q/DQ is as asked."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in QDQ:
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if zero is None or zero.data_type != INT8 or numpy_helper.to_array(zero).any():
                raise RefusedError(f"{node.name} is not symmetric int8")
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    counts = {}
    for node in model.graph.node:
        if node.op_type in OPERATORS and {made.get(name) for name in node.input[:2]} == {QDQ[1]}:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    if not counts:
        raise RefusedError(f"it has no {', '.join(OPERATORS)} that int8 would speed up")
    return counts


def save(model, *, folder, external):
    """Write the model, its large tensors beside it when `external`; returns the files' facts."""
    from onnx import external_data_helper

    if external:
        external_data_helper.convert_model_to_external_data(model, location=WEIGHTS_NAME)
        (folder / WEIGHTS_NAME).unlink(missing_ok=True)  # the library would append to it
        model = external_data_helper.write_external_data_tensors(model, str(folder))
    partial = folder / ".model.onnx.partial"
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(folder / "model.onnx")
    files = []
    for name in ["model.onnx", WEIGHTS_NAME] if external else ["model.onnx"]:
        if not (folder / name).exists():
            continue  # int8 weights may be too small to lie outside
        (folder / name).chmod(0o644)  # the library writes weights for their owner alone
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"name": name, "sha256": digest, "size_bytes": (folder / name).stat().st_size})
    return files


def compare_output(name, *, reference, candidate):
    """How far one output is from the fp32 one, as smoke/gates/outputs.py measures it.

    NaN and Inf are counted, not averaged. `psnr_db` is null where it is infinite: equal outputs,
    or a constant that was missed.
    """
    import numpy

    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        raise RefusedError(
            f"output {name} is {candidate.dtype}{list(candidate.shape)} in int8, "
            f"{reference.dtype}{list(reference.shape)} in fp32"
        )
    wide, near = reference.astype("float64"), candidate.astype("float64")
    both = numpy.isfinite(wide) & numpy.isfinite(near)
    wide, near = wide[both], near[both]
    difference = numpy.abs(wide - near)
    square = float(numpy.square(difference).mean()) if difference.size else 0.0
    peak = float(wide.max() - wide.min()) if wide.size else 0.0
    lengths = float(numpy.linalg.norm(wide)), float(numpy.linalg.norm(near))
    cosine = float(numpy.dot(wide, near)) / math.prod(lengths) if all(lengths) else 0.0
    return {
        "name": name,
        "max_abs": float(difference.max(initial=0.0)),
        "mean_abs": float(difference.mean()) if difference.size else 0.0,
        "cosine": 1.0 if square == 0 else max(-1.0, min(1.0, cosine)),
        "psnr_db": 10 * math.log10(peak**2 / square) if square and peak else None,
        "values": int(reference.size),
        "nan": int(numpy.isnan(candidate).sum()) if candidate.dtype.kind == "f" else 0,
        "inf": int(numpy.isinf(candidate).sum()) if candidate.dtype.kind == "f" else 0,
    }


def compare(reference, path, *, feeds):
    """Run the fp32 session and the int8 model at `path` on each of the named feeds."""
    candidate = open_session(path, name="int8")
    names = [output.name for output in reference.get_outputs()]
    comparisons = []
    for inputs, feed in feeds.items():
        pairs = zip(names, reference.run(names, feed), candidate.run(names, feed), strict=True)
        outputs = [compare_output(n, reference=r, candidate=c) for n, r, c in pairs]
        comparisons.append({"inputs": inputs, "outputs": outputs})
    return comparisons


def convert(job, *, folder, work):
    """Quantize, check, save, load, compare; the fields of the event."""
    begin = time.monotonic()
    model, external, opset = load_model(job["model"])
    reference = open_session(job["model"], name="fp32")
    samples = load_samples(job["calibration"], reference)
    apart = range(HELD_OUT_EVERY - 1, len(samples), HELD_OUT_EVERY)  # the last of each four
    measured = [sample for i, sample in enumerate(samples) if i not in apart]
    model = quantize(model, samples=measured, folder=work, external=external)
    quantized = count_quantized(model)
    files = save(model, folder=folder, external=external)
    del model
    seconds = round(time.monotonic() - begin, 3)
    feeds = {f"held-out sample {i}": samples[i] for i in apart}
    feeds["seeded inputs"] = load_seeded(job["seeded"])
    try:
        comparisons = compare(reference, folder / "model.onnx", feeds=feeds)
    except Exception:
        for file in files:
            (folder / file["name"]).unlink()
        raise
    return {
        "model": "model.onnx",
        "files": files,
        "seconds": seconds,
        "opset": opset,
        "samples": len(samples),
        "held_out": list(apart),
        "quantized": quantized,
        "comparisons": comparisons,
    }


def run(job, emit):
    """Convert in a folder of its own; nothing is left in `out` when the model is refused."""
    if job.get("schema") != SCHEMA:
        raise ValueError(f"a job has schema {SCHEMA}")
    versions = check_versions(job.get("versions", {}))
    folder = Path(job["out"])
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=folder))
    tempfile.tempdir = str(work)  # the quantizer's copies of the model: /tmp is memory
    try:
        fields = convert(job, folder=folder, work=work)
    finally:
        tempfile.tempdir = None
        shutil.rmtree(work, ignore_errors=True)
    emit("converted", versions=versions, **fields)


def main(arguments):
    """Read the job, run it; the only place that decides the exit code."""
    emit = open_events()
    try:
        run(json.loads(Path(arguments[1]).read_text(encoding="utf-8")), emit)
    except RefusedError as error:
        emit("refused", message=str(error))
    except Exception as error:
        traceback.print_exc()
        emit("failed", message=f"{type(error).__name__}: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
