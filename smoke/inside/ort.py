"""Answer requests with ONNX Runtime inside the image under test: `python ort.py JOB.json`.

The job's format is told in `smoke/job.py`. The report goes to OUT/report.json, whole or not at all:
providers, where every node was placed, which operators really ran, the outputs of the first request
(raw files in OUT), the time of each, the libraries in memory. It judges nothing. What ONNX Runtime
prints goes to this process's own streams, at a level that hides no warning.
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
import runpy
import sys
import tempfile
import time

SCHEMA, CPU = 1, "CPUExecutionProvider"
BAKED = "/etc/planyard/session.json"
WARNING, FATAL = 2, 4  # ORT_LOGGING_LEVEL_…: above WARNING lines are hidden that say "falling back"
CAN_REFUSE = (1, 16)  # versions before ignore `session.disable_cpu_ep_fallback` silently
LEAST_REQUESTS = 5  # a series has so many, however long they take
ERROR_CHARACTERS = 20_000
# Softmax(QKᵀ)V in one kernel: what ONNX Runtime 1.31 has schemas for, and ONNX's own Attention.
# Linear attention and the indexers of sparse attention compute something else.
ATTENTION = re.compile(
    "((Decoder|DecoderMasked(MultiHead|Self)|DynamicSparse|GroupQuery|(QOrdered)?Longformer|Packed|"
    "(Packed)?MultiHead|(Sparse)?Paged|Q|QOrdered|Sparse)?Attention)"
)
LIBRARIES = {"onnxruntime": "libonnxruntime", "cuda": "libcudart", "cudnn": "libcudnn"}
LIBRARIES |= {"tensorrt": "libnvinfer", "tensorrt_rtx": "libtensorrt_rtx"}


def make_session(ort, job, profile):
    """A session as a service makes it, that records where nodes are placed and profiles itself."""
    options = ort.SessionOptions()
    options.log_severity_level = WARNING
    options.enable_profiling, options.profile_file_prefix = True, profile
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    asked = job.get("session") or {}
    for name, value in asked.get("session_options", {}).items():
        setattr(options, name, value)
    providers = [tuple(each) for each in asked.get("providers", ())] or job["providers"]
    return ort.InferenceSession(job["model"], options, providers=providers)


def session_said(session):
    """How the session was made, in its own words, and what the image says of its service's."""
    threads = {"intra_op_num_threads": str(session.get_session_options().intra_op_num_threads)}
    options = {**session.get_provider_options(), "session_options": threads}
    baked = json.loads(pathlib.Path(BAKED).read_bytes()) if os.path.exists(BAKED) else None
    return {"baked": baked, "options": options}


def ask_without_cpu(ort, job):
    """Whether ONNX Runtime refuses a session that may not fall back to the CPU, and what it said.

    None for a CPU cell, and a version without this option. Its log is silent: an error is the
    answer, and goes into the report. Nothing of this session stays in memory.
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
    graphs = getattr(session, "get_provider_graph_assignment_info", list)()
    nodes = ((graph.ep_name, node.op_type) for graph in graphs for node in graph.get_nodes())
    return collections.Counter(nodes)


def executed(path):
    """Nodes that ran, counted by provider and operator, from the profile of one request.

    A node in a loop runs many times and counts once. There is an event a line, maybe a million.
    """
    nodes, line = set(), ""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"provider"' in line:
                event = json.loads(line.strip().rstrip(","))
                known = event["args"]
                place = (known["provider"], known["op_name"])
                nodes.add((*place, event["name"], known.get("node_index")))
    if line.strip() != "]":
        raise RuntimeError("the profile of the first request is not whole")
    return collections.Counter(node[:2] for node in nodes)


def read_inputs(numpy, inputs, folder):
    """The arrays the host made, so that every runtime gets the same bytes."""
    return {
        name: numpy.fromfile(folder / entry["file"], dtype=entry["dtype"]).reshape(entry["shape"])
        for name, entry in inputs.items()
    }


def write_outputs(arrays, folder):
    """Raw little-endian bytes, one file an output; numpy's tofile says nothing of a full disk."""
    written = []
    for index, (name, array) in enumerate(arrays.items()):
        shape, file = list(array.shape), f"output-{index}.bin"
        (folder / file).write_bytes(array.tobytes())
        written.append({"name": name, "dtype": str(array.dtype), "shape": shape, "file": file})
    return written


