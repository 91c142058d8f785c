"""The names that our scripts use of classic TensorRT are in NVIDIA's own bindings.

The lean bindings are imported, with their library; they have the enums and the runtime. The full
ones cannot be imported without a library of 650 MB that is on no public index: what only they have
is looked for in the extension module, where every name that Python sees ends as a C string does.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = "11.2.1.2"
LEAN = (f"tensorrt-lean-cu13-bindings=={VERSION}", f"tensorrt-lean-cu13-libs=={VERSION}")
FULL = (f"tensorrt-cu13-bindings=={VERSION}", "tensorrt-cu12-bindings==10.15.1.29")
COMPILER = ROOT / "engines/inside/tensorrt.py"
SMOKE = ROOT / "smoke/inside/trt.py"
METHODS = (
    *("create_network", "create_builder_config", "create_optimization_profile"),
    *("build_serialized_network", "set_memory_pool_limit", "profiling_verbosity"),
    *("builder_optimization_level", "hardware_compatibility_level", "set_flag", "get_flag"),
    *("create_timing_cache", "set_timing_cache", "combine", "serialize"),
    *("add_optimization_profile", "set_shape", "parse_from_file", "num_errors", "get_error"),
    *("desc", "node_name", "node_operator", "node", "code", "num_inputs", "num_outputs"),
    *("get_input", "deserialize_cuda_engine", "engine_host_code_allowed"),
    *("create_engine_inspector", "get_engine_information"),
)
"""What the compiler's script calls on TensorRT's objects."""

ASK = """
import json, sys
import tensorrt_lean_bindings as trt
names = json.loads(sys.argv[1])
lost = []
for name in names:
    here = trt
    for part in name.split("."):
        here = getattr(here, part, None)
    if here is None:
        lost.append(name)
print(json.dumps({"version": trt.__version__, "lost": lost, "has": dir(trt)}))
"""

pytestmark = pytest.mark.network


def unpacked(folder: Path, *wheels: str) -> Path:
    """The wheels, downloaded and unpacked into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"]
    done = subprocess.run(
        [*command, "--dest", str(folder), *wheels], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def ask(wheels: Path, names: list[str]) -> dict[str, object]:
    """What the imported bindings say; they are of Python 3.11."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the wheels that are fetched are of Python 3.11")
    environment = {
        **os.environ,
        "PYTHONPATH": str(wheels),
        "LD_LIBRARY_PATH": str(wheels / "tensorrt_lean_libs"),
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(names)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


def names_of_trt(script: Path) -> set[str]:
    """`BuilderFlag.REFIT` for each `trt.BuilderFlag.REFIT` in a script, and `Runtime` alone."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node).removeprefix("self.")
            if name.startswith("trt.") and name.replace(".", "").isidentifier():
                found.add(name.removeprefix("trt."))
    return {name for name in found if not name.startswith("__")}


def settings() -> set[str]:
    """The members of enums that the compiler's script makes from words of the recipe."""
    tree = ast.parse(COMPILER.read_text())
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS"
    ]
    words = [str(node.value) for node in ast.walk(value) if isinstance(node, ast.Constant)]
    made = set()
    for word in words:
        name, _, level = word.partition("=")
        kind = "HardwareCompatibilityLevel" if level else "BuilderFlag"
        made.add(f"{kind}.{(level or name).replace('-', '_').upper()}")
    return made


def test_the_scripts_are_understood() -> None:
    assert "LayerInformationFormat.JSON" in names_of_trt(COMPILER)
    assert "TensorLocation.HOST" in names_of_trt(SMOKE)
    assert "BuilderFlag.STRIP_PLAN" in settings()
    assert len(settings()) == 7


def test_every_name_is_in_the_bindings_that_can_be_imported(tmp_path: Path) -> None:
    wheels = unpacked(tmp_path, *LEAN)
    names = sorted(names_of_trt(COMPILER) | names_of_trt(SMOKE) | settings())
    said = ask(wheels, names)
    assert said["version"] == VERSION
    has = said["has"]
    assert isinstance(has, list)
    lost = said["lost"]
    assert isinstance(lost, list)
    only_in_full = {
        *("Builder", "OnnxParser", "OnnxParserRefitter", "NetworkDefinitionCreationFlag"),
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    }
    assert set(lost) <= only_in_full
    assert ask(wheels, ["BuilderFlag.NO_SUCH_FLAG"])["lost"] == ["BuilderFlag.NO_SUCH_FLAG"]


@pytest.mark.parametrize("wheel", FULL)
def test_every_name_is_in_the_full_bindings(tmp_path: Path, wheel: str) -> None:
    data = (unpacked(tmp_path, wheel) / "tensorrt_bindings" / "tensorrt.so").read_bytes()
    names = {part for name in names_of_trt(COMPILER) | settings() for part in name.split(".")}
    lost = [name for name in sorted(names | set(METHODS)) if name.encode() + b"\0" not in data]
    assert lost == []
    assert b"NO_SUCH_FLAG\0" not in data
