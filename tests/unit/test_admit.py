"""The entrypoint of images: what does not fit is refused, each mutation by the check it belongs to.

`HEALTHY` are the facts of a machine that fits. Every mutation below changes one thing, in the
expectation or in the facts, and must be refused; facts come from trees of files that are laid out.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
ADMIT = REPOSITORY / "images" / "admit.py"
PLANS = REPOSITORY / "tests" / "data" / "plans"
GIB = 1 << 30
Document = dict[str, Any]


def load_admit() -> Any:
    spec = importlib.util.spec_from_file_location("admit", ADMIT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


admit = load_admit()
PLAN = {
    "path": "/plans/a.plan",
    "size_bytes": 300,
    "sha256": "ab" * 32,
    "verify": "header",
    "sms": [89],
}
EXPECT: Document = {
    "schema": 1,
    "image": "app",
    "backend": "onnxruntime-cuda",
    "checks": dict.fromkeys(admit.CHECKS, "on"),
    "driver": {"branch": 580, "newer": True},
    "cuda": "13.0",
    "sms": [86, 89],
    "free_bytes": 8 * GIB,
    "mig": "none",
    "site": ["/site"],
    "packages": {"onnxruntime-gpu": "1.31.1", "nvidia-cudnn-cu13": "9.28.0.42"},
    "rivals": ["onnxruntime"],
    "libraries": ["libcudart.so.13", "libcudnn.so.9"],
    "provider": {
        "name": "CUDAExecutionProvider",
        "files": ["onnxruntime/capi/libonnxruntime_providers_cuda.so"],
    },
    "plans": {"kind": "tensorrt-rtx", "version": "1.7.1.116", "files": [PLAN]},
    "snapshot": "/run/planyard/capability.json",
    "metrics": "/run/planyard/planyard.prom",
    "gpu_seconds": 5,
}
GPU = {"name": "NVIDIA L4", "sm": 89, "mig": "", "free_bytes": 22 * GIB, "total_bytes": 23 * GIB}
HEALTHY: Document = {
    "environment": {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    },
    "devices": {"/dev/nvidia0": "", "/dev/nvidiactl": "", "/dev/nvidia-uvm": ""},
    "kernel_driver": "580.65.06",
    "libraries": {
        name: {"path": f"/usr/lib/{name}", "problem": ""}
        for name in ("libcuda.so.1", "libcudart.so.13", "libcudnn.so.9")
    },
    "packages": [
        {"name": "onnxruntime-gpu", "version": "1.31.1", "altered": ""},
        {"name": "nvidia-cudnn-cu13", "version": "9.28.0.42", "altered": ""},
        {"name": "numpy", "version": "2.4.6", "altered": ""},
    ],
    "provider": {"onnxruntime/capi/libonnxruntime_providers_cuda.so": ""},
    "plans": [
        {
            **PLAN,
            "kind": "tensorrt-rtx",
            "version": "1.7.1.116",
            "header_sms": [86, 89],
            "problem": "",
        }
    ],
    "gpu": {"problem": "", "driver": "580.65.06", "cuda": 13000, "devices": [GPU]},
}


def changed(document: Document, path: str, value: object) -> Document:
    """A copy with another value at `a/b/0/c`; `...` takes the key away."""
    found = copy.deepcopy(document)
    *parents, last = path.split("|")
    place: Any = found
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    if value is ...:
        del place[int(last) if isinstance(place, list) else last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return found


def refused_by(expect: Document, facts: Document) -> set[str]:
    """The checks that refuse, the reading of the expectation among them."""
    try:
        read = admit.parse_expectation(json.dumps(expect).encode())
    except admit.RefusedError as refused:
        return {refused.mismatch["check"]}
    found = admit.judge(read, facts)
    assert all(each[key].strip() for each in found for key in ("expected", "found", "mend"))
    return {each["check"] for each in found}


def test_a_machine_that_fits_is_admitted():
    assert refused_by(EXPECT, HEALTHY) == set()


SHAPES = [(name, ...) for name in EXPECT] + [
    ("surprise", 1),
    ("schema", 2),
    ("schema", True),
    ("schema", "1"),
    ("image", ""),
    ("image", None),
    ("backend", 5),
    ("checks", []),
    ("checks|driver", ...),
    ("checks|driver", True),
    ("checks|driver", "off"),
    ("checks|driver", "off: "),
    ("checks|driver", "warn"),
    ("checks|weather", "on"),
    ("driver", "580"),
    ("driver|branch", "580"),
    ("driver|branch", True),
    ("driver|branch", -1),
    ("driver|newer", 1),
    ("driver|newer", ...),
    ("driver|older", True),
    ("cuda", 13.0),
    ("cuda", "thirteen"),
    ("cuda", ""),
    ("cuda", "²"),
    ("sms", []),
    ("sms", ["89"]),
    ("sms", 89),
    ("free_bytes", 0),
    ("free_bytes", False),
    ("free_bytes", -1),
    ("free_bytes", 1.5),
    ("mig", ""),
    ("mig", None),
    ("site", ["site"]),
    ("site", ["/site/../etc"]),
    ("packages", {}),
    ("packages", {"onnxruntime-gpu": 1}),
    ("rivals", "onnxruntime"),
    ("libraries", []),
    ("libraries", ["/usr/lib/libcudart.so.13"]),
    ("libraries", [""]),
    ("provider|files", []),
    ("provider|files", ["../outside.so"]),
    ("provider|name", ...),
    ("plans|files|0|sha256", "AB" * 32),
    ("plans|files|0|sha256", "ab"),
    ("plans|files|0|verify", "none"),
    ("plans|files|0|path", "a.plan"),
    ("plans|files|0|size_bytes", 0),
    ("plans|files|0|sms", ...),
    ("plans|version", "latest"),
    ("snapshot", "capability.json"),
    ("metrics", None),
    ("gpu_seconds", 0),
    ("gpu_seconds", 3600),
]
"""Expectations that say nothing, or something that is not understood."""

OTHERS = [
    ("driver", "driver|branch", 590),
    ("driver", "driver", {"branch": 575, "newer": False}),
    ("cuda", "cuda", "13.1"),
    ("cuda", "cuda", "14.0"),
    ("sm", "sms", [86]),
    ("sm", "sms", [890]),
    ("sm", "sms", [90, 120]),
    ("memory", "free_bytes", 23 * GIB),
    ("mig", "mig", "1g.10gb"),
    ("libraries", "libraries", ["libcudart.so.12"]),
    ("libraries", "libraries", ["libcudart.so.13", "libnvinfer.so.11"]),
    ("packages", "packages|onnxruntime-gpu", "1.31.0"),
    ("packages", "packages|nvidia-cudnn-cu13", "9.28"),
    ("packages", "packages|tensorrt", "11.2.1.2"),
    ("packages", "rivals", ["numpy"]),
    ("provider", "provider|files", ["onnxruntime/capi/libonnxruntime_providers_tensorrt.so"]),
    ("plans", "plans|version", "1.8.0.1"),
    ("plans", "plans|version", "1.7.1"),
    ("plans", "plans|kind", "tensorrt"),
    ("plans", "plans|files|0|path", "/plans/b.plan"),
]
"""Expectations that are sound, of another machine or image: the check, where, and what."""


@pytest.mark.parametrize(
    ("path", "value"), SHAPES, ids=[f"{path}={str(value)[:24]}" for path, value in SHAPES]
)
def test_an_expectation_that_is_not_understood_is_refused(path, value):
    assert refused_by(changed(EXPECT, path, value), HEALTHY) == {"expectation"}


@pytest.mark.parametrize(
    ("check", "path", "value"),
    OTHERS,
    ids=[f"{path}={str(value)[:24]}" for _, path, value in OTHERS],
)
def test_an_expectation_of_another_machine_is_refused(check, path, value):
    assert refused_by(changed(EXPECT, path, value), HEALTHY) == {check}


def test_there_are_at_least_60_mutated_expectations(record_property):
    count = len(SHAPES) + len(OTHERS)
    record_property("mutated expectations", count)
    print(f"{count} mutated expectations, {len(FACTS)} mutated facts")
    assert count >= 60


BYTES = {
    "empty": b"",
    "truncated": json.dumps(EXPECT).encode()[:-1],
    "half": json.dumps(EXPECT).encode()[:300],
    "no JSON": b"schema: 1\n",
    "a list": b"[]",
    "null": b"null",
    "a key twice": b'{"schema": 1, ' + json.dumps(EXPECT).encode()[1:],
    "NaN": json.dumps(changed(EXPECT, "free_bytes", float("nan"))).encode(),
    "no UTF-8": b"\xff\xfe" + json.dumps(EXPECT).encode(),
    "deep": b"[" * 100_000,
    "oversized": json.dumps(EXPECT).encode() + b" " * admit.EXPECTATION_LIMIT_BYTES,
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_bytes_that_are_no_expectation_are_refused(data):
    with pytest.raises(admit.RefusedError) as caught:
        admit.parse_expectation(data)
    assert caught.value.mismatch["check"] == "expectation"


SLICE = {**GPU, "name": "NVIDIA H100 MIG 1g.10gb", "mig": "1g.10gb"}
FACTS = [
    ("toolkit", "libraries|libcuda.so.1|problem", "not there"),
    ("toolkit", "libraries|libcuda.so.1", ...),
    ("toolkit", "environment|NVIDIA_VISIBLE_DEVICES", "none"),
    ("toolkit", "environment|NVIDIA_DRIVER_CAPABILITIES", "utility"),
    ("toolkit", "environment|NVIDIA_DRIVER_CAPABILITIES", ""),
    ("devices", "devices", {}),
    ("devices", "devices|/dev/nvidia0", ...),
    ("devices", "devices|/dev/nvidiactl", ...),
    ("devices", "devices|/dev/nvidia-uvm", ...),
    ("devices", "devices|/dev/nvidia0", "not a device"),
    ("devices", "devices|/dev/nvidia1", "user 65532 may not open it"),
    ("devices", "devices", {"/dev/dxg": "", "/dev/nvidiactl": ""}),
    ("driver", "kernel_driver", "580.82.07"),
    ("driver", "gpu|driver", "575.57.08"),
    ("cuda", "gpu|cuda", 12080),
    ("cuda", "gpu|cuda", 0),
    ("cuda", "gpu|cuda", ...),
    ("gpu", "gpu|problem", "the driver's libraries did not answer within 5 s"),
    ("sm", "gpu|devices|0|sm", 75),
    ("sm", "gpu|devices|0|sm", ...),
    ("memory", "gpu|devices|0|free_bytes", 8 * GIB - 1),
    ("memory", "gpu|devices|0|free_bytes", None),
    ("mig", "gpu|devices|0", SLICE),
    ("libraries", "libraries|libcudnn.so.9|problem", "truncated: 10 of 20 bytes"),
    ("libraries", "libraries|libcudnn.so.9", ...),
    ("packages", "packages", []),
    ("packages", "packages|0", ...),
    ("packages", "packages|0|version", "1.31.0"),
    ("packages", "packages|0|altered", "x.so has 1 bytes, was installed with 2"),
    ("packages", "packages|2|name", "onnxruntime"),
    ("packages", "packages|2", {"name": "onnxruntime-gpu", "version": "1.30.0", "altered": ""}),
    ("provider", "provider", {}),
    ("provider", "provider|onnxruntime/capi/libonnxruntime_providers_cuda.so", "not there"),
    ("plans", "plans", []),
    ("plans", "plans|0|problem", "sha256 … instead of …"),
    ("plans", "plans|0|version", "1.6.1.120"),
    ("plans", "plans|0|kind", "tensorrt"),
    ("plans", "plans|0|header_sms", [86]),
    ("plans", "plans|0|sms", [86]),
]


@pytest.mark.parametrize(
    ("check", "path", "value"), FACTS, ids=[f"{path}={str(value)[:24]}" for _, path, value in FACTS]
)
def test_a_machine_that_differs_is_refused(check, path, value):
    found = refused_by(EXPECT, changed(HEALTHY, path, value))
    assert check in found
    related = {"gpu|driver": {"driver"}, "gpu|devices|0|sm": {"sm", "plans"}}
    assert found <= related.get(path, {check})


def test_a_machine_without_a_gpu_fails_every_check_of_one():
    facts = {**HEALTHY, "devices": {}, "kernel_driver": "", "libraries": {}}
    facts["gpu"] = {"problem": "OSError: libnvidia-ml.so.1"}
    assert refused_by(EXPECT, facts) == {
        *("toolkit", "devices", "driver", "cuda", "gpu", "sm", "memory", "mig", "libraries"),
    }


def test_every_gpu_must_fit():
    other = {**GPU, "name": "NVIDIA T4", "sm": 75}
    assert refused_by(EXPECT, changed(HEALTHY, "gpu|devices", [GPU, other])) == {"sm", "plans"}


def test_mig_without_a_slice_is_no_gpu():
    broken = {**GPU, "mig": "no slice"}
    assert "gpu" in refused_by(EXPECT, changed(HEALTHY, "gpu|devices", [broken]))


def test_a_slice_of_the_expected_profile_fits():
    facts = changed(HEALTHY, "gpu|devices", [SLICE])
    assert refused_by(changed(EXPECT, "mig", "1g.10gb"), facts) == set()


def test_a_newer_driver_fits_where_newer_ones_may():
    facts = changed(changed(HEALTHY, "kernel_driver", "590.1"), "gpu|driver", "590.1")
    assert refused_by(EXPECT, facts) == set()
    assert refused_by(changed(EXPECT, "driver|newer", False), facts) == {"driver"}


def test_wsl_has_one_node_and_no_kernel_module():
    facts = changed(changed(HEALTHY, "devices", {"/dev/dxg": ""}), "kernel_driver", "")
    assert refused_by(EXPECT, facts) == set()


@pytest.mark.parametrize("check", admit.CHECKS)
def test_a_check_that_is_off_does_not_refuse(check):
    expect = changed(EXPECT, f"checks|{check}", "off: a reason that is long enough")
    assert check not in refused_by(expect, {**HEALTHY, "gpu": {}, "devices": {}, "plans": []})


# Facts from files


def elf(*, sections: int = 2, cut_bytes: int = 0) -> bytes:
    """The start and the end of a 64-bit ELF file whose section table is its last part."""
    at = 128
    head = b"\x7fELF\x02\x01\x01".ljust(40, b"\0") + at.to_bytes(8, "little")
    head = head.ljust(58, b"\0") + (64).to_bytes(2, "little") + sections.to_bytes(2, "little")
    data = head.ljust(at, b"\0") + bytes(64 * sections)
    return data[: len(data) - cut_bytes]


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


KERNEL = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:08:15 UTC 2025\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)": "580.65.06",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\n": (
        "570.133.20"
    ),
    "GCC version: 12.2.0\n": "",
    "": "",
}


@pytest.mark.parametrize(("text", "version"), KERNEL.items())
def test_the_kernel_says_its_driver(tmp_path, text, version):
    put(tmp_path / "proc/driver/nvidia/version", text)
    assert admit.gather_kernel_driver(str(tmp_path)) == version


def test_nodes_that_are_no_devices_are_told(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia3").symlink_to("/dev/null")
    (tmp_path / "dev/nvidiactl").symlink_to("/dev/nowhere")
    put(tmp_path / "dev/nvidia-uvm", "")
    put(tmp_path / "dev/nvidia-caps", "")
    put(tmp_path / "dev/sda", "")
    assert admit.gather_devices(str(tmp_path)) == {
        "/dev/nvidia3": "",
        "/dev/nvidiactl": "No such file or directory",
        "/dev/nvidia-uvm": "not a device",
    }
    assert admit.gather_devices(str(tmp_path / "nothing")) == {}


LIBRARIES = {
    "whole": (elf(), ""),
    "truncated": (elf(cut_bytes=1), "truncated: 255 of 256 bytes"),
    "empty": (b"", "not a 64-bit ELF library"),
    "text": (b"version https://git-lfs" * 10, "not a 64-bit ELF library"),
    "32 bits": (elf().replace(b"ELF\x02", b"ELF\x01"), "not a 64-bit ELF library"),
}


@pytest.mark.parametrize(("data", "problem"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_library_is_a_whole_elf_file(tmp_path, data, problem):
    put(tmp_path / "b/libx.so.1", data)
    found = admit.gather_library("libx.so.1", folders=["/a", "/b"], root=str(tmp_path))
    assert found == {"path": "/b/libx.so.1", "problem": problem}


def test_the_first_library_found_counts(tmp_path):
    put(tmp_path / "a/libx.so.1", b"")
    put(tmp_path / "b/libx.so.1", elf())
    found = admit.gather_library("libx.so.1", folders=["/a", "/b"], root=str(tmp_path))
    assert found["problem"]
    lost = admit.gather_library("liby.so.1", folders=["/a", "/b"], root=str(tmp_path))
    assert lost == {"path": "", "problem": "not there"}


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Lay out a package as pip does: later ones overwrite the files of earlier ones."""
    for path, data in files.items():
        put(site / path, data)
    record = "".join(f"{path},sha256=x,{len(data)}\n" for path, data in files.items())
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    put(site / info / "RECORD", f"{record}{info}/RECORD,,\n")


