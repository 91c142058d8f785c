"""Say which tensors of a converted model leave fp16, in the builder container: `… JOB.json`.

ONNX Runtime's CPU kernels compute fp16 in fp32 and take the casts between two of them away, so its
outputs stay finite where a GPU overflows (measured with 1.31.1). Here the largest and the smallest
value of every tensor are outputs of their own, which are really cast to fp16. A tensor that is
finite in the fp32 model and infinite in the fp16 one overflows. One JSON object on stdout; exit
code 0 unless the event is `failed` (2).

Job: schema, model (fp32), converted (fp16), shapes (a list of input shapes by name), seed.
Events: `checked` (tensors, overflows: tensor, operator, largest, inputs; in the order of the
graph), `refused` (message), `failed` (message).
"""

import json
import math
import os
import sys
import traceback
from pathlib import Path

SCHEMA = 1
FLOAT = 1  # onnx.TensorProto
MOST_TOLD = 20
MARK = "__planyard_"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class RefusedError(Exception):
    """The model cannot be looked into."""


def open_events():
    """Keep stdout for the event alone: whatever native code prints to it goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event, **fields):
        events.write(json.dumps({"event": event, **fields}, allow_nan=False) + "\n")
        events.flush()

    return emit


def float_tensors(model):
    """What each fp32 tensor of the graph is made by, in the graph's order."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.output]
    floats = {each.name for each in values if each.type.tensor_type.elem_type == FLOAT}
    return {
        name: node.op_type for node in model.graph.node for name in node.output if name in floats
    }


def made_by(model):
    """The names that nodes of the graph give to what they make."""
    return {name for node in model.graph.node for name in node.output}


def watch(model, *, tensors, folder):
    """A CPU session with the largest and the smallest value of each tensor as outputs too."""
    import onnxruntime
    from onnx import helper

    for tensor in tensors:
        for side, operator in (("max", "ReduceMax"), ("min", "ReduceMin")):
            name = f"{tensor}{MARK}{side}"
            model.graph.node.append(helper.make_node(operator, [tensor], [name], keepdims=0))
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def make_inputs(session, *, shapes, seed, pattern):
    """Seeded inputs as to_fp16.py makes them: noise, or dark specks on a bright page."""
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


def largest(session, feeds):
    """The largest absolute value of each tensor; inf where it overflowed, NaN where it is none."""
    found = {}
    names = [output.name for output in session.get_outputs() if MARK in output.name]
    for name, value in zip(names, session.run(names, feeds), strict=True):
        tensor, size = name.rpartition(MARK)[0], abs(float(value))
        before = found.get(tensor, 0.0)
        found[tensor] = size if math.isnan(size) or size > before else before
    return found


def check(job):
    """The tensors watched, and those that overflow, each with the first inputs it did on."""
    import onnx

    reference = onnx.load(job["model"], load_external_data=False)
    converted = onnx.load(job["converted"], load_external_data=False)
    present = made_by(converted)
    tensors = {name: op for name, op in float_tensors(reference).items() if name in present}
    if not tensors:
        raise RefusedError("no fp32 tensor of the model is found again in the fp16 one")
    try:
        pair = [
            watch(model, tensors=tensors, folder=Path(path).parent)
            for model, path in ((reference, job["model"]), (converted, job["converted"]))
        ]
    except Exception as error:
        raise RefusedError(f"ONNX Runtime refuses the model with its tensors: {error}") from error
    overflows = {}
    for shapes in job["shapes"]:
        for pattern in ("noise", "specks"):
            feeds = make_inputs(pair[0], shapes=shapes, seed=job["seed"], pattern=pattern)
            wide, narrow = (largest(session, feeds) for session in pair)
            for name, operator in tensors.items():
                if math.isfinite(wide[name]) and not math.isfinite(narrow[name]):
                    fact = {"tensor": name, "operator": operator, "largest": wide[name]}
                    overflows.setdefault(name, {**fact, "inputs": pattern})
    told = [overflows[name] for name in tensors if name in overflows]
    return {"tensors": len(tensors), "count": len(told), "overflows": told[:MOST_TOLD]}


def main(arguments):
    """Read the job, run it; the only place that decides the exit code."""
    emit = open_events()
    try:
        job = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
        if job.get("schema") != SCHEMA:
            raise ValueError(f"a job has schema {SCHEMA}")
        emit("checked", **check(job))
    except RefusedError as error:
        emit("refused", message=str(error))
    except Exception as error:
        traceback.print_exc()
        emit("failed", message=f"{type(error).__name__}: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