def plain_client(session, job, feeds):
    """One of those who ask at the same time. A request gives a function that reads its outputs."""
    names = [output.name for output in session.get_outputs()]

    def request(steps=None):
        for _ in range(steps or job.get("steps", 1)):
            arrays = session.run(names, feeds)
        return lambda: {name: arrays[index] for index, name in enumerate(names)}

    return request


def ask(clients, *, count, seconds=None):
    """Make `count` requests, all clients at once; their times in ms, in the order they ended.

    After `seconds` no other one is begun, but for the first LEAST_REQUESTS. One client alone stays
    in this thread, where it finds the CUDA graph again that was captured.
    """
    numbers, latencies, failures = iter(range(count)), [], []
    deadline = time.perf_counter() + seconds if seconds else float("inf")

    def work(request):
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

    with concurrent.futures.ThreadPoolExecutor(len(clients)) as threads:
        list((threads.map if len(clients) > 1 else map)(work, clients))
    return latencies


def answer(numpy, make_client, job, folder):
    """Every series of the job; also when the first timed request began, and the last had ended."""
    began, timed = None, []
    for number, series in enumerate(job["series"]):
        batch, concurrency = series["batch"], series["concurrency"]
        feeds = read_inputs(numpy, series["inputs"], folder)
        clients = [make_client(feeds) for _ in range(concurrency)]
        warmup = max(0, job["warmup"] - (number == 0))  # the first of all was the profiled one
        ask(clients, count=warmup)
        begins = time.time()
        began = began or begins
        latencies = ask(clients, count=job["requests"], seconds=job["series_seconds"])
        timed.append({"batch": batch, "concurrency": concurrency, "latencies_ms": latencies})
        timed[-1] |= {"began_seconds": begins, "ended_seconds": time.time()}
        spread = f"{len(latencies)} requests, {min(latencies)} to {max(latencies)} ms"
        print(f"planyard: batch {batch}, {concurrency} at once: {spread}", flush=True)
    while time.time() < began + job.get("least_seconds", 0):  # until NVML must have seen it
        clients[0]()
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

    A library that does not answer is `unknown`. Where two versions are loaded both are named.
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
    bound = job.get("client") and runpy.run_path(str(folder / job["client"]))["Client"]
    refused, said = ask_without_cpu(onnxruntime, job)
    with tempfile.TemporaryDirectory(prefix="planyard-") as scratch:
        session = make_session(onnxruntime, job, os.path.join(scratch, "profile"))
        print(f"planyard: session ready, providers {session.get_providers()}", flush=True)
        make_client = functools.partial(bound or plain_client, session, job)
        client = make_client(read_inputs(numpy, job["series"][0]["inputs"], folder))
        arrays = client(1)()
        ran = executed(session.end_profiling())
    print(f"planyard: first request answered by {sum(ran.values())} nodes", flush=True)
    outputs = write_outputs(arrays, pathlib.Path(job["out"]))
    series, began, ended = answer(numpy, make_client, job, folder)
    placed = sorted((assigned(session) or ran).items())
    return {
        "providers_asked": job["providers"],
        "providers_active": session.get_providers(),
        "placement": [{"provider": p, "operator": o, "count": count} for (p, o), count in placed],
        **what_ran(ran),
        "cpu_fallback_refused": refused,
        "cpu_fallback_said": said,
        "session": {**session_said(session), **getattr(client, "said", dict)()},
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
