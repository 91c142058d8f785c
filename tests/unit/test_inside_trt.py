"""`trt.py` with a driver and bindings that compute here: what it asks, counts and reports."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import itertools
import json
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from planyard.core.cells import Cell
from planyard.core.matrix_smoke import SmokeLimits
from planyard.core.results import AttentionFound, LatencySeries, SmokeReport
from planyard.edge.docker import Container, Ended
from smoke.job import SmokeJob
from smoke.run import read_outputs, read_report, run_job
from tests.fake_cuda import PLACES, Driver, Engine, Weights, bindings, plan_of

ROOT = Path(__file__).parents[2]
X = np.linspace(-1, 1, 12, dtype="float32").reshape(2, 6)


def loaded(path: str) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_under_test", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    return loaded("smoke/inside/trt.py")


class Room:
    """A folder with a job, and the script run there with fakes."""

    def __init__(self, script: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.script, self.folder, self.patch = script, folder, patch
        self.driver: Any = Driver()
        self.engine = Engine(self.driver)
        (folder / "out").mkdir()
        self.versions: dict[str, str] = {}
        self.modules: dict[str, Any] = {}
        self.weights: Weights | None = None
        self.job: dict[str, Any] = {
            "schema": 1,
            "backend": "",
            "model": str(folder / "model.plan"),
            "source": None,
            "session": None,
            "providers": [],
            "series": [self.series(X)],
            "warmup": 2,
            "requests": 6,
            "series_seconds": 60,
            "out": str(folder / "out"),
        }
        self.serve("tensorrt-rtx", "1.7.1.116", tensorrt_rtx_bindings="1.7.1.116")

    def serve(self, backend: str, plan: str, *, body: bytes = b"plan", **versions: str) -> None:
        """A plan of this version, and the only bindings that are installed, with theirs."""
        magic, provider = {
            "tensorrt-rtx": (b"vtrt", "TensorRT-RTX"),
            "tensorrt": (b"ftrt", "TensorRT"),
        }[backend]
        (self.folder / "model.plan").write_bytes(plan_of(plan, magic=magic, body=body))
        self.versions = versions
        self.job |= {"backend": backend, "providers": [provider]}

    def series(self, x: Any, *, concurrency: int = 1, **changes: Any) -> dict[str, Any]:
        file = f"input-{len(list(self.folder.glob('input-*')))}.bin"
        x.tofile(self.folder / file)
        entry = {"file": file, "dtype": str(x.dtype), "shape": list(x.shape), **changes}
        return {"batch": x.shape[0], "concurrency": concurrency, "inputs": {"x": entry}}

    def run(self) -> int:
        real = ctypes.CDLL

        def library(name: str, **options: Any) -> Any:
            if name != "libcuda.so.1":
                return real(name, **options)
            if self.driver is None:
                raise OSError(f"{name}: no such library")
            return self.driver

        self.patch.setattr(ctypes, "CDLL", library)
        found = importlib.util.find_spec
        self.patch.setattr(
            importlib.util,
            "find_spec",
            lambda name: None if "tensorrt" in name and name not in self.versions else found(name),
        )
        self.modules = {
            name: bindings(self.engine, name=name, version=version)
            for name, version in self.versions.items()
        }
        for name, module in self.modules.items():
            if self.weights and "lean" not in name:
                self.weights.add_to(module)
            self.patch.setitem(sys.modules, name, module)
        path = self.folder / "job.json"
        path.write_text(json.dumps(self.job))
        code: int = self.script.main(["trt.py", str(path)])
        return code

    def report(self) -> SmokeReport:
        report = read_report(self.folder / "out" / "report.json")
        assert isinstance(report, SmokeReport)
        return report

    def failed(self) -> str:
        """The error of a run that has to fail, and leaves nothing that looks like success."""
        assert self.run() == 1
        report = self.report()
        assert report == SmokeReport(error=report.error)
        assert list((self.folder / "out").glob("output-*")) == []
        return report.error


@pytest.fixture
def room(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(script, "REFERENCE_BYTES", 1 << 10)
    return Room(script, tmp_path, monkeypatch)


def test_it_answers_and_says_where_and_how_fast(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    assert room.run() == 0
    report = room.report()
    assert report.error == ""
    assert report.providers_asked == report.providers_active == ("TensorRT-RTX",)
    assert [(each.operator, each.count) for each in report.placement] == [("layer", 7)]
    problems: list[str] = []
    outputs = read_outputs(report, room.folder / "out", on_problem=problems.append)
    assert problems == []
    assert np.array_equal(outputs["y"], 2 * X)
    assert len(room.engine.executed) == 2 + 6  # warm-up, one of them kept, and timed ones
    assert len(report.latencies_ms) == 6
    assert report.requests_began_seconds is not None
    assert report.requests_ended_seconds is not None
    assert 0 <= report.requests_ended_seconds - report.requests_began_seconds < 60
    said = capsys.readouterr().out
    assert "planyard: plan ready, 7 layers" in said
    assert "planyard: batch 2, 1 at once: 6 requests answered" in said


def test_every_series_is_timed_and_its_memory_given_back(room: Room) -> None:
    one, three = np.ones((1, 6), "float32"), np.ones((3, 6), "float32")
    room.job["series"] += [room.series(one, concurrency=3), room.series(three)]
    assert room.run() == 0
    report = room.report()
    shapes = [(each.batch, each.concurrency, len(each.latencies_ms)) for each in report.series]
    assert shapes == [(2, 1, 6), (1, 3, 6), (3, 1, 6)]
    assert report.latencies_ms == report.series[0].latencies_ms
    outputs = read_outputs(report, room.folder / "out", on_problem=pytest.fail)
    assert np.array_equal(outputs["y"], 2 * X)  # of the first series
    executed = room.engine.executed
    assert [each.shape for each in executed] == [[2, 6]] * 8 + [[1, 6]] * 8 + [[3, 6]] * 8
    # Two of the reference load, then x and y of those who ask at once.
    assert room.driver.calls.count("cuMemAlloc_v2") == 2 + 2 * (1 + 3 + 1)
    assert len(room.driver.memory) == 2  # the reference load's


def test_requests_at_once_have_contexts_streams_and_memory_of_their_own(room: Room) -> None:
    """Three executions meet each time, or none of them goes on."""
    room.job |= {"warmup": 1, "requests": 9}
    room.job["series"] = [room.series(X, concurrency=3)]
    times_ms = room.script.Reference.times_ms

    def then_meet(reference: Any) -> Any:
        room.engine.meeting = threading.Barrier(3)
        return times_ms(reference)

    room.patch.setattr(room.script.Reference, "times_ms", then_meet)
    assert room.run() == 0
    assert len(room.report().latencies_ms) == 9
    timed = room.engine.executed[1:]
    assert len({id(each.context) for each in timed}) == 3
    assert len({each.addresses["x"] for each in timed}) == 3
    assert len({each.addresses["y"] for each in timed}) == 3


def test_a_series_ends_by_its_time_but_not_before_the_fifth_request(room: Room) -> None:
    room.job |= {"requests": 1000, "series_seconds": 1e-9}
    assert room.run() == 0
    assert len(room.report().latencies_ms) == 5


def test_without_warm_up_only_the_first_answer_comes_before(room: Room) -> None:
    room.job |= {"warmup": 0}
    assert room.run() == 0
    assert len(room.engine.executed) == 1 + 6


def test_the_reference_load_is_copies_on_the_device_timed_by_events(room: Room) -> None:
    """The fake's clock runs by bytes copied: 8 copies of 1 KiB, at 64 MiB a ms."""
    assert room.run() == 0
    (series,) = room.report().series
    assert isinstance(series, LatencySeries)
    assert series.reference_ms == (round(8 * 2**10 / 2**26, 4),) * 20
    calls = room.driver.calls
    timed = [at for at, name in enumerate(calls) if name == "cuStreamSynchronize"][-6:]
    copies = [at for at, name in enumerate(calls) if name == "cuMemcpyDtoDAsync_v2"]
    assert min(copies) < timed[0]
    assert max(copies) > timed[-1]
    assert not any(timed[0] < at < timed[-1] for at in copies)


