"""Answer requests with ONNX Runtime inside the image under test: `python ort.py JOB.json`.

The job's format is told in `smoke/job.py`. The report goes to OUT/report.json, whole or not at all:
providers asked and active, where every node was placed, which operators really ran, the outputs of
the first request (raw files in OUT), the time of each request, the libraries in memory. It judges
nothing. Everything ONNX Runtime prints goes to this process's own streams, at a level that hides no
warning; a line for each step shows that the streams are read at all.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import json
import os
import pathlib
import platform
import re
import sys
import tempfile
import time

SCHEMA = 1
WARNING = 2  # ORT_LOGGING_LEVEL_WARNING: a higher level would hide lines that say "falling back"
FATAL = 4
CPU = "CPUExecutionProvider"
LEAST_REQUESTS = 5  # a series has so many, however long they take
ERROR_CHARACTERS = 20_000
# ONNX Runtime 1.16 brought `session.disable_cpu_ep_fallback`; versions before ignore it silently.
CAN_REFUSE = (1, 16)
# Softmax(QKᵀ)V in one kernel: what ONNX Runtime 1.31 has schemas for, and ONNX's own Attention.
# Linear attention and the indexers of sparse attention compute something else.
ATTENTION = re.compile(
    "((Decoder|DecoderMasked(MultiHead|Self)|DynamicSparse|GroupQuery|(QOrdered)?Longformer|Packed|"
    "(Packed)?MultiHead|(Sparse)?Paged|Q|QOrdered|Sparse)?Attention)"
)

LIBRARIES = {
    "onnxruntime": "libonnxruntime",
    "cuda": "libcudart",
    "cudnn": "libcudnn",
    "tensorrt": "libnvinfer",
    "tensorrt_rtx": "libtensorrt_rtx",
}


def make_session(ort, job, profile):
    """A session as a service makes it, that records where nodes are placed and profiles itself."""
    options = ort.SessionOptions()
    options.log_severity_level = WARNING
    options.enable_profiling = True
    options.profile_file_prefix = profile
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(job["model"], options, providers=job["providers"])


def ask_without_cpu(ort, job):
    """Whether ONNX Runtime refuses a session that may not fall back to the CPU, and what it said.

    None for a CPU cell, and for a version without this option. The session's own log is silent,
    because its error is the question's answer and no failure: it goes into the report. Nothing of
    this session stays in memory.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
    if job["providers"][:1] == [CPU] or version < CAN_REFUSE:
        return None, ""
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [provider for provider in job["providers"] if provider != CPU]
    try:
        # Python's own retry on the CPU would print that it falls back: it is off.
        ort.InferenceSession(job["model"], options, providers=providers, enable_fallback=0)
        refused, said = False, ""
    except Exception as error:
        refused, said = True, text_of(error)
    gc.collect()
    return refused, said


def assigned(session):
    """Nodes counted by provider and operator; nothing when this version cannot say."""
    counts = collections.Counter()
    if hasattr(session, "get_provider_graph_assignment_info"):
        for subgraph in session.get_provider_graph_assignment_info():
            counts.update((subgraph.ep_name, node.op_type) for node in subgraph.get_nodes())
    return counts


def executed(path):
    """Nodes that ran, counted by provider and operator, from the profile of one request.

    A node in a loop runs many times and counts once. The file has one event a line, and is read
    line by line: a loop may have made a million of them.
    """
    nodes, line = set(), ""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"provider"' in line:
                event = json.loads(line.strip().rstrip(","))
                known = event["args"]
                node = (event["name"], known.get("node_index"))
                nodes.add((known["provider"], known["op_name"], *node))
    if line.strip() != "]":
        raise RuntimeError("the profile of the first request is not whole")
    return collections.Counter(node[:2] for node in nodes)


def read_inputs(numpy, inputs, folder):
    """The arrays the host made, so that every runtime gets the same bytes."""
    return {
        name: numpy.fromfile(folder / entry["file"], dtype=entry["dtype"]).reshape(entry["shape"])
        for name, entry in inputs.items()
    }


