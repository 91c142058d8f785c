"""Convert an fp32 ONNX model to fp16 in the builder container: `python to_fp16.py JOB.json`.

Inputs and outputs keep their declared types, and the same model gives the same bytes. The result
is loaded by ONNX Runtime on CPU and run beside the original: a converter can write a model that
ONNX Runtime refuses and the plan compiler takes. One JSON object on stdout; exit code 0 unless
the event is `failed` (2). Why this converter: docs/adr/0003-fp16-conversion.md.

Job: schema, model, out, shapes (a list of input shapes by name), seed, versions (optional pins).
Events: `converted` (model, files, versions, comparisons, …), `unchanged` (already fp16; nothing
is written), `refused` (message), `failed` (message).
"""

import hashlib
import importlib.metadata
import json
import math
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

SCHEMA = 1
LARGEST_FP16 = 65504.0
PACKAGES = ("numpy", "onnx", "onnxconverter-common", "onnxruntime", "protobuf")
WEIGHTS_NAME = "weights.bin"
FLOAT, FLOAT16 = 1, 10  # onnx.TensorProto


class RefusedError(Exception):
    """This model cannot be had in fp16; the message is the converter's or the runtime's own."""


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


def walk(graph):
    """Every node of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield from walk(inner)


def weights_of(model):
    """Every constant tensor: initializers, and the values of Constant nodes."""
    yield from model.graph.initializer
    for node in walk(model.graph):
        if node.op_type == "Constant":
            yield from (a.t for a in node.attribute if a.name == "value")


def count_weights(model):
    """How many numbers of fp32 and of fp16 the weights hold; needs no external data."""
    counts = {FLOAT: 0, FLOAT16: 0}
    for tensor in weights_of(model):
        if tensor.data_type in counts:
            counts[tensor.data_type] += math.prod(tensor.dims)
    return counts[FLOAT], counts[FLOAT16]


def name_nodes(graph):
    """A distinct name for every node: the converter names its casts after their neighbours."""
    for index, node in enumerate(walk(graph)):
        node.name = f"{index}_{node.op_type}"


def split_reused_outputs(graph):
    """Give an output that other nodes also read a name of its own.

    The converter turns a graph output back to fp32 and forgets those who read it inside.
    """
    from onnx import helper

    made = {name for node in graph.node for name in node.output}
    read = {name for node in walk(graph) for name in node.input}
    for output in [value.name for value in graph.output if value.name in made & read]:
        inner = f"{output}__inside"
        for node in walk(graph):
            node.input[:] = [inner if name == output else name for name in node.input]
            node.output[:] = [inner if name == output else name for name in node.output]
        graph.node.append(helper.make_node("Identity", [inner], [output], name=f"out_{output}"))


def nodes_that_state_fp32(graph):
    """Nodes whose attribute says fp32 (Cast, EyeLike, …): the converter forgets the attribute."""
    return [
        node.name
        for node in walk(graph)
        if any(a.name in ("to", "dtype") and a.i == FLOAT for a in node.attribute)
    ]


def count_clipped(model):
    """How many weights are larger than fp16 can say; the comparison shows what that costs."""
    import numpy
    from onnx import numpy_helper

    tensors = (t for t in weights_of(model) if t.data_type == FLOAT)
    return sum(int((numpy.abs(numpy_helper.to_array(t)) > LARGEST_FP16).sum()) for t in tensors)


def convert(model, *, infer_shapes):
    """The same model in fp16, its inputs and outputs as declared."""
    from onnxconverter_common import float16

    name_nodes(model.graph)
    split_reused_outputs(model.graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one line for every small weight; counted above
            return float16.convert_float_to_float16(
                model,
                max_finite_val=LARGEST_FP16,
                keep_io_types=True,
                disable_shape_infer=not infer_shapes,
                node_block_list=nodes_that_state_fp32(model.graph),
                check_fp16_ready=False,
            )
    except Exception as error:
        raise RefusedError(f"the converter failed: {type(error).__name__}: {error}") from error


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
        (folder / name).chmod(0o644)  # the library writes weights for their owner alone
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"name": name, "sha256": digest, "size_bytes": (folder / name).stat().st_size})
    return files


def make_inputs(session, *, shapes, seed, pattern):
    """Seeded inputs: noise, or dark specks on a bright page.

    Noise alone says little: it brings PP-OCRv6 detection to 0.06 of 1, the specks to 0.99.
    """
    import numpy

    random = numpy.random.Generator(numpy.random.PCG64(seed))
    feeds = {}
    for node in session.get_inputs():
        shape = shapes.get(node.name, node.shape)
        if any(not isinstance(dimension, int) for dimension in shape):
            raise ValueError(f"no shape is given for dynamic input {node.name}: {shape}")
        kind = node.type.removeprefix("tensor(").removesuffix(")")
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        if not dtype.startswith("float"):
            feeds[node.name] = random.integers(0, 2, size=shape).astype(dtype)
        elif pattern == "noise" or len(shape) < 2:
            feeds[node.name] = random.standard_normal(shape).astype(dtype)
        else:
            height, width = shape[-2:]
            specks = random.random((-(-height // 8), -(-width // 8))) < 0.05
            page = numpy.where(specks, -2.0, 2.0).repeat(8, 0).repeat(8, 1)[:height, :width]
            feeds[node.name] = numpy.broadcast_to(page, shape).astype(dtype)
    return feeds


def compare_output(name, *, reference, candidate):
    """How far one output is from the fp32 one; NaN and inf are counted, not averaged."""
    import numpy

    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        raise RefusedError(
            f"output {name} is {candidate.dtype}{list(candidate.shape)} in fp16, "
            f"{reference.dtype}{list(reference.shape)} in fp32"
        )
    wide, near = reference.astype("float64"), candidate.astype("float64")
    both = numpy.isfinite(wide) & numpy.isfinite(near)
    difference = numpy.abs(wide[both] - near[both])
    return {
        "name": name,
        "max_abs": float(difference.max(initial=0.0)),
        "mean_abs": float(difference.mean()) if difference.size else 0.0,
        "reference_max_abs": float(numpy.abs(wide[both]).max(initial=0.0)),
        "nan": int(numpy.isnan(near).sum()),
        "inf": int(numpy.isinf(near).sum()),
        "reference_nan": int(numpy.isnan(wide).sum()),
        "reference_inf": int(numpy.isinf(wide).sum()),
    }


def open_session(path, *, name):
    """A CPU session; ONNX Runtime's own words when it refuses the model."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedError(f"ONNX Runtime refuses the {name} model: {error}") from error


