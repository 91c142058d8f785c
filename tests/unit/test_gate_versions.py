"""The version gate: what is in memory is what is pinned."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from planyard.core.findings import failures
from planyard.core.matrix import Backend, OnnxRuntimePin, Pins
from planyard.core.results import LoadedLibrary, SmokeRun
from smoke.gates.versions import NEEDED, check_versions, pins_to_check
from tests.smoke_runs import report_of, run_of

PINS = Pins(
    driver="580",
    cuda="13.0",
    cudnn="9.28.0.42",
    onnxruntime=OnnxRuntimePin(version="1.31.1"),
    tensorrt="11.2.1.2",
    tensorrt_rtx="1.7.1.116",
    python="3.11",
)
HEALTHY: Mapping[Backend, Mapping[str, str]] = {
    "onnxruntime-cpu": {"onnxruntime": "1.31.1", "python": "3.11.2"},
    "onnxruntime-cuda": {
        "onnxruntime": "1.31.1",
        "cuda": "13.0",
        "cudnn": "9.28.0",
        "python": "3.11.2",
    },
    "tensorrt-rtx": {"tensorrt_rtx": "1.7.1.116", "python": "3.11.2"},
    "tensorrt": {"tensorrt": "11.2.1.2", "python": "3.11.2"},
}


def run_that_loaded(versions: Mapping[str, str]) -> SmokeRun:
    loaded = {
        name: LoadedLibrary(version=version, path=f"/usr/lib/lib{name}.so")
        for name, version in versions.items()
    }
    return run_of(report_of(loaded=loaded))


def found(
    versions: Mapping[str, str], backend: Backend = "onnxruntime-cuda", *, own_command: bool = False
) -> list[tuple[str, str]]:
    """The rule and the message of each finding."""
    pins, needed = pins_to_check(backend, PINS, own_command=own_command)
    findings = check_versions(run_that_loaded(versions), pins=pins, needed=needed)
    assert findings == failures(findings)
    return [(each.rule.removeprefix("versions."), each.message) for each in findings]


def rules(versions: Mapping[str, str], backend: Backend = "onnxruntime-cuda") -> list[str]:
    return [rule for rule, _ in found(versions, backend)]


@pytest.mark.parametrize("backend", NEEDED)
def test_what_is_pinned_passes(backend):
    assert found(HEALTHY[backend], backend) == []


@pytest.mark.parametrize("backend", NEEDED)
def test_each_needed_library_has_to_be_loaded(backend):
    for name in (*NEEDED[backend], "python"):
        without = {key: value for key, value in HEALTHY[backend].items() if key != name}
        [(rule, message)] = found(without, backend)
        assert rule == "not-loaded"
        assert message.startswith(f"{name} was not loaded")


def test_cuda_libraries_that_were_never_loaded_are_a_finding():
    """What onnxruntime-gpu does where its CUDA provider cannot be loaded: it works, on the CPU."""
    assert rules({"onnxruntime": "1.31.1", "python": "3.11.2"}) == ["not-loaded"]


def test_cudnn_may_be_absent_and_is_checked_where_it_is_not():
    healthy = HEALTHY["onnxruntime-cuda"]
    assert found({key: value for key, value in healthy.items() if key != "cudnn"}) == []
    assert rules({**healthy, "cudnn": "9.10.2"}) == ["differs"]


def test_any_pinned_library_is_checked_whatever_the_backend_is():
    cpu = HEALTHY["onnxruntime-cpu"]
    assert rules({**cpu, "cuda": "12.8"}, "onnxruntime-cpu") == ["differs"]
    assert rules({**cpu, "cuda": "13.0"}, "onnxruntime-cpu") == []


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("cuda", "13.0", True),
        ("cuda", "13.0.2", True),
        ("cuda", "13", False),
        ("cuda", "13.1", False),
        ("cuda", "12.8", False),
        ("cuda", "13.0 and 12.8", False),  # two of them are loaded
        ("cuda", "12.8 and 13.0", False),
        ("cuda", "13.0.2 and 12.8", False),
        ("onnxruntime", "1.31.1", True),
        ("onnxruntime", "1.31.10", False),
        ("onnxruntime", "1.31.1.dev20261101", False),
        ("onnxruntime", "1.31.1+cu130", False),
        ("onnxruntime", "1.31", False),
        ("onnxruntime", "11.31.1", False),
        ("onnxruntime", "1.31.1\n", False),
        ("cudnn", "9.28.0", True),
        ("cudnn", "9.28.1", False),
        ("python", "3.11.15", True),
        ("python", "3.11.0rc1", False),
        ("python", "3.1", False),
        ("python", "3.110.1", False),
    ],
)
def test_versions_fit_part_by_part(name, version, fits):
    versions = {**HEALTHY["onnxruntime-cuda"], name: version}
    assert rules(versions) == ([] if fits else ["differs"])


@pytest.mark.parametrize("version", ["", " ", "unknown", "v1.31.1", "-1", "None"])
def test_a_version_that_cannot_be_read_fails(version):
    [(rule, message)] = found({**HEALTHY["onnxruntime-cuda"], "onnxruntime": version})
    assert rule == "unreadable"
    assert repr(version) in message


def test_a_finding_names_the_file_and_both_versions():
    [(_, message)] = found({**HEALTHY["onnxruntime-cuda"], "cuda": "12.8"})
    assert message == "cuda (/usr/lib/libcuda.so) is 12.8, 13.0 is pinned"


@pytest.mark.parametrize("run", [run_of(None), run_of(report_of(loaded={}))])
def test_nothing_said_of_libraries_fails(run):
    pins, needed = pins_to_check("onnxruntime-cpu", PINS)
    assert [each.rule for each in check_versions(run, pins=pins, needed=needed)] == [
        "versions.no-evidence"
    ]
    # Even where nothing is needed: that it was looked has to be seen.
    assert check_versions(run, pins=pins, needed=())


def test_another_librarys_name_is_no_needed_library():
    versions = {"tensorrt-rtx": "1.7.1.116", "python": "3.11.2"}
    [(rule, message)] = found(versions, "tensorrt-rtx")
    assert (rule, message) == (
        "not-loaded",
        "tensorrt_rtx was not loaded, only python, tensorrt-rtx",
    )


def test_a_needed_library_without_a_pin_fails():
    findings = check_versions(
        run_that_loaded({"onnxruntime": "1.31.1"}), pins={}, needed=("onnxruntime",)
    )
    assert [each.rule for each in findings] == ["versions.differs"]


def test_libraries_that_nobody_pinned_are_left_alone():
    assert found({**HEALTHY["onnxruntime-cuda"], "cublas": "1.2.3"}) == []


def test_an_own_command_needs_no_python_and_has_to_have_the_pinned_one():
    assert found({"onnxruntime": "1.31.1"}, "onnxruntime-cpu", own_command=True) == []
    wrong = {"onnxruntime": "1.31.1", "python": "3.12.1"}
    assert [rule for rule, _ in found(wrong, "onnxruntime-cpu", own_command=True)] == ["differs"]


def test_everything_wrong_is_said_at_once():
    versions = {"onnxruntime": "1.30.0", "cudnn": "", "python": "3.12.1"}
    assert rules(versions) == ["not-loaded", "unreadable", "differs", "differs"]