def write_outputs(names, arrays, folder):
    """Raw little-endian bytes, one file an output; numpy's tofile says nothing of a full disk."""
    written = []
    for index, name in enumerate(names):
        array, file = arrays[index], f"output-{index}.bin"
        (folder / file).write_bytes(array.tobytes())
        shape = list(array.shape)
        written.append({"name": name, "dtype": str(array.dtype), "shape": shape, "file": file})
    return written


def ask(request, *, count, concurrency, seconds=None):
    """Make `count` requests, so many at once; their times in ms, in the order they ended.

    After `seconds` no other one is begun, but for the first LEAST_REQUESTS.
    """
    numbers, latencies, failures = iter(range(count)), [], []
    deadline = time.perf_counter() + seconds if seconds else float("inf")

    def client(_):
        while not failures:
            number, begin = next(numbers, None), time.perf_counter()
            if number is None or (number >= LEAST_REQUESTS and begin > deadline):
                return
            try:
                request()
            except BaseException as error:
                failures.append(error)
                raise
            latencies.append(round((time.perf_counter() - begin) * 1000, 3))

    with concurrent.futures.ThreadPoolExecutor(concurrency) as clients:
        list(clients.map(client, range(concurrency)))
    return latencies


def run_steps(session, names, feeds, *, steps):
    """One request: the model as many times as a picture takes, one after another."""
    for _ in range(steps):
        session.run(names, feeds)


def answer(numpy, session, job, folder):
    """Every series of the job; also when the first timed request began, and the last had ended."""
    names = [output.name for output in session.get_outputs()]
    began, timed = None, []
    for number, series in enumerate(job["series"]):
        batch, concurrency = series["batch"], series["concurrency"]
        feeds = read_inputs(numpy, series["inputs"], folder)
        request = functools.partial(run_steps, session, names, feeds, steps=job.get("steps", 1))
        warmup = max(0, job["warmup"] - (number == 0))  # the first of all was the profiled one
        ask(request, count=warmup, concurrency=concurrency)
        begins = time.time()
        began = began or begins
        count, seconds = job["requests"], job["series_seconds"]
        latencies = ask(request, count=count, concurrency=concurrency, seconds=seconds)
        timed.append({"batch": batch, "concurrency": concurrency, "latencies_ms": latencies})
        timed[-1] |= {"began_seconds": begins, "ended_seconds": time.time()}
        spread = f"{len(latencies)} requests, {min(latencies)} to {max(latencies)} ms"
        print(f"planyard: batch {batch}, {concurrency} at once: {spread}", flush=True)
    while time.time() < began + job.get("least_seconds", 0):  # until NVML must have seen it
        request()
    return timed, began, time.time()


