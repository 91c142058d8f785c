"""`tensorrt.py` with a driver and bindings that are made up: what it asks, refuses and says."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from planyard.core.digest import digest_of_bytes
from tests import fake_tensorrt
from tests.fake_tensorrt import BuilderFlag, HardwareCompatibilityLevel, Machine

SCRIPT = Path(__file__).parents[2] / "engines/inside/tensorrt.py"
X = {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}
ERROR = {
    "desc": "no such operator ",
    "node_name": "/net/odd",
    "node_operator": "Odd",
    "node": 3,
    "code": "ErrorCode.UNSUPPORTED_NODE",
}


class Room:
    """A folder with a job, and the script run there with fakes."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        spec = importlib.util.spec_from_file_location("tensorrt_under_test", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        self.script: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.script)
        self.folder, self.patch = folder, patch
        self.out = folder / "out"
        self.out.mkdir()
        self.machine, self.trt = Machine(), fake_tensorrt.bindings()
        self.model: dict[str, Any] = {"inputs": {"x": [-1, 3]}, "tactics": ["a", "b"]}
        self.job: dict[str, Any] = {
            "schema": 1,
            "backend": "tensorrt",
            "model": str(folder / "model.onnx"),
            "version": fake_tensorrt.VERSION,
            "workspace_bytes": 1 << 20,
            "optimization_level": None,
            "out": str(self.out),
            "plans": [self.plan("one"), self.plan("two")],
        }

    def plan(self, cell: str, *, sm: int = 90, **profile: Any) -> dict[str, Any]:
        return {"cell": cell, "sm": sm, "profile": profile or {"x": X}, "out": f"{cell}.plan"}

    def caches(self, *caches: bytes) -> list[str]:
        paths = [self.folder / f"{number}.cache" for number in range(len(caches))]
        for path, data in zip(paths, caches, strict=True):
            path.write_bytes(data)
        return [str(path) for path in paths]

    def run(self) -> list[dict[str, Any]]:
        """The events; what the job's model is comes from `model`."""
        events: list[dict[str, Any]] = []
        Path(self.job["model"]).write_text(json.dumps(self.model))
        self.patch.setattr(ctypes, "CDLL", self.machine.library)
        self.patch.setitem(sys.modules, "tensorrt_bindings", self.trt)
        self.patch.setattr(sys, "path", list(sys.path))
        self.script.run(
            json.loads(json.dumps(self.job)),
            lambda event, **fields: events.append({"event": event, **fields}),
        )
        return json.loads(json.dumps(events))  # type: ignore[no-any-return]

    def refused(self) -> list[dict[str, Any]]:
        """The refusals of a run that leaves no plan."""
        events = self.run()
        assert list(self.out.glob("*.plan*")) == []
        assert not [event for event in events if event["event"] == "compiled"]
        return [event for event in events if event["event"] == "refused"]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(tmp_path, monkeypatch)


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def test_each_plan_is_written_with_what_the_inspector_says(room: Room) -> None:
    room.model["layers"] = ["fmha"]
    events = room.run()
    assert [event["event"] for event in events] == [
        *("loaded", "started", "compiled", "started", "compiled")
    ]
    for event in named(events, "compiled"):
        plan, beside = room.out / event["out"], room.out / event["inspector"]
        assert beside.name == f"{event['cell']}.inspector.json"
        assert f"sha256:{event['sha256']}" == digest_of_bytes(plan.read_bytes())
        assert f"sha256:{event['inspector_sha256']}" == digest_of_bytes(beside.read_bytes())
        assert event["size_bytes"] == plan.stat().st_size
        assert event["inspector_size_bytes"] == beside.stat().st_size
        assert json.loads(beside.read_text())["Layers"] == ["fmha"]
        assert event["seconds"] >= 0
        assert event["peak_memory_bytes"] > 0
    assert fake_tensorrt.Parser.parsed == 1


def test_loaded_says_what_the_recipe_and_the_timing_cache_are_keyed_by(room: Room) -> None:
    loaded = room.run()[0]
    assert loaded.pop("parse_seconds") >= 0
    assert loaded == {
        "event": "loaded",
        "schema": 1,
        "backend": "tensorrt",
        "version": "11.2.1.2",
        "plans": 2,
        "sm": 90,
        "driver": "580.95.05",
        "cuda": "13.0",
        "gpu": "NVIDIA Made Up",
    }


def test_without_nvml_the_driver_is_not_said_and_plans_are_built(room: Room) -> None:
    room.machine = Machine(nvml=False)
    events = room.run()
    assert events[0]["driver"] == ""
    assert len(named(events, "compiled")) == 2


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (Machine(sm=None), "no NVIDIA driver"),
        (Machine(sm=0), "no GPU it can use (CUDA error 100)"),
        (Machine(sm=89), "here is a GPU of SM 8.9"),
    ],
)
def test_only_a_gpu_of_that_sm_builds(room: Room, machine: Machine, found: str) -> None:
    """Before TensorRT is even looked for: what is refused would be refused with any."""
    room.machine = machine
    room.trt = None
    refused = room.refused()
    assert [event["cell"] for event in refused] == ["one", "two"]
    for event in refused:
        assert event["awaiting_gpu"] is True
        assert "needs a GPU of SM 9.0" in event["message"]
        assert found in event["message"]