def test_onnxruntime_over_onnxruntime_gpu_is_seen_twice(tmp_path):
    site, state = tmp_path / "site", "onnxruntime/capi/onnxruntime_pybind11_state.so"
    install(site, "onnxruntime-gpu", "1.31.1", {state: b"gpu" * 10, "onnxruntime/x.py": b"1"})
    gpu = {"name": "onnxruntime-gpu", "version": "1.31.1", "altered": ""}
    assert admit.gather_packages(EXPECT, root=str(tmp_path)) == [gpu]
    install(site, "onnxruntime", "1.31.1", {state: b"cpu"})
    said = f"{state} has 3 bytes, was installed with 30"
    assert admit.gather_packages(EXPECT, root=str(tmp_path)) == [
        {"name": "onnxruntime", "version": "1.31.1", "altered": ""},
        {**gpu, "altered": said},
    ]


def test_a_library_left_out_on_purpose_is_not_altered(tmp_path):
    install(tmp_path / "site", "onnxruntime-gpu", "1.31.1", {"a/libtrt.so": b"x", "b.so": b"y"})
    (tmp_path / "site/a/libtrt.so").unlink()
    assert admit.gather_packages(EXPECT, root=str(tmp_path))[0]["altered"] == ""


def test_a_provider_is_looked_for_in_every_site(tmp_path):
    put(tmp_path / "two/onnxruntime/p.so", elf())
    sites = ["/one", "/two"]
    assert admit.gather_provided("onnxruntime/p.so", sites, root=str(tmp_path)) == ""
    assert admit.gather_provided("onnxruntime/q.so", sites, root=str(tmp_path)) == "not there"


