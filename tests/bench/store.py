"""Three UNet plans of one family, stored and restored: planyard, borg, restic, cp, rclone, boto3.

Each step is a process of its own; tools take turns within a round, and every round starts from
nothing. No tool compresses: what is compared is finding what is shared, and moving it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planyard.core.digest import digest_of_bytes
from tests.bench import machine
from tests.bench.measure import BenchError, Command, Run, Series, run_once
from tests.bench.nothing_changed import REPOSITORY
from tests.bench.store_table import figures_of
from tests.bench.tables import Section
from tests.servers import find_weed, s3_server

FAMILY = digest_of_bytes(b"the family of the benchmark")
PLANS = ("unet-512-sm89.plan", "unet-1024-sm89.plan", "unet-512-sm120.plan")
_STEPS = (sys.executable, "-m", "tests.bench.store_steps")


@dataclass(kw_only=True)
class Measured:
    """Runs by the name of the step, as `planyard put 1`; bytes that the stores took."""

    series: dict[str, Series] = field(default_factory=dict)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    rollback_ms: list[float] = field(default_factory=list)

    def add(self, name: str, run: Run) -> None:
        """A run of a step."""
        self.series.setdefault(name, Series()).runs.append(run)

    def seconds(self, name: str) -> float | None:
        """The median of a step; None when its tool is not here."""
        found = self.series.get(name)
        return statistics.median(run.wall_seconds for run in found.runs) if found else None

    def peak_bytes(self, tool: str) -> int:
        """The largest memory of any step of a tool."""
        runs = (
            run for name, each in self.series.items() if name.startswith(tool) for run in each.runs
        )
        return max(run.peak_bytes for run in runs)


def measure(scratch: Path, *, plans: Sequence[Path], rounds: int) -> Section:
    """Measure everything; `plans` are three files, the first is the first to be stored."""
    described = machine.describe()
    scratch.mkdir(parents=True, exist_ok=True)
    measured = Measured()
    digests = [_digest(plan) for plan in plans]
    for number in range(rounds):
        folder = scratch / f"round-{number}"
        folder.mkdir()
        try:
            _warm(plans)
            _disk_round(folder, plans, digests, measured)
            if weed := find_weed():
                with s3_server(weed, folder / "s3") as servers:
                    _s3_round(folder, plans, digests, measured, env={**os.environ, **servers})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"round {number + 1} of {rounds} measured", file=sys.stderr, flush=True)
    sizes = ", ".join(f"{plan.stat().st_size:,}" for plan in plans)
    return Section(
        key="store",
        title="Three plans of one family stored",
        machine=described,
        figures=figures_of(measured),
        notes=[
            f"Plans of Stable Diffusion 1.5's UNet (random weights) of {sizes} bytes: 512 and 1024 "
            "for SM 8.9, 512 for SM 12.0. Sources are in the page cache.",
            f"Medians of {rounds} rounds, tools in turns, each step a whole process; no tool "
            "compresses. Planyard and borg flush what they store to the disk; cp and the restores "
            "of all tools do not.",
            "S3 is SeaweedFS on loopback, on the same two cores. Planyard's upload copies from a "
            "directory store, as `planyard store copy` does; a download is verified end to end.",
        ],
    )


def _disk_round(
    folder: Path, plans: Sequence[Path], digests: Sequence[str], measured: Measured
) -> None:
    env = _environment(folder)
    tools = [tool for tool in ("borg", "restic") if shutil.which(tool)]
    for tool in tools:
        _run(_initialized(tool, folder), env=env)
    for number, (plan, digest) in enumerate(zip(plans, digests, strict=True), start=1):
        args = [*_STEPS, "put", _store(folder), FAMILY, str(plan), digest]
        measured.add(f"planyard put {number}", _run(args, env=env))
        for tool in tools:
            args = _stored(tool, folder, plan, number=number)
            measured.add(f"{tool} put {number}", _run(args, env=env))
    measured.stored_bytes = {tool: _size(folder / tool) for tool in ("store", *tools)}
    said = _run([*_STEPS, "rollback", str(folder / "store"), *digests[:2]], env=env).output
    measured.rollback_ms.append(float(said.split()[0]))
    for state in ("warm", "cold"):
        for tool, args in _restores(folder, plans[0], digests[0], tools=tools).items():
            if state == "cold":
                _forget_pages(plans[0], folder)
            measured.add(f"{tool} get {state}", _run(args, env=env))
            shutil.rmtree(folder / "out")
    for tool in tools:
        shutil.rmtree(folder / tool)


def _store(folder: Path) -> str:
    return f"file://{folder / 'store'}"


def _initialized(tool: str, folder: Path) -> list[str]:
    if tool == "borg":
        return ["borg", "init", "--encryption", "none", str(folder / "borg")]
    return ["restic", "init", "--repo", str(folder / "restic")]


def _stored(tool: str, folder: Path, plan: Path, *, number: int) -> list[str]:
    if tool == "borg":
        archive = f"{folder / 'borg'}::{number}"
        return ["borg", "create", "--compression", "none", archive, str(plan)]
    options = ["--repo", str(folder / "restic"), "--compression", "off", "--quiet"]
    return ["restic", *options, "backup", "--tag", str(number), str(plan)]


def _restores(
    folder: Path, plan: Path, digest: str, *, tools: Sequence[str]
) -> dict[str, list[str]]:
    """How each tool restores the first plan; makes the folder it goes to before each run."""
    out = folder / "out"
    found = {
        "planyard": [*_STEPS, "get", _store(folder), digest, str(out / "plan")],
        "cp": ["sh", "-c", 'mkdir "$1" && cp "$0" "$1"', str(plan), str(out)],
    }
    if "restic" in tools:
        options = ["--repo", str(folder / "restic"), "--quiet"]
        restore = ["restore", "latest", "--tag", "1", "--target", str(out)]
        found["restic"] = ["restic", *options, *restore]
    if "borg" in tools:
        extract = 'mkdir "$1" && borg extract --stdout "$0" > "$1/plan"'
        found["borg"] = ["sh", "-c", extract, f"{folder / 'borg'}::1", str(out)]
    return found


def _s3_round(
    folder: Path,
    plans: Sequence[Path],
    digests: Sequence[str],
    measured: Measured,
    *,
    env: Mapping[str, str],
) -> None:
    env = {**_environment(folder), **env}
    env.pop("AWS_CA_BUNDLE", None)  # the server speaks plain HTTP, and rclone refuses to start
    near, far, out = _store(folder), "s3://planyard/store", str(folder / "out.plan")
    for bucket in ("planyard", "boto3", "rclone"):
        _run([*_STEPS, "s3-make", bucket], env=env)
    rclone = shutil.which("rclone")
    for number, (plan, digest) in enumerate(zip(plans[:2], digests[:2], strict=True), start=1):
        args = [*_STEPS, "copy", near, far, digest]
        measured.add(f"planyard up {number}", _run(args, env=env))
        args = [*_STEPS, "s3-up", str(plan), "boto3", str(number)]
        measured.add(f"boto3 up {number}", _run(args, env=env))
        if rclone:
            args = [rclone, "copyto", str(plan), f":s3:rclone/{number}", *_rclone(env)]
            measured.add(f"rclone up {number}", _run(args, env=env))
    steps = {
        "planyard": [*_STEPS, "get", far, digests[0], out],
        "boto3": [*_STEPS, "s3-down", out, "boto3", "1"],
    }
    if rclone:
        steps["rclone"] = [rclone, "copyto", ":s3:rclone/1", out, *_rclone(env)]
    for tool, args in steps.items():
        measured.add(f"{tool} down 1", _run(args, env=env))
        Path(out).unlink()


def _rclone(env: Mapping[str, str]) -> list[str]:
    endpoint = env.get("AWS_ENDPOINT_URL") or env["AWS_ENDPOINT_URL_S3"]
    return ["--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint", endpoint, "--config", ""]


def _environment(folder: Path) -> dict[str, str]:
    """Caches of the tools go with the round."""
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "BORG_BASE_DIR": str(folder / "borg-base"),
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": str(folder / "restic-cache"),
    }


def _run(args: Sequence[str], *, env: Mapping[str, str]) -> Run:
    must_say = "done" if tuple(args[:3]) == _STEPS else ""
    return run_once(Command(args=args, cwd=REPOSITORY, env=env, must_say=must_say))


def _digest(plan: Path) -> str:
    if not plan.is_file():
        raise BenchError(f"{plan} is not there: name a folder with three plans after --plans")
    return _run([*_STEPS, "digest", str(plan)], env=os.environ).output.split()[0]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _warm(plans: Sequence[Path]) -> None:
    for plan in plans:
        with plan.open("rb") as file:
            while file.read(1 << 22):
                pass


def _forget_pages(*places: Path) -> None:
    """Have the kernel drop what it keeps of these files."""
    for place in places:
        for path in [place, *place.rglob("*")]:
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