def test_plans_for_this_gpu_are_built_beside_refused_ones(room: Room) -> None:
    room.job["plans"].append(room.plan("other", sm=120))
    events = room.run()
    assert [event["cell"] for event in named(events, "refused")] == ["other"]
    assert [event["cell"] for event in named(events, "compiled")] == ["one", "two"]


def test_another_version_than_the_job_asks_for_ends_it(room: Room) -> None:
    room.machine = Machine(version="11.2.0.1")
    with pytest.raises(RuntimeError, match=r"has TensorRT 11.2.0.1, the job asks for 11.2.1.2"):
        room.run()


def test_where_there_is_no_builder_tensorrts_own_words_are_the_reason(room: Room) -> None:
    """As the real 11.2.1.2 ends where the driver is too old: an error line, then a TypeError."""

    def builder(log: Any) -> None:
        log.log(fake_tensorrt.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    room.trt.Builder = builder
    assert {event["message"] for event in room.refused()} == {
        "CUDA initialization failure with error: 35"
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"backend": "tensorrt-rtx"},
        {"timing_cache_out": "../cache"},
        {"timing_cache_out": ".cache"},
    ],
)
def test_a_job_of_another_protocol_is_none(room: Room, changes: dict[str, Any]) -> None:
    room.job |= changes
    with pytest.raises(ValueError, match=r"schema|plain file name"):
        room.run()


def test_the_parser_says_which_node_it_does_not_take(room: Room) -> None:
    room.model["errors"] = [ERROR, {**ERROR, "node_name": "", "desc": "and more"}]
    for event in room.refused():
        assert event["message"] == (
            "the ONNX parser refused the model at node '/net/odd': no such operator"
        )
        assert event["errors"] == [
            {
                "message": "no such operator",
                "node": "/net/odd",
                "operator": "Odd",
                "node_index": 3,
                "code": "UNSUPPORTED_NODE",
            },
            {
                "message": "and more",
                "node": "",
                "operator": "Odd",
                "node_index": 3,
                "code": "UNSUPPORTED_NODE",
            },
        ]
        assert event["awaiting_gpu"] is False


def test_a_file_without_outputs_is_no_model(room: Room) -> None:
    room.model["outputs"] = 0
    assert {event["message"] for event in room.refused()} == {
        "the file holds no ONNX graph with an output"
    }


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"x": X, "y": X}, "the model has no input y; it has ['x']"),
        ({"y": X}, "the model has no input y"),
        ({"x": {**X, "opt": [2, 3, 4]}}, "input x has 2 dimensions"),
        ({"x": {**X, "min": [0]}}, "input x has 2 dimensions"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(
    room: Room, profile: dict[str, Any], said: str
) -> None:
    room.job["plans"] = [room.plan("one", **profile)]
    [event] = room.refused()
    assert said in event["message"]


def test_a_dynamic_input_without_shapes_is_refused(room: Room) -> None:
    room.job["plans"] = [{**room.plan("one"), "profile": {}}]
    [event] = room.refused()
    assert event["message"] == "the profile gives no shape for dynamic input x"


def test_a_profile_that_tensorrt_does_not_take_ends_that_plan_alone(room: Room) -> None:
    room.model["inputs"] = {"x": [-1]}
    bad = {"x": {"min": [0], "opt": [1], "max": [1]}}
    good = {"x": {"min": [1], "opt": [1], "max": [1]}}
    room.job["plans"] = [room.plan("bad", **bad), room.plan("good", **good)]
    events = room.run()
    assert [event["cell"] for event in named(events, "refused")] == ["bad"]
    assert [event["cell"] for event in named(events, "compiled")] == ["good"]


def test_all_that_the_job_asks_of_the_builder_is_set(room: Room) -> None:
    room.job |= {
        "optimization_level": 4,
        "flags": [
            *("version-compatible", "exclude-lean-runtime"),
            "hardware-compatibility=ampere-plus",
        ],
    }
    room.run()
    for config in fake_tensorrt.Builder.made:
        made: Any = config
        assert made.flags == {BuilderFlag.VERSION_COMPATIBLE, BuilderFlag.EXCLUDE_LEAN_RUNTIME}
        assert made.level == HardwareCompatibilityLevel.AMPERE_PLUS
        assert made.profiling_verbosity == "detailed"
        assert made.builder_optimization_level == 4
        assert made.workspace_bytes == 1 << 20
        assert made.profiles == [{"x": [X["min"], X["opt"], X["max"]]}]


def test_nothing_is_set_that_was_not_asked_for(room: Room) -> None:
    room.run()
    config: Any = fake_tensorrt.Builder.made[0]
    assert config.flags == set()
    assert config.level == HardwareCompatibilityLevel.NONE
    assert not hasattr(config, "builder_optimization_level")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("fp16", "has no builder flag 'fp16'"),
        ("FP16", "has no builder flag"),
        ("hardware-compatibility=all", "has no builder flag"),
        ("ampere-plus", "has no builder flag"),
        # Of those that the script knows, one that these bindings have not.
        ("hardware-compatibility=same-compute-capability", "has no builder flag"),
    ],
)
def test_a_flag_that_is_not_known_is_refused(room: Room, flag: str, said: str) -> None:
    room.job["flags"] = [flag]
    refused = room.refused()
    assert len(refused) == 2
    assert all(said in event["message"] for event in refused)


