"""The parts of `smoke/inside/ort.py`, called one by one: requests at once, profiles, libraries."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

SCRIPT = Path(__file__).parents[2] / "smoke" / "inside" / "ort.py"
WHEEL = Path(onnxruntime.__file__).parent / "capi"


@pytest.fixture(scope="module")
def ort() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ort_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_made_at_once_and_no_more(ort: ModuleType, concurrency: int) -> None:
    """All of a round wait for each other: fewer at once would never get past the barrier."""
    together, under_way, most = threading.Barrier(concurrency), [], []

    def request() -> None:
        under_way.append(1)
        most.append(len(under_way))
        together.wait(timeout=20)
        under_way.pop()

    latencies = ort.ask([request] * concurrency, count=4 * concurrency)
    assert len(latencies) == len(most) == 4 * concurrency
    assert max(most) == concurrency
    assert all(each > 0 for each in latencies)


@pytest.mark.parametrize(("count", "made"), [(100, 5), (3, 3), (0, 0)])
def test_time_ends_a_series_but_not_before_its_fifth_request(
    ort: ModuleType, count: int, made: int
) -> None:
    assert len(ort.ask([lambda: None], count=count, seconds=1e-9)) == made


def test_without_a_limit_all_requests_are_made(ort: ModuleType) -> None:
    assert len(ort.ask([lambda: None] * 2, count=100, seconds=600)) == 100
    assert len(ort.ask([lambda: None] * 2, count=100)) == 100


def test_one_client_alone_asks_from_this_very_thread(ort: ModuleType) -> None:
    """ONNX Runtime keeps a captured CUDA graph with the thread that captured it."""
    threads: list[int] = []
    ort.ask([lambda: threads.append(threading.get_ident())], count=3)
    assert threads == [threading.get_ident()] * 3


def test_the_first_failure_ends_a_series(ort: ModuleType) -> None:
    """Both clients are under way when one of them fails; the other would have gone on."""
    numbers, together = itertools.count(), threading.Barrier(2)

    def request() -> None:
        number = next(numbers)
        if number < 2:
            together.wait(timeout=20)
        if number == 2:
            raise SystemExit("third")

    with pytest.raises(SystemExit, match="third"):
        ort.ask([request] * 2, count=200_000)
    assert next(numbers) < 100_000


class Counting:
    """A session that notes the first number of each request."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.at_seconds: list[float] = []

    def get_outputs(self) -> list[Any]:
        """One output."""
        return [SimpleNamespace(name="y")]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Nothing but the note."""
        assert names == ["y"]
        self.seen.append(float(feeds["x"][0, 0]))
        self.at_seconds.append(time.time())
        return [feeds["x"] + 1]


def answer(ort: ModuleType, session: Counting, job: dict[str, Any], folder: Path) -> Any:
    """The job's series, by clients of the script's own kind."""
    return ort.answer(np, functools.partial(ort.plain_client, session, job), job, folder)


@pytest.mark.parametrize(("warmup", "first", "second"), [(0, 0, 0), (1, 0, 1), (3, 2, 3)])
def test_each_series_is_warmed_up_with_its_own_inputs(
    ort: ModuleType, tmp_path: Path, warmup: int, first: int, second: int
) -> None:
    """The first request of all, which was profiled, counts as the first one of the warm-up."""
    series = []
    for batch in (1, 2):
        np.full(batch, batch, "float32").tofile(tmp_path / f"{batch}.bin")
        x = {"file": f"{batch}.bin", "dtype": "float32", "shape": [batch, 1]}
        series.append({"batch": batch, "concurrency": 1, "inputs": {"x": x}})
    job = {"series": series, "warmup": warmup, "requests": 6, "series_seconds": 60}
    session = Counting()
    timed, began, ended = answer(ort, session, job, tmp_path)
    assert session.seen == [1.0] * (first + 6) + [2.0] * (second + 6)
    assert [(each["batch"], len(each["latencies_ms"])) for each in timed] == [(1, 6), (2, 6)]
    assert began <= session.at_seconds[first]
    assert session.at_seconds[-1] <= ended


def test_a_request_is_as_many_runs_as_its_steps(ort: ModuleType) -> None:
    session, feeds = Counting(), {"x": np.ones((1, 1), "float32")}
    client = ort.plain_client(session, {"steps": 3}, feeds)
    assert client()()["y"].tolist() == [[2.0]]
    assert len(session.seen) == 3
    client(1)
    assert len(session.seen) == 4


def test_requests_go_on_untimed_until_nvml_must_have_seen_them(
    ort: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.ones(1, "float32").tofile(tmp_path / "x.bin")
    x = {"file": "x.bin", "dtype": "float32", "shape": [1, 1]}
    series = [{"batch": 1, "concurrency": 1, "inputs": {"x": x}}]
    ticks, session = itertools.count(1), Counting()
    clock = SimpleNamespace(time=lambda: next(ticks), perf_counter=time.perf_counter)
    monkeypatch.setattr(ort, "time", clock)
    job = {"series": series, "warmup": 1, "requests": 6, "series_seconds": 60, "least_seconds": 5}
    timed, began, ended = answer(ort, session, job, tmp_path)
    assert [len(each["latencies_ms"]) for each in timed] == [6]
    assert (timed[0]["began_seconds"], timed[0]["ended_seconds"]) == (1, 2)
    assert len(session.seen) == 6 + 3
    assert (began, ended) == (1, 7)


def test_the_second_witness_is_never_retried_on_the_cpu(
    ort: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two providers that ONNX Runtime takes for a mistake: Python would print that it retries."""
    both = ["TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"]
    refused, said = ort.ask_without_cpu(onnxruntime, {"model": "m.onnx", "providers": both})
    assert refused
    assert said.startswith("ValueError: Cannot enable both")
    assert capfd.readouterr() == ("", "")