MHA = {
    "Name": "_gemm_mha_v2_myl0_5",
    "LayerType": "kgen",
    "TacticName": "_gemm_mha_v2_0x2f56915e4503bbbc4882805caf214aa1",
    "Metadata": "[ONNX Layer: ctx][ONNX Layer: sm][ONNX Layer: qk]",
}
"""As TensorRT for RTX 1.7.1.116 tells of a plan it compiled here."""
GEMM = {
    "Name": "/_gemm_mha_v2/fmha/qk_myl0_4",
    "LayerType": "gemm",
    "TacticName": "__myelin_CASK_STUB",
    "Metadata": "[ONNX Layer: /_gemm_mha_v2/fmha/qk]",
}
"""A plain product, of a model whose nodes have misleading names."""
SOFTMAX = {
    "Name": "__myl_MaxrSubExpSumDiv_myl0_5",
    "LayerType": "kgen",
    "TacticName": "__myl_MaxrSubExpSumDiv_0xaa4b4f2ab92224bb316ea2c51a0f5f40_vec",
    "Metadata": "[ONNX Layer: sm]",
}


def other(**changes: str) -> dict[str, str]:
    return {**MHA, "Metadata": "[ONNX Layer: other]", **changes}


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        ([GEMM, SOFTMAX, GEMM], {}),
        ([GEMM, MHA, SOFTMAX], {"_gemm_mha_v2": 1}),
        ([MHA, other()], {"_gemm_mha_v2": 2}),
        ([MHA, MHA], {"_gemm_mha_v2": 1}),  # two kernels for the same nodes are one block
        ([{**MHA, "Metadata": ""}] * 2, {"_gemm_mha_v2": 2}),
        ([MHA, other(TacticName="_gemv_mha_v1_0x00ff")], {"_gemm_mha_v2": 1, "_gemv_mha_v1": 1}),
        ([other(TacticName="_fused_mha_v2")], {"_fused_mha_v2": 1}),
        ([other(TacticName="/layer/_gemm_mha_v2")], {}),
        ([other(TacticName="_gemm_mha_v2_bprop")], {}),
        ([other(TacticName="", Name="fmha")], {}),
        ([MHA, {"Name": "wait_for_stream", "LayerType": "wait"}], {"_gemm_mha_v2": 1}),
    ],
)
def test_fused_attention_is_counted_by_kernels(
    room: Room, layers: list[dict[str, str]], kinds: dict[str, int]
) -> None:
    room.engine = Engine(room.driver, layers=layers)
    assert room.run() == 0
    assert room.report().attention == AttentionFound(
        fused=sum(kinds.values()), kinds=kinds, how="kernels named by the engine inspector"
    )


