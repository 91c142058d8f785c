"""The shape of the house, read from the imports: arrows point down, one outside thing a file.

Imports inside functions count as well: they are there for start-up time, not to hide.
"""

from __future__ import annotations

import ast
import fnmatch
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("planyard", "builders", "engines", "smoke")
APART = ("images", "models")
OURS = {*PACKAGES, *APART, "tests"}
MODULE_LINES = 320
ONE_FILE = {
    "images/admit.py": 1150,
    "smoke/inside/ort.py": 330,
    "smoke/inside/trt.py": 400,
}
"""Files that go into an image alone: what they need has to be in them."""
FUNCTION_LINES = 60

MAY_IMPORT = {
    "planyard": set(),
    "planyard.core": {"planyard.core"},
    "planyard.edge": {"planyard.core", "planyard.edge"},
    "engines": {"planyard.core", "planyard.edge", "engines"},
    "smoke": {"planyard.core", "planyard.edge", "smoke"},
    "builders": {"planyard.core", "planyard.edge", "engines", "smoke", "builders"},
    "images": set(),
    "models": set(),
}
"""For each zone, the zones of ours that it may import."""

ONLY_IN = {
    "pynvml": ("planyard/edge/nvml.py",),
    "boto3": ("planyard/edge/s3.py", "engines/store/s3.py"),
    "docker": ("planyard/edge/docker.py",),
    "jinja2": ("builders/page/rendering.py",),
    "huggingface_hub": ("builders/model_sources.py",),
    "requests": ("planyard/edge/docker.py",),
    "rich": ("planyard/edge/console.py",),
    "socket": ("planyard/edge/network.py",),
    # dockerd.py holds a process that proc.py started, and names its type: see the test below.
    # install_wheels.py runs in a builder stage, where nothing of ours is.
    "subprocess": ("planyard/edge/proc.py", "planyard/edge/dockerd.py", "images/install_wheels.py"),
    "urllib.request": ("planyard/edge/fetch.py",),
    "urllib3": ("planyard/edge/network.py", "planyard/edge/registry_http.py"),
}
"""Modules of the outside, and the only files that may import them."""

NOT_IN_CORE = {
    *("asyncio", "ctypes", "datetime", "fcntl", "getpass", "glob", "http", "io", "locale"),
    *("logging", "multiprocessing", "os", "platform", "random", "secrets", "select", "shutil"),
    *("signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib"),
    "uuid",
}
"""Clock, chance, environment, network, processes: what the core is given and never takes."""

UNWANTED_NAMES = {"manager", "handler", "helper", "utils", "process", "info"}