# Plans

HEAD = (PLANS / "rtx-1.7.1.116-sm86-89-120.head").read_bytes()


def plan_bytes(head: bytes = HEAD) -> bytes:
    """A small file with a real plan's header, which declares the size the file has."""
    data = head.ljust(1000, b"x")
    return data[:16] + len(data).to_bytes(8, "little") + data[24:]


def plan_of(path: str, data: bytes, *, verify: str = "digest") -> Document:
    sha256 = hashlib.sha256(data).hexdigest()
    return {**PLAN, "path": path, "size_bytes": len(data), "sha256": sha256, "verify": verify}


def test_a_real_plan_is_read(tmp_path):
    put(tmp_path / "a.plan", plan_bytes())
    assert admit.look_at_plan(plan_of("/a.plan", plan_bytes()), root=str(tmp_path)) == {
        "kind": "tensorrt-rtx",
        "version": "1.7.1.116",
        "header_sms": [86, 89, 120],
        "problem": "",
    }


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.head")), ids=lambda path: path.stem)
def test_headers_are_read_as_engines_reads_them(path):
    from engines.header import PlanHeader, read_header

    head = path.read_bytes()
    size_bytes = int.from_bytes(head[16:24], "little")
    theirs = read_header(head, size_bytes=size_bytes)
    assert isinstance(theirs, PlanHeader)
    found = admit.read_header(head[:64], size_bytes=size_bytes)
    assert found["problem"] == ""
    assert (found["kind"], found["version"]) == (theirs.kind, theirs.version)
    assert tuple(found["header_sms"]) == theirs.sm_targets