@pytest.mark.parametrize(
    "told",
    [
        '{"Layers": []}',
        '{"Layers": ["_gemm_mha_v2_myl0_5"]}',  # compiled with layer names alone
        '{"Layers": [{"Name": "_gemm_mha_v2_myl0_5"}]}',
        '{"Layers": [7]}',
        '{"Layers": "_gemm_mha_v2"}',
        '{"Bindings": []}',
        "[]",
        "",
        '{"Layers": [',
    ],
)
def test_a_plan_that_names_no_kernels_is_no_evidence(room: Room, told: str) -> None:
    room.engine = Engine(room.driver, layers=told)
    assert room.run() == 0
    assert room.report().attention is None


def test_an_input_on_the_host_is_given_where_it_lies(room: Room) -> None:
    room.engine.place = PLACES.HOST
    assert room.run() == 0
    outputs = read_outputs(room.report(), room.folder / "out", on_problem=pytest.fail)
    assert np.array_equal(outputs["y"], 2 * X)
    assert "cuMemcpyHtoD_v2" not in room.driver.calls


@pytest.mark.parametrize(
    ("named", "kind", "width"),
    [
        ("FLOAT", "float32", 4),
        ("HALF", "float16", 2),
        ("INT64", "int64", 8),
        ("INT32", "int32", 4),
        ("INT8", "int8", 1),
        ("UINT8", "uint8", 1),
        ("BOOL", "bool", 1),
    ],
)
def test_kinds_have_numpys_names_and_sizes(script: Any, named: str, kind: str, width: int) -> None:
    driver = Driver()
    driver.begun = True
    driver.entered.add(threading.get_ident())
    engine = Engine(driver)
    engine.kind = named
    cuda = type("Cuda", (), {"make": lambda self, call: None})()
    assert script.Client(bindings(engine), cuda, engine).kind("x") == (width, kind)
    assert np.dtype(kind).itemsize == width