@pytest.mark.parametrize(
    ("flag", "member"),
    [
        ("refit-identical", "REFIT_IDENTICAL"),
        ("hardware-compatibility=ampere-plus", "AMPERE_PLUS"),
    ],
)
def test_a_flag_that_is_not_taken_is_refused(room: Room, flag: str, member: str) -> None:
    fake_tensorrt.Builder.ignores = (member,)
    room.job["flags"] = [flag]
    assert all(f"did not take '{flag}'" in event["message"] for event in room.refused())


def test_the_caches_that_fit_are_combined_and_the_whole_is_written(room: Room) -> None:
    given = room.caches(
        fake_tensorrt.cache_bytes("a"),
        b"not a cache",
        fake_tensorrt.cache_bytes("c", made_for="another GPU"),
        fake_tensorrt.cache_bytes("d"),
    )
    room.job |= {"timing_caches": given, "timing_cache_out": "timing.cache", "replay": False}
    events = room.run()
    assert len(named(events, "compiled")) == 2
    assert [(event["file"], event["message"]) for event in named(events, "cache-refused")] == [
        ("1.cache", "the timing cache has a bad header"),
        ("2.cache", "it is of another GPU or another TensorRT"),
    ]
    [cache] = named(events, "cache")
    data = (room.out / "timing.cache").read_bytes()
    assert data == fake_tensorrt.cache_bytes("a", "b", "d")
    assert f"sha256:{cache['sha256']}" == digest_of_bytes(data)
    assert (cache["out"], cache["combined"]) == ("timing.cache", ["0.cache", "3.cache"])
    assert events[-1] == cache


def test_without_a_place_for_it_no_cache_is_written(room: Room) -> None:
    room.job["timing_cache_out"] = None
    assert named(room.run(), "cache") == []
    assert sorted(path.suffix for path in room.out.iterdir()) == [
        ".json",
        ".json",
        ".plan",
        ".plan",
    ]


def test_a_replay_measures_nothing(room: Room) -> None:
    room.job |= {"timing_caches": room.caches(fake_tensorrt.cache_bytes("a", "b")), "replay": True}
    assert len(named(room.run(), "compiled")) == 2
    config: Any = fake_tensorrt.Builder.made[0]
    assert config.flags == {BuilderFlag.ERROR_ON_TIMING_CACHE_MISS}


def test_a_replay_of_too_little_is_refused(room: Room) -> None:
    room.job |= {"timing_caches": room.caches(fake_tensorrt.cache_bytes("a")), "replay": True}
    for event in room.refused():
        assert event["message"] == "no time of b in the timing cache"
        assert event["log"] == [event["message"]]


def test_a_replay_of_another_machine_is_refused(room: Room) -> None:
    cache = fake_tensorrt.cache_bytes("a", "b", made_for="another GPU")
    room.job |= {"timing_caches": room.caches(cache), "replay": True}
    refused = room.refused()
    assert len(refused) == 2
    assert all("the timing cache to replay was not taken" in each["message"] for each in refused)


def test_a_plan_with_the_lean_runtime_in_it_is_inspected(room: Room) -> None:
    room.job["flags"] = ["version-compatible"]
    assert all("inspector" in event for event in named(room.run(), "compiled"))


@pytest.mark.parametrize(
    ("flags", "layers", "fails", "said"),
    [
        (["refit-identical", "strip-plan"], ["conv"], False, "the plan could not be loaded again"),
        ([], [], False, "IndexError"),
        ([], ["conv"], True, "RuntimeError: out of memory"),
    ],
)
def test_a_plan_that_cannot_be_inspected_says_why(
    room: Room, flags: list[str], layers: list[str], fails: bool, said: str
) -> None:
    fake_tensorrt.Runtime.fails = fails
    room.model["layers"] = layers
    room.job["flags"] = flags
    for event in named(room.run(), "compiled"):
        assert said in event["inspector_said"]
        assert "inspector" not in event
    assert list(room.out.glob("*.inspector.json")) == []
    assert len(list(room.out.glob("*.plan"))) == 2