DAMAGED = {
    "one byte": (lambda data: data[:-1] + b"y", "digest", "sha256"),
    "cut off": (lambda data: data[:-1], "header", "999 bytes instead of 1000"),
    "longer": (lambda data: data + b"x", "header", "1001 bytes instead of 1000"),
    "no plan": (lambda data: b"version " + data[8:], "header", "which no known plan does"),
    "other layout": (lambda data: data[:4] + b"\1" + data[5:], "header", "no known plan"),
    "declares": (lambda data: data[:16] + b"\0" + data[17:], "header", "its header declares"),
}


@pytest.mark.parametrize(("damage", "verify", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_plan_is_told(tmp_path, damage, verify, said):
    put(tmp_path / "a.plan", damage(plan_bytes()))
    plan = plan_of("/a.plan", plan_bytes(), verify=verify)
    assert said in admit.look_at_plan(plan, root=str(tmp_path))["problem"]


def test_a_missing_plan_is_told(tmp_path):
    plan = plan_of("/a.plan", plan_bytes())
    assert "No such file" in admit.look_at_plan(plan, root=str(tmp_path))["problem"]


def pulled(folder: Path, *, cell: str = "rtx/ocr/640/fp16/sm89", **changes: object) -> None:
    """A folder as `planyard lookup --pull` leaves it."""
    data = plan_bytes()
    put(folder / "ocr-640-fp16-sm89.plan", data)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    plan = {"cell": cell, "digest": digest, "size_bytes": len(data), "sm": 89, **changes}
    put(folder / "snapshot.json", json.dumps({"plans": [plan]}))


def gathered(tmp_path: Path, folder: str) -> list[Document]:
    expect = changed(EXPECT, "plans|files", [])
    found: list[Document] = admit.gather_plans(
        expect, {"PLANYARD_PLANS": folder}, root=str(tmp_path)
    )
    return found


def test_plans_of_a_pull_are_looked_at(tmp_path):
    pulled(tmp_path / "plans")
    (plan,) = gathered(tmp_path, "/plans")
    assert plan["path"] == "/plans/ocr-640-fp16-sm89.plan"
    assert (plan["problem"], plan["sms"], plan["verify"]) == ("", [89], "digest")
    assert refused_by(changed(EXPECT, "plans|files", []), {**HEALTHY, "plans": [plan]}) == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha256:" + "0" * 64},
        {"size_bytes": 999},
        {"sm": 120, "cell": "rtx/other/640/fp16/sm89"},
        {"sm": "89"},
        {"digest": 5},
        {"cell": None},
    ],
)
def test_a_pull_that_is_not_whole_is_refused(tmp_path, changes):
    pulled(tmp_path / "plans", **changes)
    plans = gathered(tmp_path, "/plans")
    expect = changed(EXPECT, "plans|files", [])
    assert refused_by(expect, {**HEALTHY, "plans": plans}) == {"plans"}