def break_driver(room: Room) -> None:
    room.driver.fails = {"cuMemAlloc_v2": 2}


def break_silently(room: Room) -> None:
    room.driver.fails = {"cuStreamSynchronize": 700}


def break_plan(room: Room) -> None:
    (room.folder / "model.plan").write_bytes(plan_of("1.7.1.116", magic=b"vtrt", body=b"stale"))


def break_context(room: Room) -> None:
    room.engine.no_context = True


def break_later(room: Room) -> None:
    room.engine.fails_at = 4


def break_kind(room: Room) -> None:
    room.engine.kind = "BF16"


def break_shape(room: Room) -> None:
    room.job["series"] = [room.series(np.zeros((5, 6), "float32"))]


def break_dtype(room: Room) -> None:
    room.job["series"] = [room.series(np.zeros((2, 6), "int32"))]


def break_length(room: Room) -> None:
    room.job["series"] = [room.series(X, shape=[2, 7])]


def break_name(room: Room) -> None:
    inputs = room.job["series"][0]["inputs"]
    inputs["z"] = inputs.pop("x")


def break_output(room: Room) -> None:
    room.engine.output_shape = (2, -1)


def break_schema(room: Room) -> None:
    room.job["schema"] = 2


def break_backend(room: Room) -> None:
    room.job["backend"] = "onnxruntime-cuda"


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (break_driver, "RuntimeError: cuMemAlloc_v2: out of memory"),
        (break_silently, "RuntimeError: cuStreamSynchronize: 700"),
        (break_plan, "could not be deserialized"),
        (break_context, "no execution context"),
        (break_later, "could not be executed"),
        (break_kind, "x is BF16"),
        (break_shape, "does not take [5, 6]"),
        (break_dtype, "takes x as float32"),
        (break_length, "takes x as float32"),
        (break_name, "no input x"),
        (break_output, "output y depends on the data"),
        (break_schema, "a job has schema 1"),
        (break_backend, "a backend, tensorrt-rtx or tensorrt"),
    ],
)
def test_what_fails_is_told_and_nothing_is_left(room: Room, breaks: Any, said: str) -> None:
    breaks(room)
    assert said in room.failed()


def test_one_failure_ends_the_others_as_well(room: Room) -> None:
    room.engine.fails_at = 20
    room.job |= {"requests": 100_000}
    room.job["series"] = [room.series(X, concurrency=3)]
    assert "could not be executed" in room.failed()
    assert len(room.engine.executed) < 10_000


def test_an_empty_tensor_is_a_tensor(room: Room) -> None:
    room.job["series"] = [room.series(np.zeros((0, 6), "float32"))]
    assert room.run() == 0
    assert [each.shape for each in room.report().outputs] == [(0, 6)]


def test_requests_begin_once_and_end_with_the_last_series(room: Room) -> None:
    room.job["series"] *= 2
    ticks = itertools.count(1)
    clock = types.SimpleNamespace(time=lambda: next(ticks), perf_counter=time.perf_counter)
    room.patch.setattr(room.script, "time", clock)
    assert room.run() == 0
    report = room.report()
    assert (report.requests_began_seconds, report.requests_ended_seconds) == (1, 7)
    ended = [(each.began_seconds, each.ended_seconds) for each in report.series]
    assert ended == [(1, 2), (4, 5)]


def test_requests_go_on_untimed_until_nvml_must_have_seen_them(room: Room) -> None:
    room.job |= {"least_seconds": 8, "warmup": 1, "series": [*room.job["series"], room.series(X)]}
    ticks = itertools.count(1)
    clock = types.SimpleNamespace(time=lambda: next(ticks), perf_counter=time.perf_counter)
    room.patch.setattr(room.script, "time", clock)
    assert room.run() == 0
    report = room.report()
    assert (report.requests_began_seconds, report.requests_ended_seconds) == (1, 10)
    assert [len(each.latencies_ms) for each in report.series] == [6, 6]
    assert len(room.engine.executed) == (1 + 6) + (1 + 6) + 3