def test_a_version_that_would_ignore_the_question_is_not_asked(ort: ModuleType) -> None:
    """1.15 makes every session, whatever `session.disable_cpu_ep_fallback` says: no evidence."""
    job = {"model": "m.onnx", "providers": ["CUDAExecutionProvider"]}
    for version in ("1.15.1", "1.9.0", "0.9"):
        assert ort.ask_without_cpu(SimpleNamespace(__version__=version), job) == (None, "")
    with pytest.raises(AttributeError):  # asked: the first thing would be to make its options
        ort.ask_without_cpu(SimpleNamespace(__version__="1.16.0"), job)


def profile(tmp_path: Path, *events: dict[str, Any], end: str = "]\n") -> str:
    """A profile as ONNX Runtime writes it: one event a line."""
    lines = ",\n".join(json.dumps(event) for event in events)
    path = tmp_path / "profile.json"
    path.write_text(f"[\n{lines}\n{end}")
    return str(path)


def node(name: str, operator: str, *, index: int = 0, provider: str = "CUDA") -> dict[str, Any]:
    known = {"op_name": operator, "provider": provider, "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": 3, "args": known}


def test_a_profile_says_which_nodes_ran_each_once(ort: ModuleType, tmp_path: Path) -> None:
    fence = {"cat": "Node", "name": "a_fence_before", "args": {"op_name": "Conv"}}
    session = {"cat": "Session", "name": "model_run", "args": {}}
    path = profile(
        tmp_path,
        session,
        fence,
        node("a", "Conv"),
        node("b", "Conv", index=1),
        node("", "Conv", index=2),
        node("", "Conv", index=3),
        node("loop's", "Add", index=0, provider="CPU"),
        node("loop's", "Add", index=0, provider="CPU"),
        node("m", "MemcpyToHost", index=5),
        session,
    )
    ran = ort.executed(path)
    assert ran == {("CUDA", "Conv"): 4, ("CPU", "Add"): 1, ("CUDA", "MemcpyToHost"): 1}


@pytest.mark.parametrize("end", ["", ",\n", '{"cat": "Node", "name'])
def test_a_profile_that_is_cut_off_is_no_evidence(
    ort: ModuleType, tmp_path: Path, end: str
) -> None:
    with pytest.raises(RuntimeError, match="not whole"):
        ort.executed(profile(tmp_path, node("a", "Conv"), end=end))


