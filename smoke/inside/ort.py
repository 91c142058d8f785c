"""Answer requests with ONNX Runtime inside the image under test: `python ort.py JOB.json`.

Job: schema, model, providers (in order), inputs (name → file, dtype, shape), requests, out.
The report goes to OUT/report.json: providers asked and active, on which provider every node was
placed, the outputs of the first request (as raw files in OUT), and each request's latency.
It judges nothing. Everything ONNX Runtime prints goes to this process's own streams, at a level
that hides no warning; a line for each step shows that the streams are read at all.
"""

import json
import pathlib
import sys
import time

SCHEMA = 1
WARNING = 2  # ORT_LOGGING_LEVEL_WARNING: a higher level would hide lines that say "falling back"


def session_options(ort):
    """Options that record where each node was placed; older versions ignore the entry."""
    options = ort.SessionOptions()
    options.log_severity_level = WARNING
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def placement(session):
    """Nodes counted by provider and operator; None when this version cannot say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts = {}
    for subgraph in session.get_provider_graph_assignment_info():
        for node in subgraph.get_nodes():
            key = (subgraph.ep_name, node.op_type)
            counts[key] = counts.get(key, 0) + 1
    return [
        {"provider": provider, "operator": operator, "count": count}
        for (provider, operator), count in sorted(counts.items())
    ]


def read_inputs(numpy, inputs):
    """The arrays the host made, so that every runtime gets the same bytes."""
    return {
        name: numpy.fromfile(entry["file"], dtype=entry["dtype"]).reshape(entry["shape"])
        for name, entry in inputs.items()
    }


def write_outputs(numpy, names, arrays, folder):
    """Raw little-endian bytes, one file an output."""
    written = []
    for index, (name, array) in enumerate(zip(names, arrays, strict=True)):
        file = f"output-{index}.bin"
        numpy.ascontiguousarray(array).tofile(folder / file)
        shape = list(array.shape)
        written.append({"name": name, "dtype": str(array.dtype), "shape": shape, "file": file})
    return written


def run(job):
    """Load the model, answer the requests, say what happened."""
    import numpy
    import onnxruntime

    if job.get("schema") != SCHEMA:
        raise ValueError(f"a job has schema {SCHEMA}")
    folder = pathlib.Path(job["out"])
    session = onnxruntime.InferenceSession(
        job["model"], session_options(onnxruntime), providers=job["providers"]
    )
    print(f"planyard: session ready, providers {session.get_providers()}", flush=True)
    feeds = read_inputs(numpy, job["inputs"])
    names = [output.name for output in session.get_outputs()]
    latencies, outputs = [], []
    for request in range(job["requests"]):
        begin = time.perf_counter()
        arrays = session.run(names, feeds)
        latencies.append(round((time.perf_counter() - begin) * 1000, 3))
        print(f"planyard: request {request + 1}: {latencies[-1]} ms", flush=True)
        if request == 0:
            outputs = write_outputs(numpy, names, arrays, folder)
    return {
        "providers_asked": job["providers"],
        "providers_active": session.get_providers(),
        "placement": placement(session) or [],
        "outputs": outputs,
        "latencies_ms": latencies,
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def main(arguments):
    """The report is written whatever happens; the exit code says whether requests were answered."""
    job = json.loads(pathlib.Path(arguments[1]).read_text(encoding="utf-8"))
    try:
        report, code = run(job), 0
    except Exception as error:
        report, code = {"error": f"{type(error).__name__}: {error}"}, 1
        print(report["error"], file=sys.stderr)
    (pathlib.Path(job["out"]) / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