@pytest.mark.parametrize("folder", ["/nothing", "plans", "", "/plans/../plans"])
def test_a_folder_without_plans_is_refused(tmp_path, folder):
    pulled(tmp_path / "plans")
    plans = gathered(tmp_path, folder)
    expect = changed(EXPECT, "plans|files", [])
    assert refused_by(expect, {**HEALTHY, "plans": plans}) == {"plans"}


def test_no_plan_at_all_is_refused(tmp_path):
    expect = changed(EXPECT, "plans|files", [])
    plans = admit.gather_plans(expect, {}, root=str(tmp_path))
    assert plans == []
    assert refused_by(expect, {**HEALTHY, "plans": plans}) == {"plans"}


# The child that asks the driver


def hang() -> Document:
    signal.pause()
    return {}


def crash() -> Document:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail() -> Document:
    raise OSError("libnvidia-ml.so.1: cannot open shared object file")


QUERIES: dict[str, tuple[Callable[[], Any], str]] = {
    "hangs": (hang, "did not answer within 0.2 s"),
    "crashes": (crash, "ended with signal 9"),
    "fails": (fail, "OSError: libnvidia-ml.so.1: cannot open"),
    "ends": (lambda: os._exit(0), "ended with no answer"),
    "no object": (list, "no answer"),
    "too much": (lambda: {"x": "y" * (admit.ANSWER_LIMIT_BYTES * 2)}, "did not answer"),
}