def mapped_libraries(maps):
    """The shared libraries in a process's memory, by the text of its /proc/self/maps."""
    paths = {}
    for line in maps.split("\n"):
        fields = line.split(None, 5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            path = fields[5].replace("\\012", "\n")
            gone = path.endswith(" (deleted)") and not os.path.exists(path)
            paths[path[: -len(" (deleted)")] if gone else path] = True
    return list(paths)


def version_of(name, library):
    """What a library says of itself: 13000 is CUDA 13.0, 92800 is cuDNN 9.28.0."""
    if name == "onnxruntime":  # the second function of OrtApiBase (onnxruntime_c_api.h)
        library.OrtGetApiBase.restype = ctypes.POINTER(ctypes.c_void_p)
        return ctypes.CFUNCTYPE(ctypes.c_char_p)(library.OrtGetApiBase()[1])().decode()
    if name == "cuda":
        number = ctypes.c_int()
        library.cudaRuntimeGetVersion(ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"
    if name == "cudnn":
        library.cudnnGetVersion.restype = ctypes.c_size_t
        number = library.cudnnGetVersion()
        return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"
    parts = ("Major", "Minor", "Patch", "Build")
    return ".".join(str(getattr(library, f"getInferLib{part}Version")()) for part in parts)


def loaded_libraries(ort):
    """Version and path of what is in memory, by the names of the pins, asked of the code itself.

    A library that does not answer is `unknown`. Where two versions are loaded both are named, so
    that neither passes for the one that was wanted.
    """
    # The wheels link ONNX Runtime into the extension module, which exports no C interface.
    module = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state", ort)
    version = getattr(module, "get_version_string", lambda: ort.__version__)()
    found = {"onnxruntime": {module.__file__: version}}
    found["python"] = {os.path.realpath("/proc/self/exe"): platform.python_version()}
    maps = pathlib.Path("/proc/self/maps").read_bytes().decode(errors="replace")
    for path in mapped_libraries(maps):
        for name, stem in LIBRARIES.items():
            # Some wheels put a digest between name and suffix: libcudart-9f2e1c4a.so.13.
            if re.match(rf"{stem}(-[0-9a-f]+)?\.so(\.|$)", os.path.basename(path)):
                try:
                    library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
                    version = version_of(name, library)
                except (OSError, AttributeError):
                    version = "unknown"
                found.setdefault(name, {})[path] = version
    return {
        name: {"version": " and ".join(sorted(set(by_path.values()))), "path": ", ".join(by_path)}
        for name, by_path in found.items()
    }


def what_ran(ran):
    """Copies between host and device, and fused attention, among the nodes that were executed."""
    operators = collections.Counter()
    for (_, operator), count in sorted(ran.items()):
        operators[operator] += count
    fused = {name: operators[name] for name in operators if ATTENTION.fullmatch(name)}
    how = "executed nodes of a profiled request"
    return {
        "memcpy_nodes": operators["MemcpyFromHost"] + operators["MemcpyToHost"],
        "attention": {"fused": sum(fused.values()), "kinds": fused, "how": how},
    }


def run(job, folder):
    """Load the model, answer the requests, say what happened."""
    import numpy
    import onnxruntime

    if job.get("schema") != SCHEMA:
        raise ValueError(f"a job has schema {SCHEMA}")
    refused, said = ask_without_cpu(onnxruntime, job)
    with tempfile.TemporaryDirectory(prefix="planyard-") as scratch:
        session = make_session(onnxruntime, job, os.path.join(scratch, "profile"))
        print(f"planyard: session ready, providers {session.get_providers()}", flush=True)
        names = [output.name for output in session.get_outputs()]
        arrays = session.run(names, read_inputs(numpy, job["series"][0]["inputs"], folder))
        ran = executed(session.end_profiling())
    print(f"planyard: first request answered by {sum(ran.values())} nodes", flush=True)
    outputs = write_outputs(names, arrays, pathlib.Path(job["out"]))
    series, began, ended = answer(numpy, session, job, folder)
    return {
        "providers_asked": job["providers"],
        "providers_active": session.get_providers(),
        "placement": [
            {"provider": provider, "operator": operator, "count": count}
            for (provider, operator), count in sorted((assigned(session) or ran).items())
        ],
        **what_ran(ran),
        "cpu_fallback_refused": refused,
        "cpu_fallback_said": said,
        "outputs": outputs,
        "latencies_ms": series[0]["latencies_ms"],
        "series": series,
        "requests_began_seconds": began,
        "requests_ended_seconds": ended,
        "loaded": loaded_libraries(onnxruntime),
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def text_of(error):
    """An error as text that any reader of JSON takes: bounded, and without lone surrogates."""
    text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
    return text.encode("utf-8", "backslashreplace").decode()


def write_report(report, folder):
    """The whole report or none: a reader never sees half of it."""
    part = folder / "report.json.part"
    part.write_text(json.dumps(report), encoding="utf-8")
    os.replace(part, folder / "report.json")


def main(arguments):
    """The report is written whatever happens; the exit code says whether requests were answered."""
    path = pathlib.Path(arguments[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    out = pathlib.Path(job["out"])
    try:
        write_report(run(job, path.parent), out)
    except BaseException as error:  # a library that calls sys.exit(0) has answered nothing
        report = {"error": text_of(error)}
        print(report["error"], file=sys.stderr)
        with contextlib.suppress(OSError):  # outputs of a run that failed; the disk may be full
            for file in [*out.glob("output-*.bin"), *out.glob("report.json*")]:
                file.unlink()
        try:
            write_report(report, out)
        except OSError as unwritable:
            print(f"planyard: no report could be written: {unwritable}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
