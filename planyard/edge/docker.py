"""The Docker engine: the only module that talks to one.

Images are built with the command line (docker-py's build is the old builder without mounts);
everything else goes through the API. Containers run the way production would: no network, a
read-only root, no capabilities, limits. Whatever ends a run, its container is removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planyard.core.errors import ImageBuildError, PlanyardError, SmokeNotRunError
from planyard.edge import proc
from planyard.edge.docker_cli import engine_addresses, find_build_client, tells_something
from planyard.edge.docker_streams import BoundedStreams, Flooded, OnOutput

if TYPE_CHECKING:
    import docker

LABEL = "io.planyard.run"
_BUILD_SECONDS = 3600
_NOT_STARTED = 127  # what a shell says of a command that is not there
_LATE_TRIES, _LATE_SECONDS = 20, 0.1


class EngineError(PlanyardError):
    """The Docker engine does not answer, or refused what was asked."""

    exit_code = ImageBuildError.exit_code


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder or file of this machine inside a container."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, kw_only=True)
class Container:
    """What to run, and within which limits."""

    image: str
    command: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int
    timeout_seconds: float
    user: str | None = None
    gpu: bool = False
    cpus: float | None = None  # cores' time it gets, 0.5 is half a core's; None: no limit


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A container that ended: both streams apart, and whole unless one `flooded` its limit."""

    exit_code: int | None
    seconds: float
    timed_out: bool = False
    out_of_memory: bool = False
    flooded: Flooded = ""
    stdout: bytes = b""
    stderr: bytes = b""


class Engine:
    """A Docker engine that answers at `host` (a `unix://` or `tcp://` address)."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._client: docker.DockerClient | None = None
        self._build_client: tuple[str, ...] | None = None

    @property
    def client(self) -> docker.DockerClient:
        """The API client, made on first use: importing docker-py takes 150 ms."""
        if self._client is None:
            import docker

            if os.environ.get("DOCKER_HOST") == self.host:
                self._client = docker.from_env(timeout=600)
            else:
                self._client = docker.DockerClient(base_url=self.host, timeout=600)
        return self._client

    def answers(self) -> bool:
        """Whether an engine answers at this address."""
        import docker.errors
        import requests

        try:
            return bool(self.client.ping())
        except (docker.errors.DockerException, requests.RequestException, OSError):
            return False

    def close(self) -> None:
        """Let go of the API's connections."""
        if self._client is not None:
            self._client.close()

    def version(self) -> str:
        """The engine's version."""
        return str(self.client.version()["Version"])

    def has_image(self, reference: str) -> bool:
        """Whether the engine holds an image under `reference`."""
        import docker.errors

        try:
            self.client.images.get(reference)
        except docker.errors.ImageNotFound:
            return False
        return True

    def import_root(self, tar: Path, *, tag: str) -> None:
        """Make a one-layer image from a root file system's tar."""
        repository, _, version = tag.partition(":")
        answer = self.client.api.import_image_from_file(str(tar), repository, tag=version)
        if '"error"' in str(answer):
            raise EngineError(f"the engine refused the base {tag}: {answer}")

    def remove_image(self, reference: str) -> None:
        """Remove an image, if it is there and unused."""
        import docker.errors

        with contextlib.suppress(docker.errors.APIError):
            self.client.images.remove(reference, force=False)

    def prune_builds(self) -> None:
        """Drop the build cache: contexts with wheels in them weigh gigabytes."""
        import docker.errors

        with contextlib.suppress(docker.errors.APIError):
            self.client.api.prune_builds()

    def save(self, reference: str, path: Path) -> None:
        """Write the image as a docker archive to `path`."""
        with path.open("wb") as file:
            for piece in self.client.api.get_image(reference, chunk_size=1 << 20):
                file.write(piece)

    def build(self, args: Sequence[str], *, on_line: Callable[[str], None]) -> None:
        """Run a BuildKit build with `args`; raises ImageBuildError with the tail of its log."""
        command = self.build_command()
        environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"}
        try:
            proc.run(
                [*command, "--progress", "plain", *args],
                timeout_seconds=_BUILD_SECONDS,
                env=environment,
                on_line=lambda line: on_line(line) if tells_something(line) else None,
            )
        except proc.ProcessError as error:
            raise ImageBuildError(f"docker build failed: {error}", log_tail=error.tail) from error

    def build_command(self) -> tuple[str, ...]:
        """A client with BuildKit: buildx, or one before 23 that has it built in."""
        if self._build_client is None:
            self._build_client = find_build_client()
        return self._build_client

    def load_layout(self, layout: Path, *, tag: str) -> None:
        """Copy an OCI layout into the engine under `tag`, so that what runs is what is stored."""
        program = proc.find_program("skopeo")
        if not program:
            raise EngineError("skopeo is not installed", mend="planyard setup")
        args = [program, "--insecure-policy", "copy", "--quiet"]
        args += ["--dest-daemon-host", self.host, f"oci:{layout}", f"docker-daemon:{tag}"]
        try:
            proc.run(args, timeout_seconds=1800)
        except proc.ProcessError as error:
            raise EngineError(
                f"skopeo could not load {tag} into the engine: {error}", log_tail=error.tail
            ) from error

    def has_gpu_runtime(self) -> bool:
        """Whether the engine can hand a GPU to a container (`--gpus`)."""
        runtimes = self.client.info().get("Runtimes", {})
        return "nvidia" in runtimes or shutil.which("nvidia-container-runtime-hook") is not None

    def run(self, container: Container, *, on_output: OnOutput | None = None) -> Ended:
        """Run to the end, or to the time limit; the container is gone afterwards, always."""
        import docker.errors

        name = f"planyard-{os.getpid()}-{secrets.token_hex(8)}"
        created = None
        try:
            created = self.client.containers.create(name=name, **_create_arguments(container))
            return _run_created(created, container, on_output)
        except docker.errors.APIError as error:
            if created is None:
                raise SmokeNotRunError(f"the engine refused {container.image}: {error}") from error
            # The image has no such program, or the limits cannot be set: an answer, not a crash.
            said = (error.explanation or str(error)).encode()
            return Ended(exit_code=_NOT_STARTED, seconds=0.0, stderr=said)
        except KeyboardInterrupt:
            for _ in range(_LATE_TRIES if created is None else 0):
                with contextlib.suppress(docker.errors.APIError):
                    created = self.client.containers.get(name)  # made before its answer came
                    break
                time.sleep(_LATE_SECONDS)
            raise
        finally:
            if created is not None:
                with contextlib.suppress(docker.errors.NotFound):
                    created.remove(force=True)