@pytest.mark.parametrize(("contexts", "made"), [(None, 3), (2, 2), (5, 3)])
def test_requests_wait_for_one_of_the_contexts(room: Room, contexts: int | None, made: int) -> None:
    room.job |= {"contexts": contexts, "requests": 12}
    room.job["series"] = [{**room.job["series"][0], "concurrency": 3}]
    assert room.run() == 0
    assert len(room.report().series[0].latencies_ms) == 12
    used = {id(each.context) for each in room.engine.executed}
    assert 1 <= len(used) <= made
    assert room.engine.contexts_made == made


def test_a_machine_without_a_driver_says_so(room: Room) -> None:
    room.driver = None
    assert "libcuda.so.1: no such library" in room.failed()


LEAN = {"tensorrt_lean_bindings": "11.2.1.2"}
FULL = {"tensorrt_bindings": "11.2.1.2"}


@pytest.mark.parametrize(
    ("installed", "used"),
    [
        (LEAN, "tensorrt_lean_bindings"),
        (FULL, "tensorrt_bindings"),
        ({"tensorrt": "11.2.1.2"}, "tensorrt"),
        ({**FULL, **LEAN, "tensorrt": "11.2.1.2"}, "tensorrt_lean_bindings"),
        ({**FULL, "tensorrt": "11.2.1.2"}, "tensorrt_bindings"),
    ],
)
def test_classic_tensorrt_answers_by_the_bindings_that_are_there(
    room: Room, installed: dict[str, str], used: str
) -> None:
    room.serve("tensorrt", "11.2.1.2", **installed)
    assert room.run() == 0
    report = room.report()
    assert report.error == ""
    assert report.providers_asked == report.providers_active == ("TensorRT",)
    assert [each.provider for each in report.placement] == ["TensorRT"]
    assert report.versions == {used: "11.2.1.2"}
    outputs = read_outputs(report, room.folder / "out", on_problem=pytest.fail)
    assert np.array_equal(outputs["y"], 2 * X)


def test_bindings_of_the_other_tensorrt_are_none(room: Room) -> None:
    room.serve("tensorrt", "11.2.1.2", tensorrt_rtx_bindings="1.7.1.116")
    assert "none of tensorrt_lean_bindings, tensorrt_bindings, tensorrt" in room.failed()
    room.serve("tensorrt-rtx", "1.7.1.116", **LEAN)
    assert "none of tensorrt_rtx_bindings" in room.failed()


def test_bindings_that_cannot_be_loaded_are_not_passed_over(room: Room) -> None:
    """The image would run, with another library than the one it was made for."""
    real, importing = importlib.import_module, "tensorrt_lean_bindings"

    def broken(name: str) -> Any:
        if name == importing:
            raise ImportError("libnvinfer_lean.so.11: cannot open shared object file")
        return real(name)

    room.serve("tensorrt", "11.2.1.2", **LEAN, **FULL)
    room.patch.setattr(importlib, "import_module", broken)
    assert "libnvinfer_lean.so.11: cannot open" in room.failed()


def test_a_file_beside_the_script_is_no_module(script: Any, tmp_path: Path) -> None:
    """`engines/inside` has a tensorrt.py, and a folder of scripts may be laid out flat."""
    flat = tmp_path / "trt.py"
    flat.write_bytes((ROOT / "smoke/inside/trt.py").read_bytes())
    (tmp_path / "tensorrt.py").write_text("print('the wrong one')")
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import trt\n"
         "print(trt.bindings_of('tensorrt').__name__)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stdout == ""
    assert "the image has none of" in ended.stderr


@pytest.mark.parametrize(
    ("backend", "plan", "library", "compatible", "fits"),
    [
        ("tensorrt-rtx", "1.6.1.120", "1.7.1.116", False, False),
        ("tensorrt-rtx", "1.7.1.9", "1.7.1.116", False, False),
        ("tensorrt", "11.2.1.2", "11.2.1.2", False, True),
        ("tensorrt", "11.2.1.1", "11.2.1.2", False, False),
        ("tensorrt", "11.1.0.9", "11.2.1.2", False, False),
        ("tensorrt", "11.1.0.9", "11.2.1.2", True, True),
        ("tensorrt", "11.2.1.2", "11.2.1.2", True, True),
        ("tensorrt", "11.3.0.1", "11.2.1.2", True, False),
        ("tensorrt", "10.15.1.29", "11.2.1.2", True, False),
        ("tensorrt", "12.0.0.1", "11.2.1.2", True, False),
    ],
)
def test_a_plan_of_another_version_is_told_by_its_header(
    room: Room, backend: str, plan: str, library: str, *, compatible: bool, fits: bool
) -> None:
    name = "tensorrt_rtx_bindings" if backend == "tensorrt-rtx" else "tensorrt_bindings"
    room.serve(backend, plan, **{name: library})
    room.job["version_compatible"] = compatible
    if fits:
        assert room.run() == 0
        return
    said = room.failed()
    assert f"{plan} does not run on {library}: compile it with {library}" in said
    assert room.modules[name].runtimes == []  # TensorRT was not asked
    assert room.driver.calls == []