@pytest.mark.parametrize(("query", "said"), QUERIES.values(), ids=QUERIES.keys())
def test_a_driver_that_does_not_answer_holds_nothing_up(query, said):
    seconds = 0.2 if query is hang else 30
    assert said in admit.ask_gpu(seconds=seconds, query=query)["problem"]
    with contextlib.suppress(ChildProcessError):  # none, or one that another test started
        left, _ = os.waitpid(-1, os.WNOHANG)
        assert left == 0, "reaped: nothing is left to the service"


def test_an_answer_comes_back_whole():
    assert admit.ask_gpu(seconds=30, query=lambda: HEALTHY["gpu"]) == HEALTHY["gpu"]


def test_here_is_no_driver():
    found = admit.ask_gpu(seconds=30)
    if not found["problem"]:
        pytest.skip("gpu: this machine has one")
    assert "libnvidia-ml.so.1" in found["problem"]


# The file itself, and how it starts


def test_who_may_have_written_the_expectation(tmp_path):
    path = put(tmp_path / "expect.json", json.dumps(EXPECT))
    path.chmod(0o644)
    status = path.stat()
    mine = list(status)
    mine[4] = 0
    assert admit.problem_of_status(os.stat_result(mine)) == ""
    for index, value, said in (
        (4, 65532, "belongs to user 65532"),
        (0, 0o100664, "can be written by others"),
        (0, 0o100646, "can be written by others"),
        (0, 0o040755, "not a regular file"),
        (6, admit.EXPECTATION_LIMIT_BYTES + 1, "bytes, more than"),
    ):
        other = list(mine)
        other[index] = value
        assert said in admit.problem_of_status(os.stat_result(other))


