"""A real registry for tests: Debian's docker-registry on loopback, plain HTTP, its own folder.

Docker and skopeo take a registry at 127.0.0.0/8 without TLS; its files are gone with its folder.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from planyard.edge import proc
from planyard.edge.docker import Engine

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


@contextlib.contextmanager
def serve_registry(program: str, folder: Path) -> Iterator[str]:
    """Run a registry with its data below `folder`; gives `127.0.0.1:PORT`."""
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    configuration = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML
    log = folder / "log"
    process = proc.start([program, "serve", str(folder / "config.yml")], log=log)
    try:
        deadline = time.monotonic() + 30
        while not _answers(address):
            said = log.read_text(errors="replace")
            assert process.poll() is None, f"the registry ended: {said}"
            assert time.monotonic() < deadline, f"the registry does not answer: {said}"
            time.sleep(0.05)
        yield address
    finally:
        proc.end_group(process)


def served_digest(address: str, repository: str, reference: str) -> str:
    """The digest under which a registry serves a manifest, as the registry itself says it."""
    connection = http.client.HTTPConnection(address, timeout=30)
    with contextlib.closing(connection):
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        connection.request("HEAD", f"/v2/{repository}/manifests/{reference}", headers=accept)
        answer = connection.getresponse()
        assert answer.status == 200, f"the registry answers {answer.status}"
        return str(answer.headers["Docker-Content-Digest"])


def push_layout(layout: Path, *, to: str) -> None:
    """Push an OCI layout with one image, unchanged."""
    args = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests"]
    proc.run(
        [*args, "--dest-tls-verify=false", f"oci:{layout}", f"docker://{to}"], timeout_seconds=300
    )


def pull_and_run(engine: Engine, reference: str, command: list[str]) -> str:
    """Pull by digest and run, the way production would; gives what it printed. Leaves no image."""
    image = engine.client.images.pull(reference)
    try:
        output = engine.client.containers.run(
            image,
            command,
            remove=True,
            read_only=True,
            network_mode="none",
            cap_drop=["ALL"],
            tmpfs={"/run/planyard": "uid=65532,gid=65532,mode=755"},  # for admission
        )
        return str(output.decode())
    finally:
        engine.remove_image(reference)


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except OSError:
            return False