@pytest.mark.parametrize("data", [b"", b"ftrt", plan_of("1.7.1.116", magic=b"vtrt"), b"\0" * 64])
def test_what_is_no_plan_of_this_tensorrt_is_told_by_its_header(room: Room, data: bytes) -> None:
    room.serve("tensorrt", "11.2.1.2", **LEAN)
    (room.folder / "model.plan").write_bytes(data)
    shown = data[:8].hex(" ") or "nothing"
    assert f"no plan of TensorRT: it starts with {shown}" in room.failed()
    assert room.modules["tensorrt_lean_bindings"].runtimes == []


@pytest.mark.parametrize(
    ("installed", "compatible", "allowed"),
    [(FULL, True, True), (FULL, False, False), (LEAN, True, False), (LEAN, False, False)],
)
def test_host_code_is_allowed_only_where_a_plan_brings_its_own_runtime(
    room: Room, installed: dict[str, str], *, compatible: bool, allowed: bool
) -> None:
    room.serve("tensorrt", "11.2.1.2", body=b"host", **installed)
    room.job["version_compatible"] = compatible
    if allowed:
        assert room.run() == 0
    else:
        assert "could not be deserialized" in room.failed()
    (module,) = room.modules.values()
    assert [each.engine_host_code_allowed for each in module.runtimes] == [allowed]


def test_a_plan_without_weights_is_filled_before_anything_is_asked(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    room.weights = Weights()
    room.serve("tensorrt", "11.2.1.2", **FULL)
    room.job["source"] = "/source/model.onnx"
    assert room.run() == 0
    assert (room.weights.source, room.weights.done) == ("/source/model.onnx", True)
    said = capsys.readouterr().out
    assert said.index("planyard: refitted 2 weights") < said.index("planyard: batch 2")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unreadable": True}, "model.onnx were not taken: node /conv: no such initializer"),
        ({"given": "a"}, "/source/model.onnx lacks 1 weights: b"),
        ({"refuses": True}, "could not be refitted"),
    ],
)
def test_a_plan_that_stays_without_weights_answers_nothing(
    room: Room, changes: dict[str, Any], said: str
) -> None:
    room.weights = Weights()
    vars(room.weights).update(changes)
    room.serve("tensorrt", "11.2.1.2", **FULL)
    room.job["source"] = "/source/model.onnx"
    assert said in room.failed()
    assert room.engine.executed == []


@pytest.mark.parametrize(
    ("backend", "plan", "installed"),
    [
        ("tensorrt", "11.2.1.2", LEAN),
        ("tensorrt-rtx", "1.7.1.116", {"tensorrt_rtx_bindings": "1.7.1.116"}),
    ],
)
def test_only_full_tensorrt_fills_plans(
    room: Room, backend: str, plan: str, installed: dict[str, str]
) -> None:
    room.weights = Weights()
    room.serve(backend, plan, **installed)
    room.job["source"] = "/source/model.onnx"
    assert "has nothing to read weights with" in room.failed()