@pytest.mark.parametrize("kind", ["missing", "link", "folder", "pipe"])
def test_only_a_plain_file_is_an_expectation(tmp_path, kind):
    path = tmp_path / "expect.json"
    if kind == "link":
        path.symlink_to(put(tmp_path / "real.json", json.dumps(EXPECT)))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(admit.RefusedError):
        admit.read_expectation(str(path))


def test_what_is_written_is_whole_and_no_link_is_followed(tmp_path):
    target = put(tmp_path / "target", "theirs")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.json").symlink_to(target)
    admit.write_whole(str(tmp_path / "out/x.json"), b"ours")
    assert target.read_text() == "theirs"
    assert (tmp_path / "out/x.json").read_bytes() == b"ours"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.json"]


@pytest.mark.parametrize("lost", ["PLANYARD_SNAPSHOT", "PLANYARD_METRICS"])
def test_what_cannot_be_written_refuses(tmp_path, monkeypatch, lost):
    monkeypatch.setenv("PLANYARD_SNAPSHOT", str(tmp_path / "s.json"))
    monkeypatch.setenv("PLANYARD_METRICS", str(tmp_path / "m.prom"))
    monkeypatch.setenv(lost, str(put(tmp_path / "file", "") / "below"))
    (found,) = admit.record(EXPECT, HEALTHY, [])
    assert found["check"] == "snapshot"
    assert "mount a writable folder" in found["mend"]
    if lost == "PLANYARD_SNAPSHOT":  # started all the same in warn mode, and marked
        assert (tmp_path / "m.prom").read_text().endswith("planyard_degraded 1\n")