def test_an_empty_profile_is_no_evidence(ort: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    with pytest.raises(RuntimeError, match="not whole"):
        ort.executed(str(tmp_path / "empty.json"))


def test_copies_and_attention_are_counted_over_all_providers(ort: ModuleType) -> None:
    ran = {
        ("CPU", "MultiHeadAttention"): 1,
        ("CUDA", "MultiHeadAttention"): 31,
        ("CUDA", "PackedAttention"): 2,
        ("CUDA", "MemcpyFromHost"): 3,
        ("CUDA", "MemcpyToHost"): 4,
        ("CUDA", "Softmax"): 5,
        ("CUDA", "LinearAttention"): 6,
    }
    said = ort.what_ran(ran)
    assert said["memcpy_nodes"] == 7
    assert said["attention"]["fused"] == 34
    assert said["attention"]["kinds"] == {"MultiHeadAttention": 32, "PackedAttention": 2}


NOT_FUSED_ATTENTION = {
    *("LinearAttention", "LinearAttentionGate"),  # another function than softmax(QKᵀ)V
    *("PackedSparseAttentionIndexer", "SparseAttentionIndexer"),  # choose what to attend to
    "DisentangledAttention_TRT",  # a plugin, which only TensorRT runs, inside its own node
}


def test_every_attention_operator_of_this_version_is_known_as_one_or_not(ort: ModuleType) -> None:
    """A new version of ONNX Runtime with a new operator fails here, and gets it a place."""
    schemas = onnxruntime_pybind11_state.get_all_operator_schema()
    names = {schema.name for schema in schemas if "Attention" in schema.name}
    known = {name for name in names if ort.ATTENTION.fullmatch(name)}
    assert names - known == NOT_FUSED_ATTENTION
    assert {"Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"} <= known
    assert not ort.ATTENTION.fullmatch("MyAttentionFusion")


MAPS = """\
55e0-55e1 r--p 00000000 fe:00 1  /usr/bin/python3.11
7f00-7f01 r--p 00000000 fe:00 2  /opt/my libs/libcudart.so.13
7f01-7f02 r-xp 00001000 fe:00 2                          /opt/my libs/libcudart.so.13
7f02-7f03 r-xp 00000000 fe:00 3  /gone/libnvinfer.so.11.2.1 (deleted)
7f03-7f04 r-xp 00000000 fe:00 4  /odd\\012name.so
7f04-7f05 r--p 00000000 fe:00 5  /data/only-read.bin
7f05-7f06 rw-p 00000000 00:00 0
7f06-7f07 r-xp 00000000 00:00 0  [vdso]
7f07-7f08 r-xp 00000000 fe:00 2  /opt/my libs/libcudart.so.13
"""


def test_memory_maps_with_spaces_deleted_files_and_odd_names(ort: ModuleType) -> None:
    assert ort.mapped_libraries(MAPS) == [
        "/opt/my libs/libcudart.so.13",
        "/gone/libnvinfer.so.11.2.1",
        "/odd\nname.so",
    ]


def test_a_name_that_ends_like_a_deleted_one_is_left_as_it_is(
    ort: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "lib.so (deleted)"
    path.touch()
    line = f"7f02-7f03 r-xp 00000000 fe:00 3  {path}\n"
    assert ort.mapped_libraries(line) == [str(path)]


ASK_LOADED = """
import ctypes, json, os, runpy, sys, types
script, *paths = sys.argv[1:]
for path in paths:
    ctypes.CDLL(path)
os.unlink(paths[0])
module = types.SimpleNamespace(__version__="9.9.9", __file__="/site/onnxruntime/__init__.py")
print(json.dumps(runpy.run_path(script)["loaded_libraries"](module)))
"""


def test_libraries_are_asked_in_memory_whatever_became_of_their_files(tmp_path: Path) -> None:
    """A real library whose file is gone, and two that have the names of others."""
    [library] = WHEEL.glob("libonnxruntime.so.*")
    gone = tmp_path / "with space" / library.name
    gone.parent.mkdir()
    shutil.copyfile(library, gone)
    false = [tmp_path / name for name in ("libcudart-9f2e1c4a.so.13", "libcudnn.so.9")]
    for path in false:
        shutil.copyfile(WHEEL / "libonnxruntime_providers_shared.so", path)
    command = [sys.executable, "-S", "-c", ASK_LOADED, SCRIPT, gone, *false]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    loaded = json.loads(done.stdout)
    # A package that claims one version, with a library of another: both are named.
    assert loaded["onnxruntime"]["version"] == f"{onnxruntime.__version__} and 9.9.9"
    assert loaded["onnxruntime"]["path"] == f"/site/onnxruntime/__init__.py, {gone}"
    assert loaded["cuda"] == {"version": "unknown", "path": str(false[0])}
    assert loaded["cudnn"] == {"version": "unknown", "path": str(false[1])}
    assert loaded.keys() == {"onnxruntime", "cuda", "cudnn", "python"}


class Answers:
    """A CUDA library's calls, with the numbers they give."""

    def __getattr__(self, name: str) -> Any:
        """Each function of the library, as ctypes would give it."""
        numbers = {"Major": 11, "Minor": 2, "Patch": 1, "Build": 2}
        if name == "cudaRuntimeGetVersion":
            return self._runtime
        if name == "cudnnGetVersion":
            return Answer(92800)
        return Answer(numbers[name.removeprefix("getInferLib").removesuffix("Version")])

    def _runtime(self, pointer: Any) -> int:
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = 13020
        return 0


class Answer:
    """A function of a library, which may be told what type it gives."""

    restype: Any = None

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


@pytest.mark.parametrize(
    ("name", "version"),
    [("cuda", "13.2"), ("cudnn", "9.28.0"), ("tensorrt", "11.2.1.2"), ("tensorrt_rtx", "11.2.1.2")],
)
def test_numbers_become_versions_as_the_pins_write_them(
    ort: ModuleType, name: str, version: str
) -> None:
    assert ort.version_of(name, Answers()) == version