def compare(original, converted, *, shapes, seed):
    """Run both models on the same inputs, each shape with each pattern."""
    reference = open_session(original, name="fp32")
    candidate = open_session(converted, name="fp16")
    names = [output.name for output in reference.get_outputs()]
    comparisons = []
    for one in shapes:
        for pattern in ("noise", "specks"):
            feeds = make_inputs(reference, shapes=one, seed=seed, pattern=pattern)
            pairs = zip(
                names, reference.run(names, feeds), candidate.run(names, feeds), strict=True
            )
            outputs = [compare_output(n, reference=r, candidate=c) for n, r, c in pairs]
            comparisons.append({"shapes": one, "inputs": pattern, "outputs": outputs})
    return comparisons


def compare_or_remove(job, *, folder, files):
    """Compare; a model that cannot be compared does not stay in `folder`."""
    try:
        return compare(job["model"], folder / "model.onnx", shapes=job["shapes"], seed=job["seed"])
    except Exception:
        for file in files:
            (folder / file["name"]).unlink()
        raise


def run(job, emit):
    """Convert, save, load, compare; nothing is left in `out` when the model is refused."""
    import onnx

    if job.get("schema") != SCHEMA:
        raise ValueError(f"a job has schema {SCHEMA}")
    versions = check_versions(job.get("versions", {}))
    begin, folder = time.monotonic(), Path(job["out"])
    model = onnx.load(job["model"], load_external_data=False)
    fp32, fp16 = count_weights(model)
    if fp16 > fp32:
        emit(
            "unchanged",
            reason="already fp16",
            fp32_weights=fp32,
            fp16_weights=fp16,
            versions=versions,
        )
        return
    external = any(tensor.data_location for tensor in model.graph.initializer)
    model = onnx.load(job["model"])
    clipped = count_clipped(model)
    # Shape inference serializes the model, which protobuf allows only below 2 GiB.
    model = convert(model, infer_shapes=not external)
    files = save(model, folder=folder, external=external)
    del model
    seconds = round(time.monotonic() - begin, 3)
    comparisons = compare_or_remove(job, folder=folder, files=files)
    emit(
        "converted",
        model="model.onnx",
        files=files,
        seconds=seconds,
        fp32_weights=fp32,
        fp16_weights=fp16,
        clipped_weights=clipped,
        versions=versions,
        comparisons=comparisons,
    )


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