def test_the_snapshot_says_what_was_found_and_what_was_off(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANYARD_SNAPSHOT", str(tmp_path / "deep/er/s.json"))
    monkeypatch.setenv("PLANYARD_METRICS", str(tmp_path / "m.prom"))
    assert admit.record(EXPECT, HEALTHY, []) == []
    document = json.loads((tmp_path / "deep/er/s.json").read_text())
    assert (document["verdict"], document["mismatches"]) == ("admitted", [])
    assert document["facts"] == HEALTHY
    assert document["checks"] == EXPECT["checks"]
    assert (tmp_path / "m.prom").read_text().splitlines()[-1] == "planyard_degraded 0"


def test_a_line_stays_a_line():
    found = admit.mismatch("driver", expected="a\nb", found='c\r\n"', mend="d\x1b")
    for line in admit.say([found], verdict="refused"):
        assert "\n" not in line
        assert "\r" not in line


class BecameError(Exception):
    """The service would have been started."""


@pytest.fixture
def started_with(monkeypatch, tmp_path):
    """`main` in this process, on a machine of facts: what it did instead of starting a service."""

    def become(arguments: list[str]) -> None:
        raise BecameError(*arguments)

    def start(mode: str, *, gather: Callable[[], Document]) -> BaseException:
        monkeypatch.setenv("PLANYARD_ADMIT", mode)
        monkeypatch.setenv("PLANYARD_SNAPSHOT", str(tmp_path / "s.json"))
        monkeypatch.setenv("PLANYARD_METRICS", str(tmp_path / "m.prom"))
        monkeypatch.setattr(admit, "end_when_asked", lambda: None)
        monkeypatch.setattr(admit, "read_expectation", lambda _: EXPECT)
        monkeypatch.setattr(admit, "gather", lambda *_, **__: gather())
        monkeypatch.setattr(admit, "become", become)
        with pytest.raises((BecameError, SystemExit)) as caught:
            admit.main(["serve"])
        return caught.value

    return start


def broken() -> Document:
    raise KeyError("a bug")


OTHER = changed(HEALTHY, "gpu|devices|0|sm", 75)
STARTS: dict[str, tuple[str, Callable[[], Document], int | None, str | None]] = {
    "fits": ("enforce", lambda: HEALTHY, None, "0"),
    "fits, warn": ("warn", lambda: HEALTHY, None, "0"),
    "differs": ("enforce", lambda: OTHER, 78, None),
    "differs, warn": ("warn", lambda: OTHER, None, "1"),
    "bug": ("enforce", broken, 70, None),
    "bug, warn": ("warn", broken, None, "1"),
}


@pytest.mark.parametrize(
    ("mode", "gather", "exit_code", "degraded"), STARTS.values(), ids=STARTS.keys()
)
def test_a_start(started_with, tmp_path, capfd, mode, gather, exit_code, degraded):
    ended = started_with(mode, gather=gather)
    said = capfd.readouterr()
    if exit_code is None:
        assert ended.args == ("serve",)
        assert said.out == ""
    else:
        assert isinstance(ended, SystemExit)
        assert ended.code == exit_code
        assert json.loads(said.out)["verdict"] == "refused"
    written = (tmp_path / "m.prom").read_text() if degraded else ""
    assert written.endswith(f"planyard_degraded {degraded}\n" if degraded else "")
    assert (tmp_path / "m.prom").exists() == (degraded is not None)
    assert bool(said.err) == (exit_code is not None or degraded == "1")


def run_admit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(ADMIT), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=60,
    )


def test_outside_of_an_image_nothing_starts():
    ended = run_admit("/bin/echo", "started")
    assert ended.returncode == admit.EXIT_REFUSED == 78
    (line,) = ended.stdout.splitlines()
    document = json.loads(line)
    assert (document["verdict"], document["mismatches"][0]["check"]) == ("refused", "expectation")
    (plain,) = ended.stderr.splitlines()
    assert plain.startswith("planyard: refused: expectation: expected ")


@pytest.mark.parametrize("mode", ["", "Warn", "off", "0", "enforce "])
def test_another_mode_is_refused(mode):
    ended = run_admit("/bin/echo", "started", PLANYARD_ADMIT=mode)
    assert ended.returncode == 78
    assert json.loads(ended.stdout)["mismatches"][0]["check"] == "mode"


def test_it_is_one_file_of_the_standard_library():
    tree = ast.parse(ADMIT.read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names | froms <= set(sys.stdlib_module_names) | {"collections.abc"}
    at_start = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert at_start == {"json", "os", "stat", "sys"}


def test_the_start_is_measured(record_property):
    """Reported, not judged: the machine may be busy."""
    wall, cpu = [], []
    for _ in range(5):
        before, started = os.times(), time.monotonic()
        run_admit("/bin/true")
        after = os.times()
        wall.append(time.monotonic() - started)
        cpu.append(sum(after[2:4]) - sum(before[2:4]))
    record_property("start_ms", round(statistics.median(wall) * 1000))
    wall_ms, cpu_ms = (statistics.median(each) * 1000 for each in (wall, cpu))
    print(f"start: {wall_ms:.0f} ms, CPU {cpu_ms:.0f} ms")