def test_the_model_of_a_stripped_plan_is_mounted_read_only(tmp_path: Path) -> None:
    for name in ("plans/model.plan", "models/model.onnx"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    ids = {"image": "trt", "model": "net", "profile": "8", "precision": "fp16", "gpu": "sm90"}
    job = SmokeJob(
        cell=Cell(id="/".join(ids.values()), **ids, sm=90, backend="tensorrt"),  # type: ignore[arg-type]
        image="trt:1",
        python="/usr/bin/python3.11",
        served=tmp_path / "plans" / "model.plan",
        inputs={"x": X},
        limits=SmokeLimits(),
        gpu=True,
        source=tmp_path / "models" / "model.onnx",
    )
    for number, (source, mounted) in enumerate([(job.source, True), (None, False)]):
        seen: list[Container] = []
        scratch = tmp_path / f"scratch-{number}"
        scratch.mkdir()
        run_job(replace(job, source=source), runner=noting(seen), scratch=scratch)
        (container,) = seen
        mounts = {each.target: (each.source, each.writable) for each in container.mounts}
        assert mounts["/model"] == (tmp_path / "plans", False)
        assert mounts.get("/source") == ((tmp_path / "models", False) if mounted else None)
        document = json.loads((scratch / "job" / "job.json").read_text())
        assert document["source"] == ("/source/model.onnx" if mounted else None)


def noting(seen: list[Container]) -> Callable[[Container], Ended]:
    """A runner that runs nothing."""

    def run(container: Container) -> Ended:
        seen.append(container)
        return Ended(exit_code=1, stdout=b"", stderr=b"", seconds=0.0)

    return run


def test_loaded_libraries_answer_for_themselves(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def __init__(self, path: str, **options: Any) -> None:
            if "broken" in path:
                raise OSError(path)
            self.path = path

        def __getattr__(self, name: str) -> Any:
            parts = {"Major": 1, "Minor": 7, "Patch": 1, "Build": 116 if "new" in self.path else 9}
            if name.startswith("getInferLib"):
                return lambda: parts[name.removeprefix("getInferLib").removesuffix("Version")]
            if name == "cudaRuntimeGetVersion":
                return lambda number: setattr(number._obj, "value", 13010)
            raise AttributeError(name)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    paths = [
        "/new/libtensorrt_rtx.so.1",
        "/old/libtensorrt_rtx.so.1",
        "/lib/libcudart-0f3a.so.13",
        "/lib/libtensorrt_rtx_other.so",
        "/data/libcudart.so.13",
    ]
    maps = "\n".join(f"7f00-7f01 r-xp 00000000 08:01 42   {path}" for path in paths[:4])
    maps += f"\n7f00-7f01 r--p 00000000 08:01 42   {paths[4]}\n7f00-7f01 rw-p 0 00:00 0"
    found = script.loaded_libraries(maps)
    assert found["tensorrt_rtx"] == {
        "version": "1.7.1.116 and 1.7.1.9",
        "path": "/new/libtensorrt_rtx.so.1, /old/libtensorrt_rtx.so.1",
    }
    assert found["cuda"] == {"version": "13.1", "path": "/lib/libcudart-0f3a.so.13"}
    assert found["python"]["version"] == sys.version.split()[0]
    assert set(found) == {"tensorrt_rtx", "cuda", "python"}
    line = "7f00-7f01 r-xp 00000000 08:01 42   /broken/libcudart.so.13"
    assert script.loaded_libraries(line)["cuda"]["version"] == "unknown"
    classic = ("libnvinfer_lean.so.11", "libnvinfer.so.11.2.1", "libnvinfer_vc_plugin.so.11")
    for name, pinned in zip(classic, (True, True, False), strict=True):
        found = script.loaded_libraries(f"7f00-7f01 r-xp 00000000 08:01 42   /new/{name}")
        assert ("tensorrt" in found) is pinned


def test_plans_are_compiled_so_that_they_name_their_kernels() -> None:
    """Without it the inspector tells names of layers, and the attention gate has no evidence."""
    compiler = loaded("engines/inside/tensorrt_rtx.py")
    trt, builder, config = MagicMock(), MagicMock(), types.SimpleNamespace()
    trt.ComputeCapability.__members__ = {"SM89": 89}
    builder.create_builder_config.return_value = config
    config.set_memory_pool_limit = config.set_compute_capability = lambda *_: True
    network = types.SimpleNamespace(num_inputs=0)
    job, plan = {"workspace_bytes": 1}, {"sm": 89, "profile": {}}
    built = compiler.build_plan(trt, builder=builder, network=network, log=None, job=job, plan=plan)
    assert config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    builder.build_serialized_network.assert_called_once_with(network, config)
    assert built is builder.build_serialized_network.return_value