def _create_arguments(container: Container) -> dict[str, Any]:
    import docker.types

    mounts = [
        docker.types.Mount(
            target=mount.target, source=str(mount.source), type="bind", read_only=not mount.writable
        )
        for mount in container.mounts
    ]
    arguments: dict[str, Any] = {
        "image": container.image,
        "entrypoint": [container.command[0]],
        "command": list(container.command[1:]),
        "mounts": mounts,
        "environment": dict(container.environment),
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "tmpfs": {"/tmp": "size=1g,mode=1777"},  # noqa: S108 - inside the container
        "mem_limit": container.memory_bytes,
        "memswap_limit": container.memory_bytes,
        "nano_cpus": None if container.cpus is None else int(container.cpus * 1e9),
        "pids_limit": 1024,
        "labels": {LABEL: str(os.getpid())},
        "user": container.user,
    }
    if container.gpu:
        request = docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])
        arguments["device_requests"] = [request]
    return arguments


def _run_created(created: Any, container: Container, on_output: OnOutput | None) -> Ended:
    # Attached before the start, so that no byte is lost whatever the engine's log driver is.
    streams = created.attach(stdout=True, stderr=True, stream=True, logs=True, demux=True)
    kept, timed_out = BoundedStreams(), threading.Event()
    timer = threading.Timer(container.timeout_seconds, _kill, [created, timed_out])
    # A thread of its own: an engine that kills waits for whoever takes the output, and that is us.
    stopper = threading.Timer(0, _kill, [created, threading.Event()])
    timer.daemon = stopper.daemon = True
    started = time.monotonic()
    created.start()
    timer.start()
    try:
        kept.drain(streams, stop=stopper.start, on_output=on_output)
        status = created.wait()
    except BaseException:
        with contextlib.suppress(Exception):
            streams.close()  # for the same reason: nobody takes it any more
        raise
    finally:
        timer.cancel()
    seconds = time.monotonic() - started
    created.reload()
    return Ended(
        exit_code=None if timed_out.is_set() or kept.flooded else int(status["StatusCode"]),
        timed_out=timed_out.is_set(),
        out_of_memory=bool(created.attrs["State"].get("OOMKilled")),
        flooded=kept.flooded,
        seconds=seconds,
        stdout=bytes(kept.stdout),
        stderr=bytes(kept.stderr),
    )


def _kill(created: Any, killed: threading.Event) -> None:
    import docker.errors

    killed.set()
    with contextlib.suppress(docker.errors.APIError):
        created.kill()


def files_of_context(context: Path, patterns: Sequence[str]) -> list[str]:
    """The paths below `context` that .dockerignore `patterns` let into an image, sorted.

    docker-py always sends Dockerfile and .dockerignore; here they count only if patterns let them.
    """
    from docker.utils.build import exclude_paths

    found = exclude_paths(str(context), list(patterns), dockerfile=".no-dockerfile")
    if set(patterns) & {"*", "**", ".*", ".dockerignore"}:
        found.discard(".dockerignore")
    return sorted(found)


def find_engine() -> Engine | None:
    """The engine that answers, used as it is; None when none does."""
    for host in engine_addresses():
        engine = Engine(host)
        if engine.answers():
            return engine
    return None