@dataclass(frozen=True)
class Module:
    """A file of ours: its path in the repository and its text."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(ast.parse(self.text)))

    @property
    def zone(self) -> str:
        parts = self.path.split("/")
        return ".".join(parts[:2]) if parts[0] == "planyard" and len(parts) > 2 else parts[0]

    @property
    def is_inside(self) -> bool:
        """Whether it runs in a container."""
        return "inside" in self.path.split("/")[:-1]

    @cached_property
    def imports(self) -> frozenset[str]:
        """Every module imported anywhere in the file; `from a import b` gives `a` and `a.b`."""
        found = set()
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module if node.level == 0 else "a-relative-import"
                found |= {str(base)} | {f"{base}.{each.name}" for each in node.names}
        return frozenset(found)

    @property
    def tops(self) -> set[str]:
        """The packages imported, without their submodules."""
        return {name.split(".")[0] for name in self.imports}

    def has(self, name: str) -> bool:
        """Whether a module or something below it is imported."""
        return any(each == name or each.startswith(f"{name}.") for each in self.imports)

    def used(self, name: str) -> set[str]:
        """`{"Popen"}` for `subprocess.Popen`: what is taken from a module."""
        return {
            node.attr
            for node in self.nodes
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == name
        }

    def called(self) -> set[str]:
        """`{"print", "sys.stdout.write"}`: the calls in the file, by name."""
        return {ast.unparse(node.func) for node in self.nodes if isinstance(node, ast.Call)}


def zone_of_import(name: str) -> str | None:
    """The zone an imported name lies in; None for what is not ours, and for `planyard` itself."""
    parts = name.split(".")
    if parts[0] == "planyard":
        below = len(parts) > 1 and parts[1] in ("core", "edge")
        return ".".join(parts[:2]) if below else None
    return parts[0] if parts[0] in OURS else None


def breaches_of_layering(module: Module) -> list[str]:
    zones = {zone: name for name in module.imports if (zone := zone_of_import(name))}
    allowed = MAY_IMPORT[module.zone]
    return [f"{module.path} imports {name}" for zone, name in zones.items() if zone not in allowed]


def breaches_of_printing(module: Module) -> list[str]:
    """`print` and the streams; bytes read from `sys.stdin` are input, not printing."""
    streams = module.used("sys") & {"stdout", "stderr", "__stdout__", "__stderr__"}
    calls = module.called() & {"print", "typer.echo", "typer.secho", "os.write"}
    return [f"{module.path} uses {each}" for each in sorted(streams | calls)]


@pytest.fixture(scope="module")
def everything() -> tuple[Module, ...]:
    paths = [path for top in (*PACKAGES, *APART) for path in (REPOSITORY / top).rglob("*.py")]
    return tuple(
        Module(str(path.relative_to(REPOSITORY)), path.read_text()) for path in sorted(paths)
    )


@pytest.fixture(scope="module")
def on_host(everything):
    return [module for module in everything if not module.is_inside]


@pytest.fixture(scope="module")
def inside(everything):
    return [module for module in everything if module.is_inside]


def test_the_files_are_found(everything, inside):
    assert {module.zone for module in everything} == set(MAY_IMPORT)
    assert len(everything) > 60
    assert len(inside) >= 3


def test_arrows_point_down(on_host):
    assert [breach for module in on_host for breach in breaches_of_layering(module)] == []


def test_the_wings_do_not_know_each_other():
    assert "smoke" not in MAY_IMPORT["engines"]
    assert "engines" not in MAY_IMPORT["smoke"]


def test_nobody_imports_images_models_or_tests(everything):
    assert [module.path for module in everything if module.tops & {*APART, "tests"}] == []


def test_only_the_pipeline_joins_images_plans_and_smoke_runs(on_host):
    joining = {"builders.image", "builders.plan", "builders.smoking"}
    found = [module.path for module in on_host if all(module.has(name) for name in joining)]
    assert found == ["builders/pipeline.py"]


def test_the_core_takes_nothing_from_outside(everything):
    core = [module for module in everything if module.zone == "planyard.core"]
    allowed = (sys.stdlib_module_names - NOT_IN_CORE) | {"planyard", "msgspec", "yaml"}
    assert len(core) > 10
    assert {module.path: module.tops - allowed for module in core if module.tops - allowed} == {}


@pytest.mark.parametrize("outside", sorted(ONLY_IN))
def test_one_outside_thing_a_file(on_host, outside):
    importing = [module.path for module in on_host if module.has(outside)]
    allowed = ONLY_IN[outside]
    stray = [path for path in importing if not any(fnmatch.fnmatch(path, x) for x in allowed)]
    assert stray == []
    assert bool(importing) == bool(allowed)


def test_processes_are_started_in_one_place(on_host):
    """Whoever else imports subprocess names its types, and calls nothing of it."""
    starters = ("planyard/edge/proc.py", "images/install_wheels.py")
    for module in on_host:
        if module.path not in starters:
            assert module.used("subprocess") <= {"Popen"}, module.path
            assert not {call for call in module.called() if call.startswith("subprocess.")}
        allowed = {"fork", "execvp"} if module.path == "images/admit.py" else set()
        started = module.used("os") & {"system", "popen", "fork", "execv", "execvp", "spawnv"}
        assert started <= allowed, module.path


def test_one_place_prints(on_host):
    allowed = {
        "images/admit.py": {"os.write"},
        "planyard/edge/console.py": {"stdout", "stderr"},
        "builders/cli/__init__.py": {"typer.echo"},  # --version, before there is a console
    }
    for module in on_host:
        extra = {breach.split(" uses ")[1] for breach in breaches_of_printing(module)}
        assert extra <= allowed.get(module.path, set()), module.path


def test_scripts_for_containers_stand_alone(inside):
    foreign = OURS | {"msgspec", "yaml", "typer", "rich", "docker", "re2", "elftools"}
    assert {module.path: module.tops & foreign for module in inside if module.tops & foreign} == {}


def test_modules_are_small(everything):
    lengths = {module.path: len(module.text.splitlines()) for module in everything}
    long = {path for path, lines in lengths.items() if lines > ONE_FILE.get(path, MODULE_LINES)}
    assert long == set()


def test_functions_are_small(everything):
    long = [
        f"{module.path}:{node.lineno} {node.name}"
        for module in everything
        for node in module.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES
    ]
    assert long == []


def test_modules_say_their_rule(everything):
    silent = [each.path for each in everything if not ast.get_docstring(ast.parse(each.text))]
    assert silent == []


def test_names_say_something(everything):
    kinds = (ast.FunctionDef, ast.ClassDef)
    for module in everything:
        names = {node.name.lower() for node in module.nodes if isinstance(node, kinds)}
        names.add(Path(module.path).stem)
        # ValueInfo is ONNX's own name of a message.
        parts = {part for name in names for part in name.replace("value_info", "").split("_")}
        assert not parts & UNWANTED_NAMES, module.path


def test_breaches_are_seen():
    """The rules above, on files that break them."""
    wing = Module("smoke/gates/bad.py", "def f():\n    from engines.store import local\n")
    assert breaches_of_layering(wing)
    assert breaches_of_layering(Module("planyard/core/bad.py", "from planyard.edge import proc"))
    assert breaches_of_layering(Module("planyard/core/bad.py", "import planyard.edge.proc as p"))
    assert breaches_of_layering(Module("images/bad.py", "from builders import image"))
    assert not breaches_of_layering(Module("builders/good.py", "import planyard, smoke, os"))
    assert breaches_of_printing(Module("engines/bad.py", "print('x')"))
    assert breaches_of_printing(Module("engines/bad.py", "import sys\nprint_to(sys.stderr)"))
    assert not breaches_of_printing(Module("engines/good.py", "import sys\nsys.stdin.read()"))
    caller = Module("builders/bad.py", "import subprocess\nsubprocess.run(['true'])")
    assert caller.has("subprocess")
    assert caller.used("subprocess") == {"run"}
    assert not Module("builders/good.py", "from planyard.edge import docker").has("docker")
    assert Module("a.py", "from . import b").tops == {"a-relative-import"}
